"""Intervals hold the truth as often as they say, or are not given, with 2 to 50 units of any
size."""

import math

import numpy as np
import pytest
import torch

from bitlens.bits.packed import PackedBits
from bitlens.bits.statistics import co_occurrence
from bitlens.information import intervals
from bitlens.information.entropy import _plug_in, plug_in_bits
from bitlens.information.intervals import (
    Estimate,
    difference,
    jackknife,
    student_p,
    student_quantile,
)
from bitlens.information.tree import Blocks, TreeCounts, chow_liu, supported

UNITS = (2, 3, 5, 8, 12, 20, 50)
TRIALS, ENOUGH = 400, 0.9


def h2(p: torch.Tensor) -> torch.Tensor:
    return -(torch.special.xlogy(p, p) + torch.special.xlogy(1 - p, 1 - p)) / math.log(2)


def coverage(estimates: list[Estimate], truth: float) -> float:
    """Among those that are known; 1 where hardly any is."""
    known = [e for e in estimates if e.known]
    return (
        sum(e.low <= truth <= e.high for e in known) / len(known)
        if len(known) > 0.1 * len(estimates)
        else 1.0
    )


def sizes(units: int, kind: str, random: torch.Generator) -> torch.Tensor:
    if kind == "equal":
        return torch.full((units,), 40.0, dtype=torch.float64)
    return (3 + 40 * (0.8 * torch.randn(units, generator=random)).exp()).double().round()


def beta(p: torch.Tensor, units: int, share: float) -> torch.Tensor:
    """Rates of the units about `p [n]`, as `share` of the variance between rows is between units ->
    `[units, n]`"""
    a, b = (
        torch._standard_gamma((x * (1 / share - 1)).expand(units, len(p)).contiguous())
        for x in (p, 1 - p)
    )
    return a / (a + b)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["equal", "unequal"])
@pytest.mark.parametrize("units", UNITS)
def test_means_and_entropies_of_clusters_are_covered(units, kind):
    random = torch.Generator().manual_seed(units)
    torch.manual_seed(units)
    p = torch.linspace(0.02, 0.4, 100, dtype=torch.float64)
    means, entropies = [], []
    for _ in range(TRIALS):
        n = sizes(units, kind, random)
        cost = (
            (0.5 * torch.randn(units, generator=random)).exp().double()
        )  # bits a row, in each document
        means += jackknife(lambda w, n=n, cost=cost: (w @ (n * cost) / (w @ n))[:, None], n)
        ons = torch.binomial(n[:, None].expand(units, len(p)).contiguous(), beta(p, units, 0.1))

        def of_counts(w, n=n, ons=ons):
            rate, rows = w @ ons / (w @ n)[:, None], w @ n
            return (h2(rate).sum(1) + ((rate > 0) & (rate < 1)).sum(1) / (2 * rows * math.log(2)))[
                :, None
            ]

        entropies += jackknife(of_counts, n, unbiased=True)
    assert coverage(means, math.exp(0.125)) >= ENOUGH
    assert coverage(entropies, float(h2(p).sum())) >= ENOUGH


def bursty(
    documents: int, rows: int, latents: int, seed: int, share: float = 0.2
) -> tuple[PackedBits, torch.Tensor, float]:
    """Independent latents whose rates differ among documents -> bits, document of each row, true
    entropy of a row"""
    torch.manual_seed(seed)
    p = torch.linspace(0.05, 0.4, latents, dtype=torch.float64)
    rates = beta(p, documents, share).repeat_interleave(rows, 0)
    bits = torch.rand(documents * rows, latents) < rates
    return (
        PackedBits.pack(bits),
        torch.arange(documents).repeat_interleave(rows),
        float(h2(p).sum()),
    )


@pytest.mark.slow
@pytest.mark.parametrize("documents", [6, 20])
def test_entropies_of_few_documents_are_covered(documents):
    found = {"bits_marginal": [], "bits_tree": []}
    for seed in range(100):
        bits, document, truth = bursty(documents, 50, 40, seed)
        blocks = Blocks.of(len(bits), document)
        estimates = _plug_in(bits, blocks, chow_liu(co_occurrence(bits), len(bits)), unbiased=True)
        for name, estimate in zip(found, estimates, strict=True):
            found[name].append(estimate)
    for name, estimates in found.items():
        assert coverage(estimates, truth) >= ENOUGH, name
        assert abs(np.mean([e.value for e in estimates]) / truth - 1) < 0.01, name


def test_no_edge_of_the_tree_is_what_few_documents_share_by_chance():
    """Rows of a document are not independent: any two latents of 20 documents look related."""
    for seed in range(3):
        bits, document, _ = bursty(20, 200, 40, seed)
        tree = chow_liu(co_occurrence(bits), len(bits))
        assert (tree.parents >= 0).sum() > 30
        counts = TreeCounts.of(bits, Blocks.of(len(bits), document), tree)
        assert (supported(tree, counts).parents >= 0).sum() == 0
        naive, marginal = plug_in_bits(bits)[1], plug_in_bits(bits, document)[0]
        assert plug_in_bits(bits, document)[1] == marginal > naive + 0.2


