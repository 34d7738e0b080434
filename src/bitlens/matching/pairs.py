"""How alike pairs of latents are, from exact counts of the rows in which both are on.

`agreement` and `implication` are corrected for what independent latents would show.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bitlens.bits.packed import PackedBits
from bitlens.bits.statistics import co_occurrence
from bitlens.errors import BitlensError
from bitlens.results import brief

BLOCK = 512  # latents of A whose measures are in memory at a time


@dataclass(frozen=True)
class Pairs:
    """Rows in which latents are on: a `[n]`, b `[m]`, both `[n, m]`; measures float64 `[n, m]`."""

    __repr__ = brief

    rows: int
    a: Tensor
    b: Tensor
    both: Tensor

    @classmethod
    def of(cls, a: PackedBits, b: PackedBits) -> Pairs:
        """Two codes of the same rows."""
        if len(a) == 0:
            raise BitlensError("There are no rows to compare the codes on; encode some first.")
        return cls(len(a), a.column_counts(), b.column_counts(), co_occurrence(a, b).int().cpu())

    @property
    def T(self) -> Pairs:
        """B against A."""
        return Pairs(self.rows, self.b, self.a, self.both.T)

    def blocks(self) -> Iterator[tuple[slice, Pairs]]:
        """Some latents of A at a time: all measures of wide codes would not fit in memory."""
        for start in range(0, len(self.a), BLOCK):
            block = slice(start, start + BLOCK)
            yield block, replace(self, a=self.a[block], both=self.both[block])

    def jaccard(self) -> Tensor:
        """`|A & B| / |A | B|`; 0 if neither is ever on."""
        return self.both.double() / (self.a[:, None] + self.b - self.both).clamp_min(1)

    def containment(self) -> Tensor:
        """`|A & B| / |A|`, the share of a's rows in which b is on, too; 0 if a is never on."""
        return self.both.double() / self.a[:, None].clamp_min(1)

    def agreement(self) -> Tensor:
        """Jaccard corrected for chance, `(J - J0) / (1 - J0)`, with `J0 = pq / (p + q - pq)`."""
        p, q = self.a[:, None].double() / self.rows, self.b.double() / self.rows
        return _above_chance(self.jaccard(), p * q / (p + q - p * q).clamp_min(1e-300))

    def implication(self) -> Tensor:
        """Containment corrected for chance, `(C - q) / (1 - q)`: Loevinger's H (1948)."""
        return _above_chance(self.containment(), self.b.double() / self.rows)

    def surprise(self) -> Tensor:
        """Independent latents of these counts overlap so with a chance of at most `2^-surprise`.

        `|A| KL(C || q)`, or that from b's side if it is more (Hoeffding 1963, theorems 1 and 4).
        """
        return torch.maximum(self._surprise(), self.T._surprise().T)

    def _surprise(self) -> Tensor:
        c, q, xlogy = self.containment(), self.b.double() / self.rows, torch.xlogy
        divergence = xlogy(c, c) - xlogy(c, q) + xlogy(1 - c, 1 - c) - xlogy(1 - c, 1 - q)
        return torch.where(c > q, self.a[:, None] * divergence / math.log(2), 0)


def _above_chance(value: Tensor, chance: Tensor) -> Tensor:
    return torch.where(chance < 1, (value - chance) / (1 - chance), 0)
