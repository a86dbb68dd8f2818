"""What the export tests share: small bases of every shape, adapters for them, and a reader without this package."""

import json
import subprocess
import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

import keystone
from adapters import add_adapter, write_adapter
from csf_store import Archive, Digest
from keystone import KeystoneConfig, KeystoneForCausalLM
from keystone.nano.embedded import DATA
from manifests import AdapterUse, Assembly, Manifest, Repository, Source

PARITY = Path(__file__).parents[2] / "parity"
IDS = torch.tensor([[5, 9, 17, 200, 31, 8, 90, 4, 4, 77, 150, 61]])

# What a machine without this package does: the packages cannot be imported, everything else can.
_READER = """
import importlib.abc, json, sys

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"keystone", "manifests", "adapters", "csf_store"}:
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Blocker())
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
DIR, out, ids = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
"""


def read_elsewhere(directory: Path, usage: str, tmp_path: Path, ids: Tensor = IDS) -> tuple[Tensor, str]:
    """Run the snippet of a model card in a process that cannot import this package; logits, and the class's name."""
    out = tmp_path / "elsewhere.pt"
    script = (
        _READER
        + usage
        + """
model = model.eval()
with torch.inference_mode():
    logits = model(torch.tensor(ids)).logits
generated = model.generate(input_ids=torch.tensor(ids), max_new_tokens=3, do_sample=False, pad_token_id=0)
assert generated.shape[1] >= len(ids[0]) + 1
assert not any(name.split(".")[0] in {"keystone", "manifests", "adapters", "csf_store"} for name in sys.modules)
assert tokenizer.decode(tokenizer("def f(x):")["input_ids"], skip_special_tokens=True) == "def f(x):"
from safetensors.torch import save_file
save_file({"logits": logits}, out, {"class": type(model).__name__})
print(type(model).__name__)
"""
    )
    environment = {
        "PATH": "/usr/bin:/bin",
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
        "HOME": str(tmp_path),
    }
    command = [sys.executable, "-I", "-c", script, str(directory), str(out), json.dumps(ids.tolist())]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    return load_file(out)["logits"], outcome.stdout.split()[-1]


def usage_of(directory: Path) -> str:
    """The Python of a model card, joined: what a reader is told to run."""
    blocks = (directory / "README.md").read_text().split("```python\n")[1:]
    return "\n".join(block.split("```")[0] for block in blocks)


def write_base(
    directory: Path, *, shards: int = 1, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: object
) -> Path:
    """A small random base as a directory."""
    fields: dict[str, object] = {
        "vocab_size": 4096,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "plt_num_loops": 1,
        "plt_emb_scale": 0.7,
        "plt_hidden_scale": 0.2,
        "plt_window_size": [4, 0],
        "plt_normalize_per_loop": True,
        "plt_gate_use_hidden_states": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }
    config = KeystoneConfig.from_dict({**fields, **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = KeystoneForCausalLM(config)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.data.normal_(std=0.1)
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config.to_dict()))
    tensors = {name: tensor.detach().to(dtype).contiguous() for name, tensor in model.named_parameters()}
    names = sorted(tensors)
    for number in range(shards):
        part = {name: tensors[name] for name in names[number::shards]}
        path = "model.safetensors" if shards == 1 else f"part{number}.safetensors"
        save_file(part, directory / path, {"format": "pt"})
    return directory


def put_base(archive: Archive, directory: Path, *uses: AdapterUse, tokenizer: Path = DATA / "tokenizer") -> Digest:
    """A manifest of a base directory with nano's tokenizer."""
    return put_manifest(archive, archive.put_tree(directory).digest, *uses, tokenizer=tokenizer)


def put_manifest(
    archive: Archive, base: Digest, *uses: AdapterUse, tokenizer: Path = DATA / "tokenizer", **changes: object
) -> Digest:
    repository = Repository(archive)
    manifest = Manifest(
        assembly=Assembly(base=base, tokenizer=archive.put_tree(tokenizer).digest, adapters=uses),
        source=Source(kind="directory", location="a test", licence="Apache-2.0"),
        lineage=repository.trace((use.adapter for use in uses), base=base),
    )
    return repository.put(manifest.revised(**changes))


def put_adapter(
    archive: Archive, base: Digest, directory: Path, tmp_path: Path, *, seed: int, **settings: object
) -> Digest:
    """A LoRA with weights that matter, made by PEFT for a base directory."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = KeystoneForCausalLM.from_pretrained(directory)
        config = LoraConfig(
            **{"r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"], "lora_alpha": 6, **settings},
            init_lora_weights=False,
            task_type="CAUSAL_LM",
        )
        wrapped = get_peft_model(model, config)
        for name, parameter in wrapped.named_parameters():
            if "modules_to_save.default" in name:
                parameter.data.add_(torch.randn_like(parameter) * 0.3)
        written = write_adapter(wrapped, tmp_path / f"lora{seed}")
    return add_adapter(Repository(archive), written, base=base)[0]


def our_logits(archive: Archive, manifest: Digest, ids: Tensor = IDS) -> Tensor:
    with torch.inference_mode():
        return keystone.load(manifest, archive=archive, quantization="none", device="cpu").model(ids).logits
