"""How well an explanation tells the rows of a latent from others, and whether that can be said at all.

Whoever answers, a language model or known labels, is a function from questions to verdicts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from bitlens.comsem.judges import Verdict
from bitlens.comsem.sampling import Plan, Trial
from bitlens.errors import BitlensError
from bitlens.information.proportions import Rate, fisher, mean_of_two, sign_flip, wilson
from bitlens.labels.scores import LEVEL
from bitlens.results import brief
from bitlens.seeding import generator

MOST = 3  # times as many nulls as are wanted: those that turn out to fit are made up for by others


class Asked(NamedTuple):
    """Does the explanation hold for that row of the latent? With its own, or with another's as a null."""

    latent: int
    explanation: str
    row: int
    kind: str
    """positive, random or hard"""


Ask = Callable[[list[Asked]], list[Verdict]]


@dataclass(frozen=True)
class Config(Plan):
    """How latents are judged, and what makes one interpretable."""

    shuffles: int = 5
    """explanations of other latents that the rows of each are judged with, too: each costs as much as the judgement"""
    paper: float = 0.5
    """the paper's score must be above it"""
    accuracy: float = 0.7
    """the lower end of the balanced accuracy's 95 % interval must be above it, in the corrected count"""
    level: float = LEVEL
    """false discovery rate; other explanations that fit at this level are no nulls"""


DEFAULT = Config()


@dataclass(frozen=True)
class Score:
    """How well an explanation tells the rows of a latent from others. Answers that are neither yes nor no are wrong."""

    __repr__ = brief

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
    """mean balanced accuracy of other latents' explanations on the same rows, of those that fit as well"""
    nulls: int
    """other explanations compared with"""
    fitting: int
    """other explanations left out, since they fit these rows themselves"""
    p_value: float
    """that the explanation is no better than chance, or than the others; NaN if there are not enough of these"""
    unparsed: int
    """answers that say neither yes nor no"""
    unfinished: int
    """answers that came to no end"""
    untested: str
    """why it cannot be said whether the latent is interpretable; empty if it can"""
    untested_hard: str
    """the same for hard negatives"""


def unjudged(latent: int, reason: str) -> Score:
    """Of a latent that nobody was asked about."""
    nan, rate = math.nan, Rate(math.nan, math.nan, math.nan)
    return Score(
        latent, nan, "", rate, rate, rate, rate, rate, nan, 0, 0, nan, 0, 0, reason, reason
    )


def judged(
    drawn: Sequence[Trial],
    explanations: Sequence[str],
    ask: Ask,
    rates: Tensor,
    config: Config = DEFAULT,
) -> list[Score]:
    """Ask about every latent's rows with its own explanation and with `config.shuffles` of other latents.

    rates: of all latents. Other explanations that fit these rows themselves (Fisher's test at `config.level`) are no
    nulls: others are asked about instead, up to `MOST` times as many.
    """
    if len(explanations) != len(drawn):
        raise BitlensError(
            f"The explainer gave {len(explanations)} explanations for {len(drawn)} latents."
        )
    candidates = [
        [own, *others]
        for own, others in zip(explanations, _others(explanations, config), strict=True)
    ]
    answers: list[list[list[Verdict]]] = [[] for _ in drawn]

    def wanted() -> list[tuple[int, str]]:
        """The next explanations to ask about, as many as each latent lacks."""
        return [
            (i, explanation)
            for i, (t, of, given) in enumerate(zip(drawn, candidates, answers, strict=True))
            for explanation in of[len(given) :][
                : config.shuffles + (not given) - len(_nulls(t, given, config))
            ]
        ]

    while pairs := wanted():
        said = _answered([(drawn[i], explanation) for i, explanation in pairs], ask)
        for (i, _), given in zip(pairs, said, strict=True):
            answers[i].append(given)
    return [
        _score(t, of, given, float(rates[t.latent]), config)
        for t, of, given in zip(drawn, candidates, answers, strict=True)
    ]


def _answered(pairs: Sequence[tuple[Trial, str]], ask: Ask) -> list[list[Verdict]]:
    """For each trial and explanation the answers about the trial's rows."""
    questions = [
        Asked(t.latent, e, row, t.kind(i)) for t, e in pairs for i, row in enumerate(t.judged)
    ]
    answers = ask(questions) if questions else []
    if len(answers) != len(questions):
        raise BitlensError(
            f"The judge gave {len(answers):,} answers to {len(questions):,} questions."
        )
    rest = iter(answers)
    return [list(islice(rest, len(t.judged))) for t, _ in pairs]


