"""How well single latents stand for known labels: F1 and mutual information, from popcounts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bitlens import terminal
from bitlens.bits.entropies import information_from_counts
from bitlens.bits.packed import PackedBits
from bitlens.bits.shards import AnyBits
from bitlens.bits.statistics import co_occurrence
from bitlens.bits.words import WORD, words_for
from bitlens.errors import BitlensError
from bitlens.information.intervals import jackknife_error, student_p, student_quantile
from bitlens.labels.counts import counts_by_group
from bitlens.labels.sources import MIN_ROWS, Labels
from bitlens.results import brief

GROUPS, MIN_GROUPS = 30, 5
MAX_CLASSES = 500
LEVEL = 0.05
GOOD = 0.5
CELLS = 1 << 20  # group x latent x class counts in memory at a time


class Interval(NamedTuple):
    """An estimate and its 95 % interval, float32 `[n_latents, classes]` each."""

    __repr__ = brief

    value: Tensor
    low: Tensor
    high: Tensor


class LabelScore(NamedTuple):
    """One latent against one class on held-out rows; mutual information in bits."""

    __repr__ = brief

    latent: int
    label: str
    f1: float
    f1_low: float
    f1_high: float
    precision: float
    recall: float
    mutual_information: float
    mi_low: float
    mi_high: float
    always: float
    """F1 of a latent that is always on"""

    @property
    def good(self) -> bool:
        """F1 above .5 and above that of a latent that is always on."""
        return self.f1 > max(GOOD, self.always)


@dataclass(frozen=True)
class LabelScores:
    """Every latent against every class, `[n_latents, classes]`, on held-out rows but `fit_f1`."""

    __repr__ = brief

    name: str
    """of the labelling"""
    classes: list[str]
    """those scored, the most frequent first"""
    rows: int
    """held-out rows that have a label"""
    fit_f1: Tensor
    """F1 on the fitting rows, by which latents and classes are paired"""
    share: Tensor
    """of the rows that are of each class, `[classes]`"""
    precision: Tensor
    recall: Tensor
    f1: Interval
    mutual_information: Interval
    p_value: Tensor
    """of the test that latent and class are independent"""

    @property
    def dependent(self) -> Tensor:
        """Pairs that are dependent at a false discovery rate of 5 % (Benjamini & Hochberg), bool"""
        return benjamini_hochberg(self.p_value)

    def by_latent(self) -> list[LabelScore]:
        """Every latent with its best class on the fitting rows; highest held-out F1 first."""
        best = self.fit_f1.max(1)
        met = best.values.nonzero()[:, 0].tolist()
        pairs = [self._pair(latent, int(best.indices[latent])) for latent in met]
        return sorted(pairs, key=lambda score: -score.f1)

    def by_class(self) -> list[LabelScore]:
        """Every class with its best latent on the fitting rows, in the order of `classes`."""
        best = self.fit_f1.argmax(0).tolist()
        return [self._pair(latent, label) for label, latent in enumerate(best)]

    records = by_latent  # rows of its DataFrame

    def summary(self) -> dict[str, Any]:
        """Counts of latents and classes with a good F1, and means over classes and pairs."""
        by_class = self.by_class()
        return {
            "labelling": self.name,
            "rows": self.rows,
            "classes": len(self.classes),
            "latents_f1": sum(score.good for score in self.by_latent()),
            "labels_covered": sum(score.good for score in by_class),
            "label_f1": sum(score.f1 for score in by_class) / len(by_class),
            "dependent_pairs": float(self.dependent.double().mean()),
        }

    def as_dict(self) -> dict[str, Any]:
        """The summary, and all scores by class and by latent."""
        return {
            **self.summary(),
            "by_class": [score._asdict() for score in self.by_class()],
            "by_latent": [score._asdict() for score in self.by_latent()],
        }

    def _pair(self, latent: int, label: int) -> LabelScore:
        numbers = (*self.f1, self.precision, self.recall, *self.mutual_information)
        values = [float(number[latent, label]) for number in numbers]
        share = float(self.share[label])
        return LabelScore(latent, self.classes[label], *values, always=2 * share / (1 + share))


@terminal.shown("labels")
def label_scores(
    bits: PackedBits,
    labels: Labels,
    documents: Tensor,
    test: Tensor,
    *,
    min_rows: int = MIN_ROWS,
    max_classes: int = MAX_CLASSES,
    groups: int = GROUPS,
    progress: bool = True,
) -> LabelScores:
    """Score the on-state of every latent as a detector of every class, on rows of bool `test`.

    Classes with fewer than `min_rows` fitting or held-out rows are left out, and all but the
    `max_classes` most frequent; their rows count as another class, rows without a label not at all.

    Intervals are those of the delete-a-group jackknife (Shao & Wu 1989) over `groups` groups of
    neighbouring documents (int64 `[rows]`). Independence is tested by the covariance over its
    cluster-robust standard error (Liang & Zeger 1986), taken to be no smaller than that of a latent
    and a class that are independent, but each as alike within documents as they are.
    """
    labels.require(bits, documents, test)
    fit, held_out = ((labels.ids >= 0) & part for part in (~test, test))
    classes = labels.frequent([fit, held_out], min_rows)[:max_classes]
    columns = _class_columns(labels.ids, classes)
    parts = [held_out.nonzero()[:, 0][rows] for rows in _groups(documents[held_out], groups)]
    sizes = documents[held_out].unique(return_counts=True)[1].double()
    alike = float(sizes.square().sum() / sizes.sum())
    step = max(1, CELLS // (len(parts) * columns.n_latents * WORD))  # words of latents in a block
    blocks = []
    for start in range(0, words_for(bits.n_latents), step):
        n_latents = min(bits.n_latents - start * WORD, step * WORD)
        block = PackedBits(bits.words[:, start : start + step], n_latents)
        blocks.append(_pair_scores(_Counts.of_groups(block, columns, parts), alike))
    scores = {name: torch.cat([block[name] for block in blocks], -2) for name in blocks[0]}
    return LabelScores(
        labels.name,
        [labels.names[c] for c in classes.tolist()],
        rows=int(held_out.sum()),
        fit_f1=f1_of_classes(bits, labels.ids, classes, fit).float(),
        share=labels.class_counts(held_out)[classes] / held_out.sum(),
        precision=scores["precision"],
        recall=scores["recall"],
        f1=Interval(*scores["f1"]),
        mutual_information=Interval(*scores["mutual_information"]),
        p_value=scores["p_value"],
    )


def f1_scores(bits: AnyBits, labels: Labels, rows: Tensor) -> Tensor:
    """F1 for every class with 20 of these rows (bool `[rows]`), the most frequent first, float64
    `[n_latents, classes]`."""
    classes = labels.frequent([rows], MIN_ROWS)[:MAX_CLASSES]
    return f1_of_classes(bits, labels.ids, classes, rows & (labels.ids >= 0))


def f1_of_classes(bits: AnyBits, ids: Tensor, classes: Tensor, rows: Tensor) -> Tensor:
    """F1 for these classes on these rows (bool `[rows]`), all of which have a class, float64
    `[n_latents, classes]`. ids: class of each row."""
    others = len(classes)
    column = _columns(ids, classes)
    column = torch.where(column < 0, others, column).masked_fill(~rows, -1)
    counts = counts_by_group(bits, column, others + 1).T.double()
    labelled = column[rows].bincount(minlength=others + 1)[:others].double()
    return 2 * counts[:, :others] / (counts.sum(1, keepdim=True) + labelled).clamp_min(1)


def benjamini_hochberg(p_value: Tensor, level: float = LEVEL) -> Tensor:
    """Which tests reject at this false discovery rate (Benjamini & Hochberg 1995), bool."""
    ordered = p_value.flatten().sort().values
    passed = ordered[ordered <= level * torch.arange(1, len(ordered) + 1) / len(ordered)]
    return p_value <= (passed[-1] if len(passed) else -1)


class _Counts(NamedTuple):
    """Counts of rows in every group, float64."""

    joint: Tensor
    """with latent and class, `[groups, n, classes]`"""
    on: Tensor
    """with the latent, `[groups, n, 1]`"""
    labelled: Tensor
    """of the class, `[groups, 1, classes]`"""
    rows: Tensor
    """all, `[groups, 1, 1]`"""

    @classmethod
    def of_groups(cls, bits: PackedBits, columns: PackedBits, parts: list[Tensor]) -> _Counts:
        """columns: as from `_class_columns`; parts: the rows of each group."""
        joint = torch.stack([co_occurrence(bits[rows], columns[rows]) for rows in parts]).double()
        labelled = torch.stack([columns[rows].column_counts() for rows in parts]).double()[:, None]
        return cls(joint[..., :-1], joint[..., -1:], labelled[..., :-1], labelled[..., -1:])

    def total(self) -> _Counts:
        """The counts of all groups together, as one group."""
        return _Counts(*(x.sum(0, keepdim=True) for x in self))

    def without_each(self) -> _Counts:
        """The counts of all groups but one, for every group."""
        return _Counts(*(x.sum(0, keepdim=True) - x for x in self))

    def f1(self) -> Tensor:
        return 2 * self.joint / (self.on + self.labelled).clamp_min(1)

    def information(self) -> Tensor:
        return information_from_counts(self.joint, self.on, self.labelled, self.rows)


def _pair_scores(counts: _Counts, alike: float) -> dict[str, Tensor]:
    """Fields of `LabelScores` for some latents and all classes, float32 `[n, classes]`, those with
    an interval `[3, n, classes]`. alike: rows that the document of a row has, on average."""
    total = counts.total()
    numbers = {
        "precision": (total.joint / total.on.clamp_min(1))[0],
        "recall": (total.joint / total.labelled.clamp_min(1))[0],
        "f1": _jackknife(counts, _Counts.f1).clamp(0, 1),
        "mutual_information": _jackknife(counts, _Counts.information).clamp_min(0),
        "p_value": _independence(counts, alike),
    }
    return {name: number.float() for name, number in numbers.items()}


def _columns(ids: Tensor, classes: Tensor) -> Tensor:
    """The place of every row's class among these, -1 where it has another or none."""
    column_of = torch.full((int(ids.max()) + 2,), -1)  # the last: rows without a label
    column_of[classes] = torch.arange(len(classes))
    return column_of[ids]


