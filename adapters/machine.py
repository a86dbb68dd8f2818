"""The machine a training ran on, as far as it decides the numbers: libraries, threads, instruction set, device.

Floating-point sums depend on the order of their terms, and that order on how many threads share the work, on how wide a
vector register is and on which kernel a library picks. Where all of this is equal, equal runs are equal to the last
bit; where it differs, two different results say nothing.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

from manifests import TrainingRecord

if TYPE_CHECKING:
    import torch

_LIBRARIES = ("numpy", "peft", "safetensors", "torch", "transformers")


@dataclass(frozen=True, slots=True)
class Machine:
    """What a training record says of where it ran; see `manifests.TrainingRecord` for the fields."""

    device: str
    threads: int
    capability: str
    libraries: dict[str, str]

    @classmethod
    def here(cls, device: torch.device, *, also: Iterable[str] = ()) -> Machine:
        """This machine, now.

        Args:
            device: where the model is.
            also: further libraries that compute, bitsandbytes for instance.
        """
        import torch  # noqa: PLC0415  # lazy: `import adapters` stays light

        names = sorted({*_LIBRARIES, *also})
        return cls(
            device=f"cuda {torch.cuda.get_device_name(device)}" if device.type == "cuda" else device.type,
            threads=torch.get_num_threads(),
            capability=_capability(),
            libraries={"python": platform.python_version(), **{name: version(name) for name in names}},
        )

    def differences(self, record: TrainingRecord) -> list[str]:
        """What of this machine is not as it was when a record was made, in words; empty where nothing is known."""
        told = {**record.libraries}
        found = [
            f"{name} {told.get(name, 'missing')} then, {self.libraries.get(name, 'missing')} now"
            for name in sorted(told.keys() | self.libraries.keys())
            if told.get(name) != self.libraries.get(name)
        ]
        for what, then, now in (
            ("device", record.device, self.device),
            ("threads", record.threads, self.threads),
            ("instruction set", record.capability, self.capability),
        ):
            if then != now:
                found.append(f"{what} {then} then, {now} now")
        return found


def _capability() -> str:
    """The processor's architecture, the vectors that torch uses on it, and what else its kernels may pick up."""
    import torch  # noqa: PLC0415  # lazy: see above

    extras = [name for name in ("vnni", "avx512_bf16", "amx_tile", "amx_fp16") if _supports(name)]
    return " ".join([platform.machine(), torch.backends.cpu.get_cpu_capability(), *extras])


def _supports(name: str) -> bool:
    import torch  # noqa: PLC0415  # lazy: see above

    probe = getattr(torch.cpu, f"_is_{name}_supported", None)  # private, and not in every release
    return probe is not None and bool(probe())
