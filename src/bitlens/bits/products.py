"""Products of bit matrices with float matrices, summing only where a bit is on (CPU kernels).

A code with a few percent of its bits on needs that few percent of the multiplications, and none of them is a
multiplication. The same holds for its gradient, since a clipped surrogate passes it only in a narrow window.
"""

from collections.abc import Sequence

import numba
import numpy as np

from bitlens.bits.kernel import kernel
from bitlens.bits.words import add_row, torch_threads, trailing_zeros, words_for

# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false

LATENTS = 64  # latents a task of the backward pass
GROUP = 4  # words of latents whose matrix rows stay in cache while rows of bits pass by


# --- statistics of pre-activations ------------------------------------------------------------------------------------


@kernel
def _add_squares(row, mean, total):
    for k in range(len(total)):
        total[k] += (row[k] - mean[k]) * (row[k] - mean[k])


@kernel(parallel=True)
def _column_std(z, out):
    n, n_latents = z.shape
    for part in numba.prange(
        (n_latents + 255) // 256
    ):  # 256 columns of some hundred rows stay in cache
        first = part * 256
        stop = min(n_latents, first + 256)
        mean, square = np.zeros(stop - first, np.float32), np.zeros(stop - first, np.float32)
        for i in range(n):
            add_row(z[i, first:stop], mean)
        mean /= np.float32(n)
        for i in range(n):
            _add_squares(z[i, first:stop], mean, square)
        out[first:stop] = np.sqrt(square / np.float32(n - 1))


def column_std(z: np.ndarray) -> np.ndarray:
    """Unbiased standard deviation of every column: float32 `[n, n_latents]`, n at least 2 -> `[n_latents]`"""
    out = np.empty(z.shape[1], np.float32)
    with torch_threads():
        _column_std(z, out)
    return out


