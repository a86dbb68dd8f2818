"""Adapters on a live base: the same numbers as a model loaded for them alone, and a clean base behind them."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

import keystone
from adapters import add_adapter, write_adapter
from csf_store import Archive, Digest
from keystone.serve.errors import TooManyModelsError, UnknownModelError
from keystone.serve.host import Host
from keystone.serve.limits import Limits
from keystone.serve.live import LiveBase, read_adapters, variant_of
from manifests import AdapterUse, Repository

CPU = torch.device("cpu")


def put_adapter(archive: Archive, folder: Path, seed: int) -> Digest:
    repository = Repository(archive)
    base = repository.load(repository.resolve("nano")).assembly.base
    torch.manual_seed(seed)
    model = keystone.load("nano", archive=archive, quantization="none", device="cpu").model
    peft = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "up_proj"]))
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    write_adapter(peft, folder)
    return add_adapter(repository, folder, base=base)[0]


def put_manifest(archive: Archive, *uses: AdapterUse) -> Digest:
    repository = Repository(archive)
    nano = repository.load(repository.resolve("nano"))
    lineage = repository.trace((use.adapter for use in uses), base=nano.assembly.base)
    return repository.put(nano.revised(assembly=nano.assembly.revised(adapters=uses), lineage=lineage))


def test_each_variant_computes_what_the_loader_would(own_nano_archive: Path, tmp_path: Path) -> None:
    ids = torch.tensor([[0, 40, 41, 42, 43]])
    with Archive.open(own_nano_archive) as archive, torch.inference_mode():
        first, second = (put_adapter(archive, tmp_path / str(seed), seed) for seed in (1, 2))
        one, half = AdapterUse(adapter=first), AdapterUse(adapter=first, weight=0.5)
        other = AdapterUse(adapter=second)
        bare = keystone.load("nano", archive=archive, quantization="none", device="cpu").model
        live = LiveBase(keystone.load("nano", archive=archive, quantization="none", device="cpu").model)
        expected = {(): bare(input_ids=ids).logits}
        for uses in ((one,), (half,), (one, other)):
            loaded = keystone.load(put_manifest(archive, *uses), archive=archive, quantization="none", device="cpu")
            expected[variant_of(uses)] = loaded.model(input_ids=ids).logits
            live.attach(read_adapters(archive, uses))
        assert len({str(logits) for logits in expected.values()}) == 4
        for variant in (*expected, *reversed(expected)):
            live.select(variant)
            assert torch.equal(live.model(input_ids=ids).logits, expected[variant]), variant
        live.detach(variant_of((half,)))
        live.select(variant_of((one, other)))
        assert torch.equal(live.model(input_ids=ids).logits, expected[variant_of((one, other))])
        live.detach(sorted(live.adapters))
        assert torch.equal(live.model(input_ids=ids).logits, expected[()])
        assert not [name for name, _ in live.model.named_modules() if "lora" in name]


@pytest.mark.parametrize("targets", [(), ("nano",)])
def test_names_refs_digests_prefixes_and_aliases(own_nano_archive: Path, targets: tuple[str, ...]) -> None:
    with Archive.open(own_nano_archive) as archive:
        nano = Repository(archive).resolve("nano")
        host = Host(archive, targets, aliases={"best": "nano"}, quantization="none", device=CPU)
        host.start()
        try:
            assert len(host.loaded()) == len(targets)
            for name in ("nano", "nano:latest", "best", str(nano), nano.hex, nano.hex[:10]):
                with host.lease(name) as lease:
                    assert lease.fingerprint == str(nano)
            for name in ("", "nobody", "../nano", "b3:0000000000", "/etc/passwd", nano.hex[:7]):
                with pytest.raises(UnknownModelError):
                    host.lease(name)
            assert [line.name for line in host.names()] == ["nano", "best"]
        finally:
            host.close()


def test_a_model_stays_as_long_as_it_is_leased_and_kept(own_nano_archive: Path) -> None:
    with Archive.open(own_nano_archive) as archive:
        host = Host(archive, quantization="none", device=CPU)
        host.start()
        try:
            lease = host.lease("nano")
            assert host.unload("nano")
            assert len(host.loaded()) == 1
            lease.release()
            lease.release()
            host.refresh()
            assert (host.loaded(), host.bases()) == ((), ())
            with host.lease("nano") as again:
                host.keep(again.served, float("inf"))
            host.refresh()
            assert len(host.bases()) == 1
        finally:
            host.close()


def test_another_base_waits_until_one_is_idle(own_nano_archive: Path) -> None:
    with Archive.open(own_nano_archive) as archive:
        repository = Repository(archive)
        manifest = repository.load(repository.resolve("nano"))
        recipe = keystone.load("nano", archive=archive, quantization="int8", device="cpu").recipe
        other = repository.put(manifest.revised(recipe=recipe))
        plain = keystone.load("nano", archive=archive, quantization="none", device="cpu").recipe
        first = repository.put(manifest.revised(recipe=plain))
        host = Host(archive, device=CPU, limits=Limits(models=1))
        host.start()
        try:
            lease = host.lease(str(first))
            with pytest.raises(TooManyModelsError):
                host.lease(str(other))
            lease.release()
            with host.lease(str(other)) as second:
                assert second.served.base.recipe.quantization == "int8"
            assert len(host.bases()) == 1
        finally:
            host.close()