def _fit(trial: Trial, answers: Sequence[Verdict]) -> float:
    """P-value that these answers have nothing to do with the latent; unclear ones are wrong."""
    n, easy = len(trial.positives), len(trial.easy)
    yes, wrong = (
        sum(v.yes is True for v in answers[:n]),
        sum(v.yes is not False for v in answers[n:easy]),
    )
    return fisher(yes, n, wrong, easy - n)


def _nulls(trial: Trial, answers: Sequence[list[Verdict]], config: Config) -> list[list[Verdict]]:
    """Of the answers with the own explanation and with others, those with others that do not fit themselves."""
    return [given for given in answers[1:] if _fit(trial, given) > config.level]


class _Rates(NamedTuple):
    yes: Rate
    no: Rate
    hard: Rate
    balanced: Rate
    balanced_hard: Rate


def _rates(trial: Trial, right: Sequence[bool]) -> _Rates:
    """right: for each row of `trial.judged`"""
    n, easy = len(trial.positives), len(trial.easy)
    yes, no, hard = (
        wilson(sum(part), len(part)) for part in (right[:n], right[n:easy], right[easy:])
    )
    return _Rates(yes, no, hard, mean_of_two(yes, no), mean_of_two(yes, hard))


def _score(
    trial: Trial,
    candidates: Sequence[str],
    answers: Sequence[list[Verdict]],
    rate: float,
    config: Config,
) -> Score:
    """candidates, answers: the own explanation, and those of other latents.

    The p-value is the larger one of Fisher's test, which holds whatever nulls were left out, and of `sign_flip` on the
    rows where own and other explanation differ in being right; that of several nulls is twice their median (Rüschendorf
    1982). Unclear answers count as wrong with the own explanation and as right with another.
    """
    n, easy, own = len(trial.positives), len(trial.easy), answers[0]
    truth = [row < n for row in range(len(trial.judged))]
    right = [v.yes is yes for v, yes in zip(own, truth, strict=True)]
    others, nulls = (
        [[v.yes is not (not yes) for v, yes in zip(given, truth, strict=True)] for given in of]
        for of in (answers[1 : config.shuffles + 1], _nulls(trial, answers, config))
    )
    p_values = sorted(sign_flip(right[:easy], null[:easy], n) for null in nulls)
    enough = nulls and 2 * len(nulls) >= min(config.shuffles, len(candidates) - 1)
    middle = (
        p_values[len(p_values) // 2] if enough else math.nan
    )  # the upper median: never too small
    p_value = max(min(1.0, 2 * middle) if len(p_values) > 1 else middle, _fit(trial, own))
    shuffled = mean([_rates(trial, other).balanced.value for other in others])
    rates = _rates(trial, right)
    untested = _untested(trial, own, right, config)
    lacking = (
        ""
        if enough
        else "other explanations fit as well"
        if len(answers) > 1
        else "no other explanation"
    )
    return Score(
        trial.latent, rate, candidates[0], rates.yes, rates.no, rates.hard, rates.balanced, rates.balanced_hard,
        math.nan if shuffled is None else shuffled, len(nulls), len(answers) - 1 - len(nulls), p_value if enough else math.nan,
        sum(v.yes is None and v.finished for v in own), sum(not v.finished for v in own),
        lacking or untested[0], untested[1],
    )  # fmt: skip


def _untested(
    trial: Trial, own: Sequence[Verdict], right: Sequence[bool], config: Config
) -> list[str]:
    """Why the answers cannot say whether the balanced accuracy is above the threshold, with random negatives and hard
    ones."""
    reasons = []
    for kind in ("balanced", "balanced_hard"):
        found, at_best, most = (
            getattr(_rates(trial, rights), kind).low > config.accuracy
            for rights in (
                right,
                [r or not v.finished for r, v in zip(right, own, strict=True)],
                [True] * len(right),
            )
        )
        reasons.append(
            "too few rows" if not most else "unfinished answers" if at_best and not found else ""
        )
    return reasons


def _others(explanations: Sequence[str], config: Config) -> list[list[str]]:
    """For each explanation enough of other latents that read differently: the next ones in one random order."""
    n = len(explanations)
    order = torch.randperm(n, generator=generator(config.seed, "shuffled explanations")).tolist()
    place = {latent: i for i, latent in enumerate(order)}
    found = []
    for i, own in enumerate(explanations):
        following = (explanations[order[(place[i] + shift) % n]] for shift in range(1, n))
        found.append(
            list(islice(dict.fromkeys(e for e in following if e != own), MOST * config.shuffles))
        )
    return found


def mean(values: list[float]) -> float | None:
    known = [v for v in values if not math.isnan(v)]
    return sum(known) / len(known) if known else None
