"""Latents that differ between two groups of documents: planted ones, none, and brute force."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu, pearson3

from bitlens.bits import Codes, PackedBits
from bitlens.cli import main
from bitlens.errors import BitlensError
from bitlens.features import contrast as contrasting
from bitlens.features.contrast import Group, Ranks, apart, contrast, q_values
from bitlens.features.groups import Compared, labelled, numbered, texts_of, texts_where
from bitlens.information.intervals import difference, difference_of_shares
from bitlens.labels.sources import Labels

property_test = settings(max_examples=30, deadline=None)


def group(first: int, rows: np.ndarray, rates: np.ndarray, random: np.random.Generator) -> Group:
    """Documents numbered from `first`, of so many rows, with latents on at these rates."""
    on = random.binomial(rows[:, None], np.broadcast_to(rates, (len(rows), len(rates))))
    return Group(torch.arange(first, first + len(rows)), on.astype(np.int64), rows)


def two_groups(
    seed: int, n: tuple[int, int], rates: np.ndarray, other: np.ndarray, longest: tuple[int, int]
) -> list[Group]:
    random = np.random.default_rng(seed)
    return [
        group(10_000 * i, random.integers(5, longest[i], n[i]), (rates, other)[i], random)
        for i in range(2)
    ]


# --- the test ------------------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1), st.integers(5, 9), st.integers(5, 9))
@property_test
def test_in_one_stratum_it_is_the_test_of_mann_and_whitney(seed, n, m) -> None:
    random = np.random.default_rng(seed)
    length = np.full(n + m, 12)
    a, b = (
        group(0, length[:n], np.full(6, 0.2), random),
        group(100, length[n:], np.full(6, 0.3), random),
    )
    ranks = Ranks.of(a, b)
    expected = mannwhitneyu(a.shares, b.shares, axis=0, use_continuity=False, method="asymptotic")
    alike = (np.concatenate([a.shares, b.shares]) == a.shares[0]).all(0)
    assert ranks.auc() == pytest.approx(expected.statistic / (n * m))
    if n == m:  # else skewness counts, too
        assert ranks.p_values()[~alike] == pytest.approx(expected.pvalue[~alike])
    assert (ranks.p_values()[alike] == 1).all()


def test_permutations_are_those_of_all_ways_to_draw_the_groups(monkeypatch) -> None:
    """Against every way to choose the positive documents, in each of two strata."""
    monkeypatch.setattr(contrasting, "IN_STRATUM", 4)
    random = np.random.default_rng(3)
    short, long = np.array([5, 5]), np.array([50, 50, 50])
    a = group(0, np.concatenate([short, long]), np.array([0.5, 0.1]), random)
    b = group(50, np.concatenate([short, long[:2]]), np.array([0.2, 0.1]), random)
    ranks = Ranks.of(a, b)
    assert len(np.unique(ranks.stratum)) == 2
    observed = np.abs(ranks.scores[:5].sum(0))
    strata = [np.flatnonzero(ranks.stratum == each) for each in np.unique(ranks.stratum)]
    ways = itertools.product(
        *(itertools.combinations(rows, int((rows < 5).sum())) for rows in strata)
    )
    sums = np.array([np.abs(ranks.scores[list(itertools.chain(*way))].sum(0)) for way in ways])
    share = (sums >= observed - 1e-9).mean(0)
    error = 4 * np.sqrt(share * (1 - share) / contrasting.PERMUTATIONS) + 2e-4
    assert (np.abs(ranks.exact() - share) < error).all()
    assert (ranks.exact(1) == ranks.exact(1)).all()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
@property_test
def test_q_values_are_those_of_the_definition(p) -> None:
    expected = [
        min(min(1.0, other * len(p) / sum(x <= other for x in p)) for other in p if other >= own)
        for own in p
    ]
    assert q_values(np.array(p)) == pytest.approx(expected)


def test_length_alone_makes_no_difference() -> None:
    """Rates are equal, documents of one group are three times as long: a plain rank test takes that
    for a difference of most latents, this one does not."""
    rates = np.full(400, 0.005)
    a, b = two_groups(0, (100, 100), rates, rates, (20, 60))
    plain = mannwhitneyu(a.shares, b.shares, axis=0).pvalue
    own = Ranks.of(a, b).p_values()
    assert (plain <= 0.05).mean() > 0.3
    assert (own <= 0.05).mean() < 0.08


def test_length_makes_no_difference_in_the_smallest_groups_either() -> None:
    """Ten documents of each are what 20 are measured on."""
    p = []
    for seed in range(40):
        rates = np.full(60, 0.02)
        a, b = two_groups(seed, (10, 10), rates, rates, (20, 60))
        try:
            p += Ranks.of(a, b).p_values().tolist()
        except BitlensError:
            continue  # none are of like length
    assert len(p) > 30 * 60
    assert np.mean(np.array(p) <= 0.05) < 0.085  # 0.113 if ranked all together


# --- planted differences, and none ----------------------------------------------------------------


def test_planted_differences_are_found_and_their_sizes_are_right() -> None:
    rates, other = np.full(300, 0.03), np.full(300, 0.03)
    planted = {7: 0.12, 100: 0.10, 250: 0.002}
    for latent, rate in planted.items():
        rates[latent] = rate
    found = contrast(*two_groups(2, (120, 150), rates, other, (60, 60)), top=10)
    confirmed = [one for one in found.latents if one.confirmed]
    assert {one.latent for one in confirmed} == set(planted)
    assert (found.chosen_on, found.measured_on, found.tested) == ((60, 75), (60, 75), 300)
    assert 3 <= found.differing <= 6
    for one in confirmed:
        true = planted[one.latent] - 0.03
        assert one.low - 0.01 < true < one.high + 0.01
        assert (one.auc > 0.5) == (true > 0)
        assert one.difference == pytest.approx(one.positive - one.negative)
    assert [abs(one.auc - 0.5) for one in found.latents] == sorted(
        (abs(one.auc - 0.5) for one in found.latents), reverse=True
    )


@pytest.mark.slow
def test_without_a_difference_discoveries_are_rare() -> None:
    """30 pairs of groups that do not differ, but in length: with control at 5 %, about one or two
    of them may have any discovery at all."""
    rates = np.random.default_rng(0).choice([0.001, 0.02, 0.2], 300)
    some, counted, inside, latents = 0, 0, 0, 0
    for seed in range(30):
        found = contrast(*two_groups(seed, (60, 80), rates, rates, (30, 60)), seed=seed)
        some += any(one.confirmed for one in found.latents)
        counted += found.differing > 0
        inside += sum(one.low <= 0 <= one.high for one in found.latents)
        latents += len(found.latents)
    assert some <= 5
    assert counted <= 5
    assert inside / latents > 0.88  # intervals, on documents that a latent was not chosen on


@pytest.mark.parametrize("documents", [(10, 10), (25, 25), (25, 100)])
@pytest.mark.parametrize("rates", [(0.002, 0.002), (0.002, 0.0002), (0.01, 0.0005), (0.02, 0.1)])
@pytest.mark.parametrize("within", [0.0, 0.05])
def test_intervals_cover_differences_of_latents_that_are_nearly_never_on(documents, rates, within):
    """within: correlation of the tokens of a document. Where the latent is on anywhere at all; by
    Welch's interval .85 of these would be covered in the worst case."""
    random = np.random.default_rng(0)
    inside, drawn = 0, 0
    while drawn < 400:
        groups = []
        for n, rate in zip(documents, rates, strict=True):
            sizes = random.integers(30, 61, n)
            own = np.full(n, rate)
            if within:
                own = random.beta(rate * (1 / within - 1), (1 - rate) * (1 / within - 1), n)
            groups.append((torch.from_numpy(random.binomial(sizes, own) / sizes), sizes))
        if any(shares.any() for shares, _ in groups):
            shares = [shares for shares, _ in groups]
            lengths = [torch.from_numpy(sizes) for _, sizes in groups]
            found = difference_of_shares(*shares, lengths)
            inside += found.low <= rates[0] - rates[1] <= found.high
            drawn += 1
            assert found.low <= found.value <= found.high
    assert inside / drawn > 0.9


