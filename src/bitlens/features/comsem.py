"""ComSem: what do the tokens that a latent is on for have in common? (arXiv 2509.20997, section on common semantics)

An explainer names it from some of them, and a judge, who answers yes or no, checks the name on tokens of other documents.
The paper asks about tokens with the latent on only, so "any token" has its full score; here the judge sees tokens with
the latent off as well, and must tell them apart, and better than with an explanation of another latent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from bitlens import terminal
from bitlens.bits.codes import Codes
from bitlens.bits.statistics import firing_rates
from bitlens.errors import BitlensError
from bitlens.features.labelled import Labels
from bitlens.features.labels import LEVEL, benjamini_hochberg, f1_scores
from bitlens.features.proportions import Rate, mean_of_two, sign_flip, wilson
from bitlens.features.sampling import Plan, Trial, canonical, contexts, explainers_part, trials
from bitlens.seeding import generator

if TYPE_CHECKING:
    from bitlens.features.calls import Calls
    from bitlens.features.judges import Explainer, Judge, Question

MIN_ROWS = 5
USUAL = 60  # characters of an explanation


class Asked(NamedTuple):
    """Does the explanation hold for that row of the latent? With its own, or with another's as a null."""

    latent: int
    explanation: str
    row: int
    kind: str
    """positive, random or hard"""


Ask = Callable[[list[Asked]], list[bool | None]]
"""None: there was no clear answer."""


@dataclass(frozen=True)
class Config(Plan):
    """How latents are judged, and what makes one interpretable."""

    shuffles: int = 1
    """explanations of other latents that the rows of each are judged with, too: each costs as much as the judgement"""
    paper: float = 0.5
    """the paper's score must be above it"""
    accuracy: float = 0.7
    """the balanced accuracy must be above it, in the corrected count"""
    level: float = LEVEL
    """false discovery rate"""


@dataclass(frozen=True)
class Score:
    """How well an explanation tells the rows of a latent from others. Answers that are neither yes nor no are wrong."""

    latent: int
    rate: float
    explanation: str
    sensitivity: Rate
    """share of yes among positives: the paper's score"""
    specificity: Rate
    """share of no among random negatives"""
    specificity_hard: Rate
    """among negatives with the token of a positive, or a code near to that of one"""
    balanced_accuracy: Rate
    """mean of sensitivity and specificity: chance is .5, also for an explanation that fits everything or nothing"""
    balanced_accuracy_hard: Rate
    """the same with hard negatives"""
    shuffled: float
    """mean balanced accuracy of other latents' explanations on the same rows"""
    p_value: float
    """that these are as right; NaN if there is no other explanation"""
    unparsed: int


@dataclass(frozen=True)
class Results:
    """ComSem of some latents; those with fewer than 5 rows of a kind that it needs are in `skipped`."""

    scores: list[Score]
    skipped: list[int]
    config: Config

    @property
    def significant(self) -> list[bool]:
        """Better than other latents' explanations, at the false discovery rate (Benjamini & Hochberg 1995)."""
        p_value = [1.0 if math.isnan(s.p_value) else s.p_value for s in self.scores]
        return benjamini_hochberg(torch.tensor(p_value, dtype=torch.float64), self.config.level).tolist()

    @property
    def interpretable(self) -> list[bool]:
        """Significant, and with a balanced accuracy above the threshold."""
        pairs = zip(self.significant, self.scores, strict=True)
        return [significant and score.balanced_accuracy.value > self.config.accuracy for significant, score in pairs]

    @property
    def interpretable_hard(self) -> list[bool]:
        """Interpretable, and with a balanced accuracy above the threshold with hard negatives, too."""
        pairs = zip(self.interpretable, self.scores, strict=True)
        return [good and score.balanced_accuracy_hard.value > self.config.accuracy for good, score in pairs]

    @property
    def interpretable_paper(self) -> list[bool]:
        """As the paper counts: its score above the threshold."""
        return [score.sensitivity.value > self.config.paper for score in self.scores]

    def summary(self) -> dict[str, float | None]:
        """Counts of latents, and means over those judged; None if there are none."""
        counts = {
            "judged": len(self.scores), "skipped": len(self.skipped), "interpretable": sum(self.interpretable),
            "interpretable_hard": sum(self.interpretable_hard),
            "interpretable_paper": sum(self.interpretable_paper), "unparsed": sum(s.unparsed for s in self.scores),
        }  # fmt: skip
        names = ("balanced_accuracy", "balanced_accuracy_hard", "sensitivity", "specificity", "specificity_hard")
        means = {name: _mean([getattr(s, name).value for s in self.scores]) for name in names}
        return {**counts, **means, "shuffled": _mean([s.shuffled for s in self.scores])}

    def records(self) -> list[dict[str, Any]]:
        """Each score as a flat record, for JSON lines or a table."""
        flags = zip(self.scores, self.significant, self.interpretable, strict=True)
        return [{**_flat(s), "significant": sig, "interpretable": good} for s, sig, good in flags]


