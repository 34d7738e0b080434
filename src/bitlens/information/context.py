"""What magnitudes cost when each is coded in its context: the latents on, and magnitudes before it.

A sparse autoencoder's magnitudes depend on each other as its latents do, so that coding each by its
own frequencies overstates what they cost, as the sum of the bits' entropies overstates the bits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

FEATURES = 256  # of the context that predict a magnitude: those that correlate with it most
FEWEST = 24  # rows in which a latent must be on for a prediction
RIDGE = 30.0  # in rows
UNEXPECTED = 0.001  # chance that a symbol is none that the prediction expects


def context_bits(fit: Tensor, symbols: Tensor) -> float:
    """Code length of quantised magnitudes, bits a row, under models fitted on other rows.

    fit `[n, m]`, symbols `[rows, m]`: magnitudes as whole numbers, 0 where a latent is off. Every
    latent has its own model, of its symbol where it is on: the better on `fit` of (a) its smoothed
    frequencies, (b) a logistic distribution around a ridge regression on the latents that are on
    (all, known beforehand) and the magnitudes of those before it, by index.
    """
    reach = max(int(values.abs().max()) if values.numel() else 0 for values in (fit, symbols)) + 1
    total = 0.0
    for j in range(fit.shape[1]):
        rows = symbols[symbols[:, j] != 0]
        if len(rows):
            total += _latent_bits(fit[fit[:, j] != 0], rows, j, reach)
    return total / len(symbols)


def _latent_bits(fit: Tensor, rows: Tensor, j: int, reach: int) -> float:
    """Bits of latent j's symbols in rows in which it is on."""
    by_frequency = _frequency_bits(fit[:, j], rows[:, j], reach)
    if len(fit) < FEWEST:
        return by_frequency
    half = len(fit) // 2  # which of the two is better is decided by rows that neither has seen
    first, second = fit[:half], fit[half:]
    if _predicted_bits(first, second, j) < _frequency_bits(first[:, j], second[:, j], reach):
        return _predicted_bits(fit, rows, j)
    return by_frequency


def _frequency_bits(fit: Tensor, symbols: Tensor, reach: int) -> float:
    """Under frequencies mixed with a geometric distribution, so that any symbol can be coded."""
    geometric = _tail(symbols) / (2.5 - 2 * 0.5**reach)  # of all symbols from -reach to reach
    if not len(fit):
        return float(-torch.log2(geometric).sum())
    values, counts = fit.unique(return_counts=True)
    place = torch.searchsorted(values, symbols.contiguous()).clamp_max(len(values) - 1)
    seen = torch.where(values[place] == symbols, counts[place], 0)
    return float(-torch.log2((seen + 2 * geometric) / (len(fit) + 2)).sum())


def _tail(symbols: Tensor) -> Tensor:
    """A half for each unit of size, float64; beyond 64, where next to nothing is left, no less."""
    return 0.5 ** symbols.double().abs().clamp(1, 64)


def _predicted_bits(fit: Tensor, rows: Tensor, j: int) -> float:
    """Under a discretised logistic distribution around a ridge regression on the context."""
    predicted, scale = _regression(fit, rows, j)
    symbol = rows[:, j].double()

    def mass(at: Tensor | float) -> Tensor:
        """Of the whole number `at`"""
        upper, lower = (at + 0.5 - predicted) / scale, (at - 0.5 - predicted) / scale
        return torch.sigmoid(upper) - torch.sigmoid(lower)

    # where the latent is on, 0 is impossible
    logistic = (1 - UNEXPECTED) * mass(symbol).clamp_min(0) / (1 - mass(0.0)).clamp_min(1e-3)
    chance = logistic + UNEXPECTED * _tail(symbol) / 2
    return float(-torch.log2(chance).sum())


def _regression(fit: Tensor, rows: Tensor, j: int) -> tuple[Tensor, float]:
    """-> latent j's symbol as predicted in each row, and the scale of the logistic error"""
    context, others = _context(fit, j), _context(rows, j)
    y = fit[:, j].double()
    middle, spread = context.mean(0), context.std(0)
    centred = context - middle
    strength = (centred.T @ (y - y.mean())).abs() / (spread * math.sqrt(len(fit)) + 1e-9)
    best = strength.topk(min(FEATURES, len(fit) // 4 + 1, len(strength))).indices
    A = centred[:, best]
    penalty = RIDGE * spread[best].square() + 1e-6
    weights = torch.linalg.solve(A.T @ A + torch.diag(penalty), A.T @ (y - y.mean()))
    residual = y - y.mean() - A @ weights
    freedom = max(1.0, len(fit) - len(best) / 2)
    deviation = float(residual.square().sum() / freedom) ** 0.5
    scale = max(deviation * math.sqrt(3) / math.pi, 0.05)
    return y.mean() + (others[:, best] - middle[best]) @ weights, scale


def _context(rows: Tensor, j: int) -> Tensor:
    """Which latents are on, and the magnitudes of those before latent j, float64 `[n, m + j]`"""
    return torch.cat([(rows != 0).double(), rows[:, :j].double()], 1)
