"""ComSem: planted meanings are found, and explanations that fit everything are not; statistics
against brute force."""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import product
from types import SimpleNamespace

import pytest
import torch

from bitlens.bits import Codes, PackedBits
from bitlens.comsem.calls import Calls
from bitlens.comsem.interpret import Results, comsem, comsem_by_labels
from bitlens.comsem.judges import Question, Verdict
from bitlens.comsem.openai_judge import OpenAIExplainer, OpenAIJudge
from bitlens.comsem.openai_server import OpenAIServer
from bitlens.comsem.sampling import Trial
from bitlens.comsem.scoring import Config, RowQuestion, judged
from bitlens.errors import BitlensError
from bitlens.information.intervals import NORMAL, Estimate, fisher, mean_of_two, sign_flip, wilson
from bitlens.labels.sources import Labels
from bitlens.seeding import generator
from language_model_server import LanguageModelServer, by_letter

letters = SimpleNamespace(decode=lambda ids: "".join(chr(97 + i) for i in ids))
CLASSES = {
    "vowel": "aeiou",
    "first": "bcd",
    "last": "xyz",
    "middle": "lmn",
    "any token": "abcdefghijklmnopqrstuvwxyz",
}
PLANTED = ["vowel", "first", "last", "middle"] * 2
NOISE = range(8, 12)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Codes:
    """600 documents of 30 letters. Latents 0-7: `PLANTED` classes with 1 % of all rows turned over,
    4-7 flipped; 8-11: independent of the text."""
    g = generator("comsem corpus")
    token = torch.randint(0, 26, (18_000,), generator=g)
    planted = [
        torch.isin(token, torch.tensor([ord(c) - 97 for c in CLASSES[name]])) for name in PLANTED
    ]
    bits = torch.stack([*planted, *(torch.rand(len(token), generator=g) < 0.1 for _ in NOISE)], 1)
    bits[:, :8] ^= torch.rand(len(token), 8, generator=g) < 0.01
    bits[:, 4:8] ^= True
    rows = torch.arange(len(token))
    columns = {"token": token.int(), "document": rows // 30, "position": (rows % 30).int()}
    return Codes.write(
        tmp_path_factory.mktemp("codes"), [(PackedBits.pack(bits), columns)], bits.shape[1], {}
    )


def marked(text: str) -> str:
    found = re.search("«(.)»", text)
    assert found, text
    return found[1]


class RuleExplainer:
    """The class that most of the marked letters are in, but for that of all letters."""

    name = "rule"

    def explain(self, examples: Sequence[Sequence[str]]) -> list[str]:
        names = [name for name in CLASSES if name != "any token"]
        return [
            max(names, key=lambda n: sum(marked(t) in CLASSES[n] for t in texts))
            for texts in examples
        ]


class GeneralExplainer:
    """What fits every token."""

    name = "general"

    def explain(self, examples: Sequence[Sequence[str]]) -> list[str]:
        return ["any token" if i % 2 else "vowel" for i in range(len(examples))]


class RuleJudge:
    name = "rule"

    def answer(self, questions: Sequence[Question]) -> list[Verdict]:
        return [Verdict(marked(q.text) in CLASSES[q.explanation], None) for q in questions]


class SilentJudge:
    name = "silent"

    def answer(self, questions: Sequence[Question]) -> list[Verdict]:
        return [Verdict(None, None)] * len(questions)


# --- planted meanings ---


def test_planted_meanings_are_found_in_either_state_and_noise_is_not(corpus):
    results = comsem(corpus, range(12), RuleExplainer(), RuleJudge(), letters, Config(shuffles=3))
    assert results.skipped == []
    planted, noise = results.scores[:8], results.scores[8:]
    assert [score.explanation for score in planted] == PLANTED
    for score in planted:
        assert score.balanced_accuracy.value > 0.9
        assert score.rate < 0.5
        assert score.p_value < 0.01
    assert results.interpretable == [True] * 8 + [False] * 4
    assert max(score.balanced_accuracy.value for score in noise) < 0.8


def test_rows_of_outlying_norm_explain_and_judge_nothing(corpus, tmp_path):
    """They are other than the rest: every bit is turned over in them."""
    usual = torch.rand(len(corpus), generator=generator("outliers")) < 0.6
    bits = torch.where(usual[:, None], corpus.bits.unpack(), 1 - corpus.bits.unpack())
    columns = {name: getattr(corpus, name) for name in ("token", "document", "position")}
    packed = [(PackedBits.pack(bits), {**columns, "usual": usual})]
    codes = Codes.write(tmp_path / "codes", packed, corpus.n_latents, {})
    with Calls(tmp_path / "calls.sqlite") as calls:
        told = comsem(
            codes, range(8), RuleExplainer(), RuleJudge(), letters, calls=calls, run="outliers"
        )
        rows = calls._execute("SELECT row FROM judgements WHERE run = 'outliers'").fetchall()
        assert len(rows) > 1000
        assert usual[[row for (row,) in rows]].all()
    for results in (told, comsem_by_labels(codes, range(8), letter_classes(codes))):
        assert [score.explanation for score in results.scores] == PLANTED
        assert min(score.balanced_accuracy.value for score in results.scores) > 0.9
        rates = corpus.bits.unpack()[usual, :8].double().mean(0)
        assert [score.rate for score in results.scores] == pytest.approx(
            torch.minimum(rates, 1 - rates).tolist()
        )


def test_an_explanation_that_is_too_wide_is_told_by_hard_negatives(corpus, tmp_path):
    """Vowels in the first half of a document: those of the second are negatives with the same
    token."""
    early = corpus.position < 15
    bits = corpus.bits.unpack()
    bits[:, 0] *= early
    columns = {name: getattr(corpus, name) for name in ("token", "document", "position")}
    codes = Codes.write(
        tmp_path / "codes", [(PackedBits.pack(bits), columns)], corpus.n_latents, {}
    )
    results = comsem(codes, range(4), RuleExplainer(), RuleJudge(), letters)
    assert results.interpretable == [True] * 4
    assert results.interpretable_hard[0] is False
    assert (
        results.scores[0].balanced_accuracy_hard.value
        < 0.7
        < results.scores[0].balanced_accuracy.value
    )


def test_shuffled_explanations_stay_at_chance(corpus):
    results = comsem(corpus, range(8), RuleExplainer(), RuleJudge(), letters, Config(shuffles=3))
    shuffled = [score.shuffled for score in results.scores]
    assert sum(shuffled) / 8 == pytest.approx(
        0.44, abs=0.08
    )  # of a planted class, others are never right
    assert results.summary()["shuffled"] == pytest.approx(sum(shuffled) / 8)


def test_an_explanation_that_fits_everything_has_the_paper_s_full_score_and_is_rejected(corpus):
    results = comsem(corpus, range(12), GeneralExplainer(), RuleJudge(), letters)
    general = [i for i, score in enumerate(results.scores) if score.explanation == "any token"]
    assert len(general) == 6
    for i in general:
        assert results.scores[i].sensitivity.value == 1
        assert results.scores[i].balanced_accuracy.value == 0.5
        assert results.interpretable_paper[i]
        assert not results.interpretable[i]


def test_answers_that_are_neither_yes_nor_no_count_against(corpus):
    results = comsem(corpus, range(4), RuleExplainer(), SilentJudge(), letters)
    for score in results.scores:
        assert (
            score.sensitivity.value
            == score.specificity.value
            == score.balanced_accuracy_hard.value
            == 0
        )
        assert (score.shuffled, score.p_value, score.unparsed) == (1, 1, 50)


def letter_classes(codes: Codes) -> Labels:
    names = ["first", "vowel", "other", "middle", "last"]
    own = [
        next((n for n in names if chr(97 + t) in CLASSES.get(n, "")), "other")
        for t in codes.token.tolist()
    ]
    return Labels("letter", names, torch.tensor([names.index(n) for n in own]))


def test_labels_explain_and_judge_without_a_language_model(corpus):
    results = comsem_by_labels(corpus, range(12), letter_classes(corpus))
    assert [score.explanation for score in results.scores[:8]] == PLANTED
    assert results.interpretable == [True] * 8 + [False] * 4


@pytest.mark.slow
def test_labels_of_half_of_the_documents_find_the_same(corpus):
    """Rows without a label are no trials: neither examples nor positives nor negatives."""
    names = list(CLASSES)
    own = [
        next((i for i, n in enumerate(names) if chr(97 + t) in CLASSES[n]), -1)
        for t in corpus.token.tolist()
    ]
    labels = Labels("letter", names, torch.tensor(own))
    for labelled in (
        corpus.document % 2 == 0,
        corpus.document < 300,
        torch.rand(18_000, generator=generator("half")) < 0.5,
    ):
        half = labels._replace(ids=torch.where(labelled, labels.ids, -1))
        results = comsem_by_labels(corpus, range(12), half)
        assert results.interpretable == [True] * 8 + [False] * 4
        assert results.summary()["unparsed"] == 0
    with pytest.raises(BitlensError, match="label, more documents"):
        comsem_by_labels(
            corpus,
            range(12),
            labels._replace(ids=torch.where(corpus.document == 0, labels.ids, -1)),
        )


def test_a_latent_that_nothing_can_be_compared_with_is_untested(corpus):
    """One alone, perfectly explained: neither a yes nor a no."""
    results = comsem(corpus, [0], RuleExplainer(), RuleJudge(), letters)
    assert results.scores[0].balanced_accuracy.value > 0.9
    assert math.isnan(results.scores[0].p_value)
    assert results.significant == results.interpretable == results.interpretable_hard == [None]
    (record,) = results.records()
    assert (record["interpretable"], record["untested"]) == (None, "no other explanation")
    assert (results.summary()["interpretable"], results.summary()["untested"]) == (0, 1)
    both = comsem(corpus, [0, 4], RuleExplainer(), RuleJudge(), letters)
    assert both.interpretable == [None, None], "the same words are no other explanation"
    assert comsem(corpus, [0, 1], RuleExplainer(), RuleJudge(), letters).interpretable == [
        True,
        True,
    ]


def test_latents_without_an_explanation_are_counted_and_not_judged(corpus):
    class Silent(RuleExplainer):
        def explain(self, examples: Sequence[Sequence[str]]) -> list[str]:
            return ["" if i % 2 else e for i, e in enumerate(super().explain(examples))]

    class Listening(RuleJudge):
        def answer(self, questions: Sequence[Question]) -> list[Verdict]:
            assert all(q.explanation for q in questions)
            return super().answer(questions)

    results = comsem(corpus, range(8), Silent(), Listening(), letters)
    assert (results.unexplained, [s.latent for s in results.scores]) == ([1, 3, 5, 7], [0, 2, 4, 6])
    assert results.interpretable == [True] * 4
    assert results.summary()["unexplained"] == 4
    records = results.records()
    assert [r["latent"] for r in records] == list(range(8))
    assert [(r["interpretable"], r["untested"]) for r in records[:2]] == [
        (True, ""),
        (None, "no explanation"),
    ]


def test_answers_that_come_to_no_end_are_no_answers(corpus):
    """They count against, but where they alone decide, the latent is untested."""

    class Slow(RuleJudge):
        def answer(self, questions: Sequence[Question]) -> list[Verdict]:
            given = super().answer(questions)
            return [v if i % 3 else Verdict(None, finished=False) for i, v in enumerate(given)]

    results = comsem(corpus, range(12), RuleExplainer(), Slow(), letters)
    assert results.interpretable[:8] == [None] * 8
    assert False in results.interpretable[8:], (
        "noise is none, however the rest would have been answered"
    )
    assert {s.untested for s in results.scores} == {"unfinished answers", ""}
    assert all(s.unfinished in (16, 17) and s.unparsed == 0 for s in results.scores)
    assert results.summary()["unfinished"] == sum(s.unfinished for s in results.scores)


@pytest.mark.slow
def test_own_and_other_explanations_are_asked_about_in_the_same_batches(corpus, tmp_path):
    """A server sees the same texts in the same order, and only the explanation differs."""

    def explaining(prompt: str) -> str:
        if "Explanation: " not in prompt:
            return Counter(re.findall("«(.)»", prompt)).most_common(1)[0][0]
        return by_letter(prompt)

    with LanguageModelServer(explaining) as server, Calls(tmp_path / "calls.sqlite") as calls:
        model = OpenAIServer("rule", server.url)
        comsem(
            corpus,
            range(8),
            OpenAIExplainer(model, calls),
            OpenAIJudge(model, calls),
            letters,
            Config(shuffles=3),
        )
        found = [
            re.search(r"^Explanation: (.*)\n((?:\d+\. .*\n)+)", p, re.M) for p in server.prompts
        ]
        explained: dict[str, list[str]] = {}
        for match in found:
            if match:
                explained.setdefault(match[2], []).append(match[1])
        assert len(explained) == 8 * 5, "50 texts of each latent, by ten"
        assert all(len(set(e)) == len(e) >= 4 for e in explained.values()), (
            "its own explanation and three others"
        )


def test_records_are_flat_and_the_summary_counts(corpus):
    results = comsem(corpus, range(12), RuleExplainer(), RuleJudge(), letters)
    record = results.records()[0]
    assert (
        record["balanced_accuracy_low"]
        < record["balanced_accuracy"]
        <= record["balanced_accuracy_high"]
    )
    assert record["interpretable"] is True
    summary = results.summary()
    assert (summary["judged"], summary["interpretable"], summary["unparsed"]) == (12, 8, 0)


def test_latents_with_too_few_rows_are_skipped(tmp_path, corpus):
    bits = corpus.bits.unpack()[:, :3]
    bits[:, 1] = 0
    columns = {name: getattr(corpus, name) for name in ("token", "document", "position")}
    codes = Codes.write(tmp_path / "codes", [(PackedBits.pack(bits), columns)], 3, {})
    results = comsem(codes, range(3), RuleExplainer(), RuleJudge(), letters)
    assert results.skipped == [1]
    assert [score.latent for score in results.scores] == [0, 2]
    assert (
        comsem(codes, [1], RuleExplainer(), RuleJudge(), letters).summary()["balanced_accuracy"]
        is None
    )


def test_codes_without_tokens_are_refused(tmp_path, corpus):
    columns = {
        "token": torch.full((18_000,), -1).int(),
        "document": corpus.document,
        "position": corpus.position,
    }
    codes = Codes.write(tmp_path / "codes", [(corpus.bits, columns)], corpus.n_latents, {})
    with pytest.raises(BitlensError, match="have no tokens"):
        comsem(codes, [0], RuleExplainer(), RuleJudge(), letters)


# --- statistics ---


def trial(latent: int, first: int) -> Trial:
    rows = iter(range(first, first + 30))
    return Trial(latent, [], *([next(rows) for _ in range(n)] for n in (10, 10, 5, 5)))


def numbered(drawn: Sequence[Trial]) -> list[tuple[Trial, str]]:
    """Each with an explanation of its own."""
    return [(trial, str(i)) for i, trial in enumerate(drawn)]


def verdicts(yes: Sequence[bool]) -> list[Verdict]:
    return [Verdict(bool(y)) for y in yes]


def coins(chances: Callable[[RowQuestion], float], n: int = 600, shuffles: int = 5) -> Results:
    """Latents judged by coins that come up yes with these chances."""
    g = generator("coins", shuffles)

    def ask(asked: list[RowQuestion]) -> list[Verdict]:
        weights = torch.tensor([chances(a) for a in asked])
        return verdicts((torch.rand(len(asked), generator=g) < weights).tolist())

    drawn = [twenty(i) for i in range(n)]
    config = Config(shuffles=shuffles)
    return Results(judged(numbered(drawn), ask, torch.zeros(n), config), [], config)


def twenty(latent: int) -> Trial:
    rows = iter(range(50 * latent, 50 * latent + 50))
    return Trial(latent, [], *([next(rows) for _ in range(n)] for n in (20, 20, 5, 5)))


@pytest.mark.slow
@pytest.mark.parametrize("shuffles", [1, 3, 5])
def test_chance_explanations_are_significant_no_more_often_than_the_level_says(shuffles):
    """A judge who tosses coins of several weights; that nulls which fit are left out changes
    nothing."""
    weight = torch.rand(50 * 600, generator=generator("weights"))
    scores = coins(lambda a: float(weight[a.row]), shuffles=shuffles).scores
    assert any(score.fitting for score in scores)
    for level in (0.01, 0.05, 0.2):
        share = sum(score.p_value <= level for score in scores) / 600
        assert share <= level + 3 * math.sqrt(level / 600)


@pytest.mark.slow
@pytest.mark.parametrize("right", [0.6, 0.75, 0.8, 0.85])
def test_rows_that_any_explanation_seems_to_fit_make_no_latent_interpretable(right):
    """A judge who tells positives from random rows whatever the explanation: nobody can say which
    explanation is right."""
    results = coins(lambda a: right if a.kind == "positive" else 1 - right)
    assert results.interpretable.count(True) <= 0.005 * 600
    if right >= 0.8:
        assert results.interpretable.count(None) > 0.9 * 600
        assert {score.untested for score in results.scores} <= {
            "other explanations fit as well",
            "",
        }


@pytest.mark.slow
@pytest.mark.parametrize(("yes", "no"), [(0.7, 0.7), (0.5, 0.9), (0.95, 0.45)])
def test_interpretable_is_a_statement_at_five_percent(yes, no):
    """Of latents whose explanation is right in .7 of cases, just not above it, few are said to be;
    others' are at chance."""

    def chances(a: RowQuestion) -> float:
        own = a.explanation == str(a.latent)
        return (yes if own else 0.3) if a.kind == "positive" else ((1 - no) if own else 0.3)

    results = coins(chances)
    assert results.interpretable.count(True) <= 0.05 * 600
    assert all(
        s.balanced_accuracy.low > 0.7
        for s, good in zip(results.scores, results.interpretable, strict=True)
        if good
    )
    better = coins(
        lambda a: 0.95 if (a.explanation == str(a.latent)) == (a.kind == "positive") else 0.05
    )
    assert better.interpretable.count(True) > 500, "it can be said of those that are"


@pytest.mark.parametrize("alike", [20, 40])
def test_an_explanation_of_like_meaning_is_no_null(alike):
    """100 latents, all perfectly explained, many of the same meaning in other words: none is
    lost."""
    meaning = [0 if i < alike else i for i in range(100)]
    asked: Counter[int] = Counter()

    def ask(questions: list[RowQuestion]) -> list[Verdict]:
        asked.update(a.latent for a in questions)
        return [
            Verdict(a.kind == "positive" and meaning[int(a.explanation)] == meaning[a.latent])
            for a in questions
        ]

    config = Config()
    scores = judged(numbered([twenty(i) for i in range(100)]), ask, torch.zeros(100), config)
    results = Results(scores, [], config)
    assert results.interpretable == [True] * 100
    assert {s.nulls for s in scores[alike:]} == {5}
    assert all(s.fitting == 0 for s in scores[alike:])
    assert any(s.fitting for s in scores[:alike])
    assert set(asked.values()) <= {50 * n for n in range(6, 17)}
    assert all(asked[i] == 300 for i in range(alike, 100)), (
        "others are asked about only where some fit"
    )


def test_a_latent_with_too_few_rows_to_say_so_is_untested():
    """Five of five right are compatible with a rate of .57."""
    rows = [list(range(5 * i, 5 * i + 5)) for i in range(18)]
    few = [Trial(i, [], rows[2 * i], rows[2 * i + 1], [], []) for i in range(9)]

    def ask(asked: list[RowQuestion]) -> list[Verdict]:
        return [Verdict(a.kind == "positive" and a.explanation == str(a.latent)) for a in asked]

    results = Results(judged(numbered(few), ask, torch.zeros(9)), [], Config())
    assert [s.untested for s in results.scores] == ["too few rows"] * 9
    assert results.interpretable == [None] * 9
    more = [Trial(i, [], twenty(i).positives, twenty(i).random, [], []) for i in range(9)]
    results = Results(judged(numbered(more), ask, torch.zeros(9)), [], Config())
    assert results.interpretable == [True] * 9
    assert results.interpretable_hard == [None] * 9, "there was no hard negative"


def test_every_latent_is_judged_with_explanations_that_read_differently():
    asked: list[RowQuestion] = []

    def ask(questions: list[RowQuestion]) -> list[Verdict]:
        asked.extend(questions)
        return [Verdict(True)] * len(questions)

    drawn = [trial(i, 30 * i) for i in range(5)]
    scores = judged(list(zip(drawn, "aaabc", strict=True)), ask, torch.zeros(5), Config(shuffles=2))
    for i, own in enumerate("aaabc"):
        for row, _ in drawn[i].judged:
            others = [a.explanation for a in asked if a.row == row]
            assert others[0] == own
            assert sorted(others) == ["a", "b", "c"], (
                "hard negatives, too: all are asked about in the same way"
            )
    assert all(score.p_value == 1 for score in scores), "all are as right"


def test_the_wrong_number_of_explanations_or_answers_is_named(corpus):
    class Short(RuleExplainer):
        def explain(self, examples: Sequence[Sequence[str]]) -> list[str]:
            return ["vowel"]

    with pytest.raises(BitlensError, match="1 explanations for 2 latents"):
        comsem(corpus, [0, 1], Short(), RuleJudge(), letters)
    with pytest.raises(BitlensError, match="3 answers to 60 questions"):
        judged(
            numbered([trial(0, 0), trial(1, 30)]),
            lambda asked: [Verdict(True)] * 3,
            torch.zeros(2),
            Config(shuffles=0),
        )


@pytest.mark.parametrize("n", [1, 2, 10, 263])
def test_the_bounds_of_wilson_are_where_the_score_test_just_rejects(n):
    for k in {0, 1, n // 3, n}:
        p, low, high = wilson(k, n)
        assert p == k / n
        for bound in (low, high):
            assert abs(bound - p) == pytest.approx(
                NORMAL * math.sqrt(bound * (1 - bound) / n), abs=1e-7
            )
    newcombe = 81 / 263, 0.2553, 0.3662  # 1998, table I
    assert tuple(wilson(81, 263)) == pytest.approx(newcombe, abs=5e-5)


def test_a_rate_of_none_is_unknown():
    value, low, high = wilson(0, 0)
    assert math.isnan(value)
    assert (low, high) == (0, 1)


def test_the_interval_of_the_balanced_accuracy_by_hand():
    found = mean_of_two(Estimate(0.8, 0.5, 0.9), Estimate(0.6, 0.2, 0.84))
    assert tuple(found) == pytest.approx((0.7, 0.7 - 0.25, 0.7 + 0.13))


@pytest.mark.parametrize(("a", "b"), [(0.5, 0.5), (0.9, 0.7), (0.3, 0.95), (0.97, 0.97)])
def test_the_interval_of_the_balanced_accuracy_covers_the_truth(a, b):
    """Summed over all outcomes of 10 positives and 20 negatives."""
    covered = 0.0
    for i, j in product(range(11), range(21)):
        chance = (
            math.comb(10, i)
            * a**i
            * (1 - a) ** (10 - i)
            * math.comb(20, j)
            * b**j
            * (1 - b) ** (20 - j)
        )
        _, low, high = mean_of_two(wilson(i, 10), wilson(j, 20))
        covered += chance * (low <= (a + b) / 2 <= high)
    assert covered > 0.93


@pytest.mark.parametrize("seed", range(20))
def test_the_p_value_is_that_of_all_exchanges(seed):
    """Every way to exchange own and other on the rows, 2^9 of them."""
    own, other = (torch.rand(2, 9, generator=generator("flip", seed)) < 0.6).tolist()
    positives = 1 + seed % 8

    def difference(signs: Sequence[int]) -> float:
        d = [s * (a - b) for s, a, b in zip(signs, own, other, strict=True)]
        return sum(d[:positives]) / positives + sum(d[positives:]) / (9 - positives)

    observed = difference([1] * 9)
    exact = [difference(signs) >= observed - 1e-12 for signs in product((-1, 1), repeat=9)]
    assert sign_flip(own, other, positives) == pytest.approx(sum(exact) / 2**9)


def test_the_p_value_by_hand():
    assert sign_flip([True] * 4, [False, False, True, True], 2) == 1 / 4
    assert sign_flip([True] * 4, [True] * 4, 2) == 1


@pytest.mark.parametrize(("yes", "wrong"), [(0, 0), (3, 1), (4, 0), (2, 3), (4, 5), (1, 5)])
def test_fishers_test_is_the_share_of_all_arrangements(yes, wrong):
    """Every way in which as many yes can fall on 4 positives and 5 negatives."""
    ways = [w for w in product((0, 1), repeat=9) if sum(w) == yes + wrong]
    assert fisher(yes, 4, wrong, 5) == pytest.approx(
        sum(sum(w[:4]) >= yes for w in ways) / len(ways)
    )