@terminal.shown("judge")
def comsem(
    codes: Codes,
    latents: Sequence[int],
    explainer: Explainer,
    judge: Judge,
    tokenizer: Any,
    config: Config = Config(),
    *,
    calls: Calls | None = None,
    run: str = "",
) -> Results:
    """Explain and judge these latents; "on" is the rare state of each (`canonical`).

    calls: where every judgement is entered under the name `run`, with its text and the call that it is from.
    """
    from bitlens.features.calls import Judgement
    from bitlens.features.judges import Question

    if len(codes) and int(codes.token.min()) < 0:
        raise BitlensError(f"The codes {codes.path} have no tokens to show to a judge: they come from imported states.")
    bits = canonical(codes.bits)
    drawn, skipped = _enough(trials(bits, codes, latents, config))
    text = contexts(codes, [r for t in drawn for r in t.examples + t.judged], tokenizer, config.window)
    explanations = explainer.explain([[text[row] for row in trial.examples] for trial in drawn])

    def ask(asked: list[Asked]) -> list[bool | None]:
        verdicts = judge.answer([Question(a.explanation, text[a.row]) for a in asked])
        if calls is not None:
            evidence = zip(asked, verdicts, strict=True)
            calls.record(
                run,
                judge.name,
                (Judgement(a.latent, a.explanation, text[a.row], a.row, a.kind, v) for a, v in evidence),
            )
        return [verdict.yes for verdict in verdicts]

    return Results(judged(drawn, explanations, ask, firing_rates(bits), config), skipped, config)


def planned(
    codes: Codes, latents: Sequence[int], tokenizer: Any, config: Config = Config()
) -> tuple[list[list[str]], list[Question]]:
    """What `comsem` will show the explainer, and ask the judge with explanations of a usual length: for estimates."""
    from bitlens.features.judges import Question

    drawn, _ = _enough(trials(canonical(codes.bits), codes, latents, config))
    text = contexts(codes, [r for t in drawn for r in t.examples + t.judged], tokenizer, config.window)
    questions = [
        Question(f"{t.latent}-{i}".ljust(USUAL), text[row])
        for t in drawn for i in range(config.shuffles + 1) for row in (t.easy if i else t.judged)
    ]  # fmt: skip
    return [[text[row] for row in t.examples] for t in drawn], questions


@terminal.shown("judge")
def comsem_by_labels(codes: Codes, latents: Sequence[int], labels: Labels, config: Config = Config()) -> Results:
    """The same without a language model: an explanation is the class of highest F1 on the explainer's rows, and the
    judgement whether a row has it. A row without a label has no clear answer."""
    bits = canonical(codes.bits)
    drawn, skipped = _enough(trials(bits, codes, latents, config))
    rows = explainers_part(codes.document)
    number = {name: i for i, name in enumerate(labels.names)}
    best = f1_scores(bits, labels, rows).argmax(1)
    common = labels.ids[rows & (labels.ids >= 0)].bincount(minlength=len(labels.names))
    ranked = common.argsort(descending=True, stable=True)
    explanations = [labels.names[int(ranked[best[trial.latent]])] for trial in drawn]

    def ask(asked: list[Asked]) -> list[bool | None]:
        classes = [(number[a.explanation], int(labels.ids[a.row])) for a in asked]
        return [None if own < 0 else own == asked for asked, own in classes]

    return Results(judged(drawn, explanations, ask, firing_rates(bits), config), skipped, config)


@terminal.shown("judge")
def comsem_by_embeddings(
    codes: Codes,
    latents: Sequence[int],
    embed: Callable[[list[int]], Tensor],
    config: Config = Config(),
    level: float = 0.9,
) -> Results:
    """The same without a language model or a name: an explanation is the contexts themselves, and a row fits if its
    embedding is no farther from theirs than a share `level` of theirs are from each other.

    embed: rows, ascending -> their embeddings `[len(rows), d]`.
    """
    from bitlens.features.embedding_judge import one_class_verdicts

    bits = canonical(codes.bits)
    drawn, skipped = _enough(trials(bits, codes, latents, config))
    rows = sorted({row for trial in drawn for row in trial.examples + trial.judged})
    place, embedded = {row: i for i, row in enumerate(rows)}, embed(rows)
    fit = {str(t.latent): embedded[[place[row] for row in t.examples]] for t in drawn}

    def ask(asked: list[Asked]) -> list[bool | None]:
        found: dict[tuple[str, int], bool | None] = {}
        for name in dict.fromkeys(a.explanation for a in asked):
            mine = sorted({a.row for a in asked if a.explanation == name})
            verdicts = one_class_verdicts(fit[name], embedded[[place[row] for row in mine]], level)
            found |= {(name, row): verdict.yes for row, verdict in zip(mine, verdicts, strict=True)}
        return [found[a.explanation, a.row] for a in asked]

    scores = judged(drawn, list(fit), ask, firing_rates(bits), config)
    return Results([replace(score, explanation="like its examples") for score in scores], skipped, config)


