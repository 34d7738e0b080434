"""95 % intervals of numbers from few independent units: documents, contexts, groups of them, seeds.

One way for all: the jackknife, which leaves out a unit at a time (Quenouille 1956, Tukey 1958),
with quantiles of Student's t. Units of unequal size count as the equal ones that would vary as much
(Kish 1965): a long document beside many short ones is little more than one. Below two of these
there is no interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bitlens.results import brief

NORMAL = 1.959964
# Quantiles for 1 to 9 degrees of freedom; with more, Wallace's formula is within .3 %.
T = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622)
AT_ONCE = 50  # evaluations of a statistic


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval, which is not a number where there are too few units."""

    __repr__ = brief

    value: float
    low: float
    high: float

    def __iter__(self) -> Iterator[float]:
        return iter((self.value, self.low, self.high))

    @property
    def known(self) -> bool:
        """Whether there is an interval"""
        return not math.isnan(self.low)

    @property
    def differs(self) -> bool:
        """Whether 0 lies outside of the interval"""
        return self.low > 0 or self.high < 0

    @property
    def half(self) -> float:
        """Half the interval's width"""
        return (self.high - self.low) / 2


def student_quantile(freedom: float) -> float:
    """The 97.5 % quantile of Student's t; not a number below one degree of freedom."""
    if freedom < 1:
        return math.nan
    if freedom <= len(T):
        return T[int(freedom) - 1]
    z = NORMAL * (8 * freedom + 3) / (8 * freedom + 1)  # Wallace 1959
    return math.sqrt(freedom * math.expm1(z * z / freedom))


def student_p(t: Tensor, freedom: float) -> Tensor:
    """Two-sided p-value of Student's t."""
    return torch.special.erfc(normal_deviate(t, freedom) / math.sqrt(2))


def normal_deviate(t: Tensor, freedom: float) -> Tensor:
    """|z| of the same p-value as Student's t (Wallace 1959), also where that p-value underflows."""
    stretch = (8 * freedom + 1) / (8 * freedom + 3)
    return stretch * (freedom * torch.log1p(t.square() / freedom)).sqrt()


def degrees_of_freedom(sizes: Tensor | Sequence[float]) -> float:
    """One less than the equal units that are worth as much as units of these sizes.

    Units without a size do not count.
    """
    sizes = torch.as_tensor(sizes, dtype=torch.float64)
    worth = float(sizes.sum().square() / sizes.square().sum().clamp_min(1e-300))
    return worth * (1 + 1e-12) - 1


def jackknife_error(without: Tensor) -> Tensor:
    """Standard error of a statistic from its values without each unit, `[units, ...]` -> `[...]`"""
    n = len(without)
    return ((n - 1) / n * (without - without.mean(0)).square().sum(0)).sqrt()


def jackknife(
    statistic: Callable[[Tensor], Tensor],
    sizes: Tensor | Sequence[float],
    *,
    unbiased: bool = False,
) -> list[Estimate]:
    """Each number of a statistic of all units, with its interval.

    statistic: float64 weights of the units `[n, units]` -> `[n, numbers]`. sizes: of the units
    `[units]`, none of which is 0. unbiased: less the bias that the jackknife estimates, for numbers
    that few units make too low or high.
    """
    units = len(sizes)
    (values,) = statistic(torch.ones(1, units, dtype=torch.float64))
    quantile = student_quantile(degrees_of_freedom(sizes))
    if units < 2 or math.isnan(quantile):
        return [Estimate(float(value), math.nan, math.nan) for value in values]
    leave_out = 1 - torch.eye(units, dtype=torch.float64)
    without = torch.cat([statistic(weights) for weights in leave_out.split(AT_ONCE)])
    if unbiased:
        values = values - (units - 1) * (without.mean(0) - values)
    half = quantile * jackknife_error(without)
    numbers = torch.stack([values, values - half, values + half], -1)
    return [Estimate(*triple) for triple in numbers.tolist()]


def mean(values: Sequence[float]) -> Estimate:
    """The mean of independent values, as of several seeds."""
    x = torch.as_tensor(values, dtype=torch.float64)
    return jackknife(lambda weights: (weights @ x / weights.sum(1))[:, None], torch.ones(len(x)))[0]


def difference(a: Sequence[float], b: Sequence[float]) -> Estimate:
    """Mean of `a` less that of `b`, independent of each other (Welch 1947)."""
    value = sum(a) / len(a) - sum(b) / len(b)
    if min(len(a), len(b)) < 2:
        return Estimate(value, math.nan, math.nan)
    parts = [float(torch.as_tensor(x, dtype=torch.float64).var()) / len(x) for x in (a, b)]
    spread = sum(p * p / (len(x) - 1) for p, x in zip(parts, (a, b), strict=True))
    half = student_quantile(sum(parts) ** 2 / spread) * math.sqrt(sum(parts)) if spread else 0.0
    return Estimate(value, value - half, value + half)
