"""95 % intervals of numbers from few independent units (documents, contexts, seeds), and tests.

The jackknife leaves out a unit at a time (Quenouille 1956, Tukey 1958), with quantiles of Student's
t. Units of unequal size count as the equal ones that would vary as much (Kish 1965). Below two of
these there is no interval.
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


UNKNOWN = Estimate(math.nan, math.nan, math.nan)


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
    """One less than the equal units that are worth as much as units of these sizes."""
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
    `[units]`, none of which is 0. unbiased: less the bias that the jackknife estimates.
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
    if not spread:  # two equal numbers each say nothing of how far others would lie
        half = 0.0 if value == 0 else math.nan
    else:
        half = student_quantile(sum(parts) ** 2 / spread) * math.sqrt(sum(parts))
    return Estimate(value, value - half, value + half)


# --- shares of right answers ---------------------------------------------------------------------


def wilson(k: float, n: float, quantile: float = NORMAL) -> Estimate:
    """k of n with Wilson's 95 % interval (1927); NaN within 0 and 1 for n = 0."""
    if n == 0:
        return Estimate(math.nan, 0.0, 1.0)
    p, z2 = k / n, quantile**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = quantile / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return Estimate(p, max(0.0, centre - half), min(1.0, centre + half))


def difference_of_shares(a: Tensor, b: Tensor, sizes: Sequence[Tensor]) -> Estimate:
    """Mean share of the units of one group less that of another, as of documents' tokens, also
    where a share is nearly always 0 and the spread of a few units says little of the next ones.

    Each mean has Wilson's interval, with as many effective tokens as the spread of all units leaves
    (Kish 1965) and Student's quantile by Welch's degrees of freedom; both are joined by MOVER
    (Newcombe 1998). a, b: shares `[units]`; sizes: tokens of each unit of both, none 0.
    """
    means = [float(shares.mean()) for shares in (a, b)]
    units = [len(shares) for shares in (a, b)]
    value = means[0] - means[1]
    if min(units) < 2:
        return Estimate(value, math.nan, math.nan)
    spreads = [float(shares.double().var()) / n for shares, n in zip((a, b), units, strict=True)]
    tokens = [
        n * n / float((1 / each.double()).sum()) for n, each in zip(units, sizes, strict=True)
    ]
    expected = sum(p * (1 - p) / n for p, n in zip(means, tokens, strict=True))
    inflation = max(1.0, sum(spreads) / expected) if expected else 1.0
    freedom = float(sum(units) - 2)
    if any(spreads):
        welch = sum(s * s / (n - 1) for s, n in zip(spreads, units, strict=True))
        freedom = min(freedom, max(min(units) - 1.0, sum(spreads) ** 2 / welch))
    worth = [n / inflation for n in tokens]
    one, other = (
        wilson(p * n, n, student_quantile(freedom)) for p, n in zip(means, worth, strict=True)
    )
    low = value - math.hypot(one.value - one.low, other.high - other.value)
    return Estimate(value, low, value + math.hypot(one.high - one.value, other.value - other.low))


def mean_of_two(a: Estimate, b: Estimate) -> Estimate:
    """The mean of two independent rates, by MOVER (Newcombe 1998, Zou & Donner 2008)."""
    value = (a.value + b.value) / 2
    low = value - math.hypot(a.value - a.low, b.value - b.low) / 2
    high = value + math.hypot(a.high - a.value, b.high - b.value) / 2
    return Estimate(value, low, high)


def sign_flip(right: Sequence[bool], other: Sequence[bool], positives: int) -> float:
    """One-sided exact p-value that two explanations are as often right, by balanced accuracy.

    right, other: whether they are right for each row, the first `positives` of which are positives.
    The statistic is the difference of balanced accuracies, compared as integers.
    """
    negatives = len(right) - positives
    d = [int(a) - int(b) for a, b in zip(right, other, strict=True)]
    observed = negatives * sum(d[:positives]) + positives * sum(d[positives:])
    m, n = sum(map(abs, d[:positives])), sum(map(abs, d[positives:]))
    ways = sum(
        math.comb(m, i) * math.comb(n, j)
        for i in range(m + 1)
        for j in range(n + 1)
        if negatives * (2 * i - m) + positives * (2 * j - n) >= observed
    )
    return ways / 2 ** (m + n)


def fisher(yes: int, positives: int, wrong: int, negatives: int) -> float:
    """One-sided exact p-value (Fisher 1935) that yes, said of `yes` positives and `wrong`
    negatives, is no likelier for positives."""
    all_yes = yes + wrong
    ways = (
        math.comb(positives, i) * math.comb(negatives, all_yes - i)
        for i in range(yes, min(positives, all_yes) + 1)
    )
    return sum(ways) / math.comb(positives + negatives, all_yes)
