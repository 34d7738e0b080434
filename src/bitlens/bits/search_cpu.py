"""Popcount kernels of a weighted search: what rows share with a few others, bit by weighted bit."""

import numba
import numpy as np

from bitlens.bits.kernel import kernel
from bitlens.bits.words import WORD, torch_threads, trailing_zeros

# pyright: reportCallIssue=false, reportArgumentType=false


@kernel
def _weight(word, first, weights):
    """Of the bits that are on in a word; first: what the lowest one's place is."""
    total = 0.0
    while word:
        total += weights[first + np.int64(trailing_zeros(word))]
        word &= word - np.uint64(1)
    return total


@kernel
def _weight_of_row(row, flips, weights):
    total = 0.0
    for w in range(len(row)):
        total += _weight(row[w] ^ flips[w], w * 64, weights)
    return total


@kernel(parallel=True)
def _jaccard(rows, flips, queries, weights, query_weights, out):
    n, words = rows.shape
    for i in numba.prange(n):
        row = rows[i]
        own = -1.0
        for q in range(len(queries)):
            query = queries[q]
            shared = 0.0
            for w in range(words):
                both = (row[w] ^ flips[w]) & query[w]
                if both:
                    shared += _weight(both, w * 64, weights)
            if shared == 0.0:
                out[q, i] = 0.0
                continue
            if own < 0.0:  # once for all queries, and not for rows that share nothing
                own = _weight_of_row(row, flips, weights)
            out[q, i] = shared / (own + query_weights[q] - shared)


def jaccard(
    rows: np.ndarray, flips: np.ndarray, queries: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """Weight of the bits on in both over that of the bits on in either; 0 where there are none.

    rows: uint64 `[n, words]`, of which the bits in flips `[words]` are turned; queries: uint64
    `[m, words]`, turned already; weights: float64, positive, `[n_latents]` -> float64 `[m, n]`
    """
    padded = np.zeros(rows.shape[1] * WORD)
    padded[: len(weights)] = weights
    out = np.empty((len(queries), len(rows)))
    with torch_threads():
        none = np.zeros_like(flips)
        total = np.array([_weight_of_row(query, none, padded) for query in queries], np.float64)
        _jaccard(rows, flips, np.ascontiguousarray(queries), padded, total, out)
    return out
