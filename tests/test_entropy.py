"""Entropy against the truth: sources whose entropy is known, codes that can be enumerated."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitlens.autoencoders import BinaryAutoencoder
from bitlens.bits.codes import Codes
from bitlens.bits.entropies import binary_entropy
from bitlens.bits.packed import PackedBits
from bitlens.bits.statistics import co_occurrence
from bitlens.cli import main
from bitlens.encode import encode_store
from bitlens.errors import BitlensError
from bitlens.hidden.store import ActivationStore
from bitlens.information import autoregression
from bitlens.information.autoregression import Autoregression
from bitlens.information.dependence import _conditional_entropy, information, label_entropy
from bitlens.information.entropy import entropy, lower_bits, plug_in_bits
from bitlens.information.tree import Blocks, TreeCounts, chow_liu


def h2(p: float) -> float:
    return -(p * math.log2(p) + (1 - p) * math.log2(1 - p))


def source(name: str, rows: int, seed: int) -> tuple[torch.Tensor, float]:
    """Rows of bits and the entropy of what they are drawn from."""
    random = torch.Generator().manual_seed(seed)
    uniform = lambda *shape: torch.rand(rows, *shape, generator=random)  # noqa: E731
    if name == "independent":
        return uniform(24) < 0.1, 24 * h2(0.1)
    if name == "pairs":  # half of the time a copy
        first = uniform(8) < 0.5
        second = torch.where(uniform(8) < 0.5, first, uniform(8) < 0.5)
        return torch.cat([first, second], 1), 8 * (1 + h2(0.25))
    if name == "chain":  # each flips the one before with probability .1
        return ((uniform(1) < 0.5) ^ ((uniform(16) < 0.1).cumsum(1) % 2).bool()), 1 + 15 * h2(0.1)
    if name == "nested":  # thermometer bits of a number from 0 to 4
        number = uniform(3)
        return torch.cat([number < edge for edge in (0.2, 0.4, 0.6, 0.8)], 1), 3 * math.log2(5)
    assert name == "or"  # the third is on where either of two sparse ones is: no tree holds it
    causes = uniform(10) < 0.1
    return torch.cat([causes, causes[:, ::2] | causes[:, 1::2]], 1), 10 * h2(0.1)


TREES = ("pairs", "chain", "nested")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["independent", *TREES, "or"])
def test_estimates_stand_where_theory_puts_them(name: str) -> None:
    bits, truth = source(name, 20_000, 0)
    result = entropy(PackedBits.pack(bits))
    assert result.bits_tree.value <= result.bits_marginal.value + 1e-9
    if name == "independent":
        assert result.bits_marginal.value == pytest.approx(truth, rel=0.01)
    else:
        assert result.bits_marginal.value > 1.09 * truth
    if name in TREES:
        assert result.bits_tree.value == pytest.approx(truth, rel=0.005)
    assert result.bits_joint.value == pytest.approx(truth, rel=0.1 if name == "or" else 0.015)
    if name == "or":
        assert result.bits_joint.value < 0.95 * result.code_tree.value
    assert result.bits_joint.value < min(result.code_tree.value, result.code_marginal.value) + 0.02


@pytest.mark.slow
def test_the_truth_lies_in_the_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    # the joint bound, which no one asks for here, takes most of the time
    monkeypatch.setattr(autoregression, "PATIENT", autoregression.Schedule(1, 1))
    inside = {"bits_marginal": 0, "bits_tree": 0, "code_tree": 0}
    trials = 40
    for seed in range(trials):
        for name, numbers in (
            ("independent", ["bits_marginal"]),
            ("chain", ["bits_tree", "code_tree"]),
        ):
            bits, truth = source(name, 3000, seed)
            result = entropy(PackedBits.pack(bits), seed=seed)
            for number in numbers:
                _, low, high = getattr(result, number)
                inside[number] += low <= truth <= high
    # 95 % less three deviations
    assert all(count >= 0.85 * trials for count in inside.values()), inside


@pytest.mark.slow
def test_documents_widen_the_interval_where_rows_repeat() -> None:
    bits, _ = source("independent", 400, 0)
    repeated = PackedBits.pack(bits.repeat_interleave(10, 0))
    shuffled = repeated[torch.randperm(4000, generator=torch.Generator().manual_seed(0))]
    alone = entropy(shuffled).bits_marginal
    together = entropy(repeated, torch.arange(400).repeat_interleave(10)).bits_marginal
    assert (
        alone.value < together.value < 1.01 * alone.value
    )  # 4,000 rows that are worth 400 are too even
    assert together.high - together.low > 2 * (alone.high - alone.low)


@pytest.mark.slow
def test_miller_madow_takes_the_bias_away() -> None:
    plain, corrected = [], []
    for seed in range(200):
        bits = torch.rand(50, 30, generator=torch.Generator().manual_seed(seed)) < 0.3
        plain.append(float(binary_entropy(bits.double().mean(0)).sum()))
        corrected.append(plug_in_bits(PackedBits.pack(bits))[0])
    truth = 30 * h2(0.3)
    assert np.mean(plain) < truth - 0.3
    assert np.mean(corrected) == pytest.approx(truth, abs=0.06)


@pytest.mark.slow
def test_plug_in_bits_are_those_of_the_whole_report() -> None:
    bits = PackedBits.pack(source("chain", 5000, 0)[0])
    result = entropy(bits)
    assert plug_in_bits(bits) == pytest.approx((result.bits_marginal.value, result.bits_tree.value))


# --- the lower bound ------------------------------------------------------------------------------


def test_the_lower_bound_lies_below_the_truth_and_near_it_where_rows_repeat() -> None:
    bounds = []
    for seed in range(100):
        bits = torch.rand(4000, 4, generator=torch.Generator().manual_seed(seed)) < 0.3
        bounds.append(lower_bits(PackedBits.pack(bits)))
    truth = 4 * h2(0.3)
    assert sum(bound <= truth for bound in bounds) >= 95
    assert min(bounds) > truth - 0.5


def test_the_lower_bound_counts_rows_exactly() -> None:
    random = torch.Generator().manual_seed(0)
    bits = torch.rand(3000, 130, generator=random) < 0.01
    counts = np.unique(bits.numpy(), axis=0, return_counts=True)[1]
    plug_in = -(counts / 3000 * np.log2(counts / 3000)).sum()
    doubt = (math.log2(3000) + math.log2(math.e)) * math.sqrt(math.log(20) / 2 / 3000)
    assert lower_bits(PackedBits.pack(bits)) == pytest.approx(plug_in - doubt)


def test_the_lower_bound_knows_that_rows_of_a_document_repeat() -> None:
    bits = PackedBits.pack(torch.rand(4000, 64, generator=torch.Generator().manual_seed(0)) < 0.5)
    alone, together = lower_bits(bits), lower_bits(bits, torch.arange(400).repeat_interleave(10))
    assert together < alone < math.log2(4000)
    assert lower_bits(PackedBits.pack(torch.ones(50, 3).bool())) == 0.0


def brute_tree(bits: torch.Tensor) -> float:
    """The largest total mutual information, in bits times rows, of any spanning tree, by Kruskal's
    algorithm."""
    n, columns = bits.shape
    edges = []
    for i, j in itertools.combinations(range(columns), 2):
        total = 0.0
        for a, b in itertools.product((0, 1), repeat=2):
            both = int(((bits[:, i] == a) & (bits[:, j] == b)).sum())
            if both:
                total += both * math.log2(
                    both * n / (int((bits[:, i] == a).sum()) * int((bits[:, j] == b).sum()))
                )
        edges.append((total, i, j))
    group = list(range(columns))
    result = 0.0
    for total, i, j in sorted(edges, reverse=True):
        if group[i] != group[j] and total > 0.5 * math.log2(n) + math.log2(columns):
            result += total
            group = [group[i] if g == group[j] else g for g in group]
    return result


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 400), st.integers(1, 9), st.integers(0, 1000))
def test_the_tree_is_the_heaviest_forest(rows: int, columns: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    bits = (torch.rand(rows, 1, generator=random) + torch.rand(rows, columns, generator=random)) < 1
    packed = PackedBits.pack(bits)
    tree = chow_liu(co_occurrence(packed), rows)
    assert sorted(tree.order.tolist()) == list(range(columns))
    place = {latent: i for i, latent in enumerate(tree.order.tolist())}
    weight = 0.0
    for latent, parent in enumerate(tree.parents.tolist()):
        if parent >= 0:
            assert place[parent] < place[latent]
            weight += rows * float(mutual_plug_in(bits[:, latent], bits[:, parent]))
    assert weight == pytest.approx(brute_tree(bits), rel=1e-9, abs=1e-6)


def mutual_plug_in(a: torch.Tensor, b: torch.Tensor) -> float:
    def of(*columns: torch.Tensor) -> float:
        counts = torch.stack(columns, 1).unique(dim=0, return_counts=True)[1].double()
        p = counts / counts.sum()
        return float(-(p * p.log2()).sum())

    return of(a) + of(b) - of(a, b)


def fitted(bits: torch.Tensor) -> Autoregression:
    packed = PackedBits.pack(bits)
    return Autoregression.fit(packed)


@pytest.mark.slow
def test_an_autoregression_is_a_distribution() -> None:
    """The probabilities of all codes sum to one: no latent sees itself or a later one."""
    bits, _ = source("or", 500, 0)
    model = fitted(bits[:, [0, 1, 2, 3, 10, 11]])
    every = torch.tensor(list(itertools.product((0, 1), repeat=6)))
    assert float((2 ** -model.code_lengths(PackedBits.pack(every))).sum()) == pytest.approx(
        1, abs=1e-5
    )
    assert max(float(weights.abs().max()) for weights in model.weights) > 0.5


@pytest.mark.slow
def test_an_autoregression_wider_than_a_block_is_causal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitlens.information.autoregression.BLOCK", 64)
    model = fitted(torch.rand(300, 150, generator=torch.Generator().manual_seed(0)) < 0.3)
    assert [weights.shape for weights in model.weights] == [(64, 64), (128, 64), (150, 22)]
    for first, weights in zip((0, 64, 128), model.weights, strict=True):
        for column in range(weights.shape[1]):
            assert not weights[first + column :, column].any()


@pytest.mark.slow
def test_an_autoregression_begins_as_the_tree() -> None:
    bits, _ = source("chain", 4000, 0)
    packed = PackedBits.pack(bits)
    tree = chow_liu(co_occurrence(packed), len(bits))
    counts = TreeCounts.of(packed, Blocks(np.array([0, len(bits)])), tree)
    start = Autoregression._from_tree(tree, counts)
    result = entropy(PackedBits.pack(torch.cat([bits, bits])), test=torch.arange(8000) >= 4000)
    assert float(start.code_lengths(packed).mean()) == pytest.approx(
        result.code_tree.value, rel=1e-5
    )


def test_labels_and_bits() -> None:
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (20_000,), generator=random)
    flipped = torch.rand(20_000, generator=random) < 0.1
    bits = torch.stack(
        [labels >= 2, (labels >= 2) ^ flipped, torch.rand(20_000, generator=random) < 0.5], 1
    )
    packed = PackedBits.pack(bits)
    told = information(packed, labels).bits
    assert told.tolist() == pytest.approx([1, 1 - h2(0.1), 0], abs=0.01)
    given_labels = _conditional_entropy(packed, labels)
    assert given_labels.tolist() == pytest.approx([0, h2(0.1), 1], abs=0.01)
    assert label_entropy(labels) == pytest.approx(2, abs=0.01)


@pytest.mark.slow
def test_what_labels_tell_of_unrelated_bits_scatters_about_zero() -> None:
    told = []
    for seed in range(50):
        random = torch.Generator().manual_seed(seed)
        bits = PackedBits.pack(torch.rand(100, 20, generator=random) < 0.5)
        told.append(
            float(information(bits, torch.randint(0, 5, (100,), generator=random)).bits.mean())
        )
    assert abs(np.mean(told)) < 0.003  # uncorrected it would be 0.029


@pytest.mark.parametrize(
    ("bits", "sentence"),
    [(torch.zeros(1, 4), "at least two rows"), (torch.zeros(0, 4), "at least two rows")],
)
def test_too_few_rows_are_refused(bits: torch.Tensor, sentence: str) -> None:
    with pytest.raises(BitlensError, match=sentence):
        entropy(PackedBits.pack(bits))


def test_one_document_cannot_be_both_fitted_and_measured() -> None:
    with pytest.raises(BitlensError, match="encode more documents"):
        entropy(PackedBits.pack(torch.ones(10, 3)), torch.zeros(10, dtype=torch.int64))


@pytest.mark.slow
@pytest.mark.parametrize("rows", [2, 3, 40])
def test_constant_latents_and_few_rows_cost_next_to_nothing(rows: int) -> None:
    bits = torch.zeros(rows, 70)
    bits[:, 0] = 1
    result = entropy(PackedBits.pack(bits))
    assert result.bits_marginal.value == result.bits_tree.value == 0
    assert 0 < result.bits_joint.value < 70 * math.log2((rows + 1) / 0.5)
    assert math.isfinite(result.bits_joint.value)


@pytest.mark.slow
def test_the_command_writes_what_it_shows(
    tiny_store: ActivationStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encode_store(BinaryAutoencoder(tiny_store.d_in, 40), tiny_store, tmp_path / "codes")
    main(["entropy", str(tmp_path / "codes"), "--json", str(tmp_path / "entropy.json")])
    numbers = json.loads((tmp_path / "entropy.json").read_text())
    shown = capsys.readouterr().out
    for name in ("bits_marginal", "bits_tree", "code_marginal", "code_tree", "bits_joint"):
        assert set(numbers[name]) == {"value", "low", "high"}
        assert f"{numbers[name]['value']:.2f}" in shown
    assert numbers["bits_tree"]["value"] <= numbers["bits_marginal"]["value"]


@pytest.mark.slow
def test_the_command_leaves_rows_of_outlying_norm_out_and_says_how_many(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every tenth row is one, where a bit that is otherwise off is drawn by lot."""
    bits = torch.rand(3000, 4, generator=torch.Generator().manual_seed(0)) < torch.tensor(
        [0.5, 0.5, 0.2, 0.0]
    )
    usual = torch.arange(3000) % 10 != 0
    lots = torch.rand(3000, generator=torch.Generator().manual_seed(1)) < 0.5
    found = []
    for name, own in (
        ("plain", bits),
        ("sinks", torch.cat([bits[:, :3], (lots & ~usual)[:, None]], 1)),
    ):
        columns = {
            "token": torch.zeros(3000, dtype=torch.int32),
            "position": torch.zeros(3000, dtype=torch.int32),
            "document": torch.arange(3000) // 30,
        }
        parts = [(PackedBits.pack(own), {**columns, "usual": usual})]
        Codes.write(tmp_path / name, parts, 4, {"test_fraction": 0.2})
        main(["entropy", str(tmp_path / name), "--json", str(tmp_path / "entropy.json")])
        assert "300 rows of outlying norm are left out" in capsys.readouterr().err
        found.append(json.loads((tmp_path / "entropy.json").read_text()))
    assert (found[0]["rows"], found[0]["outliers"]) == (2700, 300)
    assert {**found[0], "codes": ""} == {**found[1], "codes": ""}


