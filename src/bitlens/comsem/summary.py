"""The numbers that judged latents are summed up in."""

from __future__ import annotations

from typing import Annotated, TypedDict

from bitlens.results import Number


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
