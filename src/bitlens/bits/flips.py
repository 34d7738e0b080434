"""The CPU kernel of descent: flip bits of rows, one after the other, while that lowers an energy.

    E(h) = -b . h + h^T G h      over h in {0, 1}^m, for each row with its own b

Flipping bit j changes E by minus its *gain*. For a bit that is off the gain is `a_j = b_j - G_jj - 2 sum_{i on} G_ij`;
for one that is on it is `-a_j - 2 G_jj`. Flipping bit k by s (+1 on, -1 off) turns a_j into `a_j - 2 s G_jk`: one row of
G is read, and in the same pass over memory the largest gain is found. Bits that are on, a few, are kept in a list.

Where G is too large to be kept, every row is searched among the few bits of the highest gains, for which the rows of G
that are needed are computed from the dictionary.
"""

import numba
import numpy as np

from bitlens.bits.kernel import kernel
from bitlens.bits.products import _dot, _dots_of_4
from bitlens.bits.words import torch_threads, trailing_zeros, words_for

# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false

SPAN = 128  # gains whose largest one is kept
ROWS = 8  # rows a task: neighbours need other flips, so tasks are many and small
ON = np.float32(
    -1e30
)  # stands for the gain of a bit that is in the list; adding to it changes nothing
FAST = {"nnan", "nsz", "reassoc", "contract"}


@kernel(fastmath=FAST)
def _subtract(a, g, step):
    """a -= step * g -> the largest value of a"""
    most = ON
    for j in range(len(a)):
        a[j] -= step * g[j]
        most = max(most, a[j])
    return most


@kernel(fastmath=FAST)
def _largest(a):
    most = ON
    for j in range(len(a)):
        most = max(most, a[j])
    return most


@kernel(fastmath=FAST)
def _largest_with(a, g):
    """The largest of a + 2 g"""
    most = ON
    for j in range(len(a)):
        most = max(most, a[j] + np.float32(2) * g[j])
    return most


@kernel
def _subtract_all(a, g, step, spans):
    for span in range(len(spans)):
        first = span * SPAN
        spans[span] = _subtract(a[first : first + SPAN], g[first : first + SPAN], step)


@kernel
def _place(a, spans):
    """Where the largest gain of the bits that are off is."""
    best = 0
    for span in range(1, len(spans)):
        if spans[span] > spans[best]:
            best = span
    first = best * SPAN
    for j in range(first, min(first + SPAN, len(a))):
        if a[j] == spans[best]:
            return j
    return first


@kernel
def _switch_on(k, a, G, spans, on, gains, count):
    """Bit k goes to the end of the list -> the list's length"""
    two = np.float32(2)
    for e in range(count):
        gains[e] -= two * G[k, on[e]]
    on[count], gains[count] = k, a[k] - two * G[k, k]
    a[k] = ON
    _subtract_all(a, G[k], two, spans)
    return count + 1


@kernel
def _switch_off(e, a, G, spans, on, gains, count):
    """Entry e leaves the list, whose last entry takes its place -> the list's length"""
    k, two = on[e], np.float32(2)
    back = gains[e]
    count -= 1
    on[e], gains[e] = on[count], gains[count]
    for f in range(count):
        gains[f] += two * G[k, on[f]]
    a[k] = back  # the pass below adds 2 G_kk
    _subtract_all(a, G[k], -two, spans)
    return count


@kernel
def _exchange(a, G, spans, on, gains, count, tolerance):
    """The pair, one on and one off, whose flipping together gains most -> (entry of the list, bit), or (-1, 0)"""
    two, best, entry, bit = np.float32(2), tolerance, -1, 0
    for e in range(count):
        k = on[e]
        loss = -gains[e] - two * G[k, k]
        for span in range(len(spans)):
            first = span * SPAN
            most = loss + _largest_with(a[first : first + SPAN], G[k, first : first + SPAN])
            if most > best:
                best, entry = most, e
                for j in range(first, min(first + SPAN, len(a))):
                    if loss + (a[j] + two * G[k, j]) >= most:
                        bit = j
                        break
    return entry, bit


