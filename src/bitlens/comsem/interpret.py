"""ComSem: what do the tokens that a latent is on for have in common? (arXiv 2509.20997)

An explainer names it from some of them, and a judge, who answers yes or no, checks the name on
tokens of other documents. The paper asks about tokens with the latent on only, so "any token" has
its full score; here the judge sees tokens with the latent off as well, and must tell them apart,
and better than with explanations of other latents. What cannot be tested so is neither
interpretable nor not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bitlens import terminal
from bitlens.bits.codes import Codes
from bitlens.bits.packed import PackedBits
from bitlens.bits.statistics import firing_rates
from bitlens.comsem.calls import Calls, Judgement
from bitlens.comsem.judges import Question, Verdict
from bitlens.comsem.sampling import Trial, trials
from bitlens.comsem.scoring import DEFAULT, Config, Explained, RowQuestion, Score, judged, mean
from bitlens.errors import BitlensError
from bitlens.features.examples import contexts
from bitlens.features.on_rows import canonical, explainers_part
from bitlens.information.intervals import Estimate as Rate
from bitlens.labels.scores import benjamini_hochberg, f1_scores
from bitlens.labels.sources import Labels
from bitlens.results import brief

if TYPE_CHECKING:
    from bitlens.comsem.judges import Explainer, Judge

MIN_ROWS = 5
USUAL = 60  # characters of an explanation


@dataclass(frozen=True)
class Results:
    """ComSem of some latents. True, False, or None: untested."""

    __repr__ = brief

    scores: list[Score]
    skipped: list[int]
    """latents with fewer than 5 rows of a kind that it needs"""
    config: Config
    unexplained: list[int] = field(default_factory=list)
    """latents that the explainer had nothing to say about"""

    @property
    def significant(self) -> list[bool | None]:
        """Better than chance and than other explanations, at the false discovery rate."""
        tested = [score.p_value for score in self.scores if not score.untested]
        p_values = torch.tensor(tested, dtype=torch.float64)
        rejected = iter(benjamini_hochberg(p_values, self.config.level).tolist())
        return [None if score.untested else next(rejected) for score in self.scores]

    @property
    def interpretable(self) -> list[bool | None]:
        """Significant, and the balanced accuracy's interval is above the threshold."""
        return self._above(self.significant, "")

    @property
    def interpretable_hard(self) -> list[bool | None]:
        """Interpretable, and the same of the balanced accuracy with hard negatives."""
        return self._above(self.interpretable, "_hard")

    def _above(self, flags: list[bool | None], hard: str) -> list[bool | None]:
        """Where the flag is True: whether this balanced accuracy is above the threshold."""
        result: list[bool | None] = []
        for score, flag in zip(self.scores, flags, strict=True):
            above = getattr(score, f"balanced_accuracy{hard}").low > self.config.accuracy
            result.append(flag and (None if getattr(score, f"untested{hard}") else above))
        return result

    @property
    def interpretable_paper(self) -> list[bool]:
        """As the paper counts: its score above the threshold."""
        return [score.sensitivity.value > self.config.paper for score in self.scores]

    def summary(self) -> dict[str, float | None]:
        """Counts of latents, and means over those judged; None if there are none."""
        interpretable = self.interpretable
        rates = ("sensitivity", "specificity", "specificity_hard")
        rates = ("balanced_accuracy", "balanced_accuracy_hard", *rates)
        return {
            "judged": len(self.scores),
            "skipped": len(self.skipped),
            "unexplained": len(self.unexplained),
            "interpretable": interpretable.count(True),
            "untested": interpretable.count(None),
            "interpretable_hard": self.interpretable_hard.count(True),
            "interpretable_paper": sum(self.interpretable_paper),
            "unparsed": sum(score.unparsed for score in self.scores),
            "unfinished": sum(score.unfinished for score in self.scores),
            **{name: mean([getattr(s, name).value for s in self.scores]) for name in rates},
            "shuffled": mean([score.shuffled for score in self.scores]),
        }

    def records(self) -> list[dict[str, Any]]:
        """A flat record for each latent, of those that were not judged with the reason."""
        flags = zip(self.significant, self.interpretable, self.interpretable_hard, strict=True)
        unknown = (None, None, None)
        scores = list(zip(self.scores, flags, strict=True))
        reasons = dict.fromkeys(self.skipped, "too few rows")
        reasons |= dict.fromkeys(self.unexplained, "no explanation")
        for latent, reason in reasons.items():
            scores.append((Score(latent, untested=reason, untested_hard=reason), unknown))
        names = ("significant", "interpretable", "interpretable_hard")
        records = [_flat(score) | dict(zip(names, three, strict=True)) for score, three in scores]
        return sorted(records, key=lambda record: record["latent"])


