"""Popcount kernels for the CPU."""

import contextlib
from collections.abc import Iterator

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic


@intrinsic
def _popcount(typingctx, word):  # pyright: ignore[reportUnusedParameter]
    """The processor's own popcount, which LLVM vectorises where there is a vector form."""

    def emit(context, builder, signature, args):
        ctpop = builder.module.declare_intrinsic("llvm.ctpop", [ir.IntType(64)])
        return builder.call(ctpop, args)

    return types.uint64(types.uint64), emit


@numba.njit(parallel=True, cache=True, boundscheck=False)
def _co_occurrence(columns, counts):
    n, words = columns.shape
    tile = 32
    tiles = (n + tile - 1) // tile
    for a in numba.prange(tiles):
        for b in range(a, tiles):
            for i in range(a * tile, min(n, (a + 1) * tile)):
                for j in range(max(i, b * tile), min(n, (b + 1) * tile)):
                    total = np.uint64(0)
                    for w in range(words):
                        total += _popcount(columns[i, w] & columns[j, w])  # pyright: ignore[reportCallIssue]
                    counts[i, j] = total
                    counts[j, i] = total


def co_occurrence(columns: np.ndarray) -> np.ndarray:
    """Rows in which two latents are both on, for all pairs, exactly.

    columns: uint64 `[n_latents, words]`, latent-major packed bits -> int64 `[n_latents, n_latents]`.
    """
    counts = np.zeros((len(columns), len(columns)), np.int64)
    with _torch_threads():
        _co_occurrence(np.ascontiguousarray(columns), counts)
    return counts


@contextlib.contextmanager
def _torch_threads() -> Iterator[None]:
    """As many threads as torch has. Both may share one OpenMP, in which numba would set the number for torch, too: that
    would change torch's speed, and the last bits of its results, from the first kernel on."""
    threads = torch.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # pyright: ignore[reportAttributeAccessIssue, reportPrivateImportUsage]
    try:
        yield
    finally:
        torch.set_num_threads(threads)
