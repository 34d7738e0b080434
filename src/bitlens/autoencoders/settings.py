"""What a training run is told once nothing is left open: one frozen type for each way of learning.

Nothing heavy is imported here: the command line reads these types for its help.
"""

from dataclasses import dataclass
from typing import Literal

from bitlens.options import Coding, PriceKind, Surrogate, Weighting

Preset = Literal["features", "measure", "step", "paper"]
Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What every learner is told. A default, here or in a subclass, goes before the preset's.

    Each field is also one of `TrainConfig`, which says what it means.
    """

    n_latents: int
    steps: int
    batch_size: int
    lr: float
    decay: float
    precision: Precision
    seed: int


@dataclass(frozen=True, kw_only=True)
class BinarySettings(Settings):
    """Of a binary autoencoder, however its bits are found."""

    preset: Preset
    coding: Coding
    lam: float
    price: PriceKind
    p0: float


@dataclass(frozen=True, kw_only=True)
class DescentSettings(BinarySettings):
    """Of a binary autoencoder whose bits are searched."""

    scale: float
    anneal: float
    regrow_at: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class StepSettings(BinarySettings):
    """Of a binary autoencoder whose bits are one linear map and a threshold."""

    gamma: float
    surrogate: Surrogate
    width: float
    weighting: Weighting
    initial_rates: tuple[float, ...]
    initial_share: float
    prune_at: tuple[float, ...]
    regrow_at: tuple[float, ...]
    prune_rows: int
    reference: bool


@dataclass(frozen=True, kw_only=True)
class RandomSettings(Settings):
    """Of random directions."""

    preset: Preset
    initial_rates: tuple[float, ...]
    match: str


@dataclass(frozen=True, kw_only=True)
class PCASettings(Settings):
    """Of principal components."""

    k: int


@dataclass(frozen=True, kw_only=True)
class TopKSettings(Settings):
    """Of sparse autoencoders with k latents on by construction."""

    lr: float = 6e-3
    decay: float = 0.3
    k: int


@dataclass(frozen=True, kw_only=True)
class PenaltySettings(TopKSettings):
    """Of sparse autoencoders with a penalty, whose weight a controller sets if it is None."""

    sparsity: float | None
