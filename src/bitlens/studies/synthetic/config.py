"""Settings of the study `synthetic`."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from bitlens.errors import BitlensError
from bitlens.studies.options import refuse_unknown

FAMILIES = ("independent", "pairs", "chain", "tree", "nested", "magnitudes", "noise")
NESTED = 4  # bits of one thermometer
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
"""What is changed of the preset `measure`; `paper` is all of the paper's own settings but the
number of steps."""


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
        refuse_unknown("family", self.families, FAMILIES)
        refuse_unknown("variant", self.variants, VARIANTS)
        if not self.ranks or max(self.ranks) > self.d_in:
            raise BitlensError(
                f"Ranks of {list(self.ranks)} do not fit hidden states of width {self.d_in}."
            )
        dependent = [rank for rank in self.ranks if rank >= 16]
        middle = [rank for rank in self.ranks if rank == 32] or [max(self.ranks)]
        grids = {  # ranks, rates and strengths
            "independent": (self.ranks, self.rates, [0.0]),
            "nested": ([rank for rank in dependent if rank % NESTED == 0], [0.5], [0.0]),
            "magnitudes": (middle, self.other_rates, self.spreads),
            "noise": (middle, self.other_rates, self.noises),
        }
        others = (dependent, self.other_rates, [0.0])
        plans = [(family, "measure", grids.get(family, others)) for family in self.families]
        spread = sorted({self.ranks[len(self.ranks) // 3], self.ranks[-1], *middle})
        grid = (spread, self.other_rates, [0.0])
        plans += [("independent", name, grid) for name in self.variants if name != "measure"]
        names = ("family", "variant", "rank", "p", "strength", "seed")
        return [
            dict(zip(names, (family, variant, *values), strict=True))
            for family, variant, grid in plans
            for values in itertools.product(*grid, self.seeds)
        ]
