"""Which latents stand for which classes, by F1 alone: `label_scores` without its intervals and
tests, in a fraction of the time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bitlens.bits.packed import PackedBits
from bitlens.labels.scores import GOOD, MAX_CLASSES, f1_of_classes
from bitlens.labels.sources import MIN_ROWS, Labels
from bitlens.results import brief


class Matches(NamedTuple):
    """Every latent against every class of a labelling, float32 `[n_latents, classes]`."""

    __repr__ = brief

    name: str
    """of the labelling"""
    fit_f1: Tensor
    """on the fitting rows, by which latents and classes are paired"""
    f1: Tensor
    """on held-out rows"""
    least: Tensor
    """float64 `[classes]`: what a good F1 is above, .5 and that of a latent that is always on"""

    @classmethod
    def of(
        cls, bits: PackedBits, labels: Labels, test: Tensor, min_rows: int = MIN_ROWS
    ) -> Matches:
        """The same classes and the same numbers as `label_scores` has. test: bool `[rows]`."""
        labels.require(bits, test)
        fit, held_out = ((labels.ids >= 0) & part for part in (~test, test))
        classes = labels.frequent([fit, held_out], min_rows)[:MAX_CLASSES]
        share = (labels.class_counts(held_out)[classes] / held_out.sum()).double()
        fit_f1, f1 = (
            f1_of_classes(bits, labels.ids, classes, part).float() for part in (fit, held_out)
        )
        return cls(labels.name, fit_f1, f1, (2 * share / (1 + share)).clamp_min(GOOD))

    def latents(self) -> Tensor:
        """Which latents are good at the class that they meet best on the fitting rows, bool."""
        best = self.fit_f1.max(1)
        return (best.values > 0) & self._good()[torch.arange(len(self.f1)), best.indices]

    def classes(self) -> Tensor:
        """Which classes have a latent, the one that meets them best on the fitting rows, that is
        good at them, bool."""
        best = self.fit_f1.argmax(0)
        return self._good()[best, torch.arange(len(best))]

    def _good(self) -> Tensor:
        return self.f1.double() > self.least


def good_latents(matches: Sequence[Matches]) -> Tensor:
    """Which latents are good at the class, of all labellings, that they meet best, bool."""
    best = torch.stack([one.fit_f1.max(1).values for one in matches])
    good = torch.stack([one.latents() for one in matches])
    return good.gather(0, best.argmax(0)[None])[0]
