"""The settings of a training run with nothing left open."""

from dataclasses import dataclass
from typing import Literal

from bitlens.options import Coding, PriceKind, Surrogate, Weighting

Preset = Literal["features", "measure", "step", "paper"]
Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True)
class Settings:
    """What a `TrainConfig`, which explains each of them, resolves to: what learners read and runs
    record, in this order."""

    architecture: str
    preset: Preset
    n_latents: int
    steps: int
    batch_size: int
    lr: float
    decay: float
    coding: Coding
    scale: float
    lam: float
    gamma: float
    price: PriceKind
    p0: float
    anneal: float
    surrogate: Surrogate
    width: float
    weighting: Weighting
    initial_rates: tuple[float, ...]
    initial_share: float
    prune_at: tuple[float, ...]
    regrow_at: tuple[float, ...]
    prune_rows: int
    k: int
    sparsity: float | None  # None: a controller sets it
    match: str
    init: str
    test_fraction: float | None  # None: unknown to the source
    precision: Precision
    reference: bool
    device: str
    seed: int
    log_every: int
    checkpoint_every: int
