"""What a language model loses by a splice, from sums over contexts: means, scores, their intervals and paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bitlens.errors import BitlensError
from bitlens.information.intervals import Estimate, jackknife
from bitlens.results import brief

SCORES = ("ce_loss_score", "ce_loss_score_mean", "kl_div")


class SpliceLosses(NamedTuple):
    """Means over scored tokens; cross-entropies and KL in nats. A score is 1 where splicing costs nothing and 0 where it
    costs as much as an ablation: `(ce_ablated - ce_spliced) / (ce_ablated - ce_original)`. The 95 % intervals are over
    contexts; None: there are too few."""

    __repr__ = brief

    ce_original: float
    ce_spliced: float
    ce_zero: float
    ce_mean: float
    ce_loss_score: float
    ce_loss_score_mean: float
    kl_div: float
    top1: float
    tokens: int
    ce_loss_score_low: float | None
    ce_loss_score_high: float | None
    ce_loss_score_mean_low: float | None
    ce_loss_score_mean_high: float | None
    kl_div_low: float | None
    kl_div_high: float | None


class SpliceSums(NamedTuple):
    """Sums over the scored tokens of each independent unit of contexts, float64 `[units]` each."""

    __repr__ = brief

    tokens: Tensor
    ce_original: Tensor
    ce_spliced: Tensor
    ce_zero: Tensor
    ce_mean: Tensor
    kl_div: Tensor
    top1: Tensor

    @classmethod
    def mean(cls, several: Sequence[SpliceSums]) -> SpliceSums:
        """Of several autoencoders on the same contexts, as of several seeds"""
        return cls(*(torch.stack(x).mean(0) for x in zip(*several, strict=True)))

    def losses(self) -> SpliceLosses:
        original, spliced, zero, mean, _, top1 = (
            float(x.sum() / self.tokens.sum()) for x in self[1:]
        )
        found = dict(zip(SCORES, jackknife(self._scores, self.tokens), strict=True))
        ends = {
            f"{name}_{end}": getattr(e, end) if e.known else None
            for name, e in found.items()
            for end in ("low", "high")
        }
        score, score_mean, kl_div = (e.value for e in found.values())
        scored = int(self.tokens.sum())
        return SpliceLosses(
            original, spliced, zero, mean, score, score_mean, kl_div, top1, scored, **ends
        )

    def less(self, other: SpliceSums) -> dict[str, Estimate]:
        """The scores of this splice less those of another on the same contexts, with intervals of the paired differences."""
        if self.tokens.shape != other.tokens.shape or not torch.allclose(
            self.ce_original, other.ce_original
        ):
            raise BitlensError(
                "Two splices can be compared where they are of the same contexts, and these are not."
            )
        found = jackknife(
            lambda weights: self._scores(weights) - other._scores(weights), self.tokens
        )
        return dict(zip(SCORES, found, strict=True))

    def _scores(self, weights: Tensor) -> Tensor:
        """weights of the units `[n, units]` -> `[n, 3]`"""
        tokens, original, spliced, zero, mean, kl_div, _ = (weights @ x for x in self)
        scores = [
            torch.where(ablated != original, (ablated - spliced) / (ablated - original), torch.nan)
            for ablated in (zero, mean)
        ]
        return torch.stack([*scores, kl_div / tokens], -1)
