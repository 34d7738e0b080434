"""Descent on a GPU, or on any device that torch has: many rows at a time.

A triton kernel does it (`descent_triton`). Without triton, each flip is a row of kernels of torch,
for which a GPU mostly waits.
"""

from __future__ import annotations

import functools
from types import ModuleType

import torch
from torch import Tensor

from bitlens import terminal
from bitlens.bits.packed import PackedBits

GATHERED_BYTES = 1 << 30  # of the dictionary's rows that are gathered for the candidates of rows
LOOK = 8  # flips between two looks of the host


def descend(
    a: Tensor,
    G: Tensor | None,
    W: Tensor,
    words: Tensor,
    most: Tensor,
    exchanges: bool,
    tolerance: Tensor,
    candidates: int,
) -> Tensor:
    """As `descent_cpu.descend` -> flips made, int32 `[n]`"""
    if G is not None:
        return _flip_rows(a, G, words, most, exchanges, tolerance)
    m = len(W)
    counts = PackedBits(words, m).unpack(torch.int8).sum(1)
    size = min(m, candidates + int(counts.max())) if len(a) else 0
    made, block = torch.zeros_like(most), max(1, GATHERED_BYTES // (4 * max(1, size) * W.shape[1]))
    for first in range(0, len(a), block):
        rows = slice(first, first + block)
        on = PackedBits(words[rows], m).unpack(torch.bool)
        bits = torch.where(on, torch.inf, a[rows]).topk(size).indices
        # of a row with fewer bits on, fewer are candidates: the same ones as on a CPU
        others = torch.arange(size, device=a.device) >= candidates + counts[rows, None]
        chosen, gathered = PackedBits.pack(on.gather(1, bits)), W[bits]
        made[rows] = _flip_rows(
            a[rows].gather(1, bits).masked_fill_(others, -torch.inf),
            gathered @ gathered.transpose(1, 2),
            chosen.words,
            most[rows],
            exchanges,
            tolerance[rows],
        )
        now = on.scatter(1, bits, chosen.unpack(torch.bool))
        words[rows] = PackedBits.pack(now).words
    return made


def _flip_rows(
    a: Tensor, G: Tensor, words: Tensor, most: Tensor, exchanges: bool, tolerance: Tensor
) -> Tensor:
    """G: `[m, m]` of all rows or `[n, m, m]` of each -> flips made; words are changed in place."""
    if kernel := triton_kernel(a.device.type):
        return kernel.descend(a, G, words, most, exchanges, tolerance)
    on = PackedBits(words, a.shape[1]).unpack(torch.bool)
    length = G.diagonal(dim1=-2, dim2=-1)
    left = most.clone()
    rows = Rows(torch.where(on, -a - 2 * length, a), on, G, tolerance, left)
    rows.flip_while_it_gains()
    while exchanges and rows.exchange():
        rows.flip_while_it_gains()
    words.copy_(PackedBits.pack(rows.on).words)
    return most - left


class Rows:
    """Rows under search: what flipping each bit gains `v [n, m]`, and whether it is on."""

    def __init__(self, v: Tensor, on: Tensor, G: Tensor, tolerance: Tensor, left: Tensor) -> None:
        self.v, self.on, self.G, self.tolerance, self.left = v, on, G, tolerance, left
        self.every = torch.arange(len(v), device=v.device)

    def row_of_gram(self, k: Tensor) -> Tensor:
        """Of bit k `[n]` of each row -> `[n, m]`"""
        return self.G[k] if self.G.ndim == 2 else self.G[self.every, k]

    def flip(self, k: Tensor, active: Tensor) -> None:
        """Flip bit k `[n]` of the active rows."""
        at = self.every, k
        own = self.v[at]
        both = torch.where(self.on[at], -2.0, 2.0)[:, None] * torch.where(self.on, -1.0, 1.0)
        self.v -= torch.where(active[:, None], both * self.row_of_gram(k), 0.0)
        self.v[at] = torch.where(active, -own, own)
        self.on[at] ^= active
        self.left.sub_(active.int())

    def flip_while_it_gains(self) -> None:
        """The best bit of each row. One look at the host for each eight flips."""
        active = self.left > 0
        while active.any():
            for _ in range(LOOK):
                top = self.v.max(1)
                active = (top.values > self.tolerance) & (self.left > 0)
                self.flip(top.indices, active)

    def exchange(self) -> bool:
        """Make the best exchange of each row -> whether any gained"""
        on, v, best = self.on, self.v, self.tolerance
        out, into = torch.zeros_like(self.every), torch.zeros_like(self.every)
        order = on.to(torch.int8).sort(dim=1, descending=True, stable=True).indices
        for e in range(int(on.sum(1).max()) if len(on) else 0):
            k = order[:, e]
            loss = torch.where(on[self.every, k], v[self.every, k], -torch.inf)
            pair = (v + 2 * self.row_of_gram(k)).masked_fill(on, -torch.inf).max(1)
            better = loss + pair.values > best
            best = torch.where(better, loss + pair.values, best)
            out, into = torch.where(better, k, out), torch.where(better, pair.indices, into)
        active = (best > self.tolerance) & (self.left >= 2)
        self.flip(out, active)
        self.flip(into, active)
        return bool(active.any())


@functools.cache
def triton_kernel(device: str) -> ModuleType | None:
    """The kernel, where triton is there and can compile for this device."""
    if device != "cuda":
        return None
    try:
        from bitlens.bits import descent_triton

        one = torch.ones(1, 1, device=device)
        words, most = torch.zeros(1, 1, dtype=torch.int64, device=device), one[0].int()
        descent_triton.descend(one.clone(), one, words, most, False, one[0] * 0)
    except Exception as error:  # no triton, no C compiler, or a GPU that triton does not know
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        terminal.say(f"Descent goes without triton, about ten times slower: {reason}")
        return None
    return descent_triton
