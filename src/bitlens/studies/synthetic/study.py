"""Is the entropy that an autoencoder measures the true one? Planted bits, recovered or not."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from bitlens.hidden import TensorSource
from bitlens.seeding import generator
from bitlens.studies.cells import Cell, Row, Study
from bitlens.studies.figures import Panel, draw_panels, groups
from bitlens.studies.measuring import measure_rows
from bitlens.studies.synthetic.config import VARIANTS, SyntheticConfig
from bitlens.studies.synthetic.sources import PlantedBits, hidden_states, shannon_bits
from bitlens.training import TrainConfig, train

TEST = 0.2  # of the measured rows: their code length is what the others' models give
SAME = ("d_in", "n_latents", "rows", "measured_rows", "steps")
EXACT = ("independent", "pairs", "chain", "tree", "nested")
"""Families whose entropy an autoencoder could find: nothing but bits is planted."""
STRENGTHS = {
    "noise": "share of noise in the variance",
    "magnitudes": "spread of the magnitudes' logarithm",
}


def run(config: SyntheticConfig, study: Study) -> list[Row]:
    """Train on every cell and compare what is measured with what was planted."""
    cells = config.cells()
    study.open("synthetic", asdict(config))
    same = {name: getattr(config, name) for name in SAME}
    return study.finish(study.measure(cells, measure_cell, same, config=config), draw)


def planted(
    cell: Cell, config: SyntheticConfig
) -> tuple[PlantedBits, Callable[[str, int], tuple[Tensor, Tensor]]]:
    """The source of a cell, and a function: name of a draw, n -> rows `[n, d]`, bits `[n, rank]`"""
    source = PlantedBits.of(cell["family"], cell["rank"], cell["p"], cell["seed"])
    names = tuple(cell[name] for name in ("family", "rank", "p", "strength", "seed"))
    square = torch.randn(config.d_in, config.d_in, generator=generator("directions", *names))
    directions = torch.linalg.qr(square)[0][: cell["rank"]]

    def draw(purpose: str, n: int) -> tuple[Tensor, Tensor]:
        random = generator(purpose, *names)
        bits = source.sample(n, random)
        return hidden_states(bits, directions, cell["family"], cell["strength"], random), bits

    return source, draw


def measure_cell(cell: Cell, config: SyntheticConfig) -> Row:
    """Train on rows of a cell's source and measure on others -> truth, estimates, their errors"""
    source, draw = planted(cell, config)
    training = TrainConfig(
        n_latents=config.n_latents,
        steps=config.steps,
        seed=cell["seed"],
        **{"preset": "measure", **VARIANTS[cell["variant"]]},
    )
    autoencoder = train(TensorSource(draw("train", config.rows)[0]), training)
    rows, bits = draw("measure", config.measured_rows)
    test = torch.arange(len(rows)) >= int((1 - TEST) * len(rows))
    numbers, _ = measure_rows(autoencoder, rows, test, seed=cell["seed"])
    truth, drawn = source.entropy(), source.empirical_entropy(bits)
    row: Row = {"truth": truth, "truth_of_rows": drawn, **numbers}
    for name in ("bits_marginal", "bits_tree", "bits_joint"):
        value = numbers[name]  # None where it is left out
        row[f"{name}_error"] = None if value is None else value / drawn - 1
    for name in ("bits_tree", "bits_joint"):
        low, high = numbers[f"{name}_low"], numbers[f"{name}_high"]
        row[f"{name}_covers"] = None if low is None else low <= truth <= high
    row["bits_shannon"] = math.nan
    if cell["family"] == "noise":
        share = cell["strength"]
        row["bits_shannon"] = shannon_bits(source.rates(), config.d_in, share, numbers["fvu"])
    return row


