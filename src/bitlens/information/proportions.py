"""Shares of right answers: their intervals, and whether they or their difference is chance."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bitlens.information.intervals import NORMAL, Estimate


def wilson(k: int, n: int) -> Estimate:
    """k of n with Wilson's 95 % interval (1927); NaN within 0 and 1 for n = 0."""
    if n == 0:
        return Estimate(math.nan, 0.0, 1.0)
    p, z2 = k / n, NORMAL**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = NORMAL / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return Estimate(p, max(0.0, centre - half), min(1.0, centre + half))


def mean_of_two(a: Estimate, b: Estimate) -> Estimate:
    """The mean of two independent rates; its interval is recovered from theirs.

    MOVER: Newcombe 1998, Zou & Donner 2008.
    """
    value = (a.value + b.value) / 2
    low = value - math.hypot(a.value - a.low, b.value - b.low) / 2
    high = value + math.hypot(a.high - a.value, b.high - b.value) / 2
    return Estimate(value, low, high)


def sign_flip(right: Sequence[bool], other: Sequence[bool], positives: int) -> float:
    """One-sided exact p-value that two explanations are as often right, by balanced accuracy.

    right, other: whether they are right for each row, the first `positives` of which are positives.
    Of rows where only one is right each is as likely to be; the statistic is the difference of
    balanced accuracies, compared as integers.
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
    """One-sided exact p-value that yes is no likelier for positives than for negatives.

    yes: of the positives; wrong: yes of the negatives (Fisher 1935, The Design of Experiments).
    """
    all_yes = yes + wrong
    ways = (
        math.comb(positives, i) * math.comb(negatives, all_yes - i)
        for i in range(yes, min(positives, all_yes) + 1)
    )
    return sum(ways) / math.comb(positives + negatives, all_yes)