@pytest.mark.slow
def test_rare_bits_under_many_labels_tell_nothing_by_chance() -> None:
    random = torch.Generator().manual_seed(0)
    bits = PackedBits.pack(torch.rand(2000, 100, generator=random) < 0.01)
    labels = torch.randint(0, 100, (2000,), generator=random)
    told = information(bits, labels).bits
    as_counted = _conditional_entropy(
        bits, torch.zeros(2000, dtype=torch.int64)
    ) - _conditional_entropy(bits, labels)
    assert float(as_counted.mean()) > 0.02
    assert abs(float(told.mean())) < 0.001


@pytest.mark.parametrize(
    ("documents", "test", "sentence"),
    [
        (torch.zeros(9), None, "documents has shape"),
        (None, torch.ones(9, dtype=torch.bool), "test has shape"),
        (None, torch.ones(10, dtype=torch.int64), "must be a bool"),
    ],
)
def test_columns_that_do_not_fit_the_rows_are_refused(
    documents: torch.Tensor | None, test: torch.Tensor | None, sentence: str
) -> None:
    with pytest.raises(BitlensError, match=sentence):
        entropy(PackedBits.pack(torch.rand(10, 3) < 0.5), documents, test)


def bursts(documents: int, seed: int, equal: bool = True) -> tuple[PackedBits, torch.Tensor]:
    """Latents with rates of their own in each document -> bits, document of each row"""
    torch.manual_seed(seed)
    sizes = torch.full((documents,), 20) if equal else torch.randint(5, 60, (documents,))
    document = torch.arange(documents).repeat_interleave(sizes)
    rates = torch._standard_gamma(torch.full((documents, 12), 0.4))
    rates /= rates + torch._standard_gamma(torch.full((documents, 12), 1.6))
    return PackedBits.pack(torch.rand(len(document), 12) < rates[document]), document


