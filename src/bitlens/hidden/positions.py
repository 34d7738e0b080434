"""Ranges of positions in a context, which double in length: what is measured by position is shown
by these."""

from __future__ import annotations

import torch
from torch import Tensor


def position_range(position: int, singles: int = 4) -> str:
    """The range that a position lies in: 0, 1, 2, 3, 4-7, 8-15, ...

    singles: a power of two; positions below it are ranges of their own.
    """
    if position < singles:
        return str(position)
    low = 1 << (position.bit_length() - 1)
    return f"{low}-{2 * low - 1}"


def position_ranges(positions: Tensor, singles: int = 4) -> tuple[list[str], Tensor]:
    """positions `[n]` -> names of the ranges that occur, in their order, and the index of each
    position's among them, int64 `[n]`."""
    distinct, which = positions.unique(return_inverse=True)
    of_distinct = [position_range(position, singles) for position in distinct.tolist()]
    names = list(dict.fromkeys(of_distinct))
    return names, torch.tensor([names.index(name) for name in of_distinct], dtype=torch.long)[which]