def test_intervals_of_frequent_latents_are_welchs() -> None:
    random = np.random.default_rng(0)
    sizes = [torch.full((n,), 1000) for n in (60, 90)]
    a, b = (torch.from_numpy(random.normal(0.4, 0.1, len(n))) for n in sizes)
    own, welch = difference_of_shares(a, b, sizes), difference(a.tolist(), b.tolist())
    assert own.value == pytest.approx(welch.value)
    assert own.half == pytest.approx(welch.half, rel=0.03)
    assert math.isnan(difference_of_shares(a[:1], b, sizes).low)


@pytest.mark.parametrize("n", [(30, 1000), (1000, 30), (40, 400)])
def test_unequal_groups_make_no_discoveries_of_latents_on_in_few_documents(n) -> None:
    """A latent on in one document, which is of the small group by chance, is ten deviations from
    the mean and yet as likely as the share of that group."""
    rates = np.random.default_rng(0).choice([0.0002, 0.001, 0.02], 1500)
    a, b = two_groups(1, n, rates, rates, (60, 60))
    p = Ranks.of(a, b).p_values()
    assert (q_values(p) <= 0.05).sum() <= 1
    for level in (0.01, 0.001):
        assert (p <= level).mean() < 2 * level + 0.001
    assert (p <= 0.05).mean() > 0.03
    planted = rates.copy()
    planted[5] = 0.2
    a, b = two_groups(1, n, planted, rates, (60, 60))
    assert Ranks.of(a, b).p_values()[5] < 1e-6


