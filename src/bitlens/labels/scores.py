"""How well single latents stand for known labels: precision, recall, F1 and mutual information, from popcounts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bitlens import terminal
from bitlens.bits.packed import PackedBits
from bitlens.bits.statistics import co_occurrence, counted_information
from bitlens.bits.words import WORD, words_for
from bitlens.errors import BitlensError
from bitlens.information.intervals import jackknife_error, student_p, student_quantile
from bitlens.labels.sources import MIN_ROWS, Labels
from bitlens.results import brief

GROUPS, MIN_GROUPS = 30, 5
MAX_CLASSES = 500
LEVEL = 0.05
GOOD = 0.5
CELLS = 1 << 20  # group x latent x class counts at a time: the scores' memory beside their results


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
    """Every latent against every class of a labelling, `[n_latents, classes]` each, on held-out rows but for `fit_f1`."""

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
    dependent: Tensor
    """bool: pairs that Benjamini and Hochberg's procedure calls dependent, at a false discovery rate of 5 %"""

    def by_latent(self) -> list[LabelScore]:
        """Every latent that meets a class in the fitting rows, with its best class there; highest held-out F1 first."""
        best = self.fit_f1.max(1)
        met = best.values.nonzero()[:, 0].tolist()
        return sorted(
            (self._pair(i, int(best.indices[i])) for i in met), key=lambda score: -score.f1
        )

    def by_class(self) -> list[LabelScore]:
        """Every class with its best latent on the fitting rows, in the order of `classes`."""
        return [
            self._pair(int(latent), label) for label, latent in enumerate(self.fit_f1.argmax(0))
        ]

    records = by_latent  # rows of its DataFrame

    def summary(self) -> dict[str, Any]:
        """latents_f1: latents with a good F1 for their class; labels_covered: classes with a good F1 of their latent;
        label_f1: mean of all classes' F1; dependent_pairs: share of pairs called dependent."""
        covering = self.by_class()
        return {
            "labelling": self.name, "rows": self.rows, "classes": len(self.classes),
            "latents_f1": sum(score.good for score in self.by_latent()),
            "labels_covered": sum(score.good for score in covering),
            "label_f1": sum(score.f1 for score in covering) / len(covering),
            "dependent_pairs": float(self.dependent.double().mean()),
        }  # fmt: skip

    def _pair(self, latent: int, label: int) -> LabelScore:
        numbers = (*self.f1, self.precision, self.recall, *self.mutual_information)
        share = float(self.share[label])
        always = 2 * share / (1 + share)
        return LabelScore._make(
            [latent, self.classes[label], *(float(x[latent, label]) for x in numbers), always]
        )


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
    """Score the on-state of every latent as a detector of every class, on the rows of bool `test [rows]`.

    documents: int64 `[rows]`. Classes with fewer than `min_rows` fitting or held-out rows are left out, and all but the
    `max_classes` most frequent; their rows count as rows of another class, rows without a label do not count at all.

    Rows of one document are not independent, so held-out documents are joined to `groups` groups of neighbours of about
    equal size: intervals are those of the delete-a-group jackknife (Shao & Wu 1989), and independence is tested by the
    covariance over its cluster-robust standard error (Liang & Zeger 1986), which is taken to be no smaller than that of
    a latent and a class that are each as alike within documents as they are, and independent of each other. Counts of
    groups are held for one block of latents at a time.
    """
    if not len(bits) == len(labels.ids) == len(documents) == len(test):
        raise BitlensError(
            f"There are {len(bits):,} rows of bits and {len(labels.ids):,} labels; each row needs one."
        )
    fit, held = ((labels.ids >= 0) & part for part in (~test, test))
    classes = _classes(labels, fit, held, min_rows, max_classes)
    columns = _indicators(labels.ids, classes)
    fitted = _f1(_Counts.of_groups(bits, columns, [fit.nonzero()[:, 0]]))[0]
    parts = [held.nonzero()[:, 0][rows] for rows in _groups(documents[held], groups)]
    sizes = documents[held].unique(return_counts=True)[1].double()
    alike = float(sizes.square().sum() / sizes.sum())
    step = max(1, CELLS // (len(parts) * columns.n_latents * WORD))  # words of latents a block
    blocks = []
    for start in range(0, words_for(bits.n_latents), step):
        block = PackedBits(
            bits.words[:, start : start + step], min(bits.n_latents - start * WORD, step * WORD)
        )
        blocks.append(_scores(_Counts.of_groups(block, columns, parts), alike))
    precision, recall, f1, low, high, mi, mi_low, mi_high, p_value = (
        torch.cat(p) for p in zip(*blocks, strict=True)
    )
    share = labels.ids[held].bincount(minlength=len(labels.names))[classes] / held.sum()
    return LabelScores(
        labels.name, [labels.names[c] for c in classes.tolist()], int(held.sum()), fitted.float(), share, precision,
        recall, Interval(f1, low, high), Interval(mi, mi_low, mi_high), p_value, benjamini_hochberg(p_value),
    )  # fmt: skip


def f1_scores(bits: PackedBits, labels: Labels, rows: Tensor, min_rows: int = MIN_ROWS) -> Tensor:
    """F1 of every latent for every class with `min_rows` of these rows (bool `[rows]`), `[n_latents, classes]`."""
    labelled = (labels.ids >= 0) & rows
    columns = _indicators(labels.ids, _classes(labels, labelled, labelled, min_rows, MAX_CLASSES))
    return _f1(_Counts.of_groups(bits, columns, [labelled.nonzero()[:, 0]]))[0]


def best_labels(scores: Sequence[LabelScores]) -> list[LabelScore]:
    """Every latent that meets a class of some labelling, with the one it meets best on the fitting rows, held out."""
    found: dict[int, tuple[float, LabelScore]] = {}
    for of in scores:
        met = of.fit_f1.max(1).values
        for score in of.by_latent():
            if score.latent not in found or met[score.latent] > found[score.latent][0]:
                found[score.latent] = float(met[score.latent]), score
    return [score for _, score in found.values()]


def benjamini_hochberg(p_value: Tensor, level: float = LEVEL) -> Tensor:
    """Which of many tests reject at this false discovery rate (Benjamini & Hochberg 1995) -> bool, the same shape."""
    ordered = p_value.flatten().sort().values
    passed = (ordered <= level * torch.arange(1, len(ordered) + 1) / len(ordered)).nonzero()
    return (
        p_value <= ordered[passed[-1]]
        if len(passed)
        else torch.zeros_like(p_value, dtype=torch.bool)
    )


class _Counts(NamedTuple):
    """Of every group of rows: float64 joint `[groups, n, classes]`, latents' `[groups, n, 1]`, classes' `[groups, 1,
    classes]`, and rows `[groups, 1, 1]`."""

    joint: Tensor
    on: Tensor
    labelled: Tensor
    rows: Tensor

    @classmethod
    def of_groups(cls, bits: PackedBits, columns: PackedBits, parts: list[Tensor]) -> _Counts:
        """columns: as from `_indicators`; parts: the rows of each group."""
        joint = torch.stack([co_occurrence(bits[rows], columns[rows]) for rows in parts]).double()
        labelled = torch.stack([columns[rows].column_counts() for rows in parts]).double()[:, None]
        return cls(joint[..., :-1], joint[..., -1:], labelled[..., :-1], labelled[..., -1:])

    def total(self) -> _Counts:
        return _Counts(*(x.sum(0, keepdim=True) for x in self))

    def without_each(self) -> _Counts:
        """The counts of all groups but one, for every group."""
        return _Counts(*(x.sum(0, keepdim=True) - x for x in self))


def _classes(labels: Labels, fit: Tensor, held: Tensor, min_rows: int, most: int) -> Tensor:
    """Classes with enough rows in both parts, the most frequent of the fitting rows first."""
    fit_rows, held_rows = (
        labels.ids[part].bincount(minlength=len(labels.names)) for part in (fit, held)
    )
    order = fit_rows.argsort(descending=True, stable=True)
    classes = order[(fit_rows[order] >= min_rows) & (held_rows[order] >= min_rows)][:most]
    if not len(classes):
        raise BitlensError(
            f"No class of '{labels.name}' has {min_rows} rows among the fitting and among the held-out documents; "
            "label more text, or lower min_rows."
        )
    return classes


def _indicators(ids: Tensor, classes: Tensor) -> PackedBits:
    """A column for each class, on in its rows, and one that is always on."""
    column = torch.full((int(ids.max()) + 2,), -1)  # the last: rows without a label
    column[classes] = torch.arange(len(classes))
    words = torch.zeros(len(ids), words_for(len(classes) + 1), dtype=torch.int64)
    rows, here = torch.arange(len(ids)), column[ids]
    rows, here = rows[here >= 0], here[here >= 0]
    words[rows, here // WORD] = 1 << (here % WORD)
    words[:, len(classes) // WORD] |= 1 << torch.tensor(len(classes) % WORD)
    return PackedBits(words, len(classes) + 1)


def _groups(documents: Tensor, groups: int) -> list[Tensor]:
    """Rows of neighbouring documents, about as many in each group."""
    _, own, sizes = documents.unique(return_inverse=True, return_counts=True)
    group = (sizes.cumsum(0) - sizes // 2 - 1).clamp_min(0) * groups // len(documents)
    found = [(group[own] == g).nonzero()[:, 0] for g in group.unique()]
    if len(found) < MIN_GROUPS:
        raise BitlensError(
            f"The held-out rows make only {len(found)} groups of documents, too few for intervals; hold out at least "
            f"{MIN_GROUPS} documents of like length."
        )
    return found


def _scores(counts: _Counts, alike: float) -> tuple[Tensor, ...]:
    """precision, recall, F1, low, high, mutual information, low, high, p-value: float32 `[n, classes]`"""
    joint, on, labelled, _ = counts.total()
    precision, recall = joint / on.clamp_min(1), joint / labelled.clamp_min(1)
    f1 = _jackknife(_f1(counts.total()), _f1(counts.without_each()))
    information = _jackknife(_information(counts.total()), _information(counts.without_each()))
    values = (
        precision[0],
        recall[0],
        *(x.clamp(0, 1) for x in f1),
        *(x.clamp_min(0) for x in information),
    )
    return tuple(x.float() for x in (*values, _independence(counts, alike)))


def _f1(c: _Counts) -> Tensor:
    return 2 * c.joint / (c.on + c.labelled).clamp_min(1)


def _information(c: _Counts) -> Tensor:
    return counted_information(c.joint, c.on, c.labelled, c.rows)


def _jackknife(value: Tensor, without: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """value `[1, ...]` and its values without each group `[groups, ...]` -> value, low, high `[...]`"""
    half = student_quantile(len(without) - 1) * jackknife_error(without)
    return value[0], value[0] - half, value[0] + half


def _independence(counts: _Counts, alike: float) -> Tensor:
    """Two-sided p-value of no covariance between latent and class, `[n, classes]`; alike: rows of a row's document."""
    n, total = len(counts.rows), counts.total()
    p, q = total.on / total.rows, total.labelled / total.rows
    each = counts.joint - p * counts.labelled - q * counts.on + p * q * counts.rows
    clustered = n / (n - 1) * (each - each.mean(0)).square().sum(0)
    # A pair that never meets shows no variance where its absence is no surprise: hence the floor, the variance of a
    # latent and a class that are independent of each other, but each as alike within documents as it is.
    rows = total.rows[0]
    of_latent, of_class = rows * (p * (1 - p))[0], rows * (q * (1 - q))[0]
    excess = [
        (
            n / (n - 1) * (x - rate * counts.rows).square().sum(0) / variance.clamp_min(1e-300) - 1
        ).clamp_min(0)
        for x, rate, variance in ((counts.on, p, of_latent), (counts.labelled, q, of_class))
    ]
    floor = (
        of_latent
        * of_class
        / rows
        * (1 + excess[0] * excess[1].clamp_max(alike - 1) / max(alike - 1, 1.0))
    )
    variance = clustered.maximum(floor)
    return student_p(each.sum(0) / variance.clamp_min(1e-300).sqrt(), n - 1)
