"""Latents against known labels: scores held against brute force and known truth."""

import math

import pytest
import torch

from bitlens.bits import PackedBits
from bitlens.errors import BitlensError
from bitlens.labels import scores as scoring
from bitlens.labels.counts import counts_by_group
from bitlens.labels.scores import LabelScores, benjamini_hochberg, label_scores
from bitlens.labels.sources import Labels


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


# --- scores against brute force -------------------------------------------------------------------


def plain_f1(on: torch.Tensor, is_class: torch.Tensor) -> float:
    return float(2 * (on & is_class).sum() / (on.sum() + is_class.sum()))


def plain_information(on: torch.Tensor, is_class: torch.Tensor) -> float:
    total = 0.0
    for a in (on, ~on):
        for b in (is_class, ~is_class):
            joint = float((a & b).double().mean())
            total += (
                joint * math.log2(joint / float(a.double().mean() * b.double().mean()))
                if joint
                else 0.0
            )
    return total


def test_scores_are_those_of_unpacked_bits(monkeypatch):
    """130 latents in blocks of a word, ten held-out documents, classes of which the last has too
    few rows."""
    monkeypatch.setattr(scoring, "CELLS", 1)
    n, document = 3000, torch.arange(3000) // 150
    test = document % 2 == 0
    ids = (
        torch.multinomial(
            torch.tensor([0.2, 0.5, 0.292, 0.008]),
            n,
            True,
            generator=torch.Generator().manual_seed(0),
        )
        - 1
    )
    ids[ids == 2] = torch.where(draw(int((ids == 2).sum()), seed=9) < 0.05, 2, 1)
    bits = draw(n, 130, seed=1) < 0.1 + 0.3 * draw(130, seed=2) * (ids[:, None] == 0)
    scores = label_scores(
        PackedBits.pack(bits), Labels("made up", ["a", "b", "c"], ids), document, test
    )
    assert scores.classes == ["a", "b"]
    kept = ids >= 0
    assert scores.rows == int((kept & test).sum())
    fit, held, student = kept & ~test, kept & test, 2.2622  # of nine degrees of freedom
    for label in (0, 1):
        is_class = ids == label
        assert float(scores.share[label]) == pytest.approx(float(is_class[held].double().mean()))
        for latent in (0, 63, 64, 129):
            on = bits[:, latent]
            assert float(scores.fit_f1[latent, label]) == pytest.approx(
                plain_f1(on[fit], is_class[fit])
            )
            hits = float((on & is_class & held).sum())
            assert float(scores.precision[latent, label]) == pytest.approx(
                hits / float((on & held).sum())
            )
            assert float(scores.recall[latent, label]) == pytest.approx(
                hits / float((is_class & held).sum())
            )
            for interval, plain in (
                (scores.f1, plain_f1),
                (scores.mutual_information, plain_information),
            ):
                value, low, high = (float(x[latent, label]) for x in interval)
                assert value == pytest.approx(plain(on[held], is_class[held]), abs=1e-6)
                without = [held & (document != d) for d in document[test].unique()]
                each = torch.tensor(
                    [plain(on[rows], is_class[rows]) for rows in without], dtype=torch.float64
                )
                half = student * float((9 / 10 * (each - each.mean()).square().sum()).sqrt())
                assert high == pytest.approx(value + half, rel=2e-3)
                assert low == pytest.approx(max(0, value - half), rel=2e-3, abs=1e-6)


def test_counts_by_group_are_those_of_unpacked_bits():
    bits, group = draw(500, 130, seed=3) < 0.1, torch.arange(500) % 5 - 1
    counts = counts_by_group(PackedBits.pack(bits), group, 5)
    assert counts[4].sum() == 0
    for g in range(4):
        assert torch.equal(counts[g], bits[group == g].sum(0))


