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
from itertools import zip_longest
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

import torch
from torch import Tensor

from bitlens import terminal
from bitlens.bits.codes import Codes
from bitlens.bits.shards import AnyBits
from bitlens.bits.statistics import firing_rates
from bitlens.comsem.calls import Calls, Judgement
from bitlens.comsem.examples import ExampleExplainer
from bitlens.comsem.judges import Question, Verdict
from bitlens.comsem.sampling import Trial, trials
from bitlens.comsem.scoring import DEFAULT, Ask, Config, RowQuestion, Score, judged, mean
from bitlens.errors import BitlensError
from bitlens.features.examples import contexts
from bitlens.features.on_rows import canonical, explainers_part
from bitlens.labels.scores import benjamini_hochberg, f1_scores
from bitlens.labels.sources import MIN_ROWS as MIN_CLASS_ROWS
from bitlens.labels.sources import Labels, require_tokens
from bitlens.results import Number, brief, flat

if TYPE_CHECKING:
    from bitlens.comsem.judges import Explainer, Judge

MIN_ROWS = 5
USUAL = 60  # characters of an explanation


class Summary(TypedDict):
    """Counts of latents, and means over those that were judged; None if there are none."""

    judged: Annotated[int, Number("latents with examples enough, explained")]
    skipped: Annotated[int, Number("latents with too few rows")]
    unexplained: Annotated[int, Number("latents without an explanation")]
    interpretable: Annotated[
        int, Number("better than other explanations, accuracy above .7 at 5 %")
    ]
    untested: Annotated[int, Number("neither interpretable nor not")]
    interpretable_hard: Annotated[int, Number("with hard negatives, too")]
    interpretable_paper: Annotated[
        int, Number("more than half of the positives, as the paper counts")
    ]
    unparsed: Annotated[int, Number("answers that were neither yes nor no")]
    unfinished: Annotated[int, Number("answers that came to no end")]
    balanced_accuracy: Annotated[float | None, Number("chance is .5", ".3f")]
    balanced_accuracy_hard: Annotated[
        float | None, Number("on tokens and codes like the positives'", ".3f")
    ]
    sensitivity: Annotated[float | None, Number("yes among positives: the paper's score", ".3f")]
    specificity: Annotated[float | None, Number("no among random tokens", ".3f")]
    specificity_hard: Annotated[float | None, Number("no among hard negatives", ".3f")]
    shuffled: Annotated[float | None, Number("accuracy of other latents' explanations", ".3f")]


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

    def summary(self) -> Summary:
        """The counts and means."""
        interpretable, scores = self.interpretable, self.scores
        return Summary(
            judged=len(scores),
            skipped=len(self.skipped),
            unexplained=len(self.unexplained),
            interpretable=interpretable.count(True),
            untested=interpretable.count(None),
            interpretable_hard=self.interpretable_hard.count(True),
            interpretable_paper=sum(self.interpretable_paper),
            unparsed=sum(score.unparsed for score in scores),
            unfinished=sum(score.unfinished for score in scores),
            balanced_accuracy=mean([s.balanced_accuracy.value for s in scores]),
            balanced_accuracy_hard=mean([s.balanced_accuracy_hard.value for s in scores]),
            sensitivity=mean([s.sensitivity.value for s in scores]),
            specificity=mean([s.specificity.value for s in scores]),
            specificity_hard=mean([s.specificity_hard.value for s in scores]),
            shuffled=mean([score.shuffled for score in scores]),
        )

    def records(self) -> list[dict[str, Any]]:
        """A flat record for each latent, of those that were not judged with the reason."""
        reasons = dict.fromkeys(self.skipped, "too few rows")
        reasons |= dict.fromkeys(self.unexplained, "no explanation")
        others = [Score(i, untested=why, untested_hard=why) for i, why in reasons.items()]
        names = ("significant", "interpretable", "interpretable_hard")
        flags = zip_longest(  # None for those that were not judged
            [*self.scores, *others], *(getattr(self, name) for name in names)
        )
        records = [flat(score) | dict(zip(names, known, strict=True)) for score, *known in flags]
        return sorted(records, key=lambda record: record["latent"])


