"""The covariance penalty of a minibatch of bits and its gradient, from bits alone (CPU kernels).

With N_ij the rows in which latents i and j are both on and c the column counts, `v_ij = n N_ij - c_i c_j` is an integer
and `cov_ij = v_ij / (n (n - 1))`: the penalty is a sum of integers, and the signs of the covariance are exact. They are
kept as two bit planes, so that no matrix of numbers of width squared exists.
"""

import numba
import numpy as np

from bitlens.bits import cpu
from bitlens.bits.kernel import kernel
from bitlens.bits.words import LANES, add_row, popcount, torch_threads, turn, words_for

# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false

BLOCK = 64 * (
    LANES - 1
)  # latents paired with a group of 64 at a time; rows of 4 KiB would share one set of the cache
TILE = 64
INT32_ROWS = 46340  # the most rows whose square fits 32 bits


# --- signs of all pairs -----------------------------------------------------------------------------------------------


@kernel
def _add_pairs(word, words, counts):
    for j in range(len(counts)):
        counts[j] += np.int32(popcount(word & words[j]))


@kernel
def _add_pairs_of_8(column, words, counts):
    a, b, c, d, e, f, g, h = (
        words[0],
        words[1],
        words[2],
        words[3],
        words[4],
        words[5],
        words[6],
        words[7],
    )
    s, t, u, v, w, x, y, z = (
        column[0],
        column[1],
        column[2],
        column[3],
        column[4],
        column[5],
        column[6],
        column[7],
    )
    for j in range(len(counts)):
        first = popcount(s & a[j]) + popcount(t & b[j]) + popcount(u & c[j]) + popcount(v & d[j])
        second = popcount(w & e[j]) + popcount(x & f[j]) + popcount(y & g[j]) + popcount(z & h[j])
        counts[j] += np.int32(first + second)


