"""Which latents differ between two sets of documents: chosen on half of them, measured on the rest.

Documents are the independent units: what is compared is each document's share of tokens with the
latent on, by ranks among documents of like length (van Elteren 1960), since in a long document a
share is less often zero. "On" is a latent's rare state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bitlens import terminal
from bitlens.bits.packed import PackedBits
from bitlens.errors import BitlensError
from bitlens.information.intervals import difference_of_shares
from bitlens.labels.counts import counts_by_group
from bitlens.results import brief
from bitlens.seeding import generator, mixed

LEAST = 20  # documents of each group: ten to choose by and ten to measure on
MOST = 2000  # documents of each group; of more, so many are drawn
LEVEL = 0.05  # false discovery rate
STRATA, IN_STRATUM = 8, 10  # of like length, at most; documents in one, about, at least
PERMUTATIONS = 9999
SYMMETRIC = 1e-3  # skewness below which a distribution counts as normal
AT_ONCE = 512  # latents that are ranked at a time


class Differing(NamedTuple):
    """A latent, chosen on half of the documents, measured on the others."""

    __repr__ = brief

    latent: int
    positive: float
    """mean share of a positive document's tokens with the latent on"""
    negative: float
    difference: float
    low: float
    """of the difference's 95 % interval over documents, see `difference_of_shares`"""
    high: float
    auc: float
    """chance that a positive document has a larger share than a negative one of like length"""
    p_value: float
    """that shares of documents of like length are alike: two-sided, exact, by 9,999 permutations"""
    q_value: float
    """false discovery rate if this and all with a smaller p-value are called different (Benjamini &
    Hochberg 1995), among the chosen ones"""

    @property
    def confirmed(self) -> bool:
        """Different on documents that it was not chosen on, at a false discovery rate of 5 %."""
        return self.q_value <= LEVEL


@dataclass(frozen=True)
class Group:
    """Documents of one kind: rows with each latent on, and rows, of every document."""

    __repr__ = brief

    documents: Tensor
    """their numbers, `[documents]`"""
    on: np.ndarray
    """int64 `[documents, n_latents]`"""
    rows: np.ndarray
    """int64 `[documents]`"""

    @classmethod
    def of(cls, bits: PackedBits, document: Tensor, among: Tensor, seed: int = 0) -> Group:
        """bits: with the rare state as 1; document: of each row; among: bool `[rows]`, those that
        count. Of more than 2,000 documents so many are drawn."""
        rows = among.nonzero()[:, 0]
        numbers, own, sizes = document[rows].unique(return_inverse=True, return_counts=True)
        if len(numbers) > MOST:
            drawn = _order(numbers, seed)[:MOST].sort().values
            place = torch.full((len(numbers),), -1)
            place[drawn] = torch.arange(MOST)
            own, numbers, sizes = place[own], numbers[drawn], sizes[drawn]
            rows, own = rows[own >= 0], own[own >= 0]
        on = counts_by_group(bits[rows], own, len(numbers))
        return cls(numbers, on.numpy(), sizes.numpy())

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, chosen: Tensor) -> Group:
        return Group(self.documents[chosen], self.on[chosen.numpy()], self.rows[chosen.numpy()])

    @property
    def shares(self) -> np.ndarray:
        """Of each document's rows that are on, float64 `[documents, n_latents]`"""
        return self.on / self.rows[:, None]

    def halves(self, seed: int = 0) -> tuple[Group, Group]:
        """Two halves, drawn at random by the documents' numbers, in random order."""
        order = _order(self.documents, seed)
        half = len(order) // 2
        return self[order[:half]], self[order[half:]]


@dataclass(frozen=True)
class Contrast:
    """Latents that differ between two groups of documents."""

    __repr__ = brief

    latents: list[Differing]
    """chosen on half of the documents, the largest effect on the others first"""
    tested: int
    """latents that are on in any document"""
    differing: int
    """of these, those that differ at a false discovery rate of 5 %, on all documents"""
    chosen_on: tuple[int, int]
    """documents, positive and negative"""
    measured_on: tuple[int, int]

    def records(self) -> list[Differing]:
        """Rows of its DataFrame."""
        return self.latents


