"""A judge without a language model: does a context lie where the contexts of a latent's tokens lie?

One class only: the distance of an embedding from those of the explainer's positives, in the metric of their own
covariance. Any embedding will do, for example hidden states of another layer or the mean state of a sentence encoder.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bitlens.errors import BitlensError
from bitlens.features.judges import Verdict

LEAST = 1e-6  # shrinkage that keeps the covariance invertible where all positives lie on one line


class Gaussian(NamedTuple):
    """Mean and shrunk covariance `a I + b C^T C` of centred rows C, with all its parts in terms of few rows."""

    mean: Tensor
    centred: Tensor
    """C, float64 `[n, d]`"""
    isotropic: float
    """a"""
    weight: float
    """b"""

    def squared_distances(self, x: Tensor) -> Tensor:
        """Squared Mahalanobis distances of x `[m, d]` -> float64 `[m]`; an n x n system (Woodbury), whatever d is."""
        y = x.double() - self.mean
        seen = y @ self.centred.T  # [m, n]
        inner = self.centred @ self.centred.T * self.weight
        inner.diagonal().add_(self.isotropic)
        explained = (seen * torch.linalg.solve(inner, seen.T).T).sum(1)
        return ((y.square().sum(1) - self.weight * explained) / self.isotropic).clamp_min(0)


def shrunk_gaussian(x: Tensor) -> Gaussian:
    """Mean and Ledoit-Wolf covariance of the rows x `[n, d]`, n > 2 (Ledoit & Wolf 2004, J. Multivariate Analysis 88).

    The covariance is `r m I + (1 - r) S`, with S the sample covariance (over n), m its mean eigenvalue, and
    `r = min(1, b^2 / d^2)`, where `d^2 = |S - m I|^2 / p` and `b^2 = sum_k |x_k x_k^T - S|^2 / (p n^2)`.
    """
    if x.ndim != 2 or len(x) < 3:
        raise BitlensError(f"A covariance needs at least 3 embeddings as rows, not shape {tuple(x.shape)}; draw more.")
    if not bool(x.isfinite().all()):
        raise BitlensError("The embeddings are not all finite; leave those rows out.")
    n, width = x.shape
    mean = x.double().mean(0)
    centred = x.double() - mean
    gram = centred @ centred.T  # has the trace and norm of S
    m = float(gram.trace()) / (n * width)
    if m <= 0:
        raise BitlensError("The embeddings are all the same, so nothing can be told from them; choose others.")
    squared = float(gram.square().sum()) / n**2  # |S|^2
    dispersion = squared / width - m**2
    noise = (float(gram.diagonal().square().sum()) / n - squared) / (width * n)
    shrinkage = min(1.0, max(LEAST, noise / dispersion)) if dispersion > 0 else 1.0
    return Gaussian(mean, centred, shrinkage * m, (1 - shrinkage) / n)


def one_class_scores(fit: Tensor, held: Tensor) -> Tensor:
    """Mahalanobis distances of held-out embeddings `[m, d]` from the fitted ones `[n, d]` -> float64 `[m]`"""
    if held.ndim != 2 or fit.shape[-1] != held.shape[-1]:
        raise BitlensError(f"Embeddings of shape {tuple(held.shape)} cannot be compared with {tuple(fit.shape)}.")
    return shrunk_gaussian(fit).squared_distances(held).sqrt()


def leave_one_out_distances(fit: Tensor) -> Tensor:
    """Distance of each of n > 3 embeddings `[n, d]` from all others -> float64 `[n]`"""
    others = ~torch.eye(len(fit), dtype=torch.bool, device=fit.device)
    return torch.cat([one_class_scores(fit[keep], fit[~keep]) for keep in others])


def one_class_verdicts(fit: Tensor, held: Tensor, level: float = 0.9) -> list[Verdict]:
    """Yes for held-out embeddings `[m, d]` no farther than a share `level` of the positives `[n, d]` from the others.

    The threshold is that quantile of the leave-one-out distances of the fitting side; held-out rows have no part in it.
    """
    if not 0 < level < 1:
        raise BitlensError(f"The level is a share of the positives between 0 and 1, not {level}.")
    threshold = leave_one_out_distances(fit).quantile(level)
    return [Verdict(yes) for yes in (one_class_scores(fit, held) <= threshold).tolist()]
