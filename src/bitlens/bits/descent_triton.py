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

# what triton compiles is Python in its grammar alone, not in its types
# pyright: reportIndexIssue=false, reportOperatorIssue=false, reportAttributeAccessIssue=false
# pyright: reportAssignmentType=false, reportCallIssue=false

PER_THREAD = 16  # gains that a thread holds in registers, which suffice for 16,384 latents


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
def _descend(
    a, G, words, tolerance, left, made, m, width, of_row, EXCHANGES: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One row. words: int32, `width` of them a row."""
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


def descend(
    a: Tensor, G: Tensor, words: Tensor, most: Tensor, exchanges: bool, tolerance: Tensor
) -> Tensor:
    """Flip the bits `words` until no flip gains more than the tolerance -> flips made, int32 `[n]`

    a: float32 `[n, m]`, as in `descent_cpu.descend`, used up. G: float32, symmetric, `[m, m]` of
    all rows or `[n, m, m]` of each. words: int64 `[n, ceil(m / 64)]`, changed in place.
    most: int32 `[n]`, flips a row. tolerance: float32 `[n]`. Nothing waits for the device.
    """
    n, m = a.shape
    made = torch.zeros(n, dtype=torch.int32, device=a.device)
    of_row = 0 if G.ndim == 2 else G.stride(0)
    block = max(64, triton.next_power_of_2(m))
    warps = min(16 if block <= 16384 else 32, max(1, block // (32 * PER_THREAD)))
    width = 2 * words.shape[1]
    if not n:
        return made
    with torch.cuda.device_of(a):  # triton launches on the present device, whichever that is
        _descend[(n,)](
            a, G, words.view(torch.int32), tolerance, most, made, m, width, of_row,
            EXCHANGES=exchanges, BLOCK=block, num_warps=warps,
        )  # fmt: skip
    return made
