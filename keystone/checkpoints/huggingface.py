"""A local Hugging Face directory, sorted into what a base is made of and what it is not.

The base tree gets the configuration and the weights, the tokenizer tree the tokenizer's files; a model card, a licence
text and everything else belong to neither and are reported as left out. Pickled weights are never read: beside
safetensors they are left out, alone they are refused. A link is refused, except for those a Hub cache consists of,
which stay inside it.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from keystone.checkpoints.families import FAMILIES, read_family
from keystone.checkpoints.fields import parse_object
from keystone.checkpoints.licences import UNKNOWN, Card, claim_labels, licence_of_text, plain, read_card
from keystone.checkpoints.loopcoder import LAYOUTS, MODEL_TYPES, read_loopcoder
from keystone.checkpoints.names import our_name
from keystone.checkpoints.safetensors_files import converted, read_file
from keystone.checkpoints.sentencepiece_file import with_tokenizer_json
from keystone.checkpoints.sources import Checkpoint, Fields, Note, Origin, SourceTensor
from keystone.errors import CheckpointError, InvalidInputError, RefusedError
from keystone.model import KeystoneConfig

CONFIG, GENERATION = "config.json", "generation_config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ROTARY_TABLE = "rotary_emb.inv_freq"
CARD = "README.md"
LICENCES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "COPYING")
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".msgpack", ".h5", ".ot", ".joblib", ".npy", ".npz")
MAX_SMALL_FILE = 256 << 20
"""No file beside the weights is larger; tokenizers of many languages take some 30 MB."""

_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}\.safetensors")


@dataclass(frozen=True)
class Choices:
    """What the importing person decides.

    Attributes:
        licence: an SPDX expression that goes before what the files say.
        dtype: the safetensors code to store weights in; None keeps a directory's own, and means bf16 for GGUF.
        ignored: fields of the configuration declared harmless.
        tokenizer: a directory to take the tokenizer from; None takes the source's own.
    """

    licence: str | None = None
    dtype: str | None = None
    ignored: tuple[str, ...] = ()
    tokenizer: Path | None = None


def read_directory(directory: Path, choices: Choices, *, origin: Callable[[Card], Origin] | None = None) -> Checkpoint:
    """Read a directory as a checkpoint; nothing of a weight is read yet.

    Args:
        directory: holds `config.json`, safetensors files and usually a tokenizer.
        choices: what the importing person decides.
        origin: says where it came from, given its card; default: a directory of this name.

    Raises:
        InvalidInputError: it is no such directory, or holds links.
        RefusedError: its weights are pickles.
        CheckpointError: its index or a safetensors file is broken or incomplete.
        ConfigurationError: its configuration cannot be honoured.
    """
    files = _list(directory)
    if CONFIG not in files:
        raise InvalidInputError(f"{directory.name} holds no {CONFIG}; a checkpoint directory does")
    fields = parse_object(_small(files, CONFIG), CONFIG)
    config, config_json, layout, notes = _configuration(fields, files, choices.ignored)
    shards, named = _shards(files)
    tensors = tuple(tensor for name in shards for tensor in read_file(files[name]))
    if choices.dtype is not None:
        tensors = tuple(converted(tensor, choices.dtype) for tensor in tensors)
    generation = _small(files, GENERATION) if GENERATION in files else None
    if generation is not None:
        parse_object(generation, GENERATION)
    card = _card(files)
    used = {CONFIG, GENERATION, *shards, *TOKENIZER}
    return Checkpoint(
        layout=layout,
        config=config,
        config_json=config_json,
        generation_json=generation,
        tensors=tensors,
        files={name: files[name] for name in shards},
        rename=our_name,
        tokenizer=tokenizer_files(directory if choices.tokenizer is None else choices.tokenizer),
        origin=_with_facts((origin or _directory_origin(directory))(card), card, choices, _licence_text(files), layout),
        notes=(*notes, *_left_out(directory, files, used)),
        headless=not shards,
        named=named,
    )


def tokenizer_files(directory: Path) -> dict[str, bytes]:
    """The tokenizer's files of a directory, by name; it may have none.

    Where there is only a SentencePiece `tokenizer.model`, the `tokenizer.json` that does the same is among them.

    Raises:
        InvalidInputError: they are links, or the SentencePiece model is not one that is rebuilt here.
    """
    files = _list(directory)
    return with_tokenizer_json({name: _small(files, name) for name in TOKENIZER if name in files})


def _configuration(
    fields: Fields, files: Mapping[str, Path], ignored: Collection[str]
) -> tuple[KeystoneConfig, bytes, str, tuple[Note, ...]]:
    model_type = fields.get("model_type")
    if isinstance(model_type, str) and model_type in MODEL_TYPES:
        config, notes = read_loopcoder(fields, ignored=ignored)
        return config, _small(files, CONFIG), LAYOUTS[model_type], notes
    config, config_json, notes = read_family(fields, ignored=ignored)
    return config, config_json, str(model_type) if model_type in FAMILIES else "", notes


def _list(directory: Path) -> dict[str, Path]:
    """The plain files at the top of a directory, by name, links of a Hub cache followed."""
    if not directory.is_dir():
        raise InvalidInputError(f"{directory.name} is not a directory")
    store = directory.resolve().parent.parent / "blobs"
    files = {}
    for path in sorted(directory.iterdir()):
        if path.is_symlink() and path.resolve().parent != store:
            if path.name in (CONFIG, GENERATION, *TOKENIZER) or path.suffix == ".safetensors":
                raise InvalidInputError(f"{path.name} is a symbolic link; replace it by the file it points to")
            continue
        if path.is_file():
            files[path.name] = path
    return files


def _small(files: Mapping[str, Path], name: str) -> bytes:
    if files[name].stat().st_size > MAX_SMALL_FILE:
        raise InvalidInputError(f"{name} has {files[name].stat().st_size} bytes; that is no {name}")
    return files[name].read_bytes()


def _shards(files: Mapping[str, Path]) -> tuple[list[str], tuple[str, ...] | None]:
    """The weights files to read, and the tensor names of an index without any of its files."""
    if INDEX in files:
        return _indexed(files)
    if WEIGHTS in files:
        return [WEIGHTS], None
    found = [name for name in files if name.endswith(".safetensors")]
    if any(name.startswith("adapter_model") for name in found):
        raise InvalidInputError("this is an adapter, not a base; `keystone adapter add` takes it")
    if found:
        return found, None
    pickled = [name for name in files if name.lower().endswith(PICKLES)]
    if pickled:
        refuse_pickles(pickled)
    return [], None


def refuse_pickles(names: Sequence[str]) -> None:
    """Refuse a checkpoint whose weights are pickles only.

    Raises:
        RefusedError: always; the files are named, with the reason and what to do.
    """
    raise RefusedError(
        f"the weights are {', '.join(names[:4])}: pickles run code when they are read, and are never read here; convert"
        " them to safetensors (transformers: save_pretrained) on a machine you can afford to lose"
    )


def check_index(document: Fields) -> Mapping[str, str]:
    """The weight map of an index: tensor name to file name.

    Raises:
        CheckpointError: it is malformed, or points to anything but a safetensors file beside it.
    """
    weight_map = document.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{INDEX} has no weight_map")
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not _PLAIN_NAME.fullmatch(name):
            raise CheckpointError(
                f"{INDEX} puts {tensor} in {name!r}; a safetensors file beside the index is the only place allowed"
            )
    return weight_map


def _indexed(files: Mapping[str, Path]) -> tuple[list[str], tuple[str, ...] | None]:
    weight_map = check_index(parse_object(_small(files, INDEX), INDEX))
    names = sorted(set(weight_map.values()))
    absent = [name for name in names if name not in files]
    if len(absent) == len(names):
        # The index of shards that somebody has merged since.
        return ([WEIGHTS], None) if WEIGHTS in files else ([], tuple(weight_map))
    if absent:
        raise CheckpointError(f"{INDEX} names {', '.join(absent[:4])}, and the directory does not hold it; fetch it")
    held = {name: {tensor.name for tensor in read_file(files[name])} for name in names}
    for tensor, name in weight_map.items():
        # Old indexes go on listing rotary tables that were dropped when pickles became safetensors.
        if tensor not in held[name] and not tensor.endswith(ROTARY_TABLE):
            raise CheckpointError(f"{INDEX} puts {tensor} in {name}, which does not hold it; fetch both again")
    return names, None


def _card(files: Mapping[str, Path]) -> Card:
    return read_card(_text(files, CARD)) if CARD in files else Card()


def _licence_text(files: Mapping[str, Path]) -> str | None:
    found = [licence_of_text(_text(files, name)) for name in LICENCES if name in files]
    return next((licence for licence in found if licence), None)


def _text(files: Mapping[str, Path], name: str) -> str:
    with files[name].open("rb") as file:
        return file.read(128 << 10).decode("utf-8", "replace")


def _directory_origin(directory: Path) -> Callable[[Card], Origin]:
    name = plain(directory.resolve().name) or "a directory"
    return lambda card: Origin("directory", name, card.licence or UNKNOWN)


def _with_facts(origin: Origin, card: Card, choices: Choices, text: str | None, layout: str) -> Origin:
    licence = choices.licence or card.licence or text or UNKNOWN
    labels = {**origin.labels, **claim_labels(card), "layout": layout}
    if layout == LAYOUTS["iquestpltcoder"]:
        labels["verified"] = "false"  # until a parity report says that our numbers are the vendor's
    if choices.ignored:
        labels["ignored-fields"] = plain(", ".join(sorted(choices.ignored)))
    return Origin(origin.kind, origin.location, licence, origin.note, labels)


def _left_out(directory: Path, files: Mapping[str, Path], used: Collection[str]) -> Iterator[Note]:
    for path in sorted(directory.iterdir()):
        name = path.name
        if name in used:
            continue
        if name not in files:
            reason = "a directory" if path.is_dir() else "not a plain file"
        elif name.lower().endswith(PICKLES):
            reason = "not safetensors: it may hold pickles, and is never read"
        elif name.endswith(".safetensors"):
            reason = "weights that the index does not name" if INDEX in files else f"weights beside {WEIGHTS}"
        elif name == INDEX:
            reason = "the archive knows which file holds which tensor"
        else:
            reason = "neither configuration, weights nor tokenizer"
        yield Note("file", plain(name), reason)


def whole_files(checkpoint: Checkpoint, kept: Collection[SourceTensor]) -> dict[str, Path]:
    """The weights files all of whose tensors go into the base under their own names: these are stored as they are."""
    names = {id(tensor) for tensor in kept}
    changed = {
        tensor.file
        for tensor in checkpoint.tensors
        if id(tensor) not in names or checkpoint.rename(tensor.name) != tensor.name or tensor.stored
    }
    return {name: path for name, path in checkpoint.files.items() if name not in changed}
