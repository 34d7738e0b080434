"""The GPU kernel of descent, in triton: a program flips the bits of one row until nothing gains.

It keeps v_j, what flipping bit j gains: `a_j` of `descent_cpu` where the bit is off and
`-a_j - 2 G_jj` where it is on. Flipping bit k negates v_k and takes `2 s_j s_k G_kj` from every
other one, with s = 1 of a bit that was off and -1 of one that was on. Rows of G are all that is
read meanwhile.
"""

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor

# pyright: reportUnknownMemberType=false

HELD = 16384  # latents whose gains a program holds in registers; of more they stay in memory
CHUNK = 4096  # gains that are looked at together in memory
PER_THREAD = 16  # gains that a thread holds


@triton.jit
def _flip(v, place, j, top, own, G, m):
    """The gains and places after the flip of the bit at `top`, whose gain was `own`."""
    k = top >> 1
    g = tl.load(G + k.to(tl.int64) * m + j, mask=j < m, other=0.0).to(tl.float32)
    both = ((1 - 2 * (place & 1)) * (2 - 4 * (top & 1))).to(tl.float32)
    return tl.where(j == k, -own, v - both * g), tl.where(j == k, place ^ 1, place)


@triton.jit
def _exchange(v, place, j, G, m, least, FAR: tl.constexpr):
    """-> (gain, bit to switch off, its gain, bit to switch on) of the best exchange."""
    most = tl.where(j < m, least, least)  # of the exchanges with each bit that is off
    partner = tl.zeros_like(place)
    last = tl.min(place, 0) - 2
    count = tl.sum(place & 1, 0)
    while count > 0:
        k = tl.min(tl.where(((place & 1) == 1) & (j > last), j, FAR), 0)
        loss = tl.max(tl.where(j == k, v, -float("inf")), 0)
        g = tl.load(G + k.to(tl.int64) * m + j, mask=j < m, other=0.0).to(tl.float32)
        pair = tl.where((place & 1) == 0, loss + (v + 2 * g), -float("inf"))
        partner = tl.where(pair > most, k, partner)
        most = tl.maximum(most, pair)
        last = k
        count -= 1
    gain = tl.max(most, 0)
    into = tl.min(tl.where(most == gain, j, FAR), 0)
    out = tl.max(tl.where(j == into, partner, 0), 0)
    return gain, out, tl.max(tl.where(j == out, v, -float("inf")), 0), into


