"""What demonstrations change: differences between cells of the same queries, with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

import torch

from bitlens.information.intervals import Estimate, mean, student_quantile
from bitlens.studies.cells import Row
from bitlens.studies.figures import groups
from bitlens.studies.icl.config import NO_DEMONSTRATIONS

OF_QUERIES = "queries: "
"""Before the name of a number, in a row: its value for every query, a list; or for those held out,
which are the last."""
PLACES = "places"
"""Where the queries are among the texts."""
NUMBERS = ("accuracy", "accuracy_calibrated", "bits_joint", "label_bits", "label_bits_hidden")
MANY_SEEDS = 3  # from so many on, they are seen to vary
Place = tuple[str, int]


class Contrast(NamedTuple):
    """A sum over cells with weights: a difference of two, or a slope."""

    condition: str
    over: str
    weights: Mapping[Place, float]
    """of the cell of a condition and k"""


class Effect(NamedTuple):
    """What a contrast is of every number, at a layer."""

    layer: str
    contrast: Contrast
    numbers: dict[str, Estimate | None]
    """None where a cell lacks the number"""


def contrasts(rows: Sequence[Row]) -> list[Contrast]:
    """From the fewest demonstrations to the most, for each doubling of their number, and with the
    most beside the controls."""
    places = dict.fromkeys((row["condition"], row["k"]) for row in rows)
    conditions = dict.fromkeys(c for c, _ in places if c != NO_DEMONSTRATIONS)
    found = []
    for condition in conditions:
        ks = sorted(k for c, k in places if c == condition)
        first = (NO_DEMONSTRATIONS, 0) if (NO_DEMONSTRATIONS, 0) in places else (condition, ks[0])
        last = (condition, ks[-1])
        if first != last:
            over = f"k {first[1]} to {last[1]}"
            found.append(Contrast(condition, over, {last: 1.0, first: -1.0}))
        if len(ks) > 2:
            weights = {(condition, k): weight for k, weight in _slope(ks).items()}
            found.append(Contrast(condition, "a doubling of k", weights))
    most = max((k for _, k in places), default=0)
    for control in conditions:
        if control != "correct" and {("correct", most), (control, most)} <= set(places):
            weights = {("correct", most): 1.0, (control, most): -1.0}
            found.append(Contrast(f"correct less {control}", f"k {most}", weights))
    return found


def _slope(ks: Sequence[int]) -> dict[int, float]:
    """Weights that make the least-squares slope over log2 k."""
    x = [math.log2(k) for k in ks]
    centre = fmean(x)
    squares = sum((value - centre) ** 2 for value in x)
    return {k: (value - centre) / squares for k, value in zip(ks, x, strict=True)}


def effects(rows: Sequence[Row]) -> list[Effect]:
    """Every contrast at every layer, of what was measured."""
    measured = [row for row in rows if "error" not in row]
    return [
        Effect(layer, contrast, {name: _estimate(own, contrast, name) for name in NUMBERS})
        for layer, own in groups(measured, "layer").items()
        for contrast in contrasts(measured)
    ]


def _estimate(rows: Sequence[Row], contrast: Contrast, name: str) -> Estimate | None:
    of_seeds, queries = [], []
    for seed in dict.fromkeys(row["seed"] for row in rows):
        cells = {(row["condition"], row["k"]): row for row in rows if row["seed"] == seed}
        of_cells = [cells.get(place, {}).get(OF_QUERIES + name) for place in contrast.weights]
        if not all(of_cells):
            return None
        values = torch.tensor(of_cells, dtype=torch.float64)  # [cells, queries], the same queries
        of_seeds.append(torch.tensor(list(contrast.weights.values()), dtype=torch.float64) @ values)
        row = cells[next(iter(contrast.weights))]
        queries.append(torch.tensor(row[OF_QUERIES + PLACES][-values.shape[1] :]))
    return combined(of_seeds, queries) if of_seeds else None


def combined(of_seeds: Sequence[torch.Tensor], queries: Sequence[torch.Tensor]) -> Estimate:
    """Mean over the queries of all seeds `[queries]` each, with the wider of two intervals: over
    queries and, of three seeds and more, over their means. Each seed draws queries and
    demonstrations and trains anew; a query that several seeds have drawn counts as one unit."""
    values = torch.cat(list(of_seeds))
    n, value = len(values), float(values.mean())
    units, own = torch.cat(list(queries)).unique(return_inverse=True)
    m = len(units)
    sums = values.new_zeros(m).index_add_(0, own, values - value)
    half = student_quantile(m - 1) * math.sqrt(m / max(1, m - 1) * float(sums.square().sum())) / n
    if len(of_seeds) >= MANY_SEEDS:
        half = max(half, mean([float(of_seed.mean()) for of_seed in of_seeds]).half)
    return Estimate(value, value - half, value + half)
