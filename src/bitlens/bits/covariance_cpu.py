"""The covariance penalty of a minibatch of bits and its gradient, from bits alone (CPU kernels).

With N_ij the rows in which latents i and j are both on and c the column counts,
`v_ij = n N_ij - c_i c_j` is an integer and `cov_ij = v_ij / (n (n - 1))`: the penalty is a sum of
integers, and the signs of the covariance are exact. They are kept as two bit planes, so that no
matrix of numbers of width squared exists.
"""

import numba
import numpy as np

from bitlens.bits import cpu
from bitlens.bits.kernel import kernel
from bitlens.bits.words import LANES, add_row, popcount, torch_threads, turn

# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false

# latents paired with a group of 64 at a time; of 1024, rows of 4 KiB would share a set of the cache
BLOCK = 64 * (LANES - 1)
TILE = 64
INT32_ROWS = 46340  # the most rows whose square fits 32 bits
SHORTS = 8  # 32-bit words of two latents that are compared at a time


# --- signs of all pairs ---------------------------------------------------------------------------


@kernel
def _add_pairs(column, words, counts):
    """Add the rows, of SHORTS words, in which one latent and each of some others are both on."""
    for j in range(len(counts)):
        pairs = np.uint32(0)
        for w in range(SHORTS):
            pairs += popcount(column[w] & words[w, j])
        counts[j] += np.int32(pairs)


@kernel
def _add_signs(n, on, ons, counts, bit, positive, negative):
    """Turn counts into v and put its signs into a bit of each word -> sum of |v|"""
    for j in range(len(counts)):
        # stored, so that the product is as narrow as the type of the counts
        counts[j] = n * counts[j] - on * ons[j]
    total = np.int64(0)
    for j in range(len(counts)):
        total += abs(np.int64(counts[j]))
    one = np.uint32(1) << bit
    for j in range(len(counts)):
        positive[j] |= one if counts[j] > 0 else np.uint32(0)
        negative[j] |= one if counts[j] < 0 else np.uint32(0)
    return total


@kernel
def _group_signs(columns, ons, n, group, words, first, counts, positive, negative):
    """Signs of the 64 latents of a group with those from `first` on -> sum of |v|

    words: of the latter, `[32-bit words, latents]`. positive, negative: `[2, latents]`, bits over
    the group, its lower and its upper half.
    """
    total = np.int64(0)
    positive[:] = 0
    negative[:] = 0
    theirs = ons[first : first + len(counts)]
    for i in range(64):
        latent = group * 64 + i
        counts[:] = 0
        for w in range(0, len(words), SHORTS):
            _add_pairs(columns[latent, w : w + SHORTS], words[w : w + SHORTS], counts)
        bit, half = np.uint32(i % 32), i // 32
        total += _add_signs(n, ons[latent], theirs, counts, bit, positive[half], negative[half])
    return total


