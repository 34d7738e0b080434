"""What a language model loses by a splice, from sums over contexts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bitlens.errors import BitlensError
from bitlens.information.intervals import Estimate, jackknife
from bitlens.results import brief

SCORES = ("ce_loss_score", "ce_loss_score_mean", "kl_div")


class SpliceLosses(NamedTuple):
    """Means over scored tokens, in nats, with 95 % intervals over contexts (None: too few).

    A score is 1 where splicing costs nothing and 0 where it costs as much as an ablation:
    `(ce_ablated - ce_spliced) / (ce_ablated - ce_original)`.
    """

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
        """Of several autoencoders on the same contexts, as of several seeds."""
        return cls(*(torch.stack(sums).mean(0) for sums in zip(*several, strict=True)))

    def losses(self) -> SpliceLosses:
        """Means and scores, with the intervals of the scores."""
        tokens = self.tokens.sum()
        numbers = {name: float(x.sum() / tokens) for name, x in self._asdict().items()}
        intervals: dict[str, float | None] = {}
        for name, score in zip(SCORES, jackknife(self._scores, self.tokens), strict=True):
            numbers[name] = score.value
            intervals[f"{name}_low"] = score.low if score.known else None
            intervals[f"{name}_high"] = score.high if score.known else None
        means: dict[str, Any] = {**numbers, **intervals, "tokens": int(tokens)}
        return SpliceLosses(**means)

    def less(self, other: SpliceSums) -> dict[str, Estimate]:
        """Paired differences of the scores to those of another splice of the same contexts."""
        same = self.tokens.shape == other.tokens.shape
        if not same or not torch.allclose(self.ce_original, other.ce_original):
            raise BitlensError("Only splices of the same contexts can be compared; these are not.")
        differences = jackknife(lambda w: self._scores(w) - other._scores(w), self.tokens)
        return dict(zip(SCORES, differences, strict=True))

    def _scores(self, weights: Tensor) -> Tensor:
        """weights of the units `[n, units]` -> `[n, 3]`"""
        tokens, original, spliced, zero, mean, kl_div, _ = (weights @ x for x in self)
        scores = [
            torch.where(ablated != original, (ablated - spliced) / (ablated - original), torch.nan)
            for ablated in (zero, mean)
        ]
        return torch.stack([*scores, kl_div / tokens], -1)