@terminal.shown("contrast")
def contrast(
    positive: Group, negative: Group, top: int = 20, seed: int = 0, *, progress: bool = True
) -> Contrast:
    """The `top` latents of smallest p-value on half of each group's documents, with the numbers of
    the other half, so that these are not inflated by the choice.

    `differing` needs no choice: it counts among all latents, on all documents.
    """
    if top < 1:
        raise BitlensError(f"`top` must be at least 1, not {top}.")
    for name, group in (("positive", positive), ("negative", negative)):
        if len(group) < LEAST:
            raise BitlensError(
                f"There are {len(group)} {name} documents, too few to tell chance from difference:"
                f" {LEAST} are needed, and some hundred are better."
            )
    # A document of both, as with labels of single tokens, would not be independent of itself.
    if len(np.intersect1d(positive.documents, negative.documents)):
        raise BitlensError("A document is in both groups; leave it out of one of them.")
    choose, measure = zip(positive.halves(seed), negative.halves(seed), strict=True)
    p_choose, p_all = Ranks.of(*choose).p_values(), Ranks.of(positive, negative).p_values()
    tested = np.logical_or(positive.on.any(0), negative.on.any(0))
    order = np.argsort(p_choose, kind="stable")
    chosen = order[tested[order] & (p_choose[order] < 1)][:top]
    ranks = Ranks.of(*measure, chosen)
    p = ranks.exact(seed)
    sizes = [torch.from_numpy(group.rows) for group in measure]
    a, b = (torch.from_numpy(group.shares[:, chosen].T) for group in measure)
    columns = (chosen.tolist(), a, b, ranks.auc(), p, q_values(p))
    latents = [
        _differing(latent, x, y, sizes, *map(float, tested_as))
        for latent, x, y, *tested_as in zip(*columns, strict=True)
    ]
    latents.sort(key=lambda one: -abs(one.auc - 0.5))
    return Contrast(
        latents,
        int(tested.sum()),
        int((q_values(p_all[tested]) <= LEVEL).sum()),
        (len(choose[0]), len(choose[1])),
        (len(measure[0]), len(measure[1])),
    )


def _differing(
    latent: int, a: Tensor, b: Tensor, sizes: list[Tensor], auc: float, p: float, q: float
) -> Differing:
    """a, b: shares of the documents, positive and negative."""
    apart = difference_of_shares(a, b, sizes)
    numbers = apart.value, apart.low, apart.high, auc, p, q
    return Differing(latent, float(a.mean()), float(b.mean()), *numbers)