def test_planted_latents_are_found_and_counted():
    document = torch.arange(4000) // 100
    test, ids = (
        document % 4 == 0,
        torch.randint(0, 5, (4000,), generator=torch.Generator().manual_seed(0)),
    )
    noise = draw(4000, 3, seed=1) < 0.1
    bits = torch.cat(
        [noise, torch.stack([ids == 3, (ids == 1) & (draw(4000, seed=2) < 0.5)], 1)], 1
    )
    scores = label_scores(PackedBits.pack(bits), Labels("five", list("abcde"), ids), document, test)
    first, second = scores.by_latent()[:2]
    assert (first.latent, first.label, first.f1, first.precision, first.recall) == (
        3,
        "d",
        1.0,
        1.0,
        1.0,
    )
    p = float((ids[test] == 3).double().mean())
    assert first.mutual_information == pytest.approx(
        -p * math.log2(p) - (1 - p) * math.log2(1 - p), rel=1e-5
    )
    assert (second.latent, second.label, second.precision) == (4, "b", 1.0)
    assert second.f1 == pytest.approx(2 / 3, abs=0.1)
    assert {s.label: s.latent for s in scores.by_class()}.items() >= {"d": 3, "b": 4}.items()
    summary = scores.summary()
    assert (summary["latents_f1"], summary["labels_covered"], summary["classes"]) == (2, 2, 5)
    assert summary["label_f1"] == pytest.approx(sum(s.f1 for s in scores.by_class()) / 5)
    dependent = {(i, scores.classes[j]) for i, j in scores.dependent.nonzero().tolist()}
    assert dependent == {(i, label) for i in (3, 4) for label in "abcde"}, (
        "noise depends on nothing"
    )


def test_a_latent_is_credited_on_fitting_rows_and_measured_on_others():
    document = torch.arange(2000) // 100
    test, ids = document % 2 == 0, (draw(2000, seed=0) < 0.3).long()
    turncoat = torch.where(
        test, ids == 1, ids == 0
    )  # names class 0 where it is chosen and class 1 where it is measured
    (score,) = label_scores(
        PackedBits.pack(turncoat[:, None]), Labels("two", ["a", "b"], ids), document, test
    ).by_latent()
    assert (score.label, score.f1, score.good) == ("a", 0.0, False)


def test_a_class_of_most_rows_takes_more_than_half_to_be_named():
    document, ids = torch.arange(2000) // 50, (draw(2000, seed=0) < 0.2).long()
    bits = draw(2000, 1, seed=1) < 0.5
    scores = label_scores(
        PackedBits.pack(bits), Labels("two", ["most", "few"], ids), document, document % 2 == 0
    )
    (score,) = scores.by_latent()
    assert score.label == "most"
    assert score.f1 > 0.5
    assert score.always == pytest.approx(2 * 0.8 / 1.8, abs=0.01)
    assert scores.summary()["latents_f1"] == 0


def test_latents_that_never_meet_a_class_are_credited_with_none():
    document, ids = torch.arange(2000) // 50, (draw(2000, seed=0) < 0.2).long()
    bits = torch.zeros(2000, 2)
    scores = label_scores(
        PackedBits.pack(bits), Labels("two", ["a", "b"], ids), document, document % 2 == 0
    )
    assert scores.by_latent() == []
    assert not scores.dependent.any()
    assert bool((scores.p_value == 1).all())


# --- intervals and tests --------------------------------------------------------------------------


