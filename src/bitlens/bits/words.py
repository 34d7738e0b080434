"""What the CPU kernels share: instructions on one machine word, and threads.

Kernels take plain numpy arrays of words. Their inner loops run over contiguous memory with counters
that cannot be negative, so that LLVM turns them into the processor's widest vectors.
"""

import contextlib
from collections.abc import Iterator

import numba
import numpy as np
import torch
from llvmlite import ir
from numba.extending import intrinsic

from bitlens.bits.kernel import kernel

# pyright: reportCallIssue=false

WORD = 64
LANES = 16  # bit blocks that `turn` transposes side by side


def words_for(n_bits: int) -> int:
    """Machine words that so many bits fill."""
    return -(-n_bits // WORD)


@contextlib.contextmanager
def torch_threads() -> Iterator[None]:
    """As many threads as torch has, for kernels within. Both may share one OpenMP, in which numba
    would set the number for torch, too, and change the last bits of its results."""
    threads = torch.get_num_threads()
    most: int = numba.config.NUMBA_NUM_THREADS  # pyright: ignore
    numba.set_num_threads(min(threads, most))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@intrinsic
def popcount(typingctx, word):  # pyright: ignore[reportUnusedParameter]
    """Bits on in an unsigned integer of any width."""
    return word(word), lambda context, builder, signature, args: builder.ctpop(args[0])


@intrinsic
def trailing_zeros(typingctx, word):  # pyright: ignore[reportUnusedParameter]
    """Index of the lowest bit that is on, of an unsigned integer that is not zero."""
    never_zero = ir.Constant(ir.IntType(1), 1)
    return word(word), lambda context, builder, signature, args: builder.cttz(args[0], never_zero)


@kernel
def positions(words, out):
    """Write the indices of the bits that are on into `out` -> how many"""
    count = 0
    for w in range(len(words)):
        word = words[w]
        while word:
            out[count] = w * 64 + np.int64(trailing_zeros(word))
            word &= word - np.uint64(1)
            count += 1
    return count


@kernel
def add_row(row, total):
    """total += row, of whatever types"""
    for k in range(len(total)):
        total[k] += row[k]


@kernel
def _swap(source, target, width, mask):
    shift = np.uint64(width)
    for start in range(0, 64, 2 * width):
        middle, stop = (start + width) * LANES, (start + 2 * width) * LANES
        upper, lower = source[start * LANES : middle], source[middle:stop]
        to_upper, to_lower = target[start * LANES : middle], target[middle:stop]
        for k in range(len(upper)):
            to_upper[k] = (upper[k] & mask) | ((lower[k] & mask) << shift)
        for k in range(len(upper)):
            to_lower[k] = ((upper[k] >> shift) & mask) | (lower[k] & ~mask)


@kernel
def turn(block, scratch):
    """Transpose LANES bit matrices of 64 x 64 in place (Warren, Hacker's Delight, 7-3).

    Word i of matrix l is `block[i * LANES + l]`. scratch: as large as the block.
    """
    width, mask = 32, np.uint64(0x00000000FFFFFFFF)
    for _ in range(3):  # two of the six steps, there and back
        _swap(block, scratch, width, mask)
        width >>= 1
        mask ^= mask << np.uint64(width)
        _swap(scratch, block, width, mask)
        width >>= 1
        mask ^= mask << np.uint64(width)