def test_edges_that_are_real_stay():
    bits = bursty(50, 100, 40, 0)[0].unpack()
    flipped = torch.rand(len(bits), 20, generator=torch.Generator().manual_seed(0)) < 0.2
    packed = PackedBits.pack(torch.cat([bits[:, :20], bits[:, :20] != flipped], 1))
    tree = chow_liu(co_occurrence(packed), len(packed))
    counts = TreeCounts.of(
        packed, Blocks.of(len(packed), torch.arange(50).repeat_interleave(100)), tree
    )
    kept = supported(tree, counts).parents
    pairs = {frozenset((i, int(parent))) for i, parent in enumerate(kept) if parent >= 0}
    assert pairs <= {frozenset((i, i + 20)) for i in range(20)}
    assert len(pairs) >= 18  # the rarest two tell next to nothing


def test_the_jackknife_of_a_mean_is_the_interval_of_the_textbook():
    x = [3.0, 5.0, 4.0, 8.0, 6.0]
    found = intervals.mean(x)
    half = 2.7764 * np.std(x, ddof=1) / math.sqrt(5)
    assert (found.value, found.low, found.high) == pytest.approx((5.2, 5.2 - half, 5.2 + half))
    a, b = x, [1.0, 2.0, 4.0]
    spread = [np.var(v, ddof=1) / len(v) for v in (a, b)]
    freedom = int(sum(spread) ** 2 / (spread[0] ** 2 / 4 + spread[1] ** 2 / 2))
    found = difference(a, b)
    assert found.half == pytest.approx(student_quantile(freedom) * math.sqrt(sum(spread)))
    assert found.value == pytest.approx(5.2 - 7 / 3)
    assert difference([2.0, 2.0], [2.0, 2.0]).half == 0
    for alike in ([1.0, 1.0], [1.0] * 3):  # two counts that happen to repeat
        assert not difference(alike, [2.0, 2.0]).differs


def test_one_unit_or_one_large_one_has_no_interval():
    of = lambda w: w[:, :1]  # noqa: E731
    assert not jackknife(of, [10.0])[0].known
    assert not jackknife(of, [1000.0, 1.0, 1.0, 1.0])[0].known
    assert jackknife(of, [10.0, 10.0])[0].known
    assert not intervals.mean([1.0]).known
    assert not difference([1.0, 2.0], [1.0]).known


def test_units_of_unequal_size_have_fewer_degrees_of_freedom():
    assert intervals.degrees_of_freedom([7.0] * 12) == pytest.approx(11)
    assert intervals.degrees_of_freedom([9.0, 1.0, 1.0, 1.0]) == pytest.approx(144 / 84 - 1)


def test_student_is_close_to_its_integral_and_its_table():
    for freedom in (5, 29):
        grid = torch.linspace(0, 60, 600_001, dtype=torch.float64)
        density = (1 + grid.square() / freedom) ** (-(freedom + 1) / 2)
        tail = 1 - torch.cumulative_trapezoid(density, grid) / torch.trapezoid(density, grid)
        for t in (0.5, 1.0, 2.0, 4.0):
            exact = float(tail[int(t * 10_000) - 1])
            assert float(
                student_p(torch.tensor(-t, dtype=torch.float64), freedom)
            ) == pytest.approx(exact, rel=0.05)
    for freedom, quantile in (
        (1, 12.7062),
        (4, 2.7764),
        (4.9, 2.7764),
        (9, 2.2622),
        (10, 2.2281),
        (29, 2.0452),
    ):
        assert student_quantile(freedom) == pytest.approx(quantile, rel=0.003)


@pytest.mark.parametrize(("documents", "rate"), [(4000, 0.005), (100, 0.005), (10, 0.02)])
def test_rare_latents_that_always_come_together_keep_their_edge(
    documents: int, rate: float
) -> None:
    random = torch.Generator().manual_seed(0)
    bits = (torch.rand(4000, 32, generator=random) < rate).repeat_interleave(
        2, 1
    )  # pairs, each a bit and its copy
    packed, document = (
        PackedBits.pack(bits),
        torch.arange(documents).repeat_interleave(4000 // documents),
    )
    tree = chow_liu(co_occurrence(packed), len(packed))
    kept = supported(tree, TreeCounts.of(packed, Blocks.of(len(packed), document), tree)).parents
    assert int((kept >= 0).sum()) == 32
    marginal, of_tree = plug_in_bits(packed, document)
    assert of_tree == pytest.approx(marginal / 2, rel=0.01)