@kernel
def _products(G, k, known, W, bits):
    """Row k of G, computed from the dictionary's rows of these bits when it is first needed."""
    if known[k]:
        return
    known[k] = True
    w = W[bits[k]]
    for j in range(0, len(bits) // 4 * 4, 4):
        G[k, j], G[k, j + 1], G[k, j + 2], G[k, j + 3] = _dots_of_4(
            W[bits[j]], W[bits[j + 1]], W[bits[j + 2]], W[bits[j + 3]], w
        )
    for j in range(len(bits) // 4 * 4, len(bits)):
        G[k, j] = _dot(W[bits[j]], w)


@kernel
def _descend_row(a, G, known, W, bits, spans, on, gains, count, most, exchanges, tolerance):
    """-> (flips made, length of the list)"""
    flips, two = 0, np.float32(2)
    for e in range(count):
        _products(G, on[e], known, W, bits)
    for span in range(len(spans)):
        spans[span] = _largest(a[span * SPAN : (span + 1) * SPAN])
    while flips < most:
        k = _place(a, spans)
        gain, entry = a[k], -1
        for e in range(count):
            off = -gains[e] - two * G[on[e], on[e]]
            if off > gain:
                gain, entry = off, e
        if gain > tolerance:
            if entry < 0:
                _products(G, k, known, W, bits)
                count = _switch_on(k, a, G, spans, on, gains, count)
            else:
                count = _switch_off(entry, a, G, spans, on, gains, count)
            flips += 1
            continue
        if not exchanges or flips + 2 > most:
            break
        entry, bit = _exchange(a, G, spans, on, gains, count, tolerance)
        if entry < 0:
            break
        _products(G, bit, known, W, bits)
        count = _switch_off(entry, a, G, spans, on, gains, count)
        count = _switch_on(bit, a, G, spans, on, gains, count)
        flips += 2
    return flips, count


@kernel
def _take_on(words, a, on, gains):
    """The bits of a row go to the list, and their gains out of a -> the list's length"""
    count = 0
    for w in range(len(words)):
        word = words[w]
        while word:
            k = w * 64 + np.int64(trailing_zeros(word))
            word &= word - np.uint64(1)
            on[count], gains[count] = k, a[k]
            a[k] = ON
            count += 1
    return count


@kernel(parallel=True)
def _descend(a, G, words, flips, most, exchanges, tolerance):
    n, m = a.shape
    known, W, bits = np.ones(m, np.bool_), np.empty((0, 0), np.float32), np.empty(0, np.int64)
    for task in numba.prange((n + ROWS - 1) // ROWS):
        on, gains = np.empty(m, np.int64), np.empty(m, np.float32)
        spans = np.empty((m + SPAN - 1) // SPAN, np.float32)
        for i in range(task * ROWS, min(n, (task + 1) * ROWS)):
            count = _take_on(words[i], a[i], on, gains)
            flips[i], count = _descend_row(
                a[i], G, known, W, bits, spans, on, gains, count, most, exchanges, tolerance[i]
            )
            words[i] = np.uint64(0)
            for e in range(count):
                words[i, on[e] // 64] |= np.uint64(1) << np.uint64(on[e] % 64)


def descend(
    a: np.ndarray,
    G: np.ndarray,
    words: np.ndarray,
    most: int,
    exchanges: bool,
    tolerance: np.ndarray,
) -> np.ndarray:
    """Flip the bits `words` until no flip gains more than the tolerance, or `most` flips were made in a row.

    a: float32 `[n, m]`, `b_j - G_jj - 2 sum_{i on} G_ij` of each row, used up. G: float32 `[m, m]`, symmetric. words: uint64
    `[n, ceil(m / 64)]`, changed in place. tolerance: float32 `[n]`. exchanges: where no single flip gains, try all pairs of one bit that is on and one
    that is off.

    -> flips made, int64 `[n]`
    """
    flips = np.empty(len(a), np.int64)
    assert words.shape == (len(a), words_for(a.shape[1]))
    with torch_threads():
        _descend(a, G, words, flips, most, exchanges, tolerance)
    return flips


@kernel(parallel=True)
def _descend_candidates(a, W, words, flips, most, size, exchanges, tolerance):
    n, m = a.shape
    for task in numba.prange((n + ROWS - 1) // ROWS):
        on, gains = np.empty(m, np.int64), np.empty(m, np.float32)
        for i in range(task * ROWS, min(n, (task + 1) * ROWS)):
            count = _take_on(words[i], a[i], on, gains)
            bits = np.empty(min(m, count + size), np.int64)
            local = np.empty(len(bits), np.float32)
            bits[:count], local[:count] = on[:count], ON
            least = np.partition(a[i], m - min(m, size))[m - min(m, size)]
            filled = count
            for j in range(m):
                if a[i, j] >= least and a[i, j] > ON / 2 and filled < len(bits):
                    bits[filled], local[filled] = j, a[i, j]
                    filled += 1
            bits, local = bits[:filled], local[:filled]
            G, known = np.empty((filled, filled), np.float32), np.zeros(filled, np.bool_)
            for e in range(filled):
                G[e, e] = _dot(W[bits[e]], W[bits[e]])
            on[:count] = np.arange(count)
            spans = np.empty((filled + SPAN - 1) // SPAN, np.float32)
            flips[i], count = _descend_row(
                local, G, known, W, bits, spans, on, gains, count, most[i], exchanges, tolerance[i]
            )
            words[i] = np.uint64(0)
            for e in range(count):
                words[i, bits[on[e]] // 64] |= np.uint64(1) << np.uint64(bits[on[e]] % 64)


def descend_candidates(
    a: np.ndarray,
    W: np.ndarray,
    words: np.ndarray,
    most: np.ndarray,
    size: int,
    exchanges: bool,
    tolerance: np.ndarray,
) -> np.ndarray:
    """The same without G, among the bits that are on and the `size` others of the highest gains in each row.

    W: float32 `[m, d]` with `G = W W^T`. most: int64 `[n]`, for each row.
    """
    flips = np.empty(len(a), np.int64)
    assert words.shape == (len(a), words_for(a.shape[1]))
    with torch_threads():
        _descend_candidates(a, W, words, flips, most, size, exchanges, tolerance)
    return flips
