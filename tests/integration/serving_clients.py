"""A server on nano for tests of the APIs: one base, one adapter on it, refs to both."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

import keystone
from adapters import add_adapter, write_adapter
from csf_store import Archive, Digest
from keystone.serve.app import make_app
from keystone.serve.host import Host
from keystone.serve.limits import Limits
from keystone.serve.running import background
from keystone.serve.tokens import BearerTokens
from manifests import AdapterUse, Manifest, Repository
from manifests.refs import Refs


@dataclass
class Server:
    url: str
    host: Host
    archive: Archive
    nano: Digest
    tuned: Digest

    @property
    def refs(self) -> Refs:
        return Repository(self.archive).refs


def random_adapter(
    repository: Repository, base: Digest, folder: Path, *, seed: int = 0, strength: float = 0.2
) -> Digest:
    """A LoRA that visibly changes what nano says."""
    torch.manual_seed(seed)
    model = keystone.load("nano", archive=repository.archive, quantization="none", device="cpu").model
    peft = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"]))
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=strength)
    write_adapter(peft, folder)
    return add_adapter(repository, folder, base=base)[0]


@contextmanager
def server_on(
    nano_archive: Path,
    folder: Path,
    *targets: str,
    aliases: dict[str, str] | None = None,
    limits: Limits | None = None,
    tokens: BearerTokens | None = None,
) -> Iterator[Server]:
    path = Path(shutil.copytree(nano_archive, folder / "archive"))
    with Archive.open(path) as archive:
        repository = Repository(archive)
        nano = repository.resolve("nano")
        manifest = repository.load(nano)
        adapter = random_adapter(repository, manifest.assembly.base, folder / "adapter")
        tuned = repository.put(with_adapter(repository, nano, adapter))
        repository.refs.set("tuned", tuned, expected=None)
        host = Host(archive, targets, aliases=aliases, quantization="none", device=torch.device("cpu"), limits=limits)
        host.start()
        try:
            with background(make_app(host, tokens=tokens)) as url:
                yield Server(url, host, archive, nano, tuned)
        finally:
            host.close()


def with_adapter(repository: Repository, parent: Digest, adapter: Digest, weight: float = 1.0) -> Manifest:
    manifest = repository.load(parent)
    return manifest.revised(
        assembly=manifest.assembly.revised(adapters=(AdapterUse(adapter=adapter, weight=weight),)),
        parent=parent,
        lineage=repository.trace([adapter], base=manifest.assembly.base),
    )