@kernel(parallel=True)
def _pack_window(z, width, words):
    n, n_latents = z.shape
    for i in numba.prange(n):
        for w in range(n_latents // 64):
            word = np.uint64(0)
            for j in range(64):
                word |= np.uint64(abs(z[i, w * 64 + j]) < width[w * 64 + j]) << np.uint64(j)
            words[i, w] = word
        word = np.uint64(0)
        for j in range(n_latents // 64 * 64, n_latents):
            word |= np.uint64(abs(z[i, j]) < width[j]) << np.uint64(j % 64)
        if n_latents % 64:
            words[i, n_latents // 64] = word


def pack_window(z: np.ndarray, width: np.ndarray) -> np.ndarray:
    """Where |z| < width: float32 `[n, n_latents]` and `[n_latents]` -> uint64 `[n, words]`"""
    words = np.empty((len(z), words_for(z.shape[1])), np.uint64)
    with torch_threads():
        _pack_window(z, width, words)
    return words


# --- bits times floats ------------------------------------------------------------------------------------------------


@kernel
def _positions(words, out):
    """Indices of the bits that are on; -> how many"""
    count = 0
    for w in range(len(words)):
        word = words[w]
        while word:
            out[count] = w * 64 + np.int64(trailing_zeros(word))
            word &= word - np.uint64(1)
            count += 1
    return count


@kernel
def _add_4(a, b, c, d, total):
    for k in range(len(total)):
        total[k] += (a[k] + b[k]) + (c[k] + d[k])


@kernel
def _gather(positions, count, matrix, total):
    """total += the sum of some rows of a matrix"""
    for e in range(0, count // 4 * 4, 4):
        _add_4(
            matrix[positions[e]],
            matrix[positions[e + 1]],
            matrix[positions[e + 2]],
            matrix[positions[e + 3]],
            total,
        )
    for e in range(count // 4 * 4, count):
        add_row(matrix[positions[e]], total)


@kernel(parallel=True)
def _gather_sums(bits, matrix, out, some_rows):
    n, words = bits.shape
    for task in numba.prange((n + some_rows - 1) // some_rows):
        begin, end = task * some_rows, min(n, (task + 1) * some_rows)
        out[begin:end] = 0
        positions = np.empty(64 * GROUP, np.int64)
        for w in range(0, words, GROUP):
            part = matrix[w * 64 : (w + GROUP) * 64]
            for i in range(begin, end):
                _gather(positions, _positions(bits[i, w : w + GROUP], positions), part, out[i])


def gather_sums(bits: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """`H @ matrix`: uint64 `[n, words]`, float32 `[n_latents, d]` -> float32 `[n, d]`"""
    out = np.empty((len(bits), matrix.shape[1]), np.float32)
    with torch_threads():
        some_rows = min(256, -(-len(bits) // numba.get_num_threads()))
        _gather_sums(bits, matrix, out, max(1, some_rows))
    return out


# --- the backward pass of a binary autoencoder ------------------------------------------------------------------------


@kernel(fastmath={"reassoc", "contract"})
def _dot(a, b):
    total = np.float32(0)
    for k in range(len(a)):
        total += a[k] * b[k]
    return total


@kernel(fastmath={"reassoc", "contract"})
def _dots_of_4(a, b, c, d, other):
    s = t = u = v = np.float32(0)
    for k in range(len(other)):
        s += a[k] * other[k]
        t += b[k] * other[k]
        u += c[k] * other[k]
        v += d[k] * other[k]
    return s, t, u, v


@kernel(fastmath={"contract"})
def _add_scaled(a, factor, total):
    for k in range(len(total)):
        total[k] += a[k] * factor


@kernel(fastmath={"contract"})
def _add_scaled_4(a, b, c, d, s, t, u, v, total):
    for k in range(len(total)):
        total[k] += (a[k] * s + b[k] * t) + (c[k] * u + d[k] * v)


@kernel
def _pull_on_bits(rows, count, error, decoder, g):
    """g[e] = error[rows[e]] . decoder"""
    for e in range(0, count // 4 * 4, 4):
        g[e], g[e + 1], g[e + 2], g[e + 3] = _dots_of_4(
            error[rows[e]], error[rows[e + 1]], error[rows[e + 2]], error[rows[e + 3]], decoder
        )
    for e in range(count // 4 * 4, count):
        g[e] = _dot(error[rows[e]], decoder)


@kernel
def _gather_scaled(rows, count, g, x, total):
    """total += sum of g[e] x[rows[e]]"""
    for e in range(0, count // 4 * 4, 4):
        _add_scaled_4(
            x[rows[e]],
            x[rows[e + 1]],
            x[rows[e + 2]],
            x[rows[e + 3]],
            g[e],
            g[e + 1],
            g[e + 2],
            g[e + 3],
            total,
        )
    for e in range(count // 4 * 4, count):
        _add_scaled(x[rows[e]], g[e], total)


@kernel(parallel=True)
def _backward(x, error, on, inside, W_dec, slope, penalty, to_W_enc, to_b_enc, to_W_dec):
    n, d = x.shape
    n_latents = len(W_dec)
    for task in numba.prange((n_latents + LATENTS - 1) // LATENTS):
        rows, g = np.empty(n, np.int64), np.empty(n, np.float32)
        sums = np.empty((16, d), np.float32)
        for first in range(task * LATENTS, min(n_latents, (task + 1) * LATENTS), 16):
            latents = min(
                16, n_latents - first
            )  # sixteen fill whole cache lines of W_enc's gradient
            sums[:] = 0
            for j in range(first, first + latents):
                to_W_dec[j] = 0
                _gather(rows, _positions(on[j], rows), error, to_W_dec[j])
                count = _positions(inside[j], rows)
                _pull_on_bits(rows, count, error, W_dec[j], g)
                total = np.float32(0)
                for e in range(count):
                    g[e] += slope[j]
                    if len(penalty):
                        g[e] += penalty[rows[e], j]
                    total += g[e]
                to_b_enc[j] = total
                _gather_scaled(rows, count, g, x, sums[j - first])
            for k in range(d):
                for j in range(latents):
                    to_W_enc[k, first + j] = sums[j, k]


def backward(
    x: np.ndarray,
    error: np.ndarray,
    on: np.ndarray,
    inside: np.ndarray,
    W_dec: np.ndarray,
    slope: np.ndarray,
    penalty: np.ndarray | None,
    out: Sequence[np.ndarray],
) -> None:
    """Gradients of W_enc `[d, n_latents]`, b_enc and W_dec `[n_latents, d]`, written into `out`.

    x `[n, d]`: inputs. error `[n, d]`: the loss's gradient in the reconstruction. on, inside: column-major uint64
    `[n_latents, ceil(n / 64)]`: bits, and where the surrogate passes the gradient. slope `[n_latents]`, penalty
    `[n, n_latents]` or None: what else the loss's gradient in the bits consists of. All floats are float32.
    """
    empty = np.empty((0, 0), np.float32)
    with torch_threads():
        _backward(x, error, on, inside, W_dec, slope, empty if penalty is None else penalty, *out)
