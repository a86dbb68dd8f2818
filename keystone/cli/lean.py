"""Importing transformers and bitsandbytes without what a model that only answers never uses.

transformers' modeling code and bitsandbytes import torch's compiler (and with it sympy and the tracing machinery) and
torch's distributed tensors, for decorators and type checks. That is half of the time from `keystone load` to the first
token. While these imports run in a command's own process, the compiler's decorators hand functions back unchanged, the
one class that is taken from the compiler is fetched when it is first used, and torch says that it is not distributed.
Eager results are the same: a test compares them. Code that wants the compiler can still import it afterwards.

Only command lines do this, never the library: it is not for a library to change what others import.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from types import ModuleType
from typing import Any

_COMPILER = "torch._dynamo"
_TRACE_MODULE = "torch._dynamo._trace_wrapped_higher_order_op"
_TRACE_CLASS = "TransformGetItemToIndex"
_UNUSED = ("accelerate", "scipy", "sklearn", "torchvision")


def import_lean(*, bitsandbytes: bool) -> None:
    """Import the model code, and bitsandbytes if weights may be quantized or adapted, as lean as that goes.

    Does nothing where transformers was imported already, by whoever, and falls back on the plain imports where a
    version of transformers wants more of the compiler than this knows of.
    """
    if "transformers.modeling_utils" in sys.modules:
        return
    # What is still missing is imported as usual by whoever needs it, and whoever needs it will hear why it failed.
    with suppress(Exception), _without_compiler(), _without_distributed(), _without_packages():
        import_module("keystone.loader")
        if bitsandbytes:
            import_module("keystone.quantize.bitsandbytes_guards").bitsandbytes("nn")


@contextmanager
def _without_compiler() -> Iterator[None]:
    import torch  # noqa: PLC0415 - heavy

    # Kernels are registered as what must not be traced, which is looked up when they are first called.
    places: list[tuple[Any, str]] = [(torch, "compile"), (torch, "_disable_dynamo"), (torch.compiler, "disable")]
    before = [getattr(place, name) for place, name in places]
    stubs = {} if _COMPILER in sys.modules else {_COMPILER: _stub_compiler(), _TRACE_MODULE: _stub_trace_module()}
    sys.modules.update(stubs)
    for place, name in places:
        setattr(place, name, _unchanged)
    try:
        yield
    finally:
        for (place, name), value in zip(places, before, strict=True):
            setattr(place, name, value)
        for name, stub in stubs.items():
            if sys.modules.get(name) is stub:
                del sys.modules[name]


@contextmanager
def _without_distributed() -> Iterator[None]:
    """Let transformers believe, once and for all, what is true: this process runs on one machine."""
    import torch.distributed  # noqa: PLC0415 - heavy

    distributed: Any = torch.distributed
    before = distributed.is_available
    distributed.is_available = lambda: False
    try:
        yield
    finally:
        distributed.is_available = before


@contextmanager
def _without_packages() -> Iterator[None]:
    """Let transformers not find what it only needs for detection losses, early stopping and sharded loading."""
    hidden = [name for name in _UNUSED if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # what the import system takes for "not there"
    try:
        yield
    finally:
        for name in hidden:
            if sys.modules.get(name, ...) is None:
                del sys.modules[name]


def _stub_compiler() -> ModuleType:
    stub: Any = ModuleType(_COMPILER)
    for decorator in ("allow_in_graph", "assume_constant_result", "disable", "disallow_in_graph", "graph_break"):
        setattr(stub, decorator, _unchanged)
    return stub  # type: ignore[no-any-return]


def _stub_trace_module() -> ModuleType:
    stub: Any = ModuleType(_TRACE_MODULE)
    setattr(stub, _TRACE_CLASS, _index_transform)
    return stub  # type: ignore[no-any-return]


def _unchanged(function: Any = None, **_: Any) -> Any:
    """A decorator with or without arguments that does nothing."""
    return function if function is not None else lambda inner: inner


def _index_transform(*arguments: Any) -> Any:
    """The class itself, fetched when it is first used."""
    return getattr(import_module(_TRACE_MODULE), _TRACE_CLASS)(*arguments)