def clustered(
    n_latents: int, documents: int = 120, rows: int = 40
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Independent labels and latents, both of which are much alike within a document -> bits, ids,
    document"""
    document = torch.arange(documents * rows) // rows
    ids = (draw(len(document), seed=0) < draw(documents, seed=1)[document] ** 2).long()
    bits = (
        draw(len(document), n_latents, seed=2) < (draw(documents, n_latents, seed=3) ** 3)[document]
    )
    return bits, ids, document


def scored(bits: torch.Tensor, ids: torch.Tensor, document: torch.Tensor) -> LabelScores:
    return label_scores(
        PackedBits.pack(bits), Labels("two", ["no", "yes"], ids), document, document % 2 == 0
    )


def test_independence_is_kept_where_documents_have_their_own_rates():
    bits, ids, document = clustered(400)
    scores = scored(bits, ids, document)
    assert float((scores.p_value[:, 0] < 0.05).double().mean()) < 0.09
    assert float(scores.dependent.double().mean()) < 0.01
    held = document % 2 == 0
    x, y = bits[held].double(), ids[held].double()
    x, y = x - x.mean(0), y - y.mean()
    z = (x * y[:, None]).sum(0) / ((x**2).mean(0) * (y**2).mean() * len(y)).sqrt()
    assert float((z.abs() > 1.96).double().mean()) > 0.3, (
        "as if rows were independent: false alarms in plenty"
    )


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    _, ids, document = clustered(1)
    rates = 0.6 * draw(120, 300, seed=5)
    on = draw(len(ids), 300, seed=6) < rates[document] * torch.where(ids == 1, 1.0, 0.1)[:, None]
    scores = scored(on, ids, document)
    yes = scores.classes.index("yes")
    q = float((draw(120, seed=1) ** 2)[::2].double().mean())
    truth = 2 * 0.3 * q / (0.3 * q + 0.03 * (1 - q) + q)
    inside = (scores.f1.low[:, yes] <= truth) & (truth <= scores.f1.high[:, yes])
    assert 0.88 < float(inside.double().mean()) <= 1


def test_a_rare_pair_that_never_meets_is_no_dependence():
    document = torch.arange(12000) // 100
    ids, bits = torch.zeros(12000, dtype=torch.long), torch.zeros(12000, 1)
    ids[3::100] = 1
    bits[7::100] = 1  # both are in every document, as evenly as can be
    scores = scored(bits, ids, document)
    assert float(scores.f1.value.max()) > 0
    assert float(scores.p_value[0, scores.classes.index("yes")]) > 0.3


@pytest.mark.slow
def test_labels_of_documents_do_not_depend_on_latents_in_bursts_by_chance():
    """Some classes have one or two of a thousand documents, and most rare latents miss these: no
    sign of dependence."""
    p_values, called = [], 0
    for seed in range(6):
        torch.manual_seed(seed)
        sizes = (5 + 30 * (0.7 * torch.randn(1000)).exp()).long()
        document = torch.arange(1000).repeat_interleave(sizes)
        rates = torch.logspace(-2, -0.4, 64)
        on = torch._standard_gamma((rates * 2.3).expand(1000, 64).contiguous())
        on = on / (on + torch._standard_gamma(((1 - rates) * 2.3).expand(1000, 64).contiguous()))
        bits = PackedBits.pack(torch.rand(len(document), 64) < on[document])
        ids = torch.multinomial(0.5 ** torch.arange(12.0), 1000, replacement=True)[document]
        scores = label_scores(
            bits,
            Labels("genre", [str(i) for i in range(12)], ids),
            document,
            torch.rand(1000)[document] < 0.5,
        )
        p_values.append(scores.p_value.flatten())
        called += bool(scores.dependent.any())
    p = torch.cat(p_values)
    shares = [float((p < level).double().mean()) for level in (0.05, 0.01, 0.001)]
    assert shares[0] < 0.08
    assert shares[1] < 0.015
    assert shares[2] < 0.0015
    assert called <= 2


def test_benjamini_hochberg_by_hand():
    p = torch.tensor(
        [[0.01, 0.04, 0.3], [0.02, 0.9, 0.03]]
    )  # limits .0083 .0167 .025 .033 .042 .05: four pass
    assert benjamini_hochberg(p).tolist() == [[False, False, False], [False, False, False]]
    p = torch.tensor([[0.001, 0.03, 0.3], [0.02, 0.9, 0.025]])
    assert benjamini_hochberg(p).tolist() == [[True, True, False], [True, False, True]]


@pytest.mark.parametrize(
    ("rows", "documents", "clue"),
    [(30, 40, "No class of 'two' has 20 rows"), (4000, 6, "make only 3 groups")],
)
def test_too_little_to_score_is_said(rows, documents, clue):
    document = torch.arange(rows) * documents // rows
    with pytest.raises(BitlensError, match=clue):
        scored(torch.ones(rows, 3), torch.arange(rows) % 2, document)


def test_labels_of_other_rows_are_refused():
    with pytest.raises(BitlensError, match="10 rows and 9 labels"):
        label_scores(
            PackedBits.pack(torch.ones(10, 3)),
            Labels("x", ["a"], torch.zeros(9).long()),
            *[torch.ones(10) > 0] * 2,
        )
