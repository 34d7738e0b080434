"""The physical limit: how many bits a Gaussian source needs at a given distortion."""

import math

import torch
from torch import Tensor

from bitlens.bits.statistics import counted_entropy
from bitlens.errors import BitlensError
from bitlens.information.moments import Covariance

ROWS_A_COMPONENT = 4


def gaussian_bound(covariance: Covariance, fvu: float) -> float | None:
    """`gaussian_bits` of what these rows are drawn from; None with fewer than 4 rows a component.

    The spectrum of few rows is more uneven than that of their source, so that the bound comes out low: on white rows by
    .1 bits a component at 4 rows a component, by .01 at 40.
    """
    if math.isnan(fvu):
        raise BitlensError(
            "The rows are all equal, so the fraction of their variance that is unexplained has no meaning."
        )
    if covariance.rows < ROWS_A_COMPONENT * len(covariance.matrix):
        return None
    return gaussian_bits(covariance.matrix, fvu)


def gaussian_bits(covariance: Tensor, fvu: float) -> float:
    """Rate-distortion function, in bits a row, of a Gaussian with this covariance `[d, d]` at this fraction of variance
    unexplained, by reverse water-filling (Cover & Thomas, Elements of Information Theory, theorem 10.3.3).

    Every component of variance v above the water level m costs `log2(v / m) / 2` bits and keeps the error m; the level
    is where the errors `min(v, m)` sum to `fvu` times the total variance. No code of any kind can do better on a
    Gaussian; on other data less is possible.
    """
    total = float(covariance.double().trace())
    if not math.isfinite(total) or total <= 0:
        raise BitlensError(
            "The rate-distortion bound needs data with variance; all rows are equal or not finite."
        )
    variances = torch.linalg.eigvalsh(covariance.double()).clamp_min(0)
    if math.isnan(fvu):
        raise BitlensError(
            "The rate-distortion bound needs a fraction of variance unexplained that is a number."
        )
    if fvu >= 1:
        return 0.0
    if fvu <= 0:
        return math.inf
    low, high = 0.0, float(variances.max())
    for _ in range(200):
        level = (low + high) / 2
        low, high = (
            (low, level) if float(variances.clamp_max(level).sum()) > fvu * total else (level, high)
        )
    level = (low + high) / 2
    above = variances[variances > level]
    return float((0.5 * torch.log2(above / level)).sum())


def pca_bits(fit: Tensor, rows: Tensor, fvu: float) -> float:
    """Bits a row that the textbook's transform code needs at this fraction of variance unexplained: principal components,
    one uniform quantiser step for all, an ideal entropy coder for each.

    fit `[n, d]`: rows that the components are taken from. rows `[m, d]`: those that are coded. The quantiser's step is one
    for all; every symbol stands for the mean of its values, and the entropies are those of the coded rows' own symbols
    with Miller and Madow's correction: both low, if anything, so a rival that is hard to beat. At high rates it stays
    `log2(2 pi e / 12) / 2 = 0.254` bits a component above the Gaussian bound (Gish & Pierce 1968).
    """
    if not 0 < fvu < 1:
        raise BitlensError(
            f"A fraction of variance unexplained lies between 0 and 1, not at {fvu}."
        )
    if len(fit) < 2 or not (torch.isfinite(fit).all() and torch.isfinite(rows).all()):
        raise BitlensError("Principal components need at least two rows, and all of them finite.")
    axes = torch.linalg.eigh(torch.cov(fit.double().T).reshape(fit.shape[1], -1)).eigenvectors
    components = (rows.double() - fit.double().mean(0)) @ axes
    variance = float((components - components.mean(0)).square().sum())
    if not variance > 0:
        raise BitlensError(
            "The rate-distortion bound needs data with variance; all rows are equal or not finite."
        )

    def coded(step: float) -> tuple[float, float]:
        """Fraction of variance lost, and bits"""
        error = bits = 0.0
        for column in components.T:
            symbol = (column / step).round()
            symbol = (symbol - symbol.min()).long()
            counts = symbol.bincount().double()
            sums = torch.bincount(symbol, column)
            error += float(column.square().sum() - (sums.square() / counts.clamp_min(1)).sum())
            bits += float(counted_entropy(counts))
        return error / variance, bits

    finest, high = (
        math.sqrt(fvu * variance / components.numel()),
        2 * float(components.abs().max()),
    )  # all round to zero
    low = finest  # the error of a step is step^2 / 12 at most, but where it holds only one value
    while coded(low)[0] > fvu:
        low /= 2
    for _ in range(25):
        step = math.sqrt(low * high)
        low, high = (low, step) if coded(step)[0] > fvu else (step, high)
    return coded(low)[1]
