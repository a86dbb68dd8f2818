"""What a model has to fit into: the memory of a card, or of this machine, as asked for or as found.

What is found is what is *free now*, and where the number comes from is always said: a card through torch or
`nvidia-smi`, else the kernel's estimate of available memory, cut to the limit of the control group that a container
runs in.
"""

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from keystone.errors import InvalidInputError, RefusedError

_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", start=1):
    _UNITS |= {_letter: 1000**_power, f"{_letter}b": 1000**_power, f"{_letter}ib": 1024**_power}

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Box:
    """Where a model would run.

    Attributes:
        kind: memory of a card, or of the machine.
        nbytes: how much of it there is for a model.
        device: what torch calls it.
        source: where the number comes from.
    """

    kind: Literal["vram", "ram"]
    nbytes: int
    device: str
    source: str


def parse_size(text: str) -> int:
    """Bytes of a size as people write it: `8GB` is 8e9, `8GiB` is 2**33.

    Raises:
        InvalidInputError: it is no size.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if not found or found[2].lower() not in _UNITS or float(found[1]) <= 0:
        raise InvalidInputError(f"{text!r} is no size of memory; write it like 8GB, 7.5GiB or 800MB")
    return int(float(found[1]) * _UNITS[found[2].lower()])


def find_box(*, vram: int | None = None, ram: int | None = None, device: str | None = None) -> Box:
    """The box that is asked for, else the first card, else this machine's memory.

    Raises:
        InvalidInputError: both kinds of memory were asked for, or a device of an unknown kind.
        RefusedError: a card is asked for and none is found, or nobody knows how much memory there is.
    """
    if vram is not None and ram is not None:
        raise InvalidInputError("say either --vram or --ram: a model runs in one of them")
    kind, _, number = (device or "").partition(":")
    if kind not in ("", "cpu", "cuda"):
        raise InvalidInputError(f"{device!r} is no device that fit knows; say cpu, cuda or cuda:1")
    if vram is not None:
        return Box("vram", vram, device or "cuda", "as asked")
    if ram is not None:
        return Box("ram", ram, "cpu", "as asked")
    card = None if kind == "cpu" else _card(int(number or 0))
    if card is not None:
        return card
    if kind == "cuda":
        raise RefusedError(f"no NVIDIA card {number or 0} was found; say how much memory it has with --vram 8GB")
    return _machine()


def _card(index: int) -> Box | None:
    return _card_of_torch(index) or _card_of_nvidia_smi(index)


def _card_of_torch(index: int) -> Box | None:
    import torch  # noqa: PLC0415 - sizes can be parsed without it

    if not torch.cuda.is_available() or index >= torch.cuda.device_count():
        return None
    free, total = torch.cuda.mem_get_info(index)
    name = torch.cuda.get_device_name(index)
    return Box("vram", int(free), f"cuda:{index}", f"free of {total / 1e9:.1f} GB on {name}, says torch")


def _card_of_nvidia_smi(index: int) -> Box | None:
    """A card that this torch was not built for is still worth knowing about."""
    query = ["nvidia-smi", "--query-gpu=memory.free,memory.total,name", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return _read_nvidia_smi(answer.splitlines(), index)


def _read_nvidia_smi(lines: Sequence[str], index: int) -> Box | None:
    if index >= len(lines):
        return None
    fields = [field.strip() for field in lines[index].split(",", 2)]
    if len(fields) != 3 or not fields[0].isdigit() or not fields[1].isdigit():
        return None
    free, total, name = int(fields[0]) << 20, int(fields[1]) << 20, fields[2]
    return Box("vram", free, f"cuda:{index}", f"free of {total / 1e9:.1f} GB on {name}, says nvidia-smi")


def _machine() -> Box:
    available = _meminfo("MemAvailable")
    if available is None:
        raise RefusedError("how much memory is free cannot be read here; say it with --ram 16GB")
    limit = _control_group()
    if limit is not None and limit < available:
        return Box("ram", limit, "cpu", "free under this container's limit")
    return Box("ram", available, "cpu", "available now, says /proc/meminfo")


def _meminfo(field: str) -> int | None:
    try:
        for line in _MEMINFO.read_text().splitlines():
            name, _, rest = line.partition(":")
            if name == field:
                return int(rest.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _control_group() -> int | None:
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
        return None if limit == "max" else max(0, int(limit) - used)
    except (OSError, ValueError):
        return None
