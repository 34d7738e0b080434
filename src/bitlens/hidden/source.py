"""Where training rows come from: one interface for a store, a live model and a tensor.

Rows arrive in windows that fit in memory, in random order, as are the rows of a window, all from
one seed, so a `Position` is enough to restart anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bitlens.errors import BitlensError
from bitlens.seeding import generator, mixed

FILL = 1e6  # times the usual norm: no hidden state is as large
SHARED_FILL = 100  # the same, of a norm that most rows share to the last digit
NORM_ROWS = 1024  # whose norms and spread are taken together
RESERVOIR_ROWS = 65536  # of a stream that are kept in memory
NO_ROWS = (
    "There are no training rows: every document is held out or every row is an outlier; harvest "
    "more documents (`unit='paragraph'` makes many of one file) or lower `test_fraction`."
)


class Position(NamedTuple):
    """The next row to be read."""

    epoch: int = 0
    window: int = 0
    """its place in the epoch"""
    row: int = 0
    """its place in the shuffled window"""


class HiddenSource:
    """Shuffled, seeded, restartable batches of raw hidden states, and their standardisation.

    A subclass sets `d_in`, `mean [d_in]`, `scale`, `about` (model, hook point, ...) and defines
    `windows`, `window` and `sample`, which give training rows only, no held-out documents.
    """

    d_in: int
    mean: Tensor
    scale: float
    about: dict[str, Any]
    test_fraction: float
    """share of the documents that is held out; rows in memory have none"""

    def split(self, test_fraction: float) -> HiddenSource:
        """The same source with another share of its documents held out."""
        raise BitlensError(
            f"test_fraction={test_fraction} cannot be set on a {type(self).__name__} that is there "
            "already: give it only the rows to train on, or make it anew with this test_fraction."
        )

    def __repr__(self) -> str:
        hook = (self.about.get("hook") or {}).get("module")
        origin = f"{self.about.get('model')} at {hook}"
        return f"{type(self).__name__}(hidden states of width {self.d_in}, {origin})"

    def memory(self) -> tuple[int, int]:
        """Bytes that a window and what is known of all rows take, and more while one is read."""
        return 0, 0

    def training_rows(self) -> int:
        """How many rows there are to train on, at most; of a stream as many as are sampled from."""
        return RESERVOIR_ROWS

    def windows(self, seed: int, epoch: int) -> Iterable[Any]:
        """The windows of one epoch, in the order of this epoch."""
        raise NotImplementedError

    def window(self, key: Any) -> Tensor:
        """The training rows of one window, `[rows, d_in]`, unshuffled."""
        raise NotImplementedError

    def sample(self, n: int, seed: torch.Generator) -> Tensor:
        """Up to n training rows drawn without replacement, float32 `[<= n, d_in]`."""
        raise NotImplementedError

    def batches(
        self,
        size: int,
        seed: int,
        start: Position = Position(),  # noqa: B008
    ) -> Iterator[tuple[Tensor, Position]]:
        """Endless batches `[size, d_in]` in the source's dtype, each with the position after it."""
        epoch, first, row = start
        parts: list[Tensor] = []  # of a batch that is not full yet
        while True:
            read = 0
            for place, key in enumerate(self.windows(seed, epoch)):
                if place < first:
                    continue
                rows = self.window(key)
                read += len(rows)
                order = torch.randperm(len(rows), generator=generator(seed, "rows", epoch, place))
                while row < len(rows):
                    missing = order[row : row + size - sum(map(len, parts))]
                    parts.append(rows[missing])
                    row += len(missing)
                    if sum(map(len, parts)) == size:
                        batch = parts[0] if len(parts) == 1 else torch.cat(parts)
                        yield batch, Position(epoch, place, row)
                        parts = []
                row = 0
            if not read and not first:
                raise BitlensError(NO_ROWS)
            epoch, first = epoch + 1, 0


def held_out(documents: np.ndarray, fraction: float) -> np.ndarray:
    """Which documents, integer ids, are kept for testing -> bool, same shape.

    A fixed pseudo-random choice by id, so a longer corpus keeps the split. Document 0 always is
    one, so that a small corpus has a test set, too.
    """
    uniform = (mixed(documents.astype(np.uint64)) >> np.uint64(11)).astype(np.float64) / 2**53
    return (uniform < fraction) | ((documents == 0) & (fraction > 0))


class Spread(NamedTuple):
    """Mean `[d]` and summed squared distances to it of rows, float64. Parts are joined without the
    cancellation of sums of squares (Chan, Golub, LeVeque 1979)."""

    rows: int
    mean: Tensor
    squares: float

    @classmethod
    def of(cls, rows: Tensor) -> Spread:
        """Of rows `[n, d]`, n at least 1."""
        blocks = ((block, block.mean(0)) for block in _doubled(rows))
        return cls.joined(
            Spread(len(block), mean, float(block.sub_(mean).square_().sum()))
            for block, mean in blocks
        )

    @classmethod
    def joined(cls, parts: Iterable[Spread]) -> Spread:
        """Of the rows of all parts, in their order."""
        one, *others = parts
        for other in others:
            rows, apart = one.rows + other.rows, other.mean - one.mean
            between = float(apart.square().sum()) * one.rows * other.rows / rows
            mean = one.mean + apart * (other.rows / rows)
            one = Spread(rows, mean, one.squares + other.squares + between)
        return one

    @property
    def std(self) -> float:
        """Of all components together."""
        return math.sqrt(self.squares / (self.rows * len(self.mean)))