@terminal.shown("judge")
def comsem(
    codes: Codes,
    latents: Sequence[int],
    explainer: Explainer,
    judge: Judge,
    tokenizer: Any,
    config: Config = DEFAULT,
    *,
    calls: Calls | None = None,
    run: str = "",
) -> Results:
    """Explain and judge these latents on rows of usual norm.

    "On" is the rare state of each latent (`canonical`). calls: where every judgement is entered
    under the name `run`, with its text and its call.
    """
    drawn = _draw(codes, latents, codes.usual, config)
    text = _texts(codes, drawn, tokenizer, config)
    examples = [[text[row] for row in trial.examples] for trial in drawn.trials]

    def ask(asked: list[RowQuestion]) -> list[Verdict]:
        verdicts = judge.answer([Question(a.explanation, text[a.row], a.latent) for a in asked])
        if calls is not None:
            judgements = [
                Judgement(a.latent, a.explanation, text[a.row], a.row, a.kind, verdict)
                for a, verdict in zip(asked, verdicts, strict=True)
            ]
            calls.record(run, judge.name, judgements)
        return verdicts

    return _results(codes, drawn, explainer.explain(examples), ask, config)


def planned(
    codes: Codes, latents: Sequence[int], tokenizer: Any, config: Config = DEFAULT
) -> tuple[list[list[str]], list[Question]]:
    """What `comsem` will show the explainer and ask the judge, for estimates."""
    drawn = _draw(codes, latents, codes.usual, config)
    text = _texts(codes, drawn, tokenizer, config)
    questions = [
        Question(f"{trial.latent}-{i}".ljust(USUAL), text[judged.row], trial.latent)
        for trial in drawn.trials
        for i in range(config.shuffles + 1)
        for judged in trial.judged
    ]
    return [[text[row] for row in trial.examples] for trial in drawn.trials], questions


@terminal.shown("judge")
def comsem_by_labels(
    codes: Codes, latents: Sequence[int], labels: Labels, config: Config = DEFAULT
) -> Results:
    """The same without a language model.

    An explanation is the class of highest F1 on the explainer's rows, and the judgement whether a
    row has it. Rows without a label have no part in it.
    """
    labels = labels.only(codes.usual)
    labelled = labels.ids >= 0
    drawn = _draw(codes, latents, labelled, config)
    rows = explainers_part(codes.document)
    f1 = f1_scores(drawn.bits, labels, rows)
    if not f1.shape[1]:
        raise BitlensError(
            f"No class of '{labels.name}' is frequent enough to explain a latent; label more rows."
        )
    # `f1_scores` has a column for each class, the most frequent first.
    frequency = labels.ids[rows & labelled].bincount(minlength=len(labels.names))
    classes = [labels.names[i] for i in frequency.argsort(descending=True, stable=True).tolist()]
    best = [f1[trial.latent].max(0) for trial in drawn.trials]
    explanations = [classes[int(column)] if score > 0 else "" for score, column in best]
    number = {name: i for i, name in enumerate(labels.names)}

    def ask(asked: list[RowQuestion]) -> list[Verdict]:
        return [Verdict(int(labels.ids[a.row]) == number[a.explanation]) for a in asked]

    return _results(codes, drawn, explanations, ask, config)


@dataclass(frozen=True)
class _Drawn:
    """Latents with rows enough to be judged, and those without."""

    bits: PackedBits
    """with the rare state of every latent as 1"""
    trials: list[Trial]
    skipped: list[int]


def _draw(codes: Codes, latents: Sequence[int], among: Tensor, config: Config) -> _Drawn:
    bits = canonical(codes.bits, codes.usual)
    enough, skipped = [], []
    for trial in trials(bits, codes, latents, config, among):
        if min(len(trial.examples), len(trial.positives), len(trial.random)) < MIN_ROWS:
            skipped.append(trial.latent)
        else:
            enough.append(trial)
    return _Drawn(bits, enough, skipped)


def _texts(codes: Codes, drawn: _Drawn, tokenizer: Any, config: Config) -> dict[int, str]:
    """All rows that are shown to someone, as text."""
    if len(codes) and int(codes.token.min()) < 0:
        raise BitlensError(
            f"The codes {codes.path} have no tokens to show to a judge: "
            "they come from imported states."
        )
    rows = [row for trial in drawn.trials for row in trial.rows]
    return contexts(codes, rows, tokenizer, config.window)


def _results(
    codes: Codes, drawn: _Drawn, explanations: Sequence[str], ask: Any, config: Config
) -> Results:
    """Judge those that have an explanation."""
    if len(explanations) != len(drawn.trials):
        raise BitlensError(
            f"The explainer gave {len(explanations)} explanations for {len(drawn.trials)} latents."
        )
    pairs = list(map(Explained, drawn.trials, explanations))
    explained = [pair for pair in pairs if pair.explanation.strip()]
    unexplained = [pair.trial.latent for pair in pairs if not pair.explanation.strip()]
    scores = judged(explained, ask, firing_rates(drawn.bits[codes.usual]), config)
    return Results(scores, drawn.skipped, config, unexplained)


def _flat(score: Score) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in vars(score).items():
        flat[name] = value.value if isinstance(value, Rate) else value
        if isinstance(value, Rate):
            flat |= {f"{name}_low": value.low, f"{name}_high": value.high}
    return flat
