"""Is the entropy that an autoencoder finds the entropy that is there? Planted bits of known entropy, recovered or not."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bitlens.errors import BitlensError
from bitlens.hidden import TensorSource
from bitlens.seeding import generator
from bitlens.studies.cells import Cell, Report, Row, measure_cells, open_study, write_table
from bitlens.studies.measuring import measure_rows
from bitlens.studies.sources import FAMILIES, NESTED, PlantedBits, hidden_states, shannon_bits
from bitlens.training import TrainConfig, train

TEST = 0.2  # of the measured rows: their code length is what the others' models give
VARIANTS: dict[str, dict[str, Any]] = {
    "measure": {},
    "features": {"preset": "features"},
    "step": {"preset": "step"},
    "paper gradient": {"surrogate": "paper"},
    "straight-through": {"surrogate": "ste"},
    "no entropy": {"lam": 0.0},
    "no pruning": {"prune_at": (), "regrow_at": ()},
    "covariance": {"gamma": 10.0},
    "covariance, no pruning": {"gamma": 10.0, "prune_at": (), "regrow_at": ()},
    "paper": {"preset": "paper"},
}
"""What is changed of the preset `measure`; `paper` is all of the paper's own settings but the number of steps."""


@dataclass(frozen=True)
class SyntheticConfig:
    """Settings of the study `synthetic`. Nothing is tuned for a case: all are trained alike."""

    families: tuple[str, ...] = FAMILIES
    """kinds of planted bits"""
    variants: tuple[str, ...] = tuple(VARIANTS)
    """how autoencoders are trained: measure, on everything; all others on independent bits"""
    ranks: tuple[int, ...] = (4, 8, 16, 32, 48, 64)
    """numbers of planted bits; families in which bits depend on one another take those from 16"""
    rates: tuple[float, ...] = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
    """chances of a bit to be on, where bits are independent"""
    other_rates: tuple[float, ...] = (0.5, 0.1)
    """the same in all other families, and for all variants but measure"""
    spreads: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4, 0.8)
    """of magnitudes: standard deviation of their logarithm"""
    noises: tuple[float, ...] = (0.01, 0.03, 0.1, 0.2, 0.4)
    """share of noise in the variance"""
    seeds: tuple[int, ...] = (0, 1, 2)
    """a source, its rows and the training are drawn anew for each"""
    d_in: int = 64
    """width of the hidden states"""
    n_latents: int = 256
    """latents of the autoencoder"""
    rows: int = 8192
    """rows to train on"""
    measured_rows: int = 16384
    """rows to measure on, all of them new"""
    steps: int = 2000
    """training steps"""

    def cells(self) -> list[dict[str, Any]]:
        """Everything that is measured, one dict of settings each."""
        for name, values, known in (("family", self.families, FAMILIES), ("variant", self.variants, tuple(VARIANTS))):
            for value in values:
                if value not in known:
                    raise BitlensError(f"There is no {name} '{value}'; choose from: {', '.join(known)}.")
        if not self.ranks or max(self.ranks) > self.d_in:
            raise BitlensError(f"Ranks of {list(self.ranks)} do not fit hidden states of width {self.d_in}.")
        common, broad = self.other_rates, [r for r in self.ranks if r >= 16]
        middle = [r for r in self.ranks if r == 32] or [max(self.ranks)]
        plans: list[tuple[str, str, Sequence[int], Sequence[float], Sequence[float]]] = []
        for family in self.families:
            if family == "independent":
                plans += [(family, "measure", self.ranks, self.rates, [0.0])]
            elif family == "nested":
                plans += [(family, "measure", [r for r in broad if r % NESTED == 0], [0.5], [0.0])]
            elif family in ("magnitudes", "noise"):
                plans += [(family, "measure", middle, common, self.spreads if family == "magnitudes" else self.noises)]
            else:
                plans += [(family, "measure", broad, common, [0.0])]
        spread = sorted({self.ranks[len(self.ranks) // 3], self.ranks[-1], *middle})
        plans += [("independent", v, spread, common, [0.0]) for v in self.variants if v != "measure"]
        return [
            {"family": family, "variant": variant, "rank": rank, "p": p, "strength": strength, "seed": seed}
            for family, variant, ranks, rates, strengths in plans
            for rank in ranks for p in rates for strength in strengths for seed in self.seeds
        ]  # fmt: skip


def run_synthetic(
    config: SyntheticConfig,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    workers: int = 1,
    report: Report = lambda done, total, row: None,
) -> list[Row]:
    """Train on every cell and compare what is measured with what was planted; table and figures go to the folder `out`."""
    from bitlens.studies.synthetic_figures import draw

    cells = config.cells()
    open_study(out, "synthetic", asdict(config), resume, overwrite)
    same = {name: getattr(config, name) for name in ("d_in", "n_latents", "rows", "measured_rows", "steps")}
    rows = measure_cells(out, cells, partial(measure_cell, config=config), same=same, workers=workers, report=report)
    write_table(out / "table", rows)
    draw(out, rows)
    return rows


def planted(
    cell: Cell, config: SyntheticConfig
) -> tuple[PlantedBits, Callable[[str, int], tuple[torch.Tensor, torch.Tensor]]]:
    """The source of a cell, and a function that draws from it: name of the draw, n -> rows `[n, d]`, bits `[n, rank]`"""
    source = PlantedBits.of(cell["family"], cell["rank"], cell["p"], cell["seed"])
    names = tuple(cell[name] for name in ("family", "rank", "p", "strength", "seed"))
    basis = torch.linalg.qr(torch.randn(config.d_in, config.d_in, generator=generator("directions", *names)))[0]

    def draw(purpose: str, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        random = generator(purpose, *names)
        bits = source.sample(n, random)
        return hidden_states(bits, basis[: cell["rank"]], cell["family"], cell["strength"], random), bits

    return source, draw


def measure_cell(cell: Cell, config: SyntheticConfig) -> Row:
    """Train on rows of a cell's source and measure on others -> truth, estimates and how they compare"""
    source, draw = planted(cell, config)
    settings = {"preset": "measure", **VARIANTS[cell["variant"]]}
    training = TrainConfig(n_latents=config.n_latents, steps=config.steps, seed=cell["seed"], **settings)
    autoencoder = train(TensorSource(draw("train", config.rows)[0]), training)
    rows, bits = draw("measure", config.measured_rows)
    test = torch.arange(len(rows)) >= int((1 - TEST) * len(rows))
    numbers, _ = measure_rows(autoencoder, rows, test, seed=cell["seed"])
    entropy, drawn = source.entropy(), source.empirical_entropy(bits)
    return {
        "truth": entropy, "truth_of_rows": drawn,
        **numbers,
        **{f"{name}_error": numbers[name] / drawn - 1 for name in ("bits_marginal", "bits_tree", "bits_joint")},
        **{f"{name}_covers": numbers[f"{name}_low"] <= entropy <= numbers[f"{name}_high"] for name in ("bits_tree", "bits_joint")},
        "bits_shannon": shannon_bits(source.rates(), config.d_in, cell["strength"], numbers["fvu"])
        if cell["family"] == "noise" else math.nan,
    }  # fmt: skip


def summary(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One line for each family and variant: how many cells, and in how many of them the truth was found."""
    lines = []
    for family, variant in dict.fromkeys((row["family"], row["variant"]) for row in rows):
        here = [row for row in rows if (row["family"], row["variant"]) == (family, variant)]
        good = [row for row in here if "error" not in row]

        def share(condition: Callable[[Row], bool], good: list[Row] = good) -> str:
            return f"{sum(map(condition, good))} of {len(good)}"

        lines.append(
            {
                "family": family, "variant": variant, "cells": len(here),
                "within 2 %, fvu <= .01": share(lambda row: abs(row["bits_tree_error"]) <= 0.02 and row["fvu"] <= 0.01),
                "bits_joint within 3 %": share(lambda row: abs(row["bits_joint_error"]) <= 0.03),
                "marginal excess": statistics.median(row["bits_marginal_error"] for row in good) if good else None,
                "fvu": statistics.median(row["fvu"] for row in good) if good else None,
                "truth in interval, tree": share(lambda row: row["bits_tree_covers"]),
                "joint": share(lambda row: row["bits_joint_covers"]),
            }
        )  # fmt: skip
    return lines