def row_norms(rows: Tensor) -> Tensor:
    """Euclidean norm of each of the rows `[n, d]`, float64: float32's squares may overflow."""
    return torch.cat([torch.linalg.vector_norm(block, dim=1) for block in _doubled(rows)])


def _doubled(rows: Tensor) -> Iterator[Tensor]:
    """Blocks of rows in float64, each in the place of the one before: copies that come and go would
    leave holes in memory, several times as large as they are."""
    place = rows.new_empty(min(len(rows), NORM_ROWS), rows.shape[1], dtype=torch.float64)
    for block in rows.split(NORM_ROWS):
        yield place[: len(block)].copy_(block)


def outlier_limit(norms: Tensor, multiple: float) -> float:
    """The largest norm of a usual row: `multiple` times the median of all norms that are not zero.

    A norm a million times the median is a fill value, left out where it is rare; where it is not,
    nobody can say which rows are meant, and that is refused. So is one norm that more than half of
    the rows share, far from that of the others: their median would be the fill value's.
    """
    nonzero = norms[norms > 0].double()
    if not len(nonzero):
        return 0.0
    median = float(nonzero.median())
    shared = (nonzero == median).sum() > len(nonzero) / 2
    times = SHARED_FILL if shared else FILL
    far = int(((nonzero > times * median) | (nonzero * times < median)).sum())
    if far > len(nonzero) / 100:
        raise BitlensError(
            f"{far:,} of {len(nonzero):,} rows have norms far above or below the median, "
            f"{median:.2g}: either they are fill values or the others are; take the rows of fill "
            "values out."
        )
    return multiple * median


def refuse_non_finite(
    rows: Tensor,
    norms: Tensor,
    columns: Mapping[str, Tensor],
    before: int | None = 0,
    hook: Mapping[str, Any] | None = None,
    file: Path | None = None,
) -> None:
    """Name the first of the rows `[n, d]` with a NaN or infinity, and where it is from.

    norms `[n]`: of the rows. columns: `document` and, if known, `position`. before: rows before
    these, None if that is not known. hook: names of the hook point. file: that they were read from.
    """
    bad = (~torch.isfinite(norms)).nonzero()[:, 0]
    if not len(bad):
        return
    row = int(bad[0])
    known = [name for name in ("document", "position") if name in columns]
    origin = ", ".join(f"{name} {int(columns[name][row])}" for name in known)
    infinite = not bool(rows[row].isnan().any())
    cure = "load the model with `dtype='float32'`; where it is, leave the document out"
    if file is not None:
        cure = "make the store again without it"
    elif infinite and rows.dtype == torch.float16:
        cure = "float16 ends at 65,504: load the model with `dtype='float32'` and store with "
        cure += "`store_dtype=torch.float32`"
    which = "A row" if before is None else f"Row {before + row}"
    what = "an infinite" if infinite else "a NaN"
    place = (f" at {hook.get('module')}" if hook else "") + (f" in {file}" if file else "")
    raise BitlensError(
        f"{which} ({origin}) has {what} hidden state{place}, as {len(bad):,} of {len(rows):,} rows "
        f"there have; {cure}."
    )


class TensorSource(HiddenSource):
    """Rows in memory, `[rows, d_in]`: for notebooks, experiments and tests. All are trained on."""

    def __init__(self, rows: Tensor, about: dict[str, Any] | None = None) -> None:
        if rows.ndim != 2 or len(rows) < 2:
            raise BitlensError(
                f"Training needs a matrix of at least two rows, not shape {list(rows.shape)}."
            )
        if not torch.isfinite(rows).all():
            bad = int((~torch.isfinite(rows)).any(1).nonzero()[0])
            raise BitlensError(f"Row {bad} has a NaN or infinite value; remove it before training.")
        norms = row_norms(rows)
        largest = int(norms.argmax())
        if norms[largest] > FILL * outlier_limit(norms, 1.0) > 0:
            raise BitlensError(
                f"Row {largest} has a norm of {float(norms[largest]):.2g}, more than a million "
                "times the median; leave rows of fill values out."
            )
        self.rows, self.d_in = rows, rows.shape[1]
        spread = Spread.of(rows)
        self.mean, self.scale = spread.mean.float(), spread.std
        self.about = about or {}

    def __repr__(self) -> str:
        return f"TensorSource({len(self.rows):,} rows of {self.d_in})"

    def training_rows(self) -> int:
        """All"""
        return len(self.rows)

    def windows(self, seed: int, epoch: int) -> list[Any]:
        """One, of all rows."""
        return [None]

    def window(self, key: Any) -> Tensor:
        """All rows."""
        return self.rows

    def sample(self, n: int, seed: torch.Generator) -> Tensor:
        """Up to n rows, float32 `[<= n, d_in]`."""
        return self.rows[torch.randperm(len(self.rows), generator=seed)[:n]].float()
