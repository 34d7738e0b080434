"""ComSem: what do the tokens that a latent is on for have in common? (arXiv 2509.20997, section on common semantics)

An explainer names it from some of them, and a judge, who answers yes or no, checks the name on tokens of other documents.
The paper asks about tokens with the latent on only, so "any token" has its full score; here the judge sees tokens with
the latent off as well, and must tell them apart, and better than with explanations of other latents. What cannot be
tested so is neither interpretable nor not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from bitlens import terminal
from bitlens.bits.codes import Codes
from bitlens.bits.statistics import firing_rates
from bitlens.comsem.judges import Question, Verdict
from bitlens.comsem.sampling import Trial, canonical, explainers_part, trials
from bitlens.comsem.scoring import DEFAULT, Asked, Config, Score, judged, mean, unjudged
from bitlens.errors import BitlensError
from bitlens.features.examples import contexts
from bitlens.information.proportions import Rate
from bitlens.labels.scores import benjamini_hochberg, f1_scores
from bitlens.labels.sources import Labels
from bitlens.results import brief

if TYPE_CHECKING:
    from bitlens.comsem.calls import Calls
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
        """Better than chance and than other explanations, at the false discovery rate (Benjamini & Hochberg 1995)."""
        tested = [s.p_value for s in self.scores if not s.untested]
        rejected = iter(
            benjamini_hochberg(
                torch.tensor(tested, dtype=torch.float64), self.config.level
            ).tolist()
        )
        return [None if s.untested else next(rejected) for s in self.scores]

    @property
    def interpretable(self) -> list[bool | None]:
        """Significant, and the lower end of the balanced accuracy's interval is above the threshold."""
        pairs = zip(self.significant, self.scores, strict=True)
        return [known and s.balanced_accuracy.low > self.config.accuracy for known, s in pairs]

    @property
    def interpretable_hard(self) -> list[bool | None]:
        """Interpretable, and the lower end of the interval is above the threshold with hard negatives, too."""
        pairs = zip(self.interpretable, self.scores, strict=True)
        return [
            good
            and (None if s.untested_hard else s.balanced_accuracy_hard.low > self.config.accuracy)
            for good, s in pairs
        ]

    @property
    def interpretable_paper(self) -> list[bool]:
        """As the paper counts: its score above the threshold."""
        return [score.sensitivity.value > self.config.paper for score in self.scores]

    def summary(self) -> dict[str, float | None]:
        """Counts of latents, and means over those judged; None if there are none."""
        good = self.interpretable
        counts = {
            "judged": len(self.scores), "skipped": len(self.skipped), "unexplained": len(self.unexplained),
            "interpretable": good.count(True), "untested": good.count(None),
            "interpretable_hard": self.interpretable_hard.count(True),
            "interpretable_paper": sum(self.interpretable_paper), "unparsed": sum(s.unparsed for s in self.scores),
            "unfinished": sum(s.unfinished for s in self.scores),
        }  # fmt: skip
        names = (
            "balanced_accuracy",
            "balanced_accuracy_hard",
            "sensitivity",
            "specificity",
            "specificity_hard",
        )
        means = {name: mean([getattr(s, name).value for s in self.scores]) for name in names}
        return {**counts, **means, "shuffled": mean([s.shuffled for s in self.scores])}

    def records(self) -> list[dict[str, Any]]:
        """A flat record for each latent, for JSON lines or a table; of those that were not judged, too, with the reason."""
        flags = zip(
            self.scores, self.significant, self.interpretable, self.interpretable_hard, strict=True
        )
        records = [
            {**_flat(s), "significant": sig, "interpretable": good, "interpretable_hard": hard}
            for s, sig, good, hard in flags
        ]
        reasons = dict.fromkeys(self.skipped, "too few rows") | dict.fromkeys(
            self.unexplained, "no explanation"
        )
        unknown = dict.fromkeys(("significant", "interpretable", "interpretable_hard"))
        records += [
            {**_flat(unjudged(latent, reason)), **unknown} for latent, reason in reasons.items()
        ]
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
    """Explain and judge these latents on rows of usual norm; "on" is the rare state of each (`canonical`).

    calls: where every judgement is entered under the name `run`, with its text and the call that it is from.
    """
    from bitlens.comsem.calls import Judgement

    if len(codes) and int(codes.token.min()) < 0:
        raise BitlensError(
            f"The codes {codes.path} have no tokens to show to a judge: they come from imported states."
        )
    bits = canonical(codes.bits, codes.usual)
    drawn, skipped = _enough(trials(bits, codes, latents, config, codes.usual))
    text = contexts(
        codes, [r for t in drawn for r in t.examples + t.judged], tokenizer, config.window
    )
    explanations = explainer.explain([[text[row] for row in trial.examples] for trial in drawn])
    drawn, explanations, unexplained = _explained(drawn, explanations)

    def ask(asked: list[Asked]) -> list[Verdict]:
        verdicts = judge.answer([Question(a.explanation, text[a.row], a.latent) for a in asked])
        if calls is not None:
            evidence = zip(asked, verdicts, strict=True)
            calls.record(
                run,
                judge.name,
                (
                    Judgement(a.latent, a.explanation, text[a.row], a.row, a.kind, v)
                    for a, v in evidence
                ),
            )
        return verdicts

    rates = firing_rates(bits[codes.usual])
    return Results(judged(drawn, explanations, ask, rates, config), skipped, config, unexplained)