@pytest.mark.parametrize("skew", [3.0, 0.1, 0.0011, -0.0011, -0.1, -3.0])
def test_tails_are_those_of_pearsons_third_type(skew) -> None:
    z = np.array([0.0, 0.4, 2.0, 6.0])
    expected = pearson3.sf(z, skew)
    assert contrasting._upper_tail(z, np.full(4, skew)) == pytest.approx(expected, rel=1e-6)


def test_documents_that_are_all_alike_show_no_difference_and_no_error() -> None:
    """Of one group every share is equal; of two latents those of both are."""
    lengths = np.full(40, 10)
    rates = np.array([1.0, 0.0, 0.0, 1.0])
    random = np.random.default_rng(0)
    a = group(0, lengths, rates, random)
    b = group(100, lengths[:30], np.array([1.0, 0.0, 0.5, 0.5]), random)
    found = {one.latent: one for one in contrast(a, b).latents}
    assert set(found) == {2, 3}
    assert [found[latent].auc for latent in (2, 3)] == [0.0, 1.0]
    assert [found[latent].p_value for latent in (2, 3)] == [1e-4, 1e-4]
    assert all(one.low < one.difference < one.high for one in found.values())
    none = contrast(group(0, lengths, rates, random), group(100, lengths, rates, random))
    assert (none.latents, none.tested, none.differing) == ([], 2, 0)


def test_numbers_are_of_documents_that_the_choice_did_not_see() -> None:
    rates = np.full(50, 0.05)
    a, b = two_groups(5, (40, 40), rates, rates, (30, 30))
    found = contrast(a, b, top=3, seed=2)
    (choose_a, measure_a), (choose_b, measure_b) = a.halves(2), b.halves(2)
    assert not set(choose_a.documents.tolist()) & set(measure_a.documents.tolist())
    smallest = np.argsort(Ranks.of(choose_a, choose_b).p_values(), kind="stable")[:3]
    assert sorted(one.latent for one in found.latents) == sorted(smallest.tolist())
    for one in found.latents:
        assert one.positive == pytest.approx(measure_a.shares[:, one.latent].mean())
        assert one.negative == pytest.approx(measure_b.shares[:, one.latent].mean())


@pytest.mark.parametrize(
    ("n", "longest", "sentence"),
    [((19, 40), (30, 30), "19 positive documents, too few"), ((40, 3), (30, 30), "3 negative")],
)
def test_too_few_documents_are_refused(n, longest, sentence) -> None:
    rates = np.full(5, 0.1)
    with pytest.raises(BitlensError, match=sentence):
        contrast(*two_groups(0, n, rates, rates, longest))


