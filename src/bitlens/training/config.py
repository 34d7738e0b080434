"""What a training run can be told, the presets, and what is refused. Imports nothing heavy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from bitlens.autoencoders.registry import ARCHITECTURES, find
from bitlens.autoencoders.settings import Precision, Preset, Settings, TopKSettings
from bitlens.errors import BitlensError
from bitlens.options import Coding, PriceKind, Surrogate, Weighting

if TYPE_CHECKING:
    Architecture = str
else:
    Architecture = Literal[tuple(ARCHITECTURES)]  # the command line offers these

_DESCENT = {
    "coding": "descent",
    "scale": 0.3,
    "anneal": 4.0,
    "surrogate": "clipped",
    "width": 1.0,
    "price": "onbit",
    "lam": 0.1,
    "gamma": 0.0,
    "weighting": "scaled",
    "initial_rates": (),
    "initial_share": 1.0,
    "prune_at": (),
    "regrow_at": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6),
    "lr": 4e-2,
    "decay": 0.6,
}
_STEP = {
    **_DESCENT,
    "coding": "step",
    "scale": 0.0,
    "anneal": 1.0,
    "prune_at": (0.2, 0.35, 0.5, 0.7, 0.85),
    "regrow_at": (0.2, 0.35, 0.5),
    "lr": 1e-2,
    "decay": 0.3,
}
PRESETS: dict[str, dict[str, Any]] = {
    "features": _DESCENT,
    "measure": {**_STEP, "price": "entropy", "initial_rates": (0.01, 0.5), "initial_share": 0.5},
    "step": {**_STEP, "width": 0.3, "initial_rates": (0.01, 0.2)},
    "paper": {
        **_STEP,
        "surrogate": "paper",
        "price": "entropy",
        "lam": 1e-7,
        "gamma": 1e-7,
        "weighting": "paper",
        "prune_at": (),
        "regrow_at": (),
    },
}


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run. A field left at None takes the preset's value, or the
    architecture's own; one that the architecture does not have is without effect."""

    architecture: Architecture = "bae"
    """bae: binary autoencoder; random: one that nobody trained; and the baselines beside it.
    `train --architecture NAME --help` shows the settings of each"""
    preset: Preset = "features"
    """features: sparse interpretable bits, searched; measure: entropy of any data; step: features
    by one linear map and a threshold; paper: the gradient and weights of arXiv 2509.20997"""
    n_latents: int | None = None
    """number of latents; by default four times the width of the hidden states"""
    steps: int = 3000
    """optimiser steps"""
    batch_size: int = 512
    """rows a step; firing rates, and so the price of bits, are those of one batch"""
    lr: float | None = None
    """peak learning rate of Adam; by default the preset's, 0.006 for sparse autoencoders"""
    decay: float | None = None
    """share of the steps, at the end, in which the learning rate falls to 2 %"""
    coding: Coding | None = None
    """how bits are found: descent (searched) or step (one linear map and a threshold); goes with
    the preset"""
    scale: float | None = None
    """with descent: length of the first decoder rows, in lengths of a row; longer: rarer latents"""
    lam: float | None = None
    """price of a bit: the fvu that one bit per input dimension is worth"""
    gamma: float | None = None
    """weight of the covariance penalty; 0 leaves it out"""
    price: PriceKind | None = None
    """entropy: H2 of the firing rate; onbit: every on-bit costs the same"""
    p0: float = 0.02
    """firing rate of the sparse prior that sets the price of an on-bit"""
    anneal: float | None = None
    """with descent: price of a bit at the start, in final prices; final after half of the steps"""
    surrogate: Surrogate | None = None
    """gradient of the step: clipped, sigmoid, ste or paper"""
    width: float | None = None
    """width of the surrogate's window, in standard deviations of each latent's pre-activations"""
    weighting: Weighting | None = None
    """scaled: weights mean the same at every width; paper: plain sums"""
    initial_rates: tuple[float, ...] | None = None
    """range of the latents' first firing rates, log-uniform; empty: as initialised"""
    initial_share: float | None = None
    """share of the latents that start at such a rate; the others as initialised, at about 1/2"""
    prune_at: tuple[float, ...] | None = None
    """when to prune, as fractions of the run; empty: never"""
    regrow_at: tuple[float, ...] | None = None
    """when to restart dead latents, as fractions of the run; empty: never"""
    prune_rows: int = 24576
    """rows that a pruning pass looks at"""
    k: int = 32
    """latents on per row, in the mean; components of pca"""
    sparsity: float | None = None
    """weight of the sparsity term; by default a controller moves it until k latents are on"""
    match: str = ""
    """a run whose firing rates are used; by default they are log-uniform"""
    test_fraction: float | None = None
    """share of the documents held out of training; by default that of the store, a tenth"""
    precision: Precision = "auto"
    """of matrix products in training; sums are always fp32. auto: bf16 on a GPU, fp32 on a CPU"""
    reference: bool = False
    """train by plain products and autograd: the same numbers to rounding, much slower on a CPU"""
    device: str = "auto"
    """auto: the GPU if there is one"""
    seed: int = 0
    """seed of everything random"""
    log_every: int = 50
    """steps between lines in metrics.jsonl"""
    checkpoint_every: int = 500
    """steps between checkpoints, from which --resume continues bit-exactly"""

    def resolved(self, d_in: int, device: str) -> TrainConfig:
        """Every default filled in, for hidden states of this width: what a run records.

        Refuses what makes no sense. `settings` then gives what the architecture itself is told.
        """
        if self.preset not in PRESETS:
            raise BitlensError(
                f"There is no preset '{self.preset}'; choose one of: {', '.join(PRESETS)}."
            )
        own = {f.name: f.default for f in fields(find(self.architecture).settings)}
        defaults: dict[str, Any] = {
            **PRESETS[self.preset],
            **{name: value for name, value in own.items() if value is not MISSING},
            "n_latents": 4 * d_in,
        }
        if self.architecture != "bae":
            defaults["coding"] = "step"
        filled = {name: v for name, v in defaults.items() if getattr(self, name) is None}
        precision = self.precision
        if precision == "auto":
            precision = "bf16" if device.startswith("cuda") else "fp32"
        config = replace(self, **filled, device=device, precision=precision)
        for rule in RULES:
            rule.check(config)
        return config

    def settings(self) -> Settings:
        """What the learner is told, of a resolved configuration."""
        kind = find(self.architecture, self.coding or "descent").settings
        return kind(**{field.name: getattr(self, field.name) for field in fields(kind)})


