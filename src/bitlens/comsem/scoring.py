"""How well an explanation tells the rows of a latent from others, or why that cannot be said.

Whoever answers, a language model or known labels, is a function from questions to verdicts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bitlens.comsem.judges import Verdict
from bitlens.comsem.sampling import JudgedRow, Plan, Trial
from bitlens.errors import BitlensError
from bitlens.information.intervals import UNKNOWN, Estimate, fisher, mean_of_two, sign_flip, wilson
from bitlens.labels.scores import LEVEL
from bitlens.results import brief
from bitlens.seeding import generator

MOST = 3  # times as many nulls as are wanted: those that turn out to fit are made up for by others


class RowQuestion(NamedTuple):
    """Does the explanation, the latent's own or another's as a null, hold for that row?"""

    latent: int
    explanation: str
    row: int
    kind: str
    """positive, random or hard"""


Ask = Callable[[list[RowQuestion]], list[Verdict]]


@dataclass(frozen=True)
class Config(Plan):
    """How latents are judged, and what makes one interpretable."""

    shuffles: int = 5
    """explanations of other latents to judge the rows with, too: each costs as much"""
    paper: float = 0.5
    """the paper's score must be above it"""
    accuracy: float = 0.7
    """the lower end of the balanced accuracy's 95 % interval must be above it"""
    level: float = LEVEL
    """false discovery rate; other explanations that fit at this level are no nulls"""


DEFAULT = Config()


@dataclass(frozen=True)
class Score:
    """How well an explanation tells the rows of a latent from others. Unclear answers are wrong."""

    __repr__ = brief

    latent: int
    rate: float = math.nan
    explanation: str = ""
    sensitivity: Estimate = UNKNOWN
    """share of yes among positives: the paper's score"""
    specificity: Estimate = UNKNOWN
    """share of no among random negatives"""
    specificity_hard: Estimate = UNKNOWN
    """among negatives with the token of a positive, or a code near to that of one"""
    balanced_accuracy: Estimate = UNKNOWN
    """mean of sensitivity and specificity: .5 is chance, and what fits everything or nothing"""
    balanced_accuracy_hard: Estimate = UNKNOWN
    """the same with hard negatives"""
    shuffled: float = math.nan
    """mean balanced accuracy of other latents' explanations on these rows, of fitting ones, too"""
    nulls: int = 0
    """other explanations compared with"""
    fitting: int = 0
    """other explanations left out, since they fit these rows themselves"""
    p_value: float = math.nan
    """that the explanation is no better than chance, or than the nulls; NaN if these are too few"""
    unparsed: int = 0
    """answers that say neither yes nor no"""
    unfinished: int = 0
    """answers that came to no end"""
    untested: str = ""
    """why it cannot be said whether the latent is interpretable; empty if it can"""
    untested_hard: str = ""
    """the same for hard negatives"""


def judged(
    explained: Sequence[tuple[Trial, str]], ask: Ask, rates: Tensor, config: Config = DEFAULT
) -> list[Score]:
    """Ask about every latent's rows with its own explanation and with `config.shuffles` of others.

    rates: of all latents. Others that fit these rows themselves (Fisher's test at `config.level`)
    are no nulls: more are asked about instead, up to `MOST` times as many.
    """
    others = _others([explanation for _, explanation in explained], config)
    pairs = zip(explained, others, strict=True)
    cases = [_Case(trial, [own, *other], []) for (trial, own), other in pairs]
    while wanted := [(case, text) for case in cases for text in case.wanted(config)]:
        questions = [
            RowQuestion(case.trial.latent, explanation, *row)
            for case, explanation in wanted
            for row in case.trial.judged
        ]
        verdicts = ask(questions)
        if len(verdicts) != len(questions):
            raise BitlensError(
                f"The judge gave {len(verdicts):,} answers to {len(questions):,} questions."
            )
        rest = iter(verdicts)
        for case, _ in wanted:
            rows = case.trial.judged
            case.answers.append(_Answers(rows, [next(rest) for _ in rows]))
    return [case.score(float(rates[case.trial.latent]), config) for case in cases]


