"""Is the entropy that an autoencoder finds the entropy that is there? Planted bits of known entropy, recovered or not."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bitlens.hidden import TensorSource
from bitlens.seeding import generator
from bitlens.studies.cells import Cell, Report, Row, measure_cells, open_study, write_table
from bitlens.studies.configs import SYNTHETIC_VARIANTS as VARIANTS
from bitlens.studies.configs import SyntheticConfig
from bitlens.studies.measuring import measure_rows
from bitlens.studies.synthetic.sources import PlantedBits, hidden_states, shannon_bits
from bitlens.training import TrainConfig, train

TEST = 0.2  # of the measured rows: their code length is what the others' models give


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
    from bitlens.studies.synthetic.figures import draw

    cells = config.cells()
    open_study(out, "synthetic", asdict(config), resume, overwrite)
    same = {
        name: getattr(config, name)
        for name in ("d_in", "n_latents", "rows", "measured_rows", "steps")
    }
    rows = measure_cells(
        out, cells, partial(measure_cell, config=config), same=same, workers=workers, report=report
    )
    write_table(out / "table", rows)
    draw(out, rows)
    return rows


def planted(
    cell: Cell, config: SyntheticConfig
) -> tuple[PlantedBits, Callable[[str, int], tuple[torch.Tensor, torch.Tensor]]]:
    """The source of a cell, and a function that draws from it: name of the draw, n -> rows `[n, d]`, bits `[n, rank]`"""
    source = PlantedBits.of(cell["family"], cell["rank"], cell["p"], cell["seed"])
    names = tuple(cell[name] for name in ("family", "rank", "p", "strength", "seed"))
    basis = torch.linalg.qr(
        torch.randn(config.d_in, config.d_in, generator=generator("directions", *names))
    )[0]

    def draw(purpose: str, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        random = generator(purpose, *names)
        bits = source.sample(n, random)
        return hidden_states(
            bits, basis[: cell["rank"]], cell["family"], cell["strength"], random
        ), bits

    return source, draw


def measure_cell(cell: Cell, config: SyntheticConfig) -> Row:
    """Train on rows of a cell's source and measure on others -> truth, estimates and how they compare"""
    source, draw = planted(cell, config)
    settings = {"preset": "measure", **VARIANTS[cell["variant"]]}
    training = TrainConfig(
        n_latents=config.n_latents, steps=config.steps, seed=cell["seed"], **settings
    )
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
