"""Products of bit matrices with float matrices, summing only where a bit is on (CPU kernels).

The order of additions is part of a kernel's contract: trained weights depend on it to the last bit.
"""

from collections.abc import Sequence

import numba
import numpy as np

from bitlens.bits.kernel import kernel
from bitlens.bits.words import add_row, positions, torch_threads

# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false

COLUMNS = 256  # columns whose standard deviations are a task: some hundred rows stay in cache
LATENTS = 64  # latents a task of the backward pass
LINE = 16  # latents whose gradients fill whole cache lines of W_enc's gradient
GROUP = 4  # words of latents whose matrix rows stay in cache while rows of bits pass by
FAST = {"reassoc", "contract"}


# --- statistics of pre-activations ----------------------------------------------------------------


@kernel
def _add_squares(row, mean, total):
    for k in range(len(total)):
        total[k] += (row[k] - mean[k]) * (row[k] - mean[k])


@kernel(parallel=True)
def _column_std(z, out):
    n, n_latents = z.shape
    for part in numba.prange((n_latents + COLUMNS - 1) // COLUMNS):
        first = part * COLUMNS
        stop = min(n_latents, first + COLUMNS)
        mean, square = np.zeros(stop - first, np.float32), np.zeros(stop - first, np.float32)
        for i in range(n):
            add_row(z[i, first:stop], mean)
        mean /= np.float32(n)
        for i in range(n):
            _add_squares(z[i, first:stop], mean, square)
        out[first:stop] = np.sqrt(square / np.float32(n - 1))


def column_std(z: np.ndarray) -> np.ndarray:
    """Unbiased standard deviation of every column: float32 `[n, m]`, n at least 2 -> `[m]`"""
    out = np.empty(z.shape[1], np.float32)
    with torch_threads():
        _column_std(z, out)
    return out


# --- bits times floats ----------------------------------------------------------------------------


@kernel
def _gather(rows, count, matrix, total):
    """total += the sum of some rows of a matrix"""
    whole = count // 4 * 4
    for e in range(0, whole, 4):
        a, b = matrix[rows[e]], matrix[rows[e + 1]]
        c, d = matrix[rows[e + 2]], matrix[rows[e + 3]]
        for k in range(len(total)):
            total[k] += (a[k] + b[k]) + (c[k] + d[k])
    for e in range(whole, count):
        add_row(matrix[rows[e]], total)


@kernel(parallel=True)
def _gather_sums(bits, matrix, out, task_rows):
    n, words = bits.shape
    for task in numba.prange((n + task_rows - 1) // task_rows):
        begin, end = task * task_rows, min(n, (task + 1) * task_rows)
        out[begin:end] = 0
        on = np.empty(64 * GROUP, np.int64)
        for w in range(0, words, GROUP):
            part = matrix[w * 64 : (w + GROUP) * 64]
            for i in range(begin, end):
                _gather(on, positions(bits[i, w : w + GROUP], on), part, out[i])


def gather_sums(bits: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """`H @ matrix`: uint64 `[n, words]`, float32 `[n_latents, d]` -> float32 `[n, d]`"""
    out = np.empty((len(bits), matrix.shape[1]), np.float32)
    with torch_threads():
        task_rows = min(256, -(-len(bits) // numba.get_num_threads()))
        _gather_sums(bits, matrix, out, max(1, task_rows))
    return out


# --- the backward pass of a binary autoencoder ----------------------------------------------------


@kernel(fastmath=FAST)
def dot(a, b):
    """a . b of float32 vectors"""
    total = np.float32(0)
    for k in range(len(a)):
        total += a[k] * b[k]
    return total


@kernel(fastmath=FAST)
def dots(rows, count, matrix, vector, out):
    """out[e] = matrix[rows[e]] . vector, in float32"""
    whole = count // 4 * 4
    for e in range(0, whole, 4):
        a, b = matrix[rows[e]], matrix[rows[e + 1]]
        c, d = matrix[rows[e + 2]], matrix[rows[e + 3]]
        s = t = u = v = np.float32(0)
        for k in range(len(vector)):
            s += a[k] * vector[k]
            t += b[k] * vector[k]
            u += c[k] * vector[k]
            v += d[k] * vector[k]
        out[e], out[e + 1], out[e + 2], out[e + 3] = s, t, u, v
    for e in range(whole, count):
        out[e] = dot(matrix[rows[e]], vector)


@kernel(fastmath={"contract"})
def _gather_scaled(rows, count, factors, matrix, total):
    """total += sum of factors[e] matrix[rows[e]]"""
    whole = count // 4 * 4
    for e in range(0, whole, 4):
        a, b = matrix[rows[e]], matrix[rows[e + 1]]
        c, d = matrix[rows[e + 2]], matrix[rows[e + 3]]
        s, t, u, v = factors[e], factors[e + 1], factors[e + 2], factors[e + 3]
        for k in range(len(total)):
            total[k] += (a[k] * s + b[k] * t) + (c[k] * u + d[k] * v)
    for e in range(whole, count):
        a, s = matrix[rows[e]], factors[e]
        for k in range(len(total)):
            total[k] += a[k] * s


@kernel(parallel=True)
def _backward(x, error, on, inside, W_dec, slope, penalty, to_W_enc, to_b_enc, to_W_dec):
    n, d = x.shape
    n_latents = len(W_dec)
    for task in numba.prange((n_latents + LATENTS - 1) // LATENTS):
        rows, g = np.empty(n, np.int64), np.empty(n, np.float32)
        sums = np.empty((LINE, d), np.float32)
        for first in range(task * LATENTS, min(n_latents, (task + 1) * LATENTS), LINE):
            latents = min(LINE, n_latents - first)
            sums[:] = 0
            for j in range(first, first + latents):
                to_W_dec[j] = 0
                _gather(rows, positions(on[j], rows), error, to_W_dec[j])
                count = positions(inside[j], rows)
                dots(rows, count, error, W_dec[j], g)
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

    x `[n, d]`: inputs. error `[n, d]`: the loss's gradient in the reconstruction. on, inside:
    column-major uint64 `[n_latents, ceil(n / 64)]`: bits, and where the surrogate passes the
    gradient. slope `[n_latents]`, penalty `[n, n_latents]` or None: what else the loss's gradient
    in the bits consists of. All floats are float32.
    """
    empty = np.empty((0, 0), np.float32)
    with torch_threads():
        _backward(x, error, on, inside, W_dec, slope, empty if penalty is None else penalty, *out)
