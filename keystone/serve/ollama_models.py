"""How Ollama's API describes models: those that are served, those that are in memory, and one in full."""

import math
from datetime import UTC, datetime, timedelta
from typing import Any

from csf_store import Digest
from keystone.serve.holding import Served
from keystone.serve.host import Host, Lease, ModelName
from keystone.serve.tools import takes_tools
from manifests import Manifest

Json = dict[str, Any]


def _details(manifest: Manifest, family: str, quantization: str, parameters: int) -> Json:
    parent = manifest.parent
    return {
        "parent_model": "" if parent is None else str(parent),
        "format": "csf",
        "family": family,
        "families": [family],
        "parameter_size": f"{parameters / 1e9:.1f}B" if parameters >= 10**9 else f"{parameters / 1e6:.1f}M",
        "quantization_level": quantization,
    }


def _size(host: Host, manifest: Manifest) -> int:
    return sum(entry.size for entry in host.archive.tree(manifest.assembly.base).entries)


def tag(host: Host, line: ModelName) -> Json:
    """A line of `/api/tags`."""
    quantization = "default" if line.manifest.recipe is None else line.manifest.recipe.quantization
    size = _size(host, line.manifest)
    return {
        "name": line.name,
        "model": line.name,
        "modified_at": datetime.fromtimestamp(line.created, UTC).isoformat(),
        "size": size,
        "digest": line.digest.hex,
        "details": {**_details(line.manifest, "keystone_plt", quantization, 0), "parameter_size": ""},
    }


def loaded(host: Host, served: Served, names: dict[Digest, str]) -> Json:
    """A line of `/api/ps`."""
    name = names.get(served.digest, str(served.digest))
    wait = min(served.keep, timedelta(days=365).total_seconds()) if math.isfinite(served.keep) else 0.0
    recipe = served.base.recipe
    config = served.base.checkpoint.config
    parameters = sum(math.prod(info.shape) for info in served.base.checkpoint.tensors.values())
    size = _size(host, served.manifest)
    return {
        "name": name,
        "model": name,
        "size": size,
        "size_vram": 0 if not served.base.engine.on_card else size,
        "digest": served.digest.hex,
        "details": _details(served.manifest, config.model_type, recipe.quantization, parameters),
        "expires_at": (datetime.now(UTC) + timedelta(seconds=wait)).isoformat(),
        "context_length": config.max_position_embeddings,
    }


def shown(lease: Lease) -> Json:
    """`/api/show`."""
    served = lease.served
    config, recipe = served.base.checkpoint.config, served.base.recipe
    parameters = sum(math.prod(info.shape) for info in served.base.checkpoint.tensors.values())
    family = config.model_type
    assembly = served.manifest.assembly
    source = served.manifest.source
    return {
        "license": "" if source is None else source.licence,
        "modelfile": f"# served by keystone\nFROM {served.digest}\n",
        "parameters": "",
        "template": served.base.tokenizer.chat_template or "",
        "details": _details(served.manifest, family, recipe.quantization, parameters),
        "model_info": {
            "general.architecture": family,
            "general.basename": lease.name,
            "general.parameter_count": parameters,
            f"{family}.context_length": config.max_position_embeddings,
            f"{family}.embedding_length": config.hidden_size,
            f"{family}.block_count": config.num_hidden_layers,
            f"{family}.loop_count": config.plt_num_loops,
            "keystone.manifest": str(served.digest),
            "keystone.base": str(assembly.base),
            "keystone.adapters": [str(use.adapter) for use in assembly.adapters],
            "keystone.recipe": str(recipe.digest),
        },
        "capabilities": ["completion", "tools"] if takes_tools(served.base.tokenizer) else ["completion"],
        "modified_at": now(),
    }


def now() -> str:
    """This moment, as the API writes it."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")