@pytest.mark.slow
@pytest.mark.parametrize("equal", [True, False])
@pytest.mark.parametrize("kind", ["of documents", "in runs", "positions"])
def test_labels_that_are_alike_within_documents_tell_nothing_by_chance(
    kind: str, equal: bool
) -> None:
    means, naive, p_values = [], [], []
    for seed in range(40):
        bits, document = bursts(25, seed, equal)
        if kind == "positions":
            first = torch.searchsorted(document, document)
            labels = (torch.arange(len(document)) - first) % 5
        else:
            labels = torch.randint(0, 4, (25,))[document]
            other = torch.rand(len(document)) < (0.5 if kind == "in runs" else 0)
            labels = torch.where(other, torch.randint(0, 4, labels.shape), labels)
        found = information(bits, labels, document, seed=seed)
        means.append(float(found.bits.mean()))
        p_values.append(found.p_value)
        naive.append(float(information(bits, labels, seed=seed).bits.mean()))
    error = float(np.std(means)) / math.sqrt(40)
    # the labels of a short document fill a long one over again, and then tell a little more by
    # chance than its own
    assert -3 * error - (0 if equal else 0.15 * np.mean(naive)) < np.mean(means) < 3 * error
    if kind != "positions":
        assert np.mean(naive) > 5 * error
    p = torch.cat(p_values)
    for level in (1 / 21, 5 / 21, 10 / 21):
        share = float((p <= level + 1e-9).double().mean())
        assert 0.6 * level < share < 1.4 * level, (level, share)


def test_labels_of_documents_that_do_tell_something_are_still_found() -> None:
    bits, document = bursts(60, 0)
    labels = torch.randint(0, 2, (60,))[document]
    told = torch.cat(
        [bits.unpack(), (labels[:, None] == 1).expand(-1, 2).to(bits.unpack().dtype)], 1
    )
    told[:, -1] = torch.where(torch.rand(len(labels)) < 0.2, 1 - told[:, -1], told[:, -1])
    found = information(PackedBits.pack(told), labels, document)
    assert found.bits[-2:].tolist() == pytest.approx([1, 1 - h2(0.2)], abs=0.1)
    assert found.p_value[-2:].tolist() == pytest.approx([1 / 21, 1 / 21])


def test_positions_that_decide_are_found_where_all_documents_are_alike() -> None:
    position = torch.arange(40).repeat(30)
    bits = PackedBits.pack((position[:, None] < 10).expand(-1, 2))
    found = information(bits, position, torch.arange(30).repeat_interleave(40))
    assert found.bits.tolist() == pytest.approx([h2(0.25)] * 2, abs=0.1)