@kernel
def _store(group, first, halves, plane, block, scratch, mirror):
    """Put signs over the group's bits into `plane[j, group]`, and turned `plane[i, words of j]`."""
    latents = halves.shape[1]
    for j in range(latents):
        word = np.uint64(halves[0, j]) | np.uint64(halves[1, j]) << np.uint64(32)
        plane[first + j, group] = word
        block[j % 64 * LANES + j // 64] = word
    if mirror:
        turn(block, scratch)
        for i in range(64):
            for lane in range(latents // 64):
                plane[group * 64 + i, first // 64 + lane] = block[i * LANES + lane]


@kernel(parallel=True)
def _signs(columns, by_word, ons, n, positive, negative, sums):
    groups = len(sums)
    for task in numba.prange(groups):
        # early groups have more pairs than late ones: each thread gets both kinds
        group = task // 2 if task % 2 == 0 else groups - 1 - task // 2
        up, down = np.empty((2, BLOCK), np.uint32), np.empty((2, BLOCK), np.uint32)
        block, scratch = np.zeros(64 * LANES, np.uint64), np.empty(64 * LANES, np.uint64)
        own = first = group * 64
        size = 64  # the group with itself first, then with the others
        while first < len(ons):
            u, d = np.ascontiguousarray(up[:, :size]), np.ascontiguousarray(down[:, :size])
            words = np.ascontiguousarray(by_word[:, first : first + size])
            counts = np.empty(size, ons.dtype)
            total = _group_signs(columns, ons, n, group, words, first, counts, u, d)
            if first == own:  # without the variances
                for i in range(64):
                    total -= n * np.int64(ons[first + i]) - np.int64(ons[first + i]) ** 2
                    u[i // 32, i] &= ~(np.uint32(1) << np.uint32(i % 32))
            sums[group] += total if first == own else 2 * total
            _store(group, first, u, positive, block, scratch, first > own)
            _store(group, first, d, negative, block, scratch, first > own)
            first += size
            size = min(BLOCK, len(ons) - first)


# --- rows times signs -----------------------------------------------------------------------------


@kernel
def _signed(bits, up, down):
    return np.int64(popcount(bits & up)) - np.int64(popcount(bits & down))


@kernel
def _added(sums, rows, up, down):
    """Four sums, each with the signed bits more of a word of one of four rows."""
    x, y, z, t = rows
    return (
        sums[0] + _signed(x, up, down),
        sums[1] + _signed(y, up, down),
        sums[2] + _signed(z, up, down),
        sums[3] + _signed(t, up, down),
    )


@kernel
def _signed_tile(rows, up, down, out):
    """out[i, j] = popcount(rows[i] & up[j]) - popcount(rows[i] & down[j]), sixteen at a time.

    Two passes of a tile of plain counts would take up to a quarter longer.
    """
    zero = np.int64(0)
    for i in range(0, len(rows), 4):
        for j in range(0, len(up), 4):
            first = second = third = fourth = (zero, zero, zero, zero)
            for w in range(rows.shape[1]):
                some = rows[i, w], rows[i + 1, w], rows[i + 2, w], rows[i + 3, w]
                first = _added(first, some, up[j, w], down[j, w])
                second = _added(second, some, up[j + 1, w], down[j + 1, w])
                third = _added(third, some, up[j + 2, w], down[j + 2, w])
                fourth = _added(fourth, some, up[j + 3, w], down[j + 3, w])
            for column, sums in enumerate((first, second, third, fourth)):
                for row in range(4):
                    out[i + row, j + column] = sums[row]


@kernel(parallel=True)
def _gradient(rows, n, positive, negative, scale, products, gradient):
    """products and gradient are the same memory, first as integers, then as what they become."""
    for tile in numba.prange(len(positive) // TILE):
        part = slice(tile * TILE, (tile + 1) * TILE)
        _signed_tile(rows, positive[part], negative[part], products[:, part])
        sums = np.zeros(TILE, np.int64)
        for i in range(n):
            add_row(products[i, part], sums)
        means = sums / n
        for i in range(n):
            _centre(products[i, part], means, scale, gradient[i, part])


@kernel
def _centre(row, means, scale, out):
    for j in range(len(out)):
        out[j] = (row[j] - means[j]) * scale


def covariance(rows: np.ndarray, n_latents: int) -> tuple[float, np.ndarray]:
    """See `statistics.covariance`. rows: row-major uint64 `[n, words]`, 2 <= n <= 2^20"""
    n, words = rows.shape
    ons = np.zeros(words * 64, np.int32 if n <= INT32_ROWS else np.int64)
    ons[:n_latents] = cpu.column_counts(rows, n_latents)
    transposed = cpu.transpose(rows, n_latents)
    missing = words * 64 - n_latents, -transposed.shape[1] % (SHORTS // 2)
    columns = np.pad(transposed, ((0, missing[0]), (0, missing[1]))).view(np.uint32)
    by_word = np.ascontiguousarray(columns.T)
    positive, negative = np.zeros((2, words * 64, words), np.uint64)
    sums = np.zeros(words, np.int64)
    with torch_threads():
        _signs(columns, by_word, ons, n, positive, negative, sums)
        rows = np.pad(rows, ((0, -n % 4), (0, 0)))
        gradient = np.empty((len(rows), words * 64), np.float32)
        _gradient(rows, n, positive, negative, 2 / (n - 1), gradient.view(np.int32), gradient)
    return sum(sums.tolist()) / (n * (n - 1)), np.ascontiguousarray(gradient[:n, :n_latents])
