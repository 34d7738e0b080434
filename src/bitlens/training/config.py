"""What a training run can be told, the presets, and what is refused. Imports nothing heavy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from numbers import Integral, Real
from pathlib import PurePath
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from bitlens.autoencoders.registry import ARCHITECTURES, BAE_BY_STEP, find
from bitlens.autoencoders.settings import Precision, Preset, Settings
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
    init: str = ""
    """an autoencoder of any kind at whose decoder training starts, with as many latents or more"""
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

    def resolved(self, d_in: int, device: str) -> Settings:
        """Nothing left open, for hidden states of this width; refuses what makes no sense."""
        if self.preset not in PRESETS:
            names = ", ".join(PRESETS)
            raise BitlensError(f"There is no preset '{self.preset}'; choose one of: {names}.")
        defaults = {**PRESETS[self.preset], **find(self.architecture).defaults}
        defaults["n_latents"] = 4 * d_in
        if self.architecture != "bae":
            defaults["coding"] = "step"
        given = {name: value for name, value in asdict(self).items() if value is not None}
        # which of several GPUs was free is no setting: each process of torchrun has another
        kind = device.partition(":")[0] if self.device == "auto" else device
        values = {**asdict(self), **defaults, **given, "device": kind}
        if self.precision == "auto":
            values["precision"] = "bf16" if device.startswith("cuda") else "fp32"
        kinds = get_type_hints(Settings)
        settings = Settings(**{name: _typed(name, values[name], kinds[name]) for name in kinds})
        _refuse_nonsense(settings, defaults["coding"])
        return settings


def settings_that_apply(architecture: str, coding: str | None = None) -> set[str]:
    """Fields of `TrainConfig` that this architecture reads; of a bae, with this coding or any."""
    codings = (coding,) if coding else get_args(Coding)
    special = {name for a in (*ARCHITECTURES.values(), BAE_BY_STEP) for name in a.settings}
    own = {name for coding in codings for name in find(architecture, coding).settings}
    return {field.name for field in fields(TrainConfig)} - special | own


class Allowed(NamedTuple):
    """What the values of some fields must be: names, words, and a condition on a value."""

    names: str
    words: str
    holds: Callable[[Any], bool]


ALLOWED = (
    Allowed("n_latents steps log_every checkpoint_every", "at least 1", lambda x: x >= 1),
    Allowed("batch_size prune_rows", "at least 2", lambda x: x >= 2),
    Allowed("lr decay width sparsity", "above 0 and finite", lambda x: 0 < x < math.inf),
    Allowed("lam gamma", "at least 0 and finite", lambda x: 0 <= x < math.inf),
    Allowed("anneal", "at least 1 and finite", lambda x: 1 <= x < math.inf),
    Allowed("p0", "between 0 and 0.5", lambda x: 0 < x < 0.5),
    Allowed("initial_share", "in [0, 1]", lambda x: 0 <= x <= 1),
    Allowed("test_fraction", "in [0, 1)", lambda x: 0 <= x < 1),
    Allowed("prune_at regrow_at", "fractions in [0, 1)", lambda x: all(0 <= f < 1 for f in x)),
    Allowed(
        "initial_rates",
        "two rates, the lower first, between 0 and 1",
        lambda x: not x or (len(x) == 2 and 0 < x[0] <= x[1] < 1),
    ),
)
WITH_DESCENT = (
    Allowed("gamma", "at least 0 and finite, and 0 with coding descent", lambda x: x == 0),
    Allowed("price", "onbit with coding descent", lambda x: x == "onbit"),
    Allowed("scale", "above 0 and finite with coding descent", lambda x: 0 < x < math.inf),
)


KINDS: dict[Any, tuple[str, Any, Callable[[Any], Any]]] = {
    int: ("a whole number", Integral, int),
    float: ("a number", Real, float),
    str: ("a text", (str, PurePath), str),
    bool: ("True or False", bool, bool),
}
"""of the fields that are neither choices nor tuples: what they must be, and how it is made so"""


def _typed(name: str, value: Any, kind: Any) -> Any:
    """The value of this field as Python's own number, tuple or text; BitlensError for one of
    another kind, or none of the choices."""
    if isinstance(kind, UnionType):  # with None
        if value is None:
            return value
        kind = get_args(kind)[0]
    if get_origin(kind) is Literal:
        words, made = f"one of {', '.join(get_args(kind))}", str
        fit = value in get_args(kind)
    elif get_origin(kind) is tuple:
        words, made = "some numbers", lambda value: tuple(value)
        fit = isinstance(value, tuple | list) and all(isinstance(each, Real) for each in value)
    else:
        words, of, made = KINDS[kind]
        fit = isinstance(value, of) and (kind is bool or not isinstance(value, bool))
    if not fit:
        raise BitlensError(f"`{name}` must be {words}, not {value!r}.")
    return value if type(value) is int else made(value)  # one stays so where a float may be


def _refuse_nonsense(settings: Settings, coding: str) -> None:
    """By the name of the field. coding: the one that goes with the preset."""
    most = settings.n_latents
    words = "the preset's: descent with `preset='features'`, step with step, measure or paper"
    rules = [Allowed("coding", words, lambda x: x == coding), *ALLOWED]
    if coding == "descent":
        rules += WITH_DESCENT
    if "k" in find(settings.architecture).settings and settings.architecture != "pca":
        words = f"between 1 and {most}, the number of latents"
        rules.append(Allowed("k", words, lambda x: 1 <= x <= most))
    else:
        rules.append(Allowed("k", "at least 1", lambda x: x >= 1))
    for names, words, holds in rules:
        for name in names.split():
            value = getattr(settings, name)
            if value is not None and not holds(value):
                raise BitlensError(f"`{name}` must be {words}, not {value}.")
