"""Where training rows come from: one interface for a store, a live model and a tensor.

Rows arrive in windows that fit in memory. An epoch visits the windows in random order and the rows of a window in
random order, all from one seed, so a `Position` is enough to restart anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bitlens.errors import BitlensError
from bitlens.seeding import generator, mixed

NO_ROWS = (
    "There are no training rows: every document is held out or every row is an outlier; harvest more documents "
    "(`unit='paragraph'` makes many of one file) or lower `test_fraction`."
)


class Position(NamedTuple):
    """The next row to be read: its epoch, the place of its window in the epoch, its place in the shuffled window."""

    epoch: int = 0
    window: int = 0
    row: int = 0


class HiddenSource:
    """Shuffled, seeded, restartable batches of raw hidden states, and their standardisation.

    A subclass sets `d_in`, `mean [d_in]`, `scale`, `about` (model, hook point and whatever else names the origin) and
    defines `windows`, `window` and `sample`. All give training rows only: held-out documents never appear.
    """

    d_in: int
    mean: Tensor
    scale: float
    about: dict[str, Any]

    def windows(self, seed: int, epoch: int) -> list[Any]:
        """The windows of one epoch, in the order of this epoch."""
        raise NotImplementedError

    def window(self, key: Any) -> Tensor:
        """The training rows of one window, `[rows, d_in]`, unshuffled."""
        raise NotImplementedError

    def sample(self, n: int, seed: torch.Generator) -> Tensor:
        """Up to n training rows drawn at random without replacement, float32 `[<= n, d_in]`."""
        raise NotImplementedError

    def batches(self, size: int, seed: int, start: Position = Position()) -> Iterator[tuple[Tensor, Position]]:  # noqa: B008
        """Endless batches `[size, d_in]` in the source's dtype, each with the position after it."""
        epoch, first, row = start
        rest: Tensor | None = None
        while True:
            found = 0
            for place, key in enumerate(self.windows(seed, epoch)):
                if place < first:
                    continue
                rows = self.window(key)
                found += len(rows)
                order = torch.randperm(len(rows), generator=generator(seed, "rows", epoch, place))
                if rest is not None and len(rest):
                    take = order[: size - len(rest)]
                    rest, row = torch.cat([rest, rows[take]]), len(take)
                    if len(rest) == size:
                        yield rest, Position(epoch, place, row)
                        rest = None
                    else:
                        continue
                while row + size <= len(rows):
                    yield rows[order[row : row + size]], Position(epoch, place, row + size)
                    row += size
                rest, row = rows[order[row:]], 0
            if not found and not first:
                raise BitlensError(NO_ROWS)
            epoch, first = epoch + 1, 0


def held_out(documents: np.ndarray, fraction: float) -> np.ndarray:
    """Which documents are kept for testing: a fixed pseudo-random choice by id, so a longer corpus keeps the split.

    documents: integer ids -> bool, same shape. Document 0 is always
    held out, so that a small corpus has a test set, too.
    """
    uniform = (mixed(documents.astype(np.uint64)) >> np.uint64(11)).astype(np.float64) / 2**53
    return (uniform < fraction) | ((documents == 0) & (fraction > 0))


class TensorSource(HiddenSource):
    """Rows that are in memory already, `[rows, d_in]`: for notebooks, experiments and tests. All are training rows."""

    def __init__(self, rows: Tensor, about: dict[str, Any] | None = None) -> None:
        if rows.ndim != 2 or len(rows) < 2:
            raise BitlensError(f"Training needs a matrix of at least two rows, not shape {list(rows.shape)}.")
        if not torch.isfinite(rows).all():
            bad = int((~torch.isfinite(rows)).any(1).nonzero()[0])
            raise BitlensError(f"Row {bad} has a NaN or infinite value; remove it before training.")
        self.rows, self.d_in = rows, rows.shape[1]
        mean = rows.double().mean(0)
        self.mean = mean.float()
        self.scale = float((rows.double() - mean).square().mean().sqrt())
        self.about = about or {}

    def windows(self, seed: int, epoch: int) -> list[Any]:
        return [None]

    def window(self, key: Any) -> Tensor:
        return self.rows

    def sample(self, n: int, seed: torch.Generator) -> Tensor:
        return self.rows[torch.randperm(len(self.rows), generator=seed)[:n]].float()
