"""The physical limit: how many bits a Gaussian source needs at a given distortion."""

import math

import torch
from torch import Tensor

from bitlens.errors import BitlensError


def gaussian_bits(covariance: Tensor, fvu: float) -> float:
    """Rate-distortion function, in bits a row, of a Gaussian with this covariance `[d, d]` at this fraction of variance
    unexplained, by reverse water-filling (Cover & Thomas, Elements of Information Theory, theorem 10.3.3).

    Every component of variance v above the water level m costs `log2(v / m) / 2` bits and keeps the error m; the level
    is where the errors `min(v, m)` sum to `fvu` times the total variance. No code of any kind can do better on a
    Gaussian; on other data less is possible.
    """
    total = float(covariance.double().trace())
    if not math.isfinite(total) or total <= 0:
        raise BitlensError("The rate-distortion bound needs data with variance; all rows are equal or not finite.")
    variances = torch.linalg.eigvalsh(covariance.double()).clamp_min(0)
    if fvu >= 1:
        return 0.0
    if fvu <= 0:
        return math.inf
    low, high = 0.0, float(variances.max())
    for _ in range(200):
        level = (low + high) / 2
        low, high = (low, level) if float(variances.clamp_max(level).sum()) > fvu * total else (level, high)
    level = (low + high) / 2
    above = variances[variances > level]
    return float((0.5 * torch.log2(above / level)).sum())
