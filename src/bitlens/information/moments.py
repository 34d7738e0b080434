"""Sums over rows of hidden states, streamed in float64: fvu, variance and covariance."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor


class Variance:
    """The variance of rows `[n, d]` that come in blocks, about their own mean."""

    def __init__(self) -> None:
        self.rows = 0
        # sums are taken about the first block's mean, so that nothing cancels
        self._origin: Tensor | None = None
        self._sum = torch.zeros(())
        self._squares = 0.0

    def add(self, x: Tensor) -> None:
        """Count a block of rows, `[n, d]` of any float type."""
        if not len(x):
            return
        x = x.double()
        if self._origin is None:
            self._origin = x.mean(0)
            self._sum = torch.zeros_like(self._origin)
        shifted = x - self._origin
        self.rows += len(x)
        self._sum += shifted.sum(0)
        self._squares += float(shifted.square().sum())

    @property
    def total(self) -> float:
        """Squared deviations from the mean, summed over rows and components"""
        return self._squares - float(self._sum.square().sum()) / max(1, self.rows)

    def fvu(self, squared_error: float) -> float:
        """Fraction of variance unexplained, by the reconstructions' squared error, summed over rows
        and components; NaN for rows without variance."""
        return squared_error / self.total if self.total > 0 else math.nan


def squared_error(x: Tensor, x_hat: Tensor) -> float:
    """Summed over rows and components, in float64"""
    return float((x.double() - x_hat.double()).square().sum())


def fvu(x: Tensor, x_hat: Tensor) -> float:
    """Fraction of the variance of rows `x [n, d]` that their reconstructions leave unexplained."""
    variance = Variance()
    variance.add(x)
    return variance.fvu(squared_error(x, x_hat))


class Covariance(NamedTuple):
    """Of so many rows, float64 `[d, d]` on the CPU."""

    matrix: Tensor
    rows: int

    @classmethod
    def of(cls, blocks: Iterable[Tensor]) -> Covariance:
        """blocks: raw rows `[n, d]` each"""
        rows, origin = 0, torch.zeros(())
        total = products = torch.zeros(0, 0, dtype=torch.float64)
        for block in blocks:
            if not len(block):
                continue
            x = block.double()
            if not rows:
                origin = x.mean(0)
                total, products = torch.zeros_like(origin), x.new_zeros(x.shape[1], x.shape[1])
            x = x - origin
            rows, total, products = rows + len(x), total + x.sum(0), products + x.T @ x
        mean = total / max(1, rows)
        return cls((products / max(1, rows) - mean[:, None] * mean).cpu(), rows)