def summary(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One line for each family and variant: how many cells, and how many found the truth; those
    without entropies did not."""
    lines = []

    def share(good: Sequence[bool | None]) -> str:
        return f"{sum(map(bool, good))} of {len(good)}"

    def middle(numbers: Sequence[float | None]) -> float | None:
        known = [number for number in numbers if number is not None]
        return median(known) if known else None

    def within(error: float | None, limit: float) -> bool:
        return error is not None and abs(error) <= limit

    for family, variant in dict.fromkeys((row["family"], row["variant"]) for row in rows):
        cells = [row for row in rows if (row["family"], row["variant"]) == (family, variant)]
        measured = [row for row in cells if "error" not in row]
        right = [within(row["bits_tree_error"], 0.02) and row["fvu"] <= 0.01 for row in measured]
        near = [within(row["bits_joint_error"], 0.03) for row in measured]
        lines.append(
            {
                "family": family,
                "variant": variant,
                "cells": len(cells),
                "within 2 %, fvu <= .01": share(right),
                "bits_joint within 3 %": share(near),
                "marginal excess": middle([row["bits_marginal_error"] for row in measured]),
                "fvu": middle([row["fvu"] for row in measured]),
                "truth in interval, tree": share([row["bits_tree_covers"] for row in measured]),
                "joint": share([row["bits_joint_covers"] for row in measured]),
            }
        )
    return lines


def draw(rows: Sequence[Row], out: Path) -> None:
    """`calibration`, `variants`, `noise` and `magnitudes`, of what was measured."""
    rows = [{**row, "rate": f"p = {row['p']:g}"} for row in rows]
    measured = [row for row in rows if row["variant"] == "measure"]
    if exact := [row for row in measured if row["family"] in EXACT]:
        _draw_calibration(exact, out / "calibration")
    independent = [row for row in rows if row["family"] == "independent"]
    if len(groups(independent, "variant")) > 1:
        _draw_variants(independent, out / "variants")
    for family, label in STRENGTHS.items():
        if chosen := [row for row in measured if row["family"] == family]:
            _draw_failure(chosen, label, out / family)


def _draw_calibration(rows: list[Row], path: Path) -> None:
    """Three estimates over the truth, each family in its colour."""
    labels = ("true entropy, bits a row", "measured, bits a row")
    style: dict[str, Any] = {"kind": "points", "log": "xy", "labels": labels}
    style["references"] = {"truth_of_rows": "the truth"}
    names = {
        "bits_marginal": "sum of marginals",
        "bits_tree": "Chow-Liu tree",
        "bits_joint": "held-out code length",
    }
    panels = [
        Panel(rows, "truth_of_rows", name, "family", title=f"{title} ({name})", **style)
        for name, title in names.items()
    ]
    draw_panels(path, [panels], (3.6, 3.5), sharey=True)


def _draw_variants(rows: list[Row], path: Path) -> None:
    """Measured over true entropy and fvu of every way of training, on the same independent bits."""
    case = lambda row: (row["rank"], row["p"], row["seed"])  # noqa: E731
    last = rows[-1]["variant"]
    shared = {case(row) for row in rows if row["variant"] == last}
    rows = [
        {
            **row,
            "ratio": row["bits_marginal"] and row["bits_marginal"] / row["truth_of_rows"],
            "fvu": max(row["fvu"], 1e-6),
            "one": 1.0,
            "target": 0.01,
        }
        for row in rows
        if case(row) in shared
    ]
    style: dict[str, Any] = {"series": "rate", "kind": "points", "log": "y", "even": True}
    panels = [
        Panel(rows, "variant", y, references=references, labels=("", label), **style)
        for y, references, label in (
            ("ratio", {"one": "the truth"}, "bits_marginal / true entropy"),
            ("fvu", {"target": "fvu of .01"}, "fvu, at least 1e-6"),
        )
    ]
    draw_panels(path, [panels], (4.8, 4.2))


def _draw_failure(rows: list[Row], label: str, path: Path) -> None:
    """What is measured where more than bits is planted, beside the bounds; below it the fvu."""
    estimates, errors = (
        [{**row, "number": name, "value": row[name]} for name in names for row in rows]
        for names in (("bits_marginal", "bits_joint"), ("fvu",))
    )
    bounds = {
        "truth": "planted bits",
        "bits_gaussian": "Gaussian bound",
        "bits_shannon": "Shannon's lower bound",
    }
    noise = {"strength": "share of noise"} if rows[0]["family"] == "noise" else {}
    grid: list[list[Panel]] = [[], []]
    for rate, of_rate in groups(estimates, "rate").items():
        own = [row for row in errors if row["rate"] == rate]
        bits = Panel(of_rate, "strength", "value", "number", references=bounds, even=True)
        title = f"{of_rate[0]['rank']} bits, {rate}"
        grid[0].append(replace(bits, title=title, labels=(label, "bits a row")))
        grid[1].append(replace(bits, rows=own, references=noise, labels=(label, "fvu")))
    draw_panels(path, grid, (3.8, 2.9), sharex=True, sharey="row")
