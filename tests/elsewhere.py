"""A device that is not there: tensors that say they are on a GPU, hold their values on the CPU, and
mix with no others.

Real numbers come out, so whole commands can be run; what a GPU would refuse, an operation on
tensors of two devices or
numpy's view of one, is refused here, too. Where there is a real GPU, that is it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

try:
    from torch.utils.backend_registration import (
        _DummyBackendModule,
        _setup_privateuseone_for_python_backend,
    )
except ImportError:
    pytest.skip("this torch has no devices written in Python", allow_module_level=True)

REAL = torch.cuda.is_available()
NAME = "cuda" if REAL else "elsewhere"


class _Backend(_DummyBackendModule):
    """What torch asks of a device's module."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


if not REAL:  # beside a GPU torch takes this backend for the accelerator
    _setup_privateuseone_for_python_backend(NAME, _Backend())
DEVICE = torch.device(NAME, 0)
MOVES = ("aten::_to_copy", "aten::copy_")


class Elsewhere(torch.Tensor):
    """Says that it is on a GPU; `inner` has its values."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Elsewhere:
        with torch.inference_mode(False):
            own = torch.Tensor._make_wrapper_subclass(
                cls,
                inner.size(),
                strides=inner.stride(),
                storage_offset=inner.storage_offset(),
                dtype=inner.dtype,
                device=DEVICE,
            )
        own.inner = inner
        return own

    def __repr__(self) -> str:
        return f"Elsewhere({self.inner!r})"

    def numpy(self, **_: Any) -> Any:
        raise TypeError("can't convert a tensor of another device to numpy; use Tensor.cpu() first")

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return run(function, args, kwargs or {})


class OneDevice(TorchDispatchMode):
    """Where tensors can be made elsewhere."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return run(function, args, kwargs or {})


def run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = function._schema.name
    tensors = [
        x for x in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)
    ]
    there = any(isinstance(x, Elsewhere) for x in tensors)
    if there and name not in MOVES:
        for x in tensors:
            if not isinstance(x, Elsewhere) and x.ndim:
                index = "index" in name and x.dtype in (
                    torch.int64,
                    torch.bool,
                )  # an index may be on the CPU
                assert index, f"{name} mixes devices"
    named = [
        x for x in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.device)
    ]
    if named:
        there = named[0].type == NAME
    elif name == "aten::copy_":
        there = isinstance(args[0], Elsewhere)

    def inner(x: Any) -> Any:
        return (
            x.inner
            if isinstance(x, Elsewhere)
            else torch.device("cpu")
            if isinstance(x, torch.device)
            else x
        )

    args, kwargs = tree_map(inner, (args, kwargs))
    kwargs.pop("pin_memory", None)
    result = function(*args, **kwargs)
    if not there or not function._schema.returns:
        return result
    if function._schema.is_mutable:
        return tensors[-1] if "out" in kwargs else tensors[0]
    return tree_map(lambda x: Elsewhere(x) if isinstance(x, torch.Tensor) else x, result)


@contextlib.contextmanager
def elsewhere() -> Iterator[str]:
    """Within the block there is a GPU, under this name."""
    with contextlib.nullcontext() if REAL else OneDevice():
        yield str(DEVICE)
