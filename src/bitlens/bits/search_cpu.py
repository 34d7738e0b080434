"""Popcount kernels of a weighted search: what rows share with a few others, bit by weighted bit."""

import numba
import numpy as np

from bitlens.bits.kernel import kernel
from bitlens.bits.words import add_row, popcount, torch_threads, trailing_zeros

LANES = 8  # float64 in the widest vector
SPARE = 3
TINY = 1e-300  # so that nothing is divided by zero: no weight is as small

# pyright: reportCallIssue=false, reportArgumentType=false


@kernel
def _places(row, flips, out):
    """Write the places of the bits that are on into `out`, with room for SPARE more -> how many.
    So many are written for every word, whatever it has: most have no more, and the processor has
    nothing to guess, which is four times as fast."""
    count = 0
    for w in range(len(row)):
        word = row[w] ^ flips[w]
        after = count + np.int64(popcount(word))
        for k in range(SPARE):
            out[count + k] = w * 64 + np.int64(popcount(~word & (word - np.uint64(1))))
            word &= word - np.uint64(1)
        count += SPARE
        while word:
            out[count] = w * 64 + np.int64(trailing_zeros(word))
            word &= word - np.uint64(1)
            count += 1
        count = after
    return count


@kernel
def _common(row, flips, asked, weights):
    """The weight of the bits that a row has of those asked for."""
    total = 0.0
    for w in range(len(row)):
        both = (row[w] ^ flips[w]) & asked[w]
        while both:
            total += weights[w * 64 + np.int64(trailing_zeros(both))]
            both &= both - np.uint64(1)
    return total


@kernel(parallel=True, error_model="numpy")
def _best(rows, flips, found, starts, asked, weights, shares, totals, least, out):
    width = shares.shape[1]
    for run in numba.prange(len(starts) - 1):
        places = np.empty(rows.shape[1] * 64 + SPARE, np.int64)
        sums, best = np.empty(width), np.full(width, -1.0)
        for i in range(starts[run], starts[run + 1]):
            if not found[i]:
                continue
            if least > 0.0 and _common(rows[i], flips, asked, weights) < least:
                best[0] = max(best[0], 0.0)
                continue
            sums[:] = 0.0
            for k in range(_places(rows[i], flips, places)):
                add_row(shares[places[k]], sums)
            own = sums[width - 1]
            for q in range(width):
                similar = sums[q] / (own + totals[q] - sums[q])
                best[q] = similar if similar > best[q] else best[q]
        out[run] = best[: out.shape[1]]


def best_jaccard(
    rows: np.ndarray,
    flips: np.ndarray,
    queries: np.ndarray,
    weights: np.ndarray,
    starts: np.ndarray,
    found: np.ndarray | None = None,
    least: float = 0.0,
) -> np.ndarray:
    """Weight of the bits on in both a row and a query over that of the bits on in either, of the
    best row in each run of rows. Every row is read once for all queries.

    rows: uint64 `[n, words]`, of which the bits in flips `[words]` are turned; queries: uint64
    `[m, words]`, turned already; weights: float64, positive, `[n_latents]`; starts: of the runs,
    and after the last, n: int64 `[runs + 1]`; found: rows that count, bool `[n]` -> float64
    `[m, runs]`, -1 for a run of no row that counts, and 0 where no bit is on in both, or where, of
    a single query, it can be seen from these bits alone that it is below `least`, which is faster
    """
    found = np.ones(len(rows), np.bool_) if found is None else found
    bits = np.unpackbits(queries.view(np.uint8), axis=1, bitorder="little").T
    # a row for each latent: its weight where a query has it, and at the end in any case
    width = -(-(len(queries) + 1) // LANES) * LANES
    shares = np.zeros((len(bits), width))
    shares[: len(weights), -1] = weights
    shares[:, : len(queries)] = bits * shares[:, -1:]
    totals = np.maximum(shares.sum(0), TINY)
    # what either has weighs no less than the query
    least = least * totals[0] * (1 - 1e-12) if len(queries) == 1 else 0.0
    out = np.empty((len(starts) - 1, len(queries)))
    with torch_threads():
        asked, weights = queries[0], np.ascontiguousarray(shares[:, -1])
        _best(rows, flips, found, starts, asked, weights, shares, totals, least, out)
    return out.T