def planned(
    codes: Codes, latents: Sequence[int], tokenizer: Any, config: Config = DEFAULT
) -> tuple[list[list[str]], list[Question]]:
    """What `comsem` will show the explainer, and ask the judge with explanations of a usual length: for estimates."""
    drawn, _ = _enough(
        trials(canonical(codes.bits, codes.usual), codes, latents, config, codes.usual)
    )
    text = contexts(
        codes, [r for t in drawn for r in t.examples + t.judged], tokenizer, config.window
    )
    questions = [
        Question(f"{t.latent}-{i}".ljust(USUAL), text[row], t.latent)
        for t in drawn for i in range(config.shuffles + 1) for row in t.judged
    ]  # fmt: skip
    return [[text[row] for row in t.examples] for t in drawn], questions


@terminal.shown("judge")
def comsem_by_labels(
    codes: Codes, latents: Sequence[int], labels: Labels, config: Config = DEFAULT
) -> Results:
    """The same without a language model: an explanation is the class of highest F1 on the explainer's rows, and the
    judgement whether a row has it. Rows without a label have no part in it."""
    labels = labels.only(codes.usual)
    bits, labelled = canonical(codes.bits, codes.usual), labels.ids >= 0
    drawn, skipped = _enough(trials(bits, codes, latents, config, labelled))
    rows = explainers_part(codes.document)
    f1 = f1_scores(bits, labels, rows)
    if not f1.shape[1]:
        raise BitlensError(
            f"No class of '{labels.name}' is frequent enough to explain a latent; label more rows."
        )
    number = {name: i for i, name in enumerate(labels.names)}
    common = labels.ids[rows & labelled].bincount(minlength=len(labels.names))
    ranked = common.argsort(descending=True, stable=True)
    best = [f1[trial.latent].max(0) for trial in drawn]
    explanations = [labels.names[int(ranked[at])] if score > 0 else "" for score, at in best]
    drawn, explanations, unexplained = _explained(drawn, explanations)

    def ask(asked: list[Asked]) -> list[Verdict]:
        return [Verdict(int(labels.ids[a.row]) == number[a.explanation]) for a in asked]

    rates = firing_rates(bits[codes.usual])
    return Results(judged(drawn, explanations, ask, rates, config), skipped, config, unexplained)


def _explained(
    drawn: list[Trial], explanations: Sequence[str]
) -> tuple[list[Trial], list[str], list[int]]:
    """Trials and explanations without those that are empty, and the latents of these."""
    if len(explanations) != len(drawn):
        raise BitlensError(
            f"The explainer gave {len(explanations)} explanations for {len(drawn)} latents."
        )
    pairs = list(zip(drawn, explanations, strict=True))
    found = [(t, e) for t, e in pairs if e.strip()]
    return (
        [t for t, _ in found],
        [e for _, e in found],
        [t.latent for t, e in pairs if not e.strip()],
    )


def _enough(drawn: list[Trial]) -> tuple[list[Trial], list[int]]:
    """The trials with rows enough to score, and the latents of the others."""

    def enough(t: Trial) -> bool:
        return min(len(t.examples), len(t.positives), len(t.random)) >= MIN_ROWS

    return [t for t in drawn if enough(t)], [t.latent for t in drawn if not enough(t)]


def _flat(score: Score) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in asdict(score).items():
        flat[name] = value.value if isinstance(value, Rate) else value
        if isinstance(value, Rate):
            flat |= {f"{name}_low": value.low, f"{name}_high": value.high}
    return flat
