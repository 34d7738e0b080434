"""The CPU kernel of descent: flip bits of rows, one after the other, while that lowers an energy.

    E(h) = -b . h + h^T G h      over h in {0, 1}^m, for each row with its own b

Flipping bit j changes E by minus its *gain*. For a bit that is off the gain is
`a_j = b_j - G_jj - 2 sum_{i on} G_ij`; for one that is on it is `-a_j - 2 G_jj`. Flipping bit k by
s (+1 on, -1 off) turns a_j into `a_j - 2 s G_jk`: one row of G is read, and in the same pass over
memory the largest gain is found. Bits that are on, a few, are kept in a list (`on`, their a in
`gains`), and the place of each in `a` is marked with ON.

Where G is too large to be kept, every row is searched among the few bits of the highest gains, for
which the rows of G that are needed are computed from the dictionary.
"""

import numba
import numpy as np
import torch
from torch import Tensor

from bitlens.bits.kernel import kernel
from bitlens.bits.products import dot, dots
from bitlens.bits.words import positions, torch_threads

# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false

SPAN = 128  # gains whose largest one is kept
ROWS = 8  # rows a task: neighbours need other flips, so tasks are many and small
# stands for the gain of a bit that is in the list; adding to it changes nothing
ON = np.float32(-1e30)
TWO = np.float32(2)
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
def _largest_with(a, g):
    """The largest of a + 2 g"""
    most = ON
    for j in range(len(a)):
        most = max(most, a[j] + TWO * g[j])
    return most


@kernel
def _subtract_all(a, g, step, spans):
    for span in range(len(spans)):
        part = slice(span * SPAN, (span + 1) * SPAN)
        spans[span] = _subtract(a[part], g[part], step)


@kernel
def _best_off(a, spans):
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
def _best_on(G, on, gains, count, gain):
    """-> (entry of the list whose flip gains most, that gain), or (-1, gain) if none is above it"""
    entry = -1
    for e in range(count):
        off = -gains[e] - TWO * G[on[e], on[e]]
        if off > gain:
            gain, entry = off, e
    return entry, gain


@kernel
def _switch_on(k, a, G, spans, on, gains, count):
    """Bit k goes to the end of the list -> the list's length"""
    for e in range(count):
        gains[e] -= TWO * G[k, on[e]]
    on[count], gains[count] = k, a[k] - TWO * G[k, k]
    a[k] = ON
    _subtract_all(a, G[k], TWO, spans)
    return count + 1


@kernel
def _switch_off(e, a, G, spans, on, gains, count):
    """Entry e leaves the list, whose last entry takes its place -> the list's length"""
    k, back = on[e], gains[e]
    count -= 1
    on[e], gains[e] = on[count], gains[count]
    for f in range(count):
        gains[f] += TWO * G[k, on[f]]
    a[k] = back  # the pass below adds 2 G_kk
    _subtract_all(a, G[k], -TWO, spans)
    return count


@kernel
def _best_exchange(a, G, spans, on, gains, count, tolerance):
    """The pair, one on and one off, whose flipping together gains most.

    -> (entry of the list, bit), or (-1, 0) where none gains more than the tolerance
    """
    best, entry, bit = tolerance, -1, 0
    for e in range(count):
        k = on[e]
        loss = -gains[e] - TWO * G[k, k]
        for span in range(len(spans)):
            first = span * SPAN
            most = loss + _largest_with(a[first : first + SPAN], G[k, first : first + SPAN])
            if most > best:
                best, entry = most, e
                for j in range(first, min(first + SPAN, len(a))):
                    if loss + (a[j] + TWO * G[k, j]) >= most:
                        bit = j
                        break
    return entry, bit


@kernel
def _fill_row(G, k, filled, W, bits):
    """Row k of G, computed from the dictionary's rows of these bits when it is first needed."""
    if not filled[k]:
        filled[k] = True
        dots(bits, len(bits), W, W[bits[k]], G[k])


@kernel
def _descend_row(a, G, filled, W, bits, spans, on, gains, count, most, exchanges, tolerance):
    """-> (flips made, length of the list). filled: which rows of G there are."""
    flips = 0
    for e in range(count):
        _fill_row(G, on[e], filled, W, bits)
    for span in range(len(spans)):
        spans[span] = a[span * SPAN : (span + 1) * SPAN].max()
    while flips < most:
        k = _best_off(a, spans)
        entry, gain = _best_on(G, on, gains, count, a[k])
        if gain > tolerance:
            if entry < 0:
                _fill_row(G, k, filled, W, bits)
                count = _switch_on(k, a, G, spans, on, gains, count)
            else:
                count = _switch_off(entry, a, G, spans, on, gains, count)
            flips += 1
            continue
        if not exchanges or flips + 2 > most:
            break
        entry, k = _best_exchange(a, G, spans, on, gains, count, tolerance)
        if entry < 0:
            break
        _fill_row(G, k, filled, W, bits)
        count = _switch_off(entry, a, G, spans, on, gains, count)
        count = _switch_on(k, a, G, spans, on, gains, count)
        flips += 2
    return flips, count