@triton.jit
def _descend_held(
    a, G, words, tolerance, left, made, m, width, of_row, EXCHANGES: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """With all gains of the row in registers. words: int32, `width` of them a row."""
    row = tl.program_id(0).to(tl.int64)
    FAR: tl.constexpr = 1 << 30
    j = tl.arange(0, BLOCK)
    G += row * of_row
    words += row * width
    on = (tl.load(words + (j >> 5), mask=j < m, other=0) >> (j & 31)) & 1
    own = tl.load(G + j.to(tl.int64) * (m + 1), mask=(on == 1) & (j < m), other=0.0)
    v = tl.load(a + row * m + j, mask=j < m, other=-float("inf"))
    v = tl.where(on == 1, -v - 2 * own.to(tl.float32), v)
    place = 2 * j + on
    least = tl.load(tolerance + row)
    most = tl.load(left + row)
    flips = 0
    more = most > 0
    while more:
        best = tl.max(v, 0)
        more = best > least
        if more:
            top = tl.min(tl.where(v == best, place, FAR), 0)
            v, place = _flip(v, place, j, top, best, G, m)
            flips += 1
        if EXCHANGES:  # noqa: SIM102 - known when it is compiled
            if (not more) and (flips + 2 <= most):
                gain, out, loss, into = _exchange(v, place, j, G, m, least, FAR)
                more = gain > least
                if more:
                    v, place = _flip(v, place, j, 2 * out + 1, loss, G, m)
                    rise = tl.max(tl.where(j == into, v, -float("inf")), 0)
                    v, place = _flip(v, place, j, 2 * into, rise, G, m)
                    flips += 2
        more = more and (flips < most)
    tl.store(made + row, flips)
    bits = tl.reshape(place & 1, (BLOCK // 32, 32)) << tl.arange(0, 32)[None, :]
    word = tl.arange(0, BLOCK // 32)
    tl.store(words + word, tl.sum(bits, 1), mask=word < width)


@triton.jit
def _pass(a, G, words, m, k, own, step, BLOCK: tl.constexpr):
    """Gains in memory after the flip of bit k -> (the largest, its place)."""
    lane = tl.arange(0, BLOCK)
    most = tl.full((BLOCK,), -float("inf"), tl.float32)
    place = lane * 2
    for first in range(0, m, BLOCK):
        j = first + lane
        v = tl.load(a + j, mask=j < m, other=-float("inf"))
        on = (tl.load(words + (j >> 5), mask=j < m, other=0) >> (j & 31)) & 1
        g = tl.load(G + k.to(tl.int64) * m + j, mask=j < m, other=0.0).to(tl.float32)
        v = tl.where(j == k, own, v - (1 - 2 * on).to(tl.float32) * step * g)
        tl.store(a + j, v, mask=j < m)
        place = tl.where(v > most, 2 * j + on, place)
        most = tl.maximum(most, v)
    best = tl.max(most, 0)
    return best, tl.min(tl.where(most == best, place, 1 << 30), 0)


@triton.jit
def _turn(words, k):
    """Flip bit k in memory, where all threads see it afterwards."""
    word = tl.load(words + (k >> 5))
    tl.debug_barrier()
    tl.store(words + (k >> 5), word ^ (1 << (k & 31)))
    tl.debug_barrier()


@triton.jit
def _pairs_in_memory(a, G, words, m, width, least, BLOCK: tl.constexpr):
    """-> (gain, bit to switch off, bit to switch on) of the best exchange."""
    lane = tl.arange(0, BLOCK)
    most = tl.full((BLOCK,), 0.0, tl.float32) + least
    out, into = lane, lane
    for w in range(width):
        word = tl.load(words + w)
        if word != 0:
            for t in range(32):
                if ((word >> t) & 1) != 0:
                    k = w * 32 + t
                    loss = tl.load(a + k)
                    for first in range(0, m, BLOCK):
                        j = first + lane
                        off = (tl.load(words + (j >> 5), mask=j < m, other=-1) >> (j & 31)) & 1
                        v = tl.load(a + j, mask=j < m, other=-float("inf"))
                        g = tl.load(G + k.to(tl.int64) * m + j, mask=j < m, other=0.0)
                        v = tl.where(off == 0, loss + (v + 2 * g.to(tl.float32)), -float("inf"))
                        out = tl.where(v > most, k, out)
                        into = tl.where(v > most, j, into)
                        most = tl.maximum(most, v)
    gain = tl.max(most, 0)
    at = tl.min(tl.where(most == gain, lane, BLOCK), 0)
    return gain, tl.max(tl.where(lane == at, out, 0), 0), tl.max(tl.where(lane == at, into, 0), 0)


@triton.jit
def _descend_streamed(
    a, G, words, tolerance, left, made, m, width, of_row, EXCHANGES: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """With the gains of the row in memory, where they become those of flips."""
    row = tl.program_id(0).to(tl.int64)
    G += row * of_row
    words += row * width
    a += row * m
    lane = tl.arange(0, BLOCK)
    for first in range(0, m, BLOCK):
        j = first + lane
        on = (tl.load(words + (j >> 5), mask=j < m, other=0) >> (j & 31)) & 1
        own = tl.load(G + j.to(tl.int64) * (m + 1), mask=(on == 1) & (j < m), other=0.0)
        v = tl.load(a + j, mask=j < m, other=0.0)
        tl.store(a + j, tl.where(on == 1, -v - 2 * own.to(tl.float32), v), mask=j < m)
    tl.debug_barrier()
    least = tl.load(tolerance + row)
    most = tl.load(left + row)
    nothing = tl.load(left + row) * 0
    best, top = _pass(a, G, words, m, nothing - 1, 0.0, 0.0, BLOCK)
    flips = 0
    more = most > 0
    while more:
        more = best > least
        if more:
            k = top >> 1
            _turn(words, k)
            best, top = _pass(a, G, words, m, k, -best, (2 - 4 * (top & 1)).to(tl.float32), BLOCK)
            tl.debug_barrier()
            flips += 1
        if EXCHANGES:  # noqa: SIM102 - known when it is compiled
            if (not more) and (flips + 2 <= most):
                gain, out, into = _pairs_in_memory(a, G, words, m, width, least, BLOCK)
                more = gain > least
                if more:
                    loss = tl.load(a + out)
                    _turn(words, out)
                    _pass(a, G, words, m, out, -loss, -2.0, BLOCK)
                    tl.debug_barrier()
                    rise = tl.load(a + into)
                    _turn(words, into)
                    best, top = _pass(a, G, words, m, into, -rise, 2.0, BLOCK)
                    tl.debug_barrier()
                    flips += 2
        more = more and (flips < most)
    tl.store(made + row, flips)


def descend(
    a: Tensor, G: Tensor, words: Tensor, most: Tensor, exchanges: bool, tolerance: Tensor
) -> Tensor:
    """Flip the bits `words` until no flip gains more than the tolerance -> flips made, int32 `[n]`

    a: float32 `[n, m]`, as in `descent_cpu.descend`, used up. G: float32 or bfloat16, symmetric,
    `[m, m]` of all rows or `[n, m, m]` of each. words: int64 `[n, ceil(m / 64)]`, changed in place.
    most: int32 `[n]`, flips a row. tolerance: float32 `[n]`. Nothing waits for the device.
    """
    n, m = a.shape
    made = torch.zeros(n, dtype=torch.int32, device=a.device)
    of_row = 0 if G.ndim == 2 else G.stride(0)
    block = max(64, triton.next_power_of_2(m))
    kernel = _descend_held
    if block > HELD:
        kernel, block = _descend_streamed, CHUNK
    warps = min(16, max(1, block // (32 * PER_THREAD)))
    width = 2 * words.shape[1]
    if n:
        kernel[(n,)](
            a, G, words.view(torch.int32), tolerance, most, made, m, width, of_row,
            EXCHANGES=exchanges, BLOCK=block, num_warps=warps,
        )  # fmt: skip
    return made