class _Answers(NamedTuple):
    """Verdicts on all rows of a trial with one explanation."""

    rows: list[JudgedRow]
    verdicts: list[Verdict]

    def right(self, unclear: bool = False, unfinished: bool = False) -> list[bool]:
        """Whether each is right, with what unclear and unfinished answers count as."""
        neither = [unclear if v.finished else unclear or unfinished for v in self.verdicts]
        return [
            default if v.yes is None else v.yes == (row.kind == "positive")
            for row, v, default in zip(self.rows, self.verdicts, neither, strict=True)
        ]

    def part(self, right: list[bool], *kinds: str) -> list[bool]:
        """Those of rows of these kinds."""
        return [r for r, row in zip(right, self.rows, strict=True) if row.kind in kinds]

    def rates(self, right: list[bool]) -> dict[str, Estimate]:
        """Shares of rows that are right, named as in `Score`."""
        parts = (self.part(right, kind) for kind in ("positive", "random", "hard"))
        yes, no, hard = (wilson(sum(part), len(part)) for part in parts)
        return {
            "sensitivity": yes,
            "specificity": no,
            "specificity_hard": hard,
            "balanced_accuracy": mean_of_two(yes, no),
            "balanced_accuracy_hard": mean_of_two(yes, hard),
        }

    def fit(self) -> float:
        """P-value that these answers have nothing to do with the latent (Fisher's exact test)."""
        right = self.right()
        yes, no = self.part(right, "positive"), self.part(right, "random")
        return fisher(sum(yes), len(yes), len(no) - sum(no), len(no))

    def better(self, null: _Answers) -> float:
        """P-value that these are no more often right than a null, whose unclear ones are."""
        easy = ("positive", "random")
        own, other = self.part(self.right(), *easy), null.part(null.right(unclear=True), *easy)
        return sign_flip(own, other, sum(row.kind == "positive" for row in self.rows))

    def untested(self, name: str, config: Config) -> str:
        """Why these cannot say whether this balanced accuracy is above the threshold."""

        def above(right: list[bool]) -> bool:
            return self.rates(right)[name].low > config.accuracy

        if not above([True] * len(self.rows)):
            return "too few rows"
        if above(self.right(unfinished=True)) and not above(self.right()):
            return "unfinished answers"
        return ""


class _Case(NamedTuple):
    """A latent under judgement."""

    trial: Trial
    explanations: list[str]
    """its own, and then those of other latents that may be asked about"""
    answers: list[_Answers]
    """with the first of these explanations"""

    def nulls(self, config: Config) -> list[_Answers]:
        """Answers with explanations of others that do not fit themselves."""
        return [answers for answers in self.answers[1:] if answers.fit() > config.level]

    def wanted(self, config: Config) -> list[str]:
        """The next explanations to ask about, as many as are lacking."""
        lacking = config.shuffles + (not self.answers) - len(self.nulls(config))
        return self.explanations[len(self.answers) :][:lacking]

    def score(self, rate: float, config: Config) -> Score:
        """The p-value is the larger one of Fisher's test, which holds whatever nulls were left out,
        and of `sign_flip` on rows where own and other explanation differ in being right; that of
        several nulls is twice their median (Rüschendorf 1982)."""
        own, others, nulls = self.answers[0], self.answers[1:], self.nulls(config)
        p_value, lacking = math.nan, ""
        if nulls and 2 * len(nulls) >= min(config.shuffles, len(self.explanations) - 1):
            p_values = sorted(own.better(null) for null in nulls)
            middle = p_values[len(p_values) // 2]  # the upper median: never too small
            combined = min(1.0, 2 * middle) if len(p_values) > 1 else middle
            p_value = max(combined, own.fit())
        else:
            lacking = "other explanations fit as well" if others else "no other explanation"
        asked = [other.rates(other.right(unclear=True)) for other in others[: config.shuffles]]
        shuffled = mean([rates["balanced_accuracy"].value for rates in asked])
        return Score(
            self.trial.latent,
            rate,
            self.explanations[0],
            **own.rates(own.right()),
            shuffled=math.nan if shuffled is None else shuffled,
            nulls=len(nulls),
            fitting=len(others) - len(nulls),
            p_value=p_value,
            unparsed=sum(v.yes is None and v.finished for v in own.verdicts),
            unfinished=sum(not v.finished for v in own.verdicts),
            untested=lacking or own.untested("balanced_accuracy", config),
            untested_hard=own.untested("balanced_accuracy_hard", config),
        )


def _others(explanations: Sequence[str], config: Config) -> list[list[str]]:
    """For each explanation those that read differently, the next ones in one random order."""
    draw = generator(config.seed, "shuffled explanations")
    order: list[int] = torch.randperm(len(explanations), generator=draw).tolist()
    others: list[list[str]] = [[] for _ in explanations]
    for place, latent in enumerate(order):
        following = (explanations[i] for i in order[place + 1 :] + order[:place])
        different = dict.fromkeys(text for text in following if text != explanations[latent])
        others[latent] = list(different)[: MOST * config.shuffles]
    return others


def mean(values: Sequence[float]) -> float | None:
    """Of the values that are not NaN; None if there are none."""
    numbers = [value for value in values if not math.isnan(value)]
    return sum(numbers) / len(numbers) if numbers else None