OF_EVERY_RUN = ("architecture", "test_fraction", "device", "log_every", "checkpoint_every")


def settings_that_apply(architecture: str, coding: str | None = None) -> set[str]:
    """Fields of `TrainConfig` that this architecture reads; of a bae, with this coding or any."""
    codings = (coding,) if coding else get_args(Coding)
    kinds = [find(architecture, coding).settings for coding in codings]
    return {*OF_EVERY_RUN, *(field.name for kind in kinds for field in fields(kind))}


class Rule(NamedTuple):
    """What the values of some fields must be: a condition on a value and its config, and words."""

    names: str
    holds: Callable[[Any, Any], bool]
    wanted: str

    def check(self, config: TrainConfig) -> None:
        """Refuse a resolved configuration that breaks the rule, by the field's name."""
        for name in self.names.split():
            value = getattr(config, name)
            if not self.holds(value, config):
                wanted = self.wanted.format(n_latents=config.n_latents)
                raise BitlensError(f"`{name}` must be {wanted}, not {value}.")


def _is_range(rates: tuple[float, ...]) -> bool:
    return len(rates) == 2 and 0 < rates[0] <= rates[1] < 1


def _own_coding(config: TrainConfig) -> str:
    return PRESETS[config.preset]["coding"] if config.architecture == "bae" else "step"


def _most_k(config: TrainConfig) -> float:
    sparse = issubclass(find(config.architecture).settings, TopKSettings)
    return (config.n_latents or 1) if sparse else math.inf


RULES = (
    Rule(
        "coding",
        lambda value, config: value == _own_coding(config),
        "the preset's: descent with `preset='features'`, step with step, measure or paper",
    ),
    Rule(
        "n_latents steps log_every checkpoint_every", lambda value, config: value >= 1, "at least 1"
    ),
    Rule("batch_size prune_rows", lambda value, config: value >= 2, "at least 2"),
    Rule("lr width decay", lambda value, config: 0 < value < math.inf, "above 0 and finite"),
    Rule("lam", lambda value, config: 0 <= value < math.inf, "at least 0 and finite"),
    Rule(
        "prune_at regrow_at",
        lambda value, config: all(0 <= share < 1 for share in value),
        "fractions in [0, 1)",
    ),
    Rule(
        "gamma",
        lambda value, config: 0 <= value < math.inf and (value == 0 or config.coding == "step"),
        "at least 0 and finite, and 0 with coding descent",
    ),
    Rule(
        "price",
        lambda value, config: value == "onbit" or config.coding == "step",
        "onbit with coding descent",
    ),
    Rule(
        "scale",
        lambda value, config: 0 < value < math.inf or config.coding == "step",
        "above 0 and finite with coding descent",
    ),
    Rule(
        "k",
        lambda value, config: 1 <= value <= _most_k(config),
        "between 1 and {n_latents}, the number of latents",
    ),
    Rule(
        "sparsity",
        lambda value, config: value is None or 0 < value < math.inf,
        "above 0 and finite",
    ),
    Rule("anneal", lambda value, config: 1 <= value < math.inf, "at least 1 and finite"),
    Rule("p0", lambda value, config: 0 < value < 0.5, "between 0 and 0.5"),
    Rule("initial_share", lambda value, config: 0 <= value <= 1, "in [0, 1]"),
    Rule("test_fraction", lambda value, config: value is None or 0 <= value < 1, "in [0, 1)"),
    Rule(
        "initial_rates",
        lambda value, config: not value or _is_range(value),
        "two rates, the lower first, between 0 and 1",
    ),
)
