"""Popcount kernels for the CPU: pack, transpose, count, pair, compare. All results are exact."""

from itertools import product

import numba
import numpy as np

from bitlens.bits.kernel import kernel
from bitlens.bits.words import LANES, popcount, torch_threads, turn, words_for

# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false

# words of each column that co-occurrence looks at together: 64 columns of 4 KiB fit the cache
CHUNK = 512
TILE = 64  # columns on either side of a block of co-occurrence
# codes that a search turns word-major at a time; of 256, words of one place would all fall into the
# same set of the cache
CODES = 240
FEW = 4  # queries from which on turning the codes pays


# --- pack, transpose, count -----------------------------------------------------------------------


@kernel(parallel=True)
def _pack(z, width, words):
    n, n_latents = z.shape
    step = len(width) == 0
    for i in numba.prange(n):
        for w in range(n_latents // 64):
            word = np.uint64(0)
            if step:
                for j in range(64):
                    word |= np.uint64(z[i, w * 64 + j] > 0) << np.uint64(j)
            else:
                for j in range(64):
                    word |= np.uint64(abs(z[i, w * 64 + j]) < width[w * 64 + j]) << np.uint64(j)
            words[i, w] = word
        word = np.uint64(0)
        for j in range(n_latents // 64 * 64, n_latents):
            on = z[i, j] > 0 if step else abs(z[i, j]) < width[j]
            word |= np.uint64(on) << np.uint64(j % 64)
        if n_latents % 64:
            words[i, n_latents // 64] = word


def pack(z: np.ndarray, width: np.ndarray | None = None) -> np.ndarray:
    """Compare and pack: 1 where z > 0, or with a width where |z| < width.

    z: float32 `[n, n_latents]`; width: float32 `[n_latents]` -> uint64 `[n, words]`
    """
    words = np.empty((len(z), words_for(z.shape[1])), np.uint64)
    with torch_threads():
        _pack(z, np.empty(0, np.float32) if width is None else width, words)
    return words


@kernel(parallel=True)
def _transpose(rows, columns):
    n, words = rows.shape
    groups = columns.shape[1]
    for part in numba.prange((groups + LANES - 1) // LANES):
        block = np.zeros(64 * LANES, np.uint64)
        scratch = np.empty_like(block)
        lanes = min(groups - part * LANES, LANES)
        for w in range(words):
            for lane in range(lanes):
                first = (part * LANES + lane) * 64
                inside = min(64, n - first)
                for i in range(inside):
                    block[i * LANES + lane] = rows[first + i, w]
                for i in range(inside, 64):
                    block[i * LANES + lane] = np.uint64(0)
            turn(block, scratch)
            for j in range(min(64, len(columns) - w * 64)):
                for lane in range(lanes):
                    columns[w * 64 + j, part * LANES + lane] = block[j * LANES + lane]


def transpose(rows: np.ndarray, n_columns: int) -> np.ndarray:
    """Row-major uint64 `[n, words]` -> column-major `[n_columns, ceil(n / 64)]`"""
    columns = np.empty((n_columns, words_for(len(rows))), np.uint64)
    with torch_threads():
        _transpose(rows, columns)
    return columns


@kernel
def _add_bits(row, sums):
    for shift in range(8):
        counters = sums[shift]  # eight 8-bit counters a word
        for w in range(len(row)):
            counters[w] += (row[w] >> np.uint64(shift)) & np.uint64(0x0101010101010101)


@kernel(parallel=True)
def _column_counts(rows, counts):
    n, words = rows.shape
    parts, n_columns = counts.shape
    for part in numba.prange(parts):
        sums = np.zeros((8, words), np.uint64)
        mine = counts[part]
        for first in range(part * 255, n, parts * 255):  # 255 rows cannot overflow a counter
            for i in range(first, min(n, first + 255)):
                _add_bits(rows[i], sums)
            for j in range(n_columns):
                mine[j] += np.int64(
                    (sums[j % 8, j // 64] >> np.uint64(j % 64 // 8 * 8)) & np.uint64(255)
                )
            sums[:] = 0


def column_counts(rows: np.ndarray, n_columns: int) -> np.ndarray:
    """Row-major uint64 `[n, words]` -> int64 `[n_columns]`: the rows in which each column is on"""
    with torch_threads():
        counts = np.zeros((numba.get_num_threads(), n_columns), np.int64)
        _column_counts(rows, counts)
    return counts.sum(0)


# --- pairs of columns ----------------------------------------------------------------------------


@kernel
def _counted(sums, word, others):
    """Four sums, each with the bits more that the word has in common with one of four others."""
    a, b, c, d = others
    return (
        sums[0] + np.int64(popcount(word & a)),
        sums[1] + np.int64(popcount(word & b)),
        sums[2] + np.int64(popcount(word & c)),
        sums[3] + np.int64(popcount(word & d)),
    )


@kernel
def _count_tile(left, right, counts):
    """Add popcount(left[i] & right[j]) to counts[i, j]; sixteen sums stay in registers."""
    zero = np.int64(0)
    for i in range(0, len(left), 4):
        for j in range(0, len(right), 4):
            first = second = third = fourth = (zero, zero, zero, zero)
            for w in range(left.shape[1]):
                others = right[j, w], right[j + 1, w], right[j + 2, w], right[j + 3, w]
                first = _counted(first, left[i, w], others)
                second = _counted(second, left[i + 1, w], others)
                third = _counted(third, left[i + 2, w], others)
                fourth = _counted(fourth, left[i + 3, w], others)
            for row, sums in enumerate((first, second, third, fourth)):
                for column in range(4):
                    counts[i + row, j + column] += sums[column]


@kernel(parallel=True)
def _co_occurrence(left, right, counts, tiles, mirror):
    for t in numba.prange(len(tiles)):
        a, b = tiles[t, 0], tiles[t, 1]
        tile = np.zeros((TILE, TILE), np.int64)
        _count_tile(left[a : a + TILE], right[b : b + TILE], tile)
        inside = tile[: counts.shape[0] - a, : counts.shape[1] - b]
        counts[a : a + TILE, b : b + TILE] += inside
        if mirror and a != b:
            counts[b : b + TILE, a : a + TILE] += inside.T


def _chunk(columns: np.ndarray, first: int) -> np.ndarray:
    """Some words of all columns, with columns of zeros up to a multiple of TILE."""
    return np.pad(columns[:, first : first + CHUNK], ((0, -len(columns) % TILE), (0, 0)))


def co_occurrence(
    columns: np.ndarray, others: np.ndarray | None = None, counts: np.ndarray | None = None
) -> np.ndarray:
    """Rows in which two latents are both on, for all pairs; of one code only half are counted.

    columns, others: column-major uint64 `[n, words]`, `[m, words]`. counts: of other rows, to which
    these are added -> int64 `[n, m]`, or `[n, n]`
    """
    n, m = len(columns), len(columns if others is None else others)
    mirror = others is None
    counts = np.zeros((n, m), np.int64) if counts is None else counts
    starts = product(range(0, n, TILE), range(0, m, TILE))
    tiles = np.array([(a, b) for a, b in starts if a <= b or not mirror], np.int64).reshape(-1, 2)
    with torch_threads():
        for first in range(0, columns.shape[1], CHUNK):
            left = _chunk(columns, first)
            right = left if others is None else _chunk(others, first)
            _co_occurrence(left, right, counts, tiles, mirror)
    return counts


# --- distances between rows -----------------------------------------------------------------------


@kernel
def _add_distances_of_4(query, words, distances):
    a, b, c, d = query[0], query[1], query[2], query[3]
    for j in range(len(distances)):
        first = popcount(a ^ words[0, j]) + popcount(b ^ words[1, j])
        second = popcount(c ^ words[2, j]) + popcount(d ^ words[3, j])
        distances[j] += np.int32(first + second)


@kernel
def _add_distances(word, words, distances):
    for j in range(len(words)):
        distances[j] += np.int32(popcount(word ^ words[j]))


@kernel
def _distances(query, codes, by_word, distances):
    """Of one query to some codes, row by row, or by word where several queries share them."""
    distances[:] = 0
    if by_word.size == 0:
        for j in range(len(codes)):
            for w in range(len(query)):
                distances[j] += np.int32(popcount(query[w] ^ codes[j, w]))
        return
    whole = len(query) // 4 * 4
    for w in range(0, whole, 4):
        _add_distances_of_4(query[w : w + 4], by_word[w : w + 4], distances)
    for w in range(whole, len(query)):
        _add_distances(query[w], by_word[w], distances)


@kernel
def _insert(distance, index, distances, indices):
    """Into a list sorted by distance; among equals, the one seen first stays ahead."""
    at = len(distances) - 1
    while at > 0 and distances[at - 1] > distance:
        distances[at], indices[at] = distances[at - 1], indices[at - 1]
        at -= 1
    distances[at], indices[at] = distance, index


@kernel
def _below(distances, limit):
    below = False
    for j in range(len(distances)):
        below |= distances[j] < limit
    return below


@kernel(parallel=True)
def _nearest(queries, codes, distances, indices):
    parts, n, k = distances.shape
    share = (len(codes) + parts - 1) // parts
    for part in numba.prange(parts):
        end = min(len(codes), (part + 1) * share)
        for first in range(part * share, end, CODES):
            some = codes[first : min(end, first + CODES)]
            by_word = np.ascontiguousarray((some if n >= FEW else some[:0]).T)
            sums = np.empty(len(some), np.int32)
            for i in range(n):
                _distances(queries[i], some, by_word, sums)
                if _below(sums, distances[part, i, k - 1]):
                    for j in range(len(sums)):
                        if sums[j] < distances[part, i, k - 1]:
                            _insert(sums[j], first + j, distances[part, i], indices[part, i])


def nearest(queries: np.ndarray, codes: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k codes nearest to each query, k at most len(codes); among equals the first codes.

    uint64 `[n, words]`, `[m, words]` -> (int32 distances, int64 indices) `[n, k]`, nearest first
    """
    with torch_threads():
        parts = numba.get_num_threads()
        distances = np.full((parts, len(queries), k), np.iinfo(np.int32).max, np.int32)
        indices = np.full((parts, len(queries), k), -1, np.int64)
        _nearest(queries, codes, distances, indices)
    distances, indices = (
        a.transpose(1, 0, 2).reshape(len(queries), parts * k) for a in (distances, indices)
    )
    # parts are in order of index, so among equals the stable sort keeps the first
    best = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distances, best, 1), np.take_along_axis(indices, best, 1)
