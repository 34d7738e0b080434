"""Bits over distortion: who needs fewer bits at one fvu, and who loses less at the same bits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from bitlens.studies import pages
from bitlens.studies.cells import Row
from bitlens.studies.compare.config import BAE, BINARY_VARIANTS
from bitlens.studies.figures import Panel, draw_panels, groups

POINTS = "rate_distortion"  # a row's points (fvu, bits); the first loses as the row says
KEPT = "ce_loss_score"
FVUS = (0.02, 0.03, 0.05, 0.075, 0.1, 0.125, 0.15, 0.175, 0.2, 0.225, 0.25, 0.3, 0.35, 0.4, 0.5)
BITS = (10, 20, 30, 40, 50, 75, 100, 125, 150, 200, 250, 300, 400, 500, 750, 1000)
MOST = 4  # columns of a kind in the table
FEWEST = 2  # points that a curve is drawn through
Point = tuple[float, float]


class Curve(NamedTuple):
    """What one architecture can do over several prices or k, of one seed."""

    points: list[Point]
    """(fvu, bits), ascending in fvu; none is worse in both than another"""
    kept: list[Point]
    """(bits, ce_loss_score), ascending in bits"""

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Curve:
        """rows: of one architecture and width."""
        with_points = [row for row in rows if row.get(POINTS)]
        kept = [(row[POINTS][0][1], row[KEPT]) for row in with_points if row.get(KEPT) is not None]
        return cls(frontier(point for row in with_points for point in row[POINTS]), sorted(kept))

    def bits_at(self, fvu: float) -> float | None:
        """None outside of the curve."""
        log = between([(fvu, math.log(bits)) for fvu, bits in self.points], fvu)
        return None if log is None else math.exp(log)

    def fvu_at(self, bits: float) -> float | None:
        """None outside of the curve."""
        return between([(math.log(b), fvu) for fvu, b in reversed(self.points)], math.log(bits))

    def kept_at(self, bits: float) -> float | None:
        """`ce_loss_score`; None outside of the curve."""
        return between([(math.log(b), kept) for b, kept in self.kept], math.log(bits))


def frontier(points: Iterable[Sequence[float]]) -> list[Point]:
    """Those to which no other is superior in both, ascending in the first number."""
    best: list[Point] = []
    for fvu, bits in sorted((fvu, bits) for fvu, bits in points if bits > 0):
        if not best or bits < best[-1][1]:
            best.append((fvu, bits))
    return best


def between(points: Sequence[Point], x: float) -> float | None:
    """Linear interpolation in points that ascend in x; None outside of them."""
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 <= x <= x1:
            return y0 if x1 == x0 else y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return None


def curves(rows: Sequence[Row]) -> dict[str, Curve]:
    """Of every architecture with several points of one seed, the first that it has; rows: of one
    width."""
    found = {}
    for name, own in groups(rows, "name").items():
        curve = Curve.of([row for row in own if row["seed"] == own[0]["seed"]])
        if len(curve.points) >= FEWEST and name not in BINARY_VARIANTS:
            found[name] = curve
    return found


def table(by_name: dict[str, Curve]) -> list[str]:
    """Lines of a table at equal fvu and at equal bits; none where the BAE has no curve."""
    if BAE not in by_name:
        return []
    ours = by_name[BAE]
    fvus = _some([x for x in FVUS if ours.bits_at(x) is not None])
    bits = _some([x for x in BITS if ours.fvu_at(x) is not None])
    heads = ["", "`fvu` from", "to"]
    heads += [f"bits at {x:g}" for x in fvus]
    heads += [f"`fvu` at {x} bits" for x in bits]
    heads += [f"`{KEPT}` at {x} bits" for x in bits]
    lines = []
    for name, curve in by_name.items():
        cells = [name, f"{curve.points[0][0]:.3f}", f"{curve.points[-1][0]:.3f}"]
        cells += [pages.number(curve.bits_at(x), 0) for x in fvus]
        cells += [pages.number(curve.fvu_at(x), 4) for x in bits]
        cells += [pages.number(curve.kept_at(x), 4) for x in bits]
        lines.append(cells)
    return pages.table(heads, "l" + "r" * len(heads[1:]), lines)


def _some(values: list[float]) -> list[float]:
    """At most `MOST`, spread over all."""
    if len(values) <= MOST:
        return values
    step = (len(values) - 1) / (MOST - 1)
    return [values[round(i * step)] for i in range(MOST)]


def draw_curves(rows: Sequence[Row], out: Path) -> None:
    """`rate_distortion`: bits over fvu, and the loss kept over bits, a line an architecture, where
    the BAE has one; rows: of one width."""
    by_name = curves(rows)
    if BAE not in by_name:
        return
    bound = {row["fvu"]: row.get("bits_gaussian") for row in rows if row["name"] == BAE}
    points = [
        {"name": name, "fvu": fvu, "bits": bits, "gaussian": bound.get(fvu)}
        for name, curve in by_name.items()
        for fvu, bits in curve.points
    ]
    kept = [
        {"name": name, "bits": bits, KEPT: score}
        for name, curve in by_name.items()
        for bits, score in curve.kept
    ]
    bits = "bits a row, magnitudes included"
    bounds, labels = {"gaussian": "Gaussian bound"}, ("fraction of variance unexplained", bits)
    panels = [[Panel(points, "fvu", "bits", "name", references=bounds, labels=labels)]]
    if kept:
        labels = (bits, "loss kept (ce_loss_score)")
        panels.append([Panel(kept, "bits", KEPT, "name", log="x", labels=labels)])
    draw_panels(out / "rate_distortion", panels, (6.4, 4.0))
