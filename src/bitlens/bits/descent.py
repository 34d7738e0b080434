"""Codes found by descent: the bits of each row that a dictionary explains it with most cheaply.

    minimise over h in {0, 1}^m    |x - h W - b|^2 + price . h

for each row x, by coordinate descent: from zero, or from given bits, flip the bit that lowers this
most until none does (iterated conditional modes, Besag 1986; in the product quantisation of Babenko
and Lempitsky 2014 the same with more than two values), then try all exchanges of a bit that is on
for one that is off, and go on. What a flip gains follows from the correlations
`(x - h W - b) W^T`, which a flip changes by one row of `G = W W^T`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bitlens.bits import descent_cpu
from bitlens.bits.packed import PackedBits
from bitlens.bits.words import words_for
from bitlens.errors import BitlensError

# a flip must gain more than this share of a row's squared length: float32 knows no better
TOLERANCE = 1e-6
GRAM_BYTES = 4 << 30  # a larger G is not kept: its entries are computed for a few candidates a row
BLOCK_BYTES = 64 << 20  # of the gains of a block of rows
TILE = 512  # latents on a side of what is mirrored at once
# latents of a row that are searched where there is no G, before all are looked at again
CANDIDATES = 192


@torch.no_grad()
def gram(W: Tensor) -> Tensor | None:
    """`W W^T` `[m, m]`, half of it computed, or None where it would take more than 4 GiB."""
    m = len(W)
    if 4 * m**2 > GRAM_BYTES:
        return None
    G = torch.empty(m, m, dtype=W.dtype, device=W.device)
    for i in range(0, m, TILE):
        torch.mm(W[i : i + TILE], W[i:].T, out=G[i : i + TILE, i:])
        for j in range(i + TILE, m, TILE):
            G[j : j + TILE, i : i + TILE] = G[i : i + TILE, j : j + TILE].T
    return G


class Descent(NamedTuple):
    """What rows are searched with: see `descend`."""

    W: Tensor
    b: Tensor
    price: Tensor
    G: Tensor | None
    flips: int
    exchanges: bool

    def gains(self, x: Tensor, bits: PackedBits) -> Tensor:
        """`2 (x - h W - b) . W_j - |W_j|^2 - price_j`: what switching latent j on gains `[n, m]`"""
        residual = x - self.b
        if bits.words.any():
            residual = residual - bits.unpack() @ self.W
        cost = self.W.square().sum(1) + self.price
        return torch.addmm(-cost, residual, self.W.T, alpha=2)

    def row_of_gram(self, k: Tensor) -> Tensor:
        """Rows `k [n]` of G -> `[n, m]`"""
        return self.W[k] @ self.W.T if self.G is None else self.G[k]


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
) -> PackedBits:
    """Bits of rows `x [n, d]` under a dictionary; BitlensError for rows that are not finite.

    W `[m, d]`: what each latent adds. b `[d]`. price `[m]`: of a bit that is on, in units of
    squared error summed over a row. G: `gram(W)`, if it is at hand. start: bits to begin with; by
    default none is on. flips: at most so many a row; unless they run out, no single flip lowers the
    energy of what is returned. exchanges: nor does an exchange of two bits.
    """
    if not torch.isfinite(x).all():
        raise BitlensError("Rows with NaN or infinite values have no code; leave them out.")
    tolerance = TOLERANCE * (x - b).square().sum(1)
    descent = Descent(W, b, price, G, len(W) * 4 if flips is None else flips, exchanges)
    search = _search_cpu if x.device.type == "cpu" else search_batch
    if start is None:
        none_on = torch.zeros(len(x), words_for(len(W)), dtype=torch.int64, device=x.device)
        start = PackedBits(none_on, len(W))
    block = max(16, BLOCK_BYTES // (4 * len(W)))
    blocks = (slice(first, first + block) for first in range(0, len(x), block))
    words = [search(descent, x[rows], start[rows], tolerance[rows]).words for rows in blocks]
    return PackedBits(torch.cat(words), len(W)) if words else start


def _search_cpu(descent: Descent, x: Tensor, bits: PackedBits, tolerance: Tensor) -> PackedBits:
    W, G = descent.W.detach().numpy(), None if descent.G is None else descent.G.numpy()
    words = bits.numpy().copy()
    left = np.full(len(x), descent.flips, np.int64)
    rows = np.arange(len(x))
    while len(rows):
        some = torch.from_numpy(rows)
        mine = words[rows]
        on = PackedBits.from_numpy(mine, len(W))
        made = descent_cpu.descend(
            descent.gains(x[some], on).numpy(),
            G,
            W,
            mine,
            left[rows],
            descent.exchanges,
            tolerance[some].numpy(),
            CANDIDATES,
        )
        words[rows] = mine
        left[rows] -= made
        if G is not None:
            break
        # rows whose candidates are settled are looked at in full once more
        rows = rows[(made > 0) & (left[rows] > 0)]
    return PackedBits.from_numpy(words, len(W))


class _Rows(NamedTuple):
    """Rows that a GPU searches: bits and gains `[n, m]`, the least gain and flips left `[n]`."""

    on: Tensor
    a: Tensor
    tolerance: Tensor
    left: Tensor

    def flip(self, descent: Descent, k: Tensor, active: Tensor) -> None:
        """Flip bit `k [n]` of the active rows."""
        every = torch.arange(len(k), device=k.device)
        step = torch.where(active, torch.where(self.on[every, k], -2.0, 2.0), 0.0)
        self.a.addcmul_(step[:, None], descent.row_of_gram(k), value=-1)
        self.on[every, k] ^= active
        self.left.sub_(active.long())

    def flip_while_it_gains(self, descent: Descent, length: Tensor) -> None:
        """One flip of every row at a time, one look at the host for each eight."""
        active = self.left > 0
        while active.any():
            for _ in range(8):
                top = torch.where(self.on, -self.a - 2 * length, self.a).max(1)
                active = (top.values > self.tolerance) & (self.left > 0)
                self.flip(descent, top.indices, active)

    def exchange(self, descent: Descent, length: Tensor) -> Tensor:
        """Make the best exchange of each row -> whether it gained"""
        on, a, best = self.on, self.a, self.tolerance
        every = torch.arange(len(on), device=on.device)
        out, into = torch.zeros_like(every), torch.zeros_like(every)
        order = on.to(torch.int8).sort(dim=1, descending=True, stable=True).indices
        for e in range(int(on.sum(1).max())):
            k = order[:, e]
            loss = torch.where(on[every, k], -a[every, k] - 2 * length[k], -torch.inf)
            pair = (a + 2 * descent.row_of_gram(k)).masked_fill(on, -torch.inf).max(1)
            better = loss + pair.values > best
            best = torch.where(better, loss + pair.values, best)
            out, into = torch.where(better, k, out), torch.where(better, pair.indices, into)
        active = (best > self.tolerance) & (self.left >= 2)
        self.flip(descent, out, active)
        self.flip(descent, into, active)
        return active


def search_batch(descent: Descent, x: Tensor, bits: PackedBits, tolerance: Tensor) -> PackedBits:
    """The same for a GPU: all rows at once, without those in which nothing gains any more."""
    length, settled = descent.W.square().sum(1), bits.unpack(torch.bool)
    left = torch.full((len(x),), descent.flips, device=x.device)
    rows = _Rows(settled.clone(), descent.gains(x, bits), tolerance, left)
    place = torch.arange(len(x), device=x.device)
    while len(place):
        rows.flip_while_it_gains(descent, length)
        settled[place] = rows.on
        if not descent.exchanges:
            break
        gained = rows.exchange(descent, length)
        place, rows = place[gained], _Rows(*(part[gained] for part in rows))
    return PackedBits.pack(settled)