def judged(
    drawn: Sequence[Trial],
    explanations: Sequence[str],
    ask: Ask,
    rates: Tensor,
    config: Config = Config(),
) -> list[Score]:
    """Ask, in one list, about every latent's rows with its own explanation and with `config.shuffles` of other latents.

    Others are not asked about hard negatives. rates: of all latents. The p-value is that of `sign_flip` on positives and
    random negatives where own and other explanation differ in being right; that of several shuffles is twice their median (Rüschendorf 1982), so that one other latent of the same
    meaning does no harm. Unclear answers count as wrong with the own explanation and as right with another.
    """
    if len(explanations) != len(drawn):
        raise BitlensError(f"The explainer gave {len(explanations)} explanations for {len(drawn)} latents.")
    given = [[own, *others] for own, others in zip(explanations, _others(explanations, config), strict=True)]
    asked = [[(mine[0], t.judged), *((e, t.easy) for e in mine[1:])] for t, mine in zip(drawn, given, strict=True)]
    questions = [
        Asked(t.latent, explanation, row, t.kind(i))
        for t, mine in zip(drawn, asked, strict=True) for explanation, rows in mine for i, row in enumerate(rows)
    ]  # fmt: skip
    answers = ask(questions)
    if len(answers) != len(questions):
        raise BitlensError(f"The judge gave {len(answers):,} answers to {len(questions):,} questions.")
    rest = iter(answers)
    return [
        _score(trial, mine[0][0], [list(islice(rest, len(rows))) for _, rows in mine], float(rates[trial.latent]))
        for trial, mine in zip(drawn, asked, strict=True)
    ]


def _score(trial: Trial, explanation: str, answers: list[list[bool | None]], rate: float) -> Score:
    """answers: with the own explanation to the rows of `trial.judged`, with others to those of `trial.easy`."""
    n, easy = len(trial.positives), len(trial.easy)
    truth = [row < n for row in range(len(trial.judged))]
    right = [answer is yes for answer, yes in zip(answers[0], truth, strict=True)]
    others = [[a is None or a is yes for a, yes in zip(given, truth, strict=False)] for given in answers[1:]]
    yes, no, hard = (wilson(sum(part), len(part)) for part in (right[:n], right[n:easy], right[easy:]))
    p_values = sorted(sign_flip(right[:easy], other, n) for other in others)
    middle = p_values[len(p_values) // 2] if p_values else math.nan  # the upper median: never too small
    shuffled = _mean([(sum(o[:n]) / n + sum(o[n:]) / (easy - n)) / 2 for o in others])
    return Score(
        trial.latent, rate, explanation, yes, no, hard, mean_of_two(yes, no), mean_of_two(yes, hard),
        math.nan if shuffled is None else shuffled, min(1.0, 2 * middle) if len(p_values) > 1 else middle,
        sum(answer is None for answer in answers[0]),
    )  # fmt: skip


def _enough(drawn: list[Trial]) -> tuple[list[Trial], list[int]]:
    """The trials with rows enough to score, and the latents of the others."""

    def enough(t: Trial) -> bool:
        return min(len(t.examples), len(t.positives), len(t.random)) >= MIN_ROWS

    return [t for t in drawn if enough(t)], [t.latent for t in drawn if not enough(t)]


def _others(explanations: Sequence[str], config: Config) -> list[list[str]]:
    """For each explanation those of other latents that read differently: the next ones in one random order."""
    n = len(explanations)
    order = torch.randperm(n, generator=generator(config.seed, "shuffled explanations")).tolist()
    place = {latent: i for i, latent in enumerate(order)}
    found = []
    for i, own in enumerate(explanations):
        following = (explanations[order[(place[i] + shift) % n]] for shift in range(1, n))
        found.append(list(islice(dict.fromkeys(e for e in following if e != own), config.shuffles)))
    return found


def _mean(values: list[float]) -> float | None:
    known = [v for v in values if not math.isnan(v)]
    return sum(known) / len(known) if known else None


def _flat(score: Score) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in asdict(score).items():
        flat[name] = value.value if isinstance(value, Rate) else value
        if isinstance(value, Rate):
            flat |= {f"{name}_low": value.low, f"{name}_high": value.high}
    return flat