def apart(document: Tensor, positive: Tensor, negative: Tensor, seed: int = 0) -> list[Tensor]:
    """The rows of both groups, bool `[rows]` each, with every document in one of them only: of
    those with rows of both, half keep the positive ones, and half the negative ones."""
    both = np.intersect1d(document[positive], document[negative])
    order = _order(torch.from_numpy(both), seed)
    in_positive = torch.from_numpy(both)[order[: len(both) // 2]]
    in_negative = torch.from_numpy(both)[order[len(both) // 2 :]]
    return [
        positive & ~torch.isin(document, in_negative),
        negative & ~torch.isin(document, in_positive),
    ]


class Ranks(NamedTuple):
    """Van Elteren's test: documents ranked by their share, each among those of like length."""

    scores: np.ndarray
    """weighted distance of each document's rank to its stratum's mean, `[documents, latents]`"""
    stratum: np.ndarray
    """`[documents]`"""
    positive: int
    """the first documents are positive"""

    @classmethod
    def of(cls, positive: Group, negative: Group, latents: np.ndarray | None = None) -> Ranks:
        """BitlensError where no two documents of both groups are of like length."""
        from scipy.stats import rankdata

        stratum = _strata(np.concatenate([positive.rows, negative.rows]))
        ranks = cls(np.empty((0, 0)), stratum, len(positive))
        if not ranks._pairs():
            raise BitlensError(
                "No documents of the two groups are of like length, so that length alone would "
                "tell them apart; cut the texts to like lengths."
            )
        some = slice(None) if latents is None else latents
        scores = np.concatenate([group.shares[:, some] for group in (positive, negative)])
        for each in np.unique(stratum):
            rows = stratum == each
            for start in range(0, scores.shape[1], AT_ONCE):
                columns = slice(start, start + AT_ONCE)
                ranked = rankdata(scores[rows, columns], axis=0)
                centred = ranked - (len(ranked) + 1) / 2
                scores[rows, columns] = centred / (len(ranked) + 1)
        return ranks._replace(scores=scores)

    def statistic(self) -> np.ndarray:
        """0 where shares are alike, `[latents]`"""
        return self.scores[: self.positive].sum(0)

    def _pairs(self) -> float:
        return sum(n * m / (n + m + 1) for n, m, _ in self._sizes())

    def _sizes(self) -> list[tuple[int, int, np.ndarray]]:
        """Of each stratum: positive and negative documents, and which rows it is."""
        every = (self.stratum == each for each in np.unique(self.stratum))
        own = ((int(rows[: self.positive].sum()), rows) for rows in every)
        return [(n, int(rows.sum()) - n, rows) for n, rows in own]

    def auc(self) -> np.ndarray:
        """Chance that a positive document has the larger share than a negative one, ties half."""
        return 0.5 + self.statistic() / self._pairs()

    def p_values(self) -> np.ndarray:
        """Two-sided, by a gamma distribution with the variance and skewness of all permutations. It
        is normal for groups of one size; for unequal ones and a latent that is on in few documents
        the normal distribution gives p-values that are far too small."""
        variance, third = np.zeros((2, self.scores.shape[1]))
        for n, m, rows in self._sizes():
            if n and m:
                total = n + m
                square, cube = (np.power(self.scores[rows], k).sum(0) for k in (2, 3))
                variance += n * m / (total * (total - 1)) * square
                third += n * m * (m - n) / (total * (total - 1) * max(total - 2, 1)) * cube
        deviation = np.sqrt(np.where(variance > 0, variance, 1))
        z, skew = np.abs(self.statistic()) / deviation, third / deviation**3
        p = _upper_tail(z, skew) + _upper_tail(z, -skew)
        return np.where(variance > 0, np.minimum(p, 1), 1)

    def exact(self, seed: int = 0) -> np.ndarray:
        """Two-sided, by permutations of the groups among documents of like length; never below the
        reciprocal of their number (Phipson & Smyth 2010)."""
        random = np.random.default_rng(seed)
        drawn = np.zeros((PERMUTATIONS, len(self.scores)))
        for n, _, rows in self._sizes():
            keys = random.random((PERMUTATIONS, int(rows.sum())))
            drawn[:, rows] = keys.argsort(1).argsort(1) < n
        larger = np.abs(drawn @ self.scores) >= np.abs(self.statistic()) - 1e-9
        return (larger.sum(0) + 1) / (PERMUTATIONS + 1)


def _upper_tail(z: np.ndarray, skew: np.ndarray) -> np.ndarray:
    """Chance of more than z >= 0, of mean 0, variance 1 and this skewness (Pearson's type III)."""
    from scipy.special import gammainc, gammaincc, ndtr

    skewed = np.abs(skew) > SYMMETRIC
    shape = 4 / np.square(np.where(skewed, skew, 1))
    high = gammaincc(shape, shape + np.sqrt(shape) * z)
    low = gammainc(shape, np.maximum(shape - np.sqrt(shape) * z, 0))
    return np.where(skewed, np.where(skew > 0, high, low), ndtr(-z))


def _strata(rows: np.ndarray) -> np.ndarray:
    """Documents of like length: about equally many, and all of one length together."""
    n = min(STRATA, max(1, len(rows) // IN_STRATUM))
    edges = np.unique(np.quantile(rows, np.arange(1, n) / n, method="higher"))
    return np.searchsorted(edges, rows, side="right")


def q_values(p: np.ndarray) -> np.ndarray:
    """The smallest false discovery rate at which each test rejects (Benjamini & Hochberg 1995)."""
    order = np.argsort(p, kind="stable")[::-1]
    ranked = p[order] * len(p) / np.arange(len(p), 0, -1)
    q = np.empty(len(p))
    q[order] = np.minimum.accumulate(np.minimum(ranked, 1))
    return q


def _order(documents: Tensor, seed: int) -> Tensor:
    """A random order, the same for the same numbers and seed."""
    salt = torch.randint(2**62, (1,), generator=generator(seed, "contrast")).numpy()
    keys = mixed(documents.numpy().astype(np.uint64) + salt.astype(np.uint64))
    return torch.from_numpy(np.argsort(keys, kind="stable"))