def _class_columns(ids: Tensor, classes: Tensor) -> PackedBits:
    """A column for each class, on in its rows, and one that is always on."""
    column = _columns(ids, classes)
    words = torch.zeros(len(ids), words_for(len(classes) + 1), dtype=torch.int64)
    rows = (column >= 0).nonzero()[:, 0]
    words[rows, column[rows] // WORD] = 1 << (column[rows] % WORD)
    words[:, len(classes) // WORD] |= 1 << torch.tensor(len(classes) % WORD)
    return PackedBits(words, len(classes) + 1)


def _groups(documents: Tensor, groups: int) -> list[Tensor]:
    """Rows of neighbouring documents, about as many in each group."""
    _, own, sizes = documents.unique(return_inverse=True, return_counts=True)
    group = (sizes.cumsum(0) - sizes // 2 - 1).clamp_min(0) * groups // len(documents)
    rows = [(group[own] == g).nonzero()[:, 0] for g in group.unique()]
    if len(rows) < MIN_GROUPS:
        raise BitlensError(
            f"The held-out rows make only {len(rows)} groups of documents, too few for intervals; "
            f"hold out at least {MIN_GROUPS} documents of like length."
        )
    return rows


def _jackknife(counts: _Counts, statistic: Callable[[_Counts], Tensor]) -> Tensor:
    """A statistic of all groups, and the ends of its interval, `[3, n, classes]`."""
    value, without = statistic(counts.total())[0], statistic(counts.without_each())
    half = student_quantile(len(without) - 1) * jackknife_error(without)
    return torch.stack([value, value - half, value + half])


def _independence(counts: _Counts, alike: float) -> Tensor:
    """Two-sided p-value of no covariance between latent and class, `[n, classes]`."""
    n, total = len(counts.rows), counts.total()
    p, q, rows = total.on / total.rows, total.labelled / total.rows, total.rows[0]
    covariance = counts.joint - p * counts.labelled - q * counts.on + p * q * counts.rows
    clustered = n / (n - 1) * (covariance - covariance.mean(0)).square().sum(0)
    # A pair that never meets shows no variance where its absence is no surprise: hence the floor,
    # the variance of a latent and a class that are independent of each other, but each as alike
    # within documents as it is.
    of_latent, of_class = rows * (p * (1 - p))[0], rows * (q * (1 - q))[0]

    def excess(count: Tensor, rate: Tensor, variance: Tensor) -> Tensor:
        """How much more a count varies between groups than that of independent rows."""
        between = n / (n - 1) * (count - rate * counts.rows).square().sum(0)
        return (between / variance.clamp_min(1e-300) - 1).clamp_min(0)

    of_both = excess(counts.on, p, of_latent) * excess(counts.labelled, q, of_class).clamp_max(
        alike - 1
    )
    floor = of_latent * of_class / rows * (1 + of_both / max(alike - 1, 1.0))
    variance = clustered.maximum(floor)
    return student_p(covariance.sum(0) / variance.clamp_min(1e-300).sqrt(), n - 1)