@terminal.shown("judge")
def comsem(
    codes: Codes,
    latents: Sequence[int],
    explainer: Explainer | ExampleExplainer,
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
    drawn = _Drawn.of(codes, latents, codes.usual, config)
    text, examples, counterexamples = drawn.texts(codes, tokenizer, config)
    if isinstance(explainer, ExampleExplainer):
        explanations = explainer.explain(examples, counterexamples)
    else:
        explanations = explainer.explain(examples)

    def ask(asked: list[RowQuestion]) -> list[Verdict]:
        verdicts = judge.answer([Question(a.explanation, text[a.row], a.latent) for a in asked])
        if calls is not None:
            judgements = [
                Judgement(a.latent, a.explanation, text[a.row], a.row, a.kind, verdict)
                for a, verdict in zip(asked, verdicts, strict=True)
            ]
            calls.record(run, judge.name, judgements)
        return verdicts

    return drawn.judged(codes, explanations, ask, config)


def planned(
    codes: Codes,
    latents: Sequence[int],
    tokenizer: Any,
    config: Config = DEFAULT,
    explainer: ExampleExplainer | None = None,
) -> tuple[list[list[str]], list[Question]]:
    """What `comsem` will show the explainer and ask the judge, for estimates; `explainer`: one
    that costs nothing, so that its explanations are known."""
    drawn = _Drawn.of(codes, latents, codes.usual, config)
    text, examples, counterexamples = drawn.texts(codes, tokenizer, config)
    known = explainer.explain(examples, counterexamples) if explainer else [""] * len(examples)
    questions = [
        Question(f"{explanation}{trial.latent}-{i}".ljust(USUAL), text[judged.row], trial.latent)
        for trial, explanation in zip(drawn.trials, known, strict=True)
        for i in range(config.shuffles + 1)
        for judged in trial.judged
    ]
    return ([] if explainer else examples), questions


@terminal.shown("judge")
def comsem_by_labels(
    codes: Codes, latents: Sequence[int], labels: Labels, config: Config = DEFAULT
) -> Results:
    """The same without a language model, on rows that have a label.

    An explanation is the class of highest F1 on the explainer's rows; the judge says whether a row
    has it.
    """
    labels = labels.only(codes.usual)
    drawn = _Drawn.of(codes, latents, labels.ids >= 0, config)
    rows = explainers_part(codes.document)
    f1 = f1_scores(drawn.bits, labels, rows)
    classes = [labels.names[i] for i in labels.frequent([rows], MIN_CLASS_ROWS).tolist()]
    best = [f1[trial.latent].max(0) for trial in drawn.trials]
    explanations = [classes[int(column)] if score > 0 else "" for score, column in best]
    number = {name: i for i, name in enumerate(labels.names)}

    def ask(asked: list[RowQuestion]) -> list[Verdict]:
        return [Verdict(int(labels.ids[a.row]) == number[a.explanation]) for a in asked]

    return drawn.judged(codes, explanations, ask, config)


@dataclass(frozen=True)
class _Drawn:
    """Latents with rows enough to be judged, and those without."""

    bits: AnyBits
    """with the rare state of every latent as 1"""
    trials: list[Trial]
    skipped: list[int]

    @classmethod
    def of(cls, codes: Codes, latents: Sequence[int], among: Tensor, config: Config) -> _Drawn:
        bits = canonical(codes.parts, codes.usual)
        enough, skipped = [], []
        for trial in trials(bits, codes, latents, config, among):
            if min(len(trial.examples), len(trial.positives), len(trial.random)) < MIN_ROWS:
                skipped.append(trial.latent)
            else:
                enough.append(trial)
        return cls(bits, enough, skipped)

    def texts(
        self, codes: Codes, tokenizer: Any, config: Config
    ) -> tuple[dict[int, str], list[list[str]], list[list[str]]]:
        """All rows that are shown to someone, as text, and of every latent the examples and the
        counterexamples, of which an explainer is shown the former or both."""
        require_tokens(codes.token)
        examples = [trial.examples for trial in self.trials]
        counterexamples = [trial.counterexamples for trial in self.trials]
        rows = {row for some in (*examples, *counterexamples) for row in some}
        rows |= {judged.row for trial in self.trials for judged in trial.judged}
        text = contexts(codes, rows, tokenizer, config.window)

        def shown(rows_of: list[list[int]]) -> list[list[str]]:
            return [[text[row] for row in rows] for rows in rows_of]

        return text, shown(examples), shown(counterexamples)

    def judged(
        self, codes: Codes, explanations: Sequence[str], ask: Ask, config: Config
    ) -> Results:
        """Judge those that have an explanation."""
        if len(explanations) != len(self.trials):
            raise BitlensError(
                f"The explainer gave {len(explanations)} explanations for {len(self.trials)} "
                "latents."
            )
        pairs = list(zip(self.trials, explanations, strict=True))
        explained = [pair for pair in pairs if pair[1]]  # that of a label may be a line end
        unexplained = [trial.latent for trial, explanation in pairs if not explanation]
        rates = firing_rates(self.bits.where(codes.usual))
        return Results(judged(explained, ask, rates, config), self.skipped, config, unexplained)
