"""Compiled functions, kept in a cache where there is a place for one."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import numba
from numba.core.caching import FunctionCache, NullCache

from bitlens import terminal

# pyright: reportAttributeAccessIssue=false


def kernel(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """`numba.njit` of a function at module level; also as a decorator with numba's options.

    What is compiled is kept beside the package or in the user's cache folder. Where that cannot be
    written or read, every process compiles for itself.
    """
    if function is None:
        return functools.partial(kernel, **options)
    compiled = numba.njit(function, boundscheck=False, **options)
    try:
        compiled._cache = _Cache(function)
    except (RuntimeError, OSError):  # numba found no folder to write to
        compiled._cache = _NoCache()
    return compiled


class _Cache(FunctionCache):
    def load_overload(self, sig: Any, target_context: Any) -> Any:
        # unpickling what another program damaged raises anything
        with contextlib.suppress(Exception):
            if (compiled := super().load_overload(sig, target_context)) is not None:
                return compiled
        _announce("once")
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        with contextlib.suppress(Exception):
            super().save_overload(sig, data)


class _NoCache(NullCache):
    def load_overload(self, sig: Any, target_context: Any) -> None:
        _announce("there is no folder to keep them in (NUMBA_CACHE_DIR can name one)")


_announced = False


def _announce(how_often: str) -> None:
    """When something is really compiled, and the first time in this process."""
    global _announced
    _announced = _announced or terminal.say(
        f"Compiling kernels for this processor: up to half a minute, {how_often}."
    )
