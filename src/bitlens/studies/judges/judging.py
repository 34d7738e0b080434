"""The judges of the study, opened, and what they say of planted meanings."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch

from bitlens.comsem.examples import ExampleExplainer
from bitlens.comsem.judges import Explainer, Judge, Question, Verdict
from bitlens.comsem.local_judge import LocalExplainer, LocalJudge
from bitlens.comsem.nearness import EmbeddingJudge, load_encoder
from bitlens.hidden import LanguageModel
from bitlens.information.intervals import wilson
from bitlens.labels.probe import roc_auc
from bitlens.results import flat
from bitlens.studies.cells import Row
from bitlens.studies.judges.config import Who
from bitlens.studies.judges.planting import Planted


@functools.cache  # once in a process
def opened(who: Who, device: str, batch: int) -> tuple[Explainer | ExampleExplainer, Judge]:
    """The judge, loaded, after the explainer whose explanations it reads; of `labels` there is
    nothing to load."""
    if who.kind == "embedding":
        return ExampleExplainer(), EmbeddingJudge(load_encoder(who.of, device), batch)
    model = LanguageModel.load(who.of, [], causal=True, device=device)
    explainer = LocalExplainer(model) if who.kind == "words" else ExampleExplainer()
    return explainer, LocalJudge(model, batch=batch)


def accuracy(who: Who, planted: Planted, own_words: bool, device: str, batch: int) -> Row:
    """How often a judge is right about a planted meaning.

    own_words: the judge's own explanation of the examples in place of the true phrase.
    """
    texts, explanation = planted.judged, planted.meaning.phrase
    if who.kind == "labels":  # by construction: the truth is what it reads
        said = [Verdict(kind == "positive", None) for _, kind in texts]
        return {"explanation": explanation, **_scores(said, texts)}
    explainer, judge = opened(who, device, batch)
    by_example = isinstance(explainer, ExampleExplainer)
    if by_example:
        (explanation,) = explainer.explain([planted.examples], [planted.counterexamples])
    elif own_words:
        (explanation,) = explainer.explain([planted.examples])
    verdicts = judge.answer([Question(explanation, text) for text, _ in texts])
    return {"explanation": "" if by_example else explanation, **_scores(verdicts, texts)}


def _scores(verdicts: Sequence[Verdict], texts: Sequence[tuple[str, str]]) -> Row:
    """Counts of right answers by kind of text, the AUROC of confidence, and accuracy.

    Accuracy is the mean of that on positives and that on negatives, as many of each.
    """
    row: dict[str, Any] = {}
    for kind in ("positive", "random", "hard"):
        said = [v.yes for v, (_, k) in zip(verdicts, texts, strict=True) if k == kind]
        row[f"{kind}_right"] = sum(yes == (kind == "positive") for yes in said)
        row[f"{kind}_asked"] = len(said)
    confidences = [v.confidence for v in verdicts]
    row["auroc"] = None
    if None not in confidences:
        scores = torch.tensor(confidences, dtype=torch.float64)
        row["auroc"] = roc_auc(scores, torch.tensor([k == "positive" for _, k in texts]))
    return {**row, **rates([row])}


def rates(rows: Sequence[Row]) -> Row:
    """Accuracy in all, on positives and on negatives, with Wilson's intervals, over all questions
    of some rows."""
    parts = {
        "accuracy": ("positive", "random", "hard"),
        "accuracy_positive": ("positive",),
        "accuracy_negative": ("random", "hard"),
        "accuracy_hard": ("hard",),
    }
    shares = {}
    for name, kinds in parts.items():
        right = sum(row[f"{kind}_right"] for row in rows for kind in kinds)
        asked = sum(row[f"{kind}_asked"] for row in rows for kind in kinds)
        shares[name] = wilson(right, asked)
    return flat(shares)