@kernel
def _add_signs(n, on, ons, counts, bit, positive, negative):
    for j in range(
        len(counts)
    ):  # stored, so that the product is as narrow as the type of the counts
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
    """Signs of the 64 latents of a group with those from `first` on, whose words are `words [32-bit words, latents]`.

    positive, negative: `[2, latents]`, bits over the group, its lower and its upper half. -> sum of |v|
    """
    total = np.int64(0)
    positive[:] = 0
    negative[:] = 0
    whole = len(words) // 8 * 8
    for i in range(64):
        latent = group * 64 + i
        counts[:] = 0
        for w in range(0, whole, 8):
            _add_pairs_of_8(columns[latent, w : w + 8], words[w : w + 8], counts)
        for w in range(whole, len(words)):
            _add_pairs(columns[latent, w], words[w], counts)
        total += _add_signs(
            n,
            ons[latent],
            ons[first : first + len(counts)],
            counts,
            np.uint32(i % 32),
            positive[i // 32],
            negative[i // 32],
        )
    return total


@kernel
def _store(group, first, halves, plane, block, scratch, mirror):
    """Put signs over the group's bits where they belong: `plane[j, group]`, and turned, `plane[i, words of j]`."""
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
    for task in numba.prange(
        groups
    ):  # early groups have more pairs than late ones: each thread gets both kinds
        group = task // 2 if task % 2 == 0 else groups - 1 - task // 2
        up, down = np.empty((2, BLOCK), np.uint32), np.empty((2, BLOCK), np.uint32)
        block, scratch = np.zeros(64 * LANES, np.uint64), np.empty(64 * LANES, np.uint64)
        first = group * 64
        size = 64  # the group with itself first, then with the others
        while first < len(ons):
            u, d = np.ascontiguousarray(up[:, :size]), np.ascontiguousarray(down[:, :size])
            words = np.ascontiguousarray(by_word[:, first : first + size])
            total = _group_signs(
                columns, ons, n, group, words, first, np.empty(size, ons.dtype), u, d
            )
            if first == group * 64:
                for i in range(64):
                    total -= n * np.int64(ons[first + i]) - np.int64(ons[first + i]) ** 2
                    u[i // 32, i] &= ~(np.uint32(1) << np.uint32(i % 32))
            sums[group] += total if first == group * 64 else 2 * total
            _store(group, first, u, positive, block, scratch, first > group * 64)
            _store(group, first, d, negative, block, scratch, first > group * 64)
            first += size
            size = min(BLOCK, len(ons) - first)


# --- rows times signs -------------------------------------------------------------------------------------------------


@kernel
def _signed_tile(rows, up, down, out):
    """out[i, j] = popcount(rows[i] & up[j]) - popcount(rows[i] & down[j]); sixteen sums at a time stay in registers."""
    for i in range(0, len(rows), 4):
        for j in range(0, len(up), 4):
            a = b = c = d = e = f = g = h = np.int64(0)
            k = l = m = n = o = p = q = r = np.int64(0)
            for w in range(rows.shape[1]):
                x, y, z, t = rows[i, w], rows[i + 1, w], rows[i + 2, w], rows[i + 3, w]
                s, u = up[j, w], down[j, w]
                a += np.int64(popcount(x & s)) - np.int64(popcount(x & u))
                e += np.int64(popcount(y & s)) - np.int64(popcount(y & u))
                k += np.int64(popcount(z & s)) - np.int64(popcount(z & u))
                o += np.int64(popcount(t & s)) - np.int64(popcount(t & u))
                s, u = up[j + 1, w], down[j + 1, w]
                b += np.int64(popcount(x & s)) - np.int64(popcount(x & u))
                f += np.int64(popcount(y & s)) - np.int64(popcount(y & u))
                l += np.int64(popcount(z & s)) - np.int64(popcount(z & u))
                p += np.int64(popcount(t & s)) - np.int64(popcount(t & u))
                s, u = up[j + 2, w], down[j + 2, w]
                c += np.int64(popcount(x & s)) - np.int64(popcount(x & u))
                g += np.int64(popcount(y & s)) - np.int64(popcount(y & u))
                m += np.int64(popcount(z & s)) - np.int64(popcount(z & u))
                q += np.int64(popcount(t & s)) - np.int64(popcount(t & u))
                s, u = up[j + 3, w], down[j + 3, w]
                d += np.int64(popcount(x & s)) - np.int64(popcount(x & u))
                h += np.int64(popcount(y & s)) - np.int64(popcount(y & u))
                n += np.int64(popcount(z & s)) - np.int64(popcount(z & u))
                r += np.int64(popcount(t & s)) - np.int64(popcount(t & u))
            out[i, j], out[i, j + 1], out[i, j + 2], out[i, j + 3] = a, b, c, d
            out[i + 1, j], out[i + 1, j + 1], out[i + 1, j + 2], out[i + 1, j + 3] = e, f, g, h
            out[i + 2, j], out[i + 2, j + 1], out[i + 2, j + 2], out[i + 2, j + 3] = k, l, m, n
            out[i + 3, j], out[i + 3, j + 1], out[i + 3, j + 2], out[i + 3, j + 3] = o, p, q, r


@kernel
def _centre(row, means, scale, out):
    for j in range(len(out)):
        out[j] = (row[j] - means[j]) * scale


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


def covariance(
    rows: np.ndarray, n_latents: int, with_gradient: bool = True
) -> tuple[float, np.ndarray | None]:
    """`sum_{i != j} |cov_ij|`, unbiased, of the n rows, and its gradient `2 / (n - 1) (h - p) @ sign(cov)`.

    rows: row-major uint64 `[n, words]`, 2 <= n <= 2^20 -> (penalty, float32 `[n, n_latents]` or None)
    """
    n, words = rows.shape
    ons = np.zeros(words * 64, np.int32 if n <= INT32_ROWS else np.int64)
    ons[:n_latents] = cpu.column_counts(rows, n_latents)
    columns = np.zeros((words * 64, words_for(n)), np.uint64)
    columns[:n_latents] = cpu.transpose(rows, n_latents)
    columns = columns.view(np.uint32)
    by_word = np.ascontiguousarray(columns.T)
    positive, negative = np.zeros((2, words * 64, words), np.uint64)
    sums = np.zeros(words, np.int64)
    with torch_threads():
        _signs(columns, by_word, ons, n, positive, negative, sums)
        gradient = None
        if with_gradient:
            rows = np.pad(rows, ((0, -n % 4), (0, 0)))
            gradient = np.empty((len(rows), words * 64), np.float32)
            _gradient(rows, n, positive, negative, 2 / (n - 1), gradient.view(np.int32), gradient)
            gradient = np.ascontiguousarray(gradient[:n, :n_latents])
    return sum(sums.tolist()) / (n * (n - 1)), gradient
