"""Codes found by descent: the bits of each row that a dictionary explains it with most cheaply.

    minimise over h in {0, 1}^m    |x - h W - b|^2 + price . h

for each row x, by coordinate descent: from zero, or from given bits, flip the bit that lowers this
most until none does (iterated conditional modes, Besag 1986; in the product quantisation of Babenko
and Lempitsky 2014 the same with more than two values), then try all exchanges of a bit that is on
for one that is off, and go on. What a flip gains follows from the correlations
`(x - h W - b) W^T`, which a flip changes by one row of `G = W W^T`.
"""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from bitlens.bits import descent_cpu, descent_cuda
from bitlens.bits.packed import PackedBits
from bitlens.bits.words import words_for
from bitlens.errors import BitlensError

# a flip must gain more than this share of a row's squared length: float32 knows no better
TOLERANCE = 1e-6
GRAM_BYTES = 4 << 30  # a larger G is not kept: its entries are computed for a few candidates a row
BLOCK_BYTES = 64 << 20  # of the gains of a block of rows
GPU_BLOCK_BYTES = 512 << 20  # the same on a GPU, which wants thousands of rows
TILE = 512  # latents on a side of what is mirrored at once
GPU_TILE = 2048  # the same on a GPU, which wants few products
# latents of a row that are searched where there is no G, before all are looked at again
CANDIDATES = 192


@torch.no_grad()
def gram(W: Tensor) -> Tensor | None:
    """`W W^T` `[m, m]`, half of it computed, or None where it would take more than 4 GiB."""
    m = len(W)
    if 4 * m**2 > GRAM_BYTES:
        return None
    tile = TILE if W.device.type == "cpu" else GPU_TILE
    G = torch.empty(m, m, dtype=W.dtype, device=W.device)
    for i in range(0, m, tile):
        torch.mm(W[i : i + tile], W[i:].T, out=G[i : i + tile, i:])
        for j in range(i + tile, m, tile):
            G[j : j + tile, i : i + tile] = G[i : i + tile, j : j + tile].T
    return G


class Descent(NamedTuple):
    """What rows are searched with: see `descend`."""

    W: Tensor
    b: Tensor
    price: Tensor
    G: Tensor | None
    flips: int
    exchanges: bool

    def gains(self, x: Tensor, bits: PackedBits | None) -> Tensor:
        """`2 (x - h W - b) . W_j - |W_j|^2 - price_j`: what switching latent j on gains `[n, m]`"""
        residual = x - self.b
        if bits is not None and (bits.words.is_cuda or bits.words.any()):
            residual = residual - bits.unpack() @ self.W
        cost = self.W.square().sum(1) + self.price
        return torch.addmm(-cost, residual, self.W.T, alpha=2)


def refuse_non_finite(x: torch.Tensor) -> None:
    """BitlensError for rows that have no code."""
    if not torch.isfinite(x).all():
        raise BitlensError("Rows with NaN or infinite values have no code; leave them out.")


@torch.no_grad()
def descend(
    x: Tensor,
    W: Tensor,
    b: Tensor,
    price: Tensor,
    *,
    G: Tensor | None = None,
    start: PackedBits | None = None,
    flips: int | None = None,
    exchanges: bool = True,
    finite: bool = False,
) -> PackedBits:
    """Bits of rows `x [n, d]` under a dictionary; BitlensError for rows that are not finite.

    W `[m, d]`: what each latent adds. b `[d]`. price `[m]`: of a bit that is on, in units of
    squared error summed over a row. G: `gram(W)`, if it is at hand. start: bits to begin with; by
    default none is on. flips: at most so many a row; unless they run out, no single flip lowers the
    energy of what is returned. exchanges: nor does an exchange of two bits. finite: the caller
    answers for that; to look at the rows takes waiting for a GPU.
    """
    if not finite:
        refuse_non_finite(x)
    tolerance = TOLERANCE * (x - b).square().sum(1)
    descent = Descent(W, b, price, G, len(W) * 4 if flips is None else flips, exchanges)
    kernel = descent_cpu if x.device.type == "cpu" else descent_cuda
    size = BLOCK_BYTES if G is None or kernel is descent_cpu else GPU_BLOCK_BYTES
    block = max(16, size // (4 * len(W)))
    found = torch.empty(len(x), words_for(len(W)), dtype=torch.int64, device=x.device)
    for first in range(0, len(x), block):
        rows = slice(first, first + block)
        begin = None if start is None else start[rows]
        found[rows] = search(descent, x[rows], begin, tolerance[rows], kernel).words
    return PackedBits(found, len(W))


def search(
    descent: Descent, x: Tensor, start: PackedBits | None, tolerance: Tensor, kernel: ModuleType
) -> PackedBits:
    """By one of the two kernels. start: None for no bits. With a G, nothing waits for a GPU."""
    m, bits = len(descent.W), start
    none = torch.zeros(len(x), words_for(m), dtype=torch.int64, device=x.device)
    words = none if start is None else start.words.clone()
    left = torch.full((len(x),), descent.flips, dtype=torch.int32, device=x.device)
    rows = torch.arange(len(x), device=x.device)
    while len(rows):
        mine = words[rows]
        made = kernel.descend(
            descent.gains(x[rows], bits),
            descent.G,
            descent.W,
            mine,
            left[rows],
            descent.exchanges,
            tolerance[rows],
            CANDIDATES,
        )
        words[rows] = mine
        left[rows] -= made
        if descent.G is not None:
            break
        # rows whose candidates are settled are looked at in full once more
        rows = rows[(made > 0) & (left[rows] > 0)]
        bits = PackedBits(words[rows], m)
    return PackedBits(words, m)