@kernel
def _list_on(words, a, on, gains):
    """The bits of a row go to the list, and their gains out of a -> the list's length"""
    count = positions(words, on)
    for e in range(count):
        gains[e] = a[on[e]]
        a[on[e]] = ON
    return count


@kernel
def _pack(on, count, words):
    words[:] = np.uint64(0)
    for e in range(count):
        words[on[e] // 64] |= np.uint64(1) << np.uint64(on[e] % 64)


@kernel(parallel=True)
def _descend(a, G, words, flips, most, exchanges, tolerance):
    n, m = a.shape
    filled, W, bits = np.ones(m, np.bool_), np.empty((0, 0), np.float32), np.empty(0, np.int64)
    for task in numba.prange((n + ROWS - 1) // ROWS):
        on, gains = np.empty(m, np.int64), np.empty(m, np.float32)
        spans = np.empty((m + SPAN - 1) // SPAN, np.float32)
        for i in range(task * ROWS, min(n, (task + 1) * ROWS)):
            count = _list_on(words[i], a[i], on, gains)
            flips[i], count = _descend_row(
                a[i], G, filled, W, bits, spans, on, gains, count, most[i], exchanges, tolerance[i]
            )
            _pack(on, count, words[i])


@kernel
def _candidates(a, on, size):
    """The bits that are on, then others by index: those of the `size` highest gains."""
    m, count = len(a), len(on)
    bits = np.empty(min(m, count + size), np.int64)
    bits[:count] = on
    rank = m - min(m, size)
    least = np.partition(a, rank)[rank]
    for j in range(m):
        if a[j] >= least and a[j] > ON / 2 and count < len(bits):
            bits[count] = j
            count += 1
    return bits[:count]


@kernel(parallel=True)
def _descend_candidates(a, W, words, flips, most, size, exchanges, tolerance):
    n, m = a.shape
    for task in numba.prange((n + ROWS - 1) // ROWS):
        on, gains = np.empty(m, np.int64), np.empty(m, np.float32)
        for i in range(task * ROWS, min(n, (task + 1) * ROWS)):
            count = _list_on(words[i], a[i], on, gains)
            bits = _candidates(a[i], on[:count], size)
            local = a[i][bits]
            G, filled = np.empty((len(bits), len(bits)), np.float32), np.zeros(len(bits), np.bool_)
            for e in range(len(bits)):
                G[e, e] = dot(W[bits[e]], W[bits[e]])
            on[:count] = np.arange(count)
            spans = np.empty((len(bits) + SPAN - 1) // SPAN, np.float32)
            flips[i], count = _descend_row(
                local, G, filled, W, bits, spans, on, gains, count, most[i], exchanges, tolerance[i]
            )
            _pack(bits[on[:count]], count, words[i])


def descend(
    a: Tensor,
    G: Tensor | None,
    W: Tensor,
    words: Tensor,
    most: Tensor,
    exchanges: bool,
    tolerance: Tensor,
    candidates: int,
) -> Tensor:
    """Flip the bits `words` until no flip gains more than the tolerance -> flips made, int64 `[n]`

    a: float32 `[n, m]`, `b_j - G_jj - 2 sum_{i on} G_ij` of each row, used up. G: float32 `[m, m]`,
    symmetric; without it `W W^T` of the dictionary W, float32 `[m, d]`, and rows are searched only
    among the bits that are on and so many `candidates` of the highest gains. words: int64
    `[n, ceil(m / 64)]`, changed in place. most: int32 `[n]`, flips a row. tolerance: float32 `[n]`.
    """
    flips, limits = np.empty(len(a), np.int64), most.numpy().astype(np.int64)
    rows, bits, least = a.numpy(), words.numpy().view(np.uint64), tolerance.numpy()
    with torch_threads():
        if G is not None:
            _descend(rows, G.numpy(), bits, flips, limits, exchanges, least)
        else:
            dictionary = W.detach().numpy()
            _descend_candidates(rows, dictionary, bits, flips, limits, candidates, exchanges, least)
    return torch.from_numpy(flips)