def test_groups_that_length_alone_tells_apart_are_refused() -> None:
    random = np.random.default_rng(0)
    a = group(0, np.full(60, 5), np.full(4, 0.1), random)
    b = group(100, np.full(60, 90), np.full(4, 0.1), random)
    with pytest.raises(BitlensError, match="length alone"):
        contrast(a, b)
    with pytest.raises(BitlensError, match="in both groups"):
        contrast(a, a)
    with pytest.raises(BitlensError, match="`top` must be at least 1"):
        contrast(a, b, top=0)


# --- groups ---------------------------------------------------------------------------------------


@pytest.fixture
def rows() -> tuple[torch.Tensor, torch.Tensor]:
    """Bits `[300, 70]` and documents of 6 rows each."""
    random = np.random.default_rng(4)
    return torch.from_numpy(random.random((300, 70)) < 0.2), torch.arange(300) // 6 * 2


def test_a_group_counts_rows_of_each_document(rows, monkeypatch) -> None:
    bits, document = rows
    among = torch.arange(300) % 7 > 1
    found = Group.of(PackedBits.pack(bits), document, among)
    for place, number in enumerate(found.documents.tolist()):
        own = among & (document == number)
        assert found.rows[place] == own.sum()
        assert found.on[place].tolist() == bits[own].sum(0).tolist()
    assert found.documents.tolist() == document[among].unique().tolist()
    monkeypatch.setattr(contrasting, "MOST", 9)
    fewer = Group.of(PackedBits.pack(bits), document, among)
    assert len(fewer) == 9
    same = torch.isin(found.documents, fewer.documents)
    assert (fewer.on == found[same.nonzero()[:, 0]].on).all()


def test_a_document_of_both_groups_stays_in_one(rows) -> None:
    _, document = rows
    positive = torch.arange(300) % 3 == 0
    negative = torch.arange(300) % 3 == 1
    positive[:60] = False
    first, second = apart(document, positive, negative)
    assert not (first & ~positive).any()
    assert not (second & ~negative).any()
    assert not set(document[first].tolist()) & set(document[second].tolist())
    assert set(document[first].tolist()) | set(document[second].tolist()) == set(
        document[positive | negative].tolist()
    )
    assert len(document[first].unique()) == 20


def test_groups_are_named_by_labels_and_numbers(rows) -> None:
    _, document = rows
    labels = Labels("kind", ["a", "b"], torch.arange(300) % 3 - 1)
    assert torch.equal(labelled([labels], "kind=b"), torch.arange(300) % 3 == 2)
    for wrong, sentence in (
        ("kind", "LABELLING=CLASS"),
        ("x=a", "of kind"),
        ("kind=c", "only a, b"),
    ):
        with pytest.raises(BitlensError, match=sentence):
            labelled([labels], wrong)
    chosen = numbered(document, ["4", "10-13", "90-200"])
    assert document[chosen].unique().tolist() == [4, 10, 12, 90, 92, 94, 96, 98]
    with pytest.raises(BitlensError, match="no document 3"):
        numbered(document, ["3"])
    with pytest.raises(BitlensError, match="'-1' is no document"):
        numbered(document, ["-1"])


def test_texts_come_from_files_and_tables(tmp_path) -> None:
    table = tmp_path / "t.jsonl"
    lines = [{"text": f"text {i}", "kind": "ab"[i % 2], "labels": {"n": i % 3}} for i in range(12)]
    table.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert texts_where([str(table)], "kind=a") == [f"text {i}" for i in range(0, 12, 2)]
    assert texts_where([str(table)], "n=2") == ["text 2", "text 5", "text 8", "text 11"]
    drawn = texts_where([str(table)], "kind=b", most=3)
    assert len(drawn) == 3
    assert drawn == texts_where([str(table)], "kind=b", most=3)
    plain = tmp_path / "p.txt"
    plain.write_text("one\ntwo\nthree\n")
    assert texts_of([str(plain)], unit="line") == ["one", "two", "three"]
    for name, sentence in (
        ("kind=c", "No row has kind=c; there are a, b"),
        ("colour=red", "no column 'colour'"),
        ("kind", "COLUMN=VALUE"),
    ):
        with pytest.raises(BitlensError, match=sentence):
            texts_where([str(table)], name)


