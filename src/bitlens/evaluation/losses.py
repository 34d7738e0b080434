"""What a language model loses when reconstructions take the place of its hidden states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from bitlens.evaluation.measured import Measured
from bitlens.results import Number


@dataclass(frozen=True, kw_only=True)
class Losses:
    """As `bitlens.causal.losses.SpliceLosses`, in nats a token; None without a language model.

    `_low` and `_high` are the ends of 95 % intervals over contexts; None: too few of them.
    """

    ce_original: Annotated[float | None, Number("next-token loss of the model, nats", ".3f")] = None
    ce_spliced: Annotated[float | None, Number("the same through the autoencoder", ".3f")] = None
    ce_zero: Annotated[float | None, Number("the same with hidden states zeroed", ".3f")] = None
    ce_mean: Annotated[float | None, Number("the same with hidden states at their mean", ".3f")] = (
        None
    )
    ce_loss_score: Annotated[float | None, Number("1: nothing lost, 0: as bad as zeros", ".3f")] = (
        None
    )
    ce_loss_score_mean: Annotated[float | None, Number("the same against the mean", ".3f")] = None
    kl_div: Annotated[float | None, Number("nats a token", ".3f")] = None
    top1: Annotated[float | None, Number("likeliest next token unchanged", ".3f")] = None
    ce_loss_score_low: float | None = None
    ce_loss_score_high: float | None = None
    ce_loss_score_mean_low: float | None = None
    ce_loss_score_mean_high: float | None = None
    kl_div_low: float | None = None
    kl_div_high: float | None = None

    @staticmethod
    def measure(measured: Measured) -> dict[str, Any]:
        """-> the numbers, by name; none without a splice"""
        if measured.splice is None:
            return {}
        losses = measured.splice.losses(measured.autoencoder)._asdict()
        return {name: losses[name] for name in Losses.__dataclass_fields__}
