"""The physical limit: how many bits a Gaussian source needs at a given distortion."""

import math

import torch
from torch import Tensor

from bitlens.errors import BitlensError
from bitlens.information.moments import Covariance

ROWS_A_COMPONENT = 4
BISECTIONS = 200


def gaussian_bound(covariance: Covariance, fvu: float) -> float | None:
    """`gaussian_bits` of what these rows are drawn from; None with fewer than 4 rows a component.

    The spectrum of few rows is more uneven than that of their source, so that the bound comes out
    low: on white rows by .1 bits a component at 4 rows a component, by .01 at 40.
    """
    if covariance.rows < ROWS_A_COMPONENT * len(covariance.matrix) and not math.isnan(fvu):
        return None
    return gaussian_bits(covariance.matrix, fvu)


def gaussian_bits(covariance: Tensor, fvu: float) -> float:
    """Rate-distortion function of a Gaussian with this covariance `[d, d]`, in bits a row.

    fvu: the fraction of variance unexplained. By reverse water-filling (Cover & Thomas, Elements of
    Information Theory, theorem 10.3.3): every component of variance v above the water level m costs
    `log2(v / m) / 2` bits and keeps the error m; the level is where the errors `min(v, m)` sum to
    `fvu` times the total variance. No code of any kind can do better on a Gaussian; on other data
    less is possible.
    """
    total = float(covariance.double().trace())
    if not math.isfinite(total) or total <= 0:
        raise BitlensError(
            "The rate-distortion bound needs variance; the rows are all equal or not finite."
        )
    if math.isnan(fvu):
        raise BitlensError(
            "The rate-distortion bound needs a fraction of variance unexplained that is a number."
        )
    if fvu >= 1:
        return 0.0
    if fvu <= 0:
        return math.inf
    variances = torch.linalg.eigvalsh(covariance.double()).clamp_min(0)
    low, high = 0.0, float(variances.max())
    for _ in range(BISECTIONS):
        level = (low + high) / 2
        if float(variances.clamp_max(level).sum()) > fvu * total:
            high = level
        else:
            low = level
    level = (low + high) / 2
    above = variances[variances > level]
    return float((0.5 * torch.log2(above / level)).sum())