@pytest.mark.slow
def test_tokens_and_examples_are_of_the_documents_compared(codes_folder) -> None:
    from bitlens.labels.sources import load_tokenizer, read_labels

    codes = Codes(codes_folder)
    tokenizer = load_tokenizer(codes)
    said = read_labels(codes_folder.parent / "texts.jsonl", codes, tokenizer)
    sides = [labelled(said, f"said={word}") for word in ("yes", "no")]
    compared = Compared.of_codes(codes, *sides)
    latent = int(compared.bits.column_counts().argmax())
    (preferred,) = compared.tokens([latent], tokenizer, 3)
    on = compared.bits.column(latent).bool() & (compared.positive | compared.negative)
    assert preferred[0].count == int((compared.token[on] == preferred[0].token).sum())
    positive, negative = compared.examples(latent, tokenizer, 2)
    assert len(positive) == len(negative) == 2
    assert all("«" in text for text in positive + negative)
    with pytest.raises(BitlensError, match="in both groups"):
        Compared.of_codes(codes, sides[0], sides[0])


# --- the command ----------------------------------------------------------------------------------


def run(codes: Path, *arguments: object) -> dict:
    out = codes.parent / "contrast.json"
    main(["contrast", str(codes), *map(str, arguments), "--json", str(out)])
    return json.loads(out.read_text())


SAID = ("--positive", "said=yes", "--negative", "said=no")


@pytest.mark.slow
def test_a_word_that_only_one_group_has_is_found(codes_folder, capsys) -> None:
    texts = codes_folder.parent / "texts.jsonl"
    found = run(codes_folder, *SAID, "--labels", texts, "--top", 5)
    best = [one for one in found["latents"] if one["q_value"] <= 0.05]
    assert best
    assert any(" said" in one["tokens"] for one in best)
    shown = capsys.readouterr().out
    assert "differ at a false discovery rate of 5 %" in shown
    assert "may just be the topic" in shown
    fresh = run(
        codes_folder, *SAID, "--texts", texts, "--run", codes_folder.parent / "run", "--top", 5
    )
    assert {one["latent"] for one in fresh["latents"]} & {one["latent"] for one in best}


@pytest.mark.slow
def test_files_of_text_are_read_now_and_flips_are_measured(codes_folder, capsys) -> None:
    folder = codes_folder.parent
    lines = [json.loads(line) for line in (folder / "texts.jsonl").read_text().splitlines()]
    for kind in ("yes", "no"):
        texts = [x["text"].replace("\n", " ") for x in lines if x["labels"]["said"] == kind]
        (folder / f"{kind}.txt").write_text("\n".join(text[:200] for text in texts))
    sides = ("--positive", folder / "yes.txt", "--negative", folder / "no.txt")
    flips = (
        "--check",
        "--contexts",
        4,
        "--flips",
        2,
        "--prompt",
        " he",
        "--answers",
        " said",
        " was",
    )
    found = run(
        codes_folder, *sides, "--run", folder / "run", "--documents", "line", "--top", 4, *flips
    )
    assert found["flipped"]
    for one in found["flipped"]:
        assert one["on"]["documents"] == 4
        assert one["on"]["kl_div"]["value"] > 0
        assert one["off"]["documents"] <= 4
        assert math.isfinite(one["on"]["control_answer"]["value"])
    assert "change of log p(' said') - log p(' was')" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--positive", "0-5", "--negative", "6-99"], "positive documents, too few"),
        (["--positive", "0-50", "--negative", "40-99"], "in both groups"),
        (["--positive", "a", "--negative", "1"], "'a' is no document"),
        (["--positive", "a=b", "--negative", "a=c", "--texts", "x"], "name it with --run"),
        (["--positive", "0", "--negative", "1", "--answers", " a"], "Without --check"),
        (["--positive", "0", "--negative", "1", "--check"], "name their autoencoder with --run"),
        (["--positive", "0", "--negative", "1", "--sample", "0"], "--sample and --flips"),
    ],
)
def test_bad_commands_get_one_sentence(codes_folder, arguments, sentence, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["contrast", str(codes_folder), *arguments])
    assert stopped.value.code == 2
    assert sentence in capsys.readouterr().err.splitlines()[-1]
