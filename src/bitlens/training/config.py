"""Everything a training run can be told, and the presets."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

from bitlens.errors import BitlensError
from bitlens.options import Coding, PriceKind, Surrogate, Weighting

Architecture = Literal[
    "bae", "random", "relu", "gated", "topk", "batch_topk", "jumprelu", "transcoder", "skip_transcoder", "pca",
]  # fmt: skip
Preset = Literal["features", "measure", "step", "paper"]
Precision = Literal["auto", "fp32", "bf16"]

PRUNE_AT, REGROW_AT, RESTART_AT = (
    (0.2, 0.35, 0.5, 0.7, 0.85),
    (0.2, 0.35, 0.5),
    (0.1, 0.2, 0.3, 0.4, 0.5, 0.6),
)
_STEP = {
    "coding": "step", "scale": 0.0, "anneal": 1.0, "surrogate": "clipped", "lr": 1e-2, "lam": 0.1, "gamma": 0.0, "weighting": "scaled",
    "prune_at": PRUNE_AT, "regrow_at": REGROW_AT, "decay": 0.3,
}  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {
    "features": {
        "coding": "descent", "scale": 0.3, "anneal": 4.0, "surrogate": "clipped", "width": 1.0, "price": "onbit", "lam": 0.1, "gamma": 0.0,
        "weighting": "scaled", "initial_rates": (), "initial_share": 1.0, "prune_at": (), "regrow_at": RESTART_AT,
        "lr": 4e-2, "decay": 0.6,
    },
    "measure": {**_STEP, "width": 1.0, "price": "entropy", "initial_rates": (0.01, 0.5), "initial_share": 0.5},
    "step": {**_STEP, "width": 0.3, "price": "onbit", "initial_rates": (0.01, 0.2), "initial_share": 1.0},
    "paper": {
        **_STEP, "surrogate": "paper", "width": 1.0, "price": "entropy", "lam": 1e-7, "gamma": 1e-7, "weighting": "paper",
        "initial_rates": (), "initial_share": 1.0, "prune_at": (), "regrow_at": (),
    },
}  # fmt: skip
BASELINE_RATES = {
    "relu": 6e-3, "gated": 6e-3, "jumprelu": 6e-3, "topk": 6e-3, "batch_topk": 6e-3, "transcoder": 6e-3,
    "skip_transcoder": 6e-3,
}  # fmt: skip


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run. A field left at None takes the preset's value."""

    architecture: Architecture = "bae"
    """bae: binary autoencoder; random: one that nobody trained; and the baselines to compare it with"""
    preset: Preset = "features"
    """features: sparse interpretable bits, searched; measure: entropy of any data; step: features by one linear map and a threshold; paper: the gradient and weights of arXiv 2509.20997"""
    n_latents: int | None = None
    """number of latents; by default four times the width of the hidden states"""
    steps: int = 3000
    """optimiser steps"""
    batch_size: int = 512
    """rows a step; firing rates, and so the price of bits, are those of one batch"""
    lr: float | None = None
    """peak learning rate of Adam; by default the preset's, 0.006 for the baselines"""
    decay: float | None = None
    """share of the steps, at the end, in which the learning rate falls to 2 %"""
    coding: Coding | None = None
    """how bits are found: descent (searched) or step (one linear map and a threshold); goes with the preset"""
    scale: float | None = None
    """with descent: length of the first decoder rows, in lengths of a row; longer ones make rarer latents"""
    lam: float | None = None
    """price of a bit: the fraction of variance unexplained that one bit per input dimension is worth"""
    gamma: float | None = None
    """weight of the covariance penalty; 0 leaves it out"""
    price: PriceKind | None = None
    """entropy: H2 of the firing rate; onbit: every on-bit costs the same"""
    p0: float = 0.02
    """firing rate of the sparse prior that sets the price of an on-bit"""
    anneal: float | None = None
    """with descent: price of a bit at the start, in final prices, which it reaches after half of the steps"""
    surrogate: Surrogate | None = None
    """gradient of the step: clipped, sigmoid, ste or paper"""
    width: float | None = None
    """width of the surrogate's window, in standard deviations of each latent's own pre-activations"""
    weighting: Weighting | None = None
    """scaled: weights mean the same at every width; paper: plain sums"""
    initial_rates: tuple[float, ...] | None = None
    """range of the latents' first firing rates, log-uniform; empty: as initialised"""
    initial_share: float | None = None
    """share of the latents that start at such a rate; the others as initialised, at about one half"""
    prune_at: tuple[float, ...] | None = None
    """when to prune, as fractions of the run; empty: never"""
    regrow_at: tuple[float, ...] | None = None
    """when to restart latents that are never on, as fractions of the run; empty: never"""
    prune_rows: int = 24576
    """rows that a pruning pass looks at"""
    k: int = 32
    """latents on per row, of all baselines but random: relu, gated and jumprelu are led there; components of pca"""
    sparsity: float | None = None
    """weight of the sparsity term of relu, gated and jumprelu; by default it is moved until k latents are on"""
    match: str = ""
    """random: a run whose firing rates are taken; by default they are log-uniform"""
    test_fraction: float | None = None
    """share of the documents that is held out of training; by default that of the store, a tenth"""
    precision: Precision = "auto"
    """of the matrix products in training; sums are always fp32. auto: bf16 on a GPU, fp32 on a CPU"""
    reference: bool = False
    """train a bae by plain products and autograd: the same numbers to rounding, several times slower on a CPU"""
    device: str = "auto"
    """auto: the GPU if there is one"""
    seed: int = 0
    """seed of everything random"""
    log_every: int = 50
    """steps between lines in metrics.jsonl"""
    checkpoint_every: int = 500
    """steps between checkpoints, from which --resume continues bit-exactly"""

    def resolved(self, d_in: int, device: str) -> TrainConfig:
        """Every None filled in by the preset, for hidden states of this width; refuses what makes no sense."""
        known = PRESETS.get(self.preset)
        if known is None:
            raise BitlensError(
                f"There is no preset '{self.preset}'; choose one of: {', '.join(PRESETS)}."
            )
        if self.architecture in BASELINE_RATES:
            known = {**known, "lr": BASELINE_RATES[self.architecture], "decay": 0.3}
        if self.architecture != "bae":
            known = {**known, "coding": "step"}
        filled = {name: value for name, value in known.items() if getattr(self, name) is None}
        config = replace(
            self, **filled, device=device, n_latents=4 * d_in if self.n_latents is None else self.n_latents,
            precision=("bf16" if device.startswith("cuda") else "fp32") if self.precision == "auto" else self.precision,
        )  # fmt: skip
        config._refuse_nonsense()
        return config

    def _refuse_nonsense(self) -> None:
        rates, most, gamma = (
            self.initial_rates or (0.5, 0.5),
            self.n_latents or 1,
            self.gamma or 0.0,
        )
        conditions = {
            "coding": (self.coding == (PRESETS[self.preset]["coding"] if self.architecture == "bae" else "step"),
                       "the preset's: descent with `preset='features'`, step with step, measure or paper"),
            **{name: (getattr(self, name) >= 1, "at least 1") for name in ("n_latents", "steps", "log_every", "checkpoint_every")},
            **{name: (getattr(self, name) >= 2, "at least 2") for name in ("batch_size", "prune_rows")},
            **{name: (0 < getattr(self, name) < math.inf, "above 0 and finite") for name in ("lr", "width", "decay")},
            "lam": (0 <= (self.lam or 0.0) < math.inf, "at least 0 and finite"),
            **{name: (all(0 <= f < 1 for f in getattr(self, name)), "fractions in [0, 1)") for name in ("prune_at", "regrow_at")},
            "gamma": (0 <= gamma < math.inf and not (gamma and self.coding == "descent"), "at least 0 and finite, and 0 with coding descent"),
            "price": (self.price == "onbit" or self.coding != "descent", "onbit with coding descent"),
            "scale": (0 < (self.scale or 0.0) < math.inf or self.coding != "descent", "above 0 and finite with coding descent"),
            "k": (1 <= self.k <= (most if self.architecture in BASELINE_RATES else math.inf), f"between 1 and {most}, the number of latents"),
            "sparsity": (self.sparsity is None or 0 < self.sparsity < math.inf, "above 0 and finite"),
            "anneal": (1 <= (self.anneal or 1.0) < math.inf, "at least 1 and finite"),
            "p0": (0 < self.p0 < 0.5, "between 0 and 0.5"),
            "initial_share": (0 <= (self.initial_share or 0.0) <= 1, "in [0, 1]"),
            "test_fraction": (0 <= (self.test_fraction or 0.0) < 1, "in [0, 1)"),
            "initial_rates": (len(rates) == 2 and 0 < rates[0] <= rates[1] < 1, "two rates, the lower first, between 0 and 1"),
        }  # fmt: skip
        for name, (fits, wanted) in conditions.items():
            if not fits:
                raise BitlensError(f"`{name}` must be {wanted}, not {getattr(self, name)}.")
