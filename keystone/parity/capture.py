"""`capture`: everything the owner of a base needs to run the vendor's engine on fixed inputs."""

from pathlib import Path

import torch
from safetensors.torch import save

from csf_store import Archive, Digest
from keystone.checkpoints import archived_tokenizer
from keystone.checkpoints.export.source import open_source
from keystone.checkpoints.export.writing import ExportDirectory
from keystone.parity.specification import PROMPTS, ParityInput, Specification, fixed_inputs
from keystone.parity.verified import BARS

SPEC_FILE = "spec.json"
INPUTS_FILE = "inputs.safetensors"
SCRIPT_FILE = "reference.py"
_SCRIPT = Path(__file__).with_name("reference.py")


def capture(
    archive: Archive,
    target: str | Digest,
    out: Path,
    *,
    inputs: tuple[ParityInput, ...] | None = None,
    dtypes: tuple[str, ...] = tuple(BARS),
) -> Specification:
    """Write `spec.json`, `inputs.safetensors` and `reference.py` into a new directory.

    Args:
        archive: where the manifest is.
        target: a manifest's digest, a unique prefix of it, or a ref.
        out: the directory to make.
        inputs: other sequences than the fixed ones.
        dtypes: what to run them in.

    Raises:
        OutputExistsError, StorageError, InvalidInputError: about the place to write to.
        CheckpointError, ConfigurationError, csf_store.CsfError, manifests.ManifestError: about the base.
    """
    source = open_source(archive, target)
    config, assembly = source.config, source.manifest.assembly
    if inputs is None:
        tokenizer = archived_tokenizer(archive, assembly.tokenizer)
        texts = [(prompt, tokenizer(prompt)["input_ids"]) for prompt in PROMPTS]
        inputs = fixed_inputs(config.vocab_size, config.window_keys if config.plt_num_loops > 1 else 1, texts)
    specification = Specification(assembly.base, config.vocab_size, dtypes, inputs)
    tensors = {f"{given.name}.input_ids": torch.tensor(given.ids, dtype=torch.int64) for given in inputs}
    with ExportDirectory(out, force=False) as directory:
        directory.write(SPEC_FILE, specification.to_bytes())
        directory.write(INPUTS_FILE, save(tensors))
        directory.write(SCRIPT_FILE, _SCRIPT.read_bytes())
    return specification
