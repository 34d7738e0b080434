"""Bits of more rows than memory holds: they stay where they are and are read as they are needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

from bitlens.bits.packed import PackedBits


class BitShards:
    """The rows of several `PackedBits`, memory-mapped mostly, one after the other.

    It answers what a `PackedBits` does; rows that are asked for become one. Sums over rows take it
    block by block, so that their memory does not grow with the rows.
    """

    def __init__(
        self,
        parts: Sequence[PackedBits],
        rows: Sequence[Tensor | None] | None = None,
        flips: PackedBits | None = None,
    ) -> None:
        """parts: of the same latents, one at least. rows: of each part those that count, int64, or
        None for all. flips: one row, the latents of which 0 counts as on."""
        self.parts, self.n_latents, self.flips = list(parts), parts[0].n_latents, flips
        self.rows = [None] * len(self.parts) if rows is None else list(rows)
        counts = [
            len(part) if rows is None else len(rows)
            for part, rows in zip(self.parts, self.rows, strict=True)
        ]
        self.bounds = torch.tensor([0, *counts]).cumsum(0)

    device = torch.device("cpu")

    def __repr__(self) -> str:
        return f"BitShards({len(self):,} rows of {self.n_latents:,} bits)"

    def __len__(self) -> int:
        return int(self.bounds[-1])

    def __getitem__(self, rows: slice | Tensor) -> PackedBits:
        """The bits of some rows: a slice without a step, an index tensor or a boolean mask."""
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(len(self))
            pieces = [
                self._words(part, slice(max(start - first, 0), stop - first))
                for part, (first, last) in enumerate(self._spans())
                if first < stop and last > start
            ] or [self._words(0, slice(0))]
            return PackedBits(pieces[0] if len(pieces) == 1 else torch.cat(pieces), self.n_latents)
        index = rows.nonzero()[:, 0] if rows.dtype == torch.bool else rows
        part_of = torch.searchsorted(self.bounds, index, right=True) - 1
        words = torch.empty(len(index), self.parts[0].words.shape[1], dtype=torch.int64)
        for part in part_of.unique().tolist():
            mine = part_of == part
            words[mine] = self._words(part, index[mine] - self.bounds[part])
        return PackedBits(words, self.n_latents)

    def _spans(self) -> Iterator[tuple[int, int]]:
        """(first row, end) of each part"""
        return pairwise(self.bounds.tolist())

    def _words(self, part: int, rows: slice | Tensor, columns: slice = slice(None)) -> Tensor:
        chosen = self.rows[part]
        words = self.parts[part].words[:, columns][rows if chosen is None else chosen[rows]]
        return words if self.flips is None else words ^ self.flips.words[:, columns]

    def where(self, rows: Tensor) -> BitShards:
        """The rows of a mask, bool `[rows]`, which stay where they are."""
        kept: list[Tensor | None] = []
        for chosen, (first, last) in zip(self.rows, self._spans(), strict=True):
            mine = rows[first:last]
            index = mine.nonzero()[:, 0]
            kept.append(chosen if mine.all() else index if chosen is None else chosen[index])
        return BitShards(self.parts, kept, self.flips)

    def turned(self, latents: Tensor) -> BitShards:
        """With 0 for 1 and 1 for 0 at these latents, bool `[n_latents]`"""
        flips = PackedBits.pack(latents[None])
        return BitShards(
            self.parts, self.rows, flips if self.flips is None else self.flips.turned(latents)
        )

    def word(self, index: int) -> PackedBits:
        """The 64 latents from `64 * index` on, of all rows."""
        column = slice(index, index + 1)
        words = [self._words(part, slice(None), column) for part in range(len(self.parts))]
        return PackedBits(torch.cat(words), self.parts[0].latents_of_word(index))

    def column(self, latent: int) -> Tensor:
        """One latent's bits in all rows -> int64 0 and 1, `[rows]`"""
        return self.word(latent // 64).column(latent % 64)

    def blocks(self) -> Iterator[PackedBits]:
        """All rows, some at a time."""
        return PackedBits.blocks(self)  # pyright: ignore[reportArgumentType]

    def column_counts(self) -> Tensor:
        """Rows in which each latent is on -> int64 `[n_latents]`"""
        none = torch.zeros(self.n_latents, dtype=torch.int64)
        return sum((block.column_counts() for block in self.blocks()), start=none)


AnyBits = PackedBits | BitShards
SomeBits = TypeVar("SomeBits", PackedBits, BitShards)
