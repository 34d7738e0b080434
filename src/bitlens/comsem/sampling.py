"""Which rows show what a latent means: on-rows for an explainer and for a judge, and off-rows to tell them from.

Everything is read from packed codes. A document is either the explainer's or the judge's, so a judge never sees one that
the explanation was made from.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numba
import numpy as np
import torch
from torch import Tensor

from bitlens.bits.codes import Columns
from bitlens.bits.kernel import kernel
from bitlens.bits.packed import PackedBits
from bitlens.bits.statistics import firing_rates, nearest
from bitlens.bits.words import torch_threads, trailing_zeros
from bitlens.errors import BitlensError
from bitlens.hidden.source import held_out
from bitlens.results import brief
from bitlens.seeding import generator, mixed

# pyright: reportCallIssue=false, reportArgumentType=false

SALT = (
    1 << 40
)  # other than that of training's held-out documents, so that the two splits are independent
BLOCK = 1 << 16  # rows at a time
GROUP = 8  # words of a row, a cache line, that one thread looks at
POOL = 1 << 15  # rows of the judge that negatives are sought among
FEW = 256  # rows of one token that are looked at for some with the latent off
OFTEN_OFF = 0.1  # share of them: below, the token decides the latent and off is an exception, no other meaning
NEAREST = 8  # neighbours of a positive that are looked at for one of a new document


def canonical(bits: PackedBits, among: Tensor | None = None) -> PackedBits:
    """The code with the rare state of every latent as 1: those with a rate above 1/2 are flipped, in a copy.

    among: bool `[rows]`, the rows that the rates are of, by default all.
    """
    common = firing_rates(bits if among is None else bits[among]) > 0.5
    return (
        PackedBits(bits.words ^ PackedBits.pack(common[None]).words, bits.n_latents)
        if common.any()
        else bits
    )


def explainers_part(document: Tensor, share: float = 0.5) -> Tensor:
    """Which rows are of documents that only the explainer sees: a fixed pseudo-random choice by id -> bool `[rows]`"""
    return torch.from_numpy(held_out(document.numpy() + SALT, share))


# --- on-rows ----------------------------------------------------------------------------------------------------------

_mixed = kernel(mixed)


@kernel
def _insert(key, row, document, keys, rows, documents):
    """Into a list sorted by key: over the entry of the same document if there is one, or else over the last."""
    at = len(keys) - 1
    for i in range(len(keys)):
        if documents[i] == document and rows[i] >= 0:
            at = i
            break
    if key >= keys[at]:
        return
    while at > 0 and keys[at - 1] > key:
        keys[at], rows[at], documents[at] = keys[at - 1], rows[at - 1], documents[at - 1]
        at -= 1
    keys[at], rows[at], documents[at] = key, row, document


@kernel(parallel=True)
def _offer(words, numbers, chosen, document, salts, keys, rows, documents):
    for group in numba.prange((words.shape[1] + GROUP - 1) // GROUP):
        for i in range(len(words)):
            if not chosen[i]:
                continue
            for w in range(group * GROUP, min((group + 1) * GROUP, words.shape[1])):
                word = words[i, w]
                while word != 0:
                    latent = w * 64 + np.int64(trailing_zeros(word))
                    word &= word - np.uint64(1)
                    key = _mixed(np.uint64(numbers[i]) + salts[latent])
                    if key < keys[latent, -1]:
                        _insert(
                            key,
                            numbers[i],
                            document[i],
                            keys[latent],
                            rows[latent],
                            documents[latent],
                        )


class Reservoir:
    """For every latent, rows drawn at random from those in which it is on, each from another document.

    Every pair of latent and row has a pseudo-random key, and the n documents with the smallest keys stay (bottom-k
    sampling, Cohen & Kaplan 2007): as if on-rows were drawn one by one, and those of documents seen before put back. So
    the sample depends neither on the order of the rows nor on the blocks in which they come, and its memory is that of
    `n_latents x n` rows. n: rows of a latent.
    """

    def __init__(self, n_latents: int, n: int, seed: int = 0) -> None:
        if n < 1:
            raise BitlensError(f"A sample has at least one row of each latent, not {n}.")
        start = (
            torch.randint(2**62, (1,), generator=generator(seed, "reservoir"))
            .numpy()
            .astype(np.uint64)
        )
        self._salts = mixed(mixed(np.arange(n_latents, dtype=np.uint64)) ^ start)
        self._keys = np.full((n_latents, n), np.iinfo(np.uint64).max, np.uint64)
        self._rows, self._documents = np.full((2, n_latents, n), -1, np.int64)

    def add(
        self, bits: PackedBits, numbers: Tensor, document: Tensor, chosen: Tensor | None = None
    ) -> None:
        """Offer some rows. numbers: of the rows in the corpus, int64 `[rows]`; chosen: bool `[rows]`, others are left out."""
        chosen = torch.ones(len(bits), dtype=torch.bool) if chosen is None else chosen
        with torch_threads():
            _offer(
                bits.numpy(), numbers.numpy(), chosen.numpy(), document.numpy(),
                self._salts, self._keys, self._rows, self._documents,
            )  # fmt: skip

    def merge(self, other: Reservoir) -> None:
        """Add what another one of the same seed has drawn from other rows."""
        for latent, (keys, rows, documents) in enumerate(
            zip(other._keys, other._rows, other._documents, strict=True)
        ):
            for key, row, document in zip(keys, rows, documents, strict=True):
                if row >= 0 and key < self._keys[latent, -1]:
                    _insert(
                        key,
                        row,
                        document,
                        self._keys[latent],
                        self._rows[latent],
                        self._documents[latent],
                    )

    @property
    def rows(self) -> Tensor:
        """-> int64 `[n_latents, n]`, in random order; -1 where there were fewer documents"""
        return torch.from_numpy(self._rows)


def on_rows(
    bits: PackedBits, document: Tensor, n: int, chosen: Tensor | None = None, seed: int = 0
) -> Tensor:
    """Up to n random on-rows of every latent, each from another document -> int64 `[n_latents, n]`, -1 where there are fewer.

    chosen: bool `[rows]`, the rows to draw from.
    """
    reservoir = Reservoir(bits.n_latents, n, seed)
    for start in range(0, len(bits), BLOCK):
        block = slice(start, start + BLOCK)
        numbers = torch.arange(start, min(start + BLOCK, len(bits)))
        reservoir.add(
            bits[block], numbers, document[block], None if chosen is None else chosen[block]
        )
    return reservoir.rows


# --- examples and questions -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """How many rows of each kind a latent is explained and judged by."""

    examples: int = 10
    """on-rows that the explainer sees"""
    positives: int = 20
    """on-rows of the judge's documents"""
    random: int = 20
    """off-rows drawn at random"""
    same_token: int = 5
    """off-rows with the token of a positive, of those tokens at which the latent is off at times"""
    neighbours: int = 5
    """off-rows whose codes are nearest to that of a positive; more where there are too few with its token"""
    window: int = 16
    """tokens shown on each side"""
    seed: int = 0


@dataclass(frozen=True)
class Trial:
    """The rows that one latent is explained and judged by; each kind has at most one of a document."""

    __repr__ = brief

    latent: int
    examples: list[int]
    positives: list[int]
    random: list[int]
    same_token: list[int]
    neighbours: list[int]

    @property
    def hard(self) -> list[int]:
        return self.same_token + self.neighbours

    @property
    def easy(self) -> list[int]:
        return self.positives + self.random

    @property
    def judged(self) -> list[int]:
        """Positives, random negatives, hard ones."""
        return self.easy + self.hard

    def kind(self, place: int) -> str:
        """What the row at this place of `judged` is."""
        return (
            "positive"
            if place < len(self.positives)
            else "random"
            if place < len(self.easy)
            else "hard"
        )


def trials(
    bits: PackedBits,
    columns: Columns,
    latents: Iterable[int],
    plan: Plan = Plan(),
    among: Tensor | None = None,
) -> list[Trial]:
    """Draw the rows of each of these latents; one that is rarely on, or rarely off, may have fewer than asked for.

    bits: as from `canonical`. among: bool `[rows]`, the rows to draw from, by default all. Neighbours and random
    negatives are sought among `POOL` random rows of the judge's.
    """
    token, document, chosen = columns.token, columns.document, list(latents)
    if wrong := [latent for latent in chosen if not 0 <= latent < bits.n_latents]:
        raise BitlensError(
            f"There is no latent {wrong[0]}; these codes have latents 0 to {bits.n_latents - 1}."
        )
    explainers = explainers_part(document)
    drawn = torch.ones_like(explainers) if among is None else among
    explained, judged = drawn & explainers, drawn & ~explainers
    if not explained.any() or not judged.any():
        raise BitlensError(
            "Explainer and judge need documents of their own; encode, or label, more documents."
        )
    examples = on_rows(bits, document, plan.examples, explained, plan.seed)
    positives = on_rows(bits, document, plan.positives, judged, plan.seed)
    others = _Others(bits, token, document, judged.nonzero()[:, 0], plan.seed)
    return [
        others.trial(
            latent,
            *([r for r in rows[latent].tolist() if r >= 0] for rows in (examples, positives)),
            plan,
        )
        for latent in chosen
    ]


class _Others:
    """Off-rows of the judge's documents that match a latent's positives."""

    def __init__(
        self, bits: PackedBits, token: Tensor, document: Tensor, judged: Tensor, seed: int
    ) -> None:
        self.bits, self.token, self.document = bits, token, document
        order = torch.randperm(len(judged), generator=generator(seed, "negatives"))[:POOL]
        self.pool, self.pool_bits = judged[order], bits[judged[order]]
        self.by_token = judged[token[judged].argsort(stable=True)]
        self.sorted_tokens = token[self.by_token].contiguous()

    def trial(self, latent: int, examples: list[int], positives: list[int], plan: Plan) -> Trial:
        draw = generator(plan.seed, "negatives", latent)
        off = ~self.pool_bits.column(latent).bool()
        taken: set[int] = set()
        same = self._distinct(self._same_tokens(latent, positives, draw), plan.same_token, taken)
        missing = plan.same_token - len(same)
        near = self._distinct(self._neighbours(off, positives), plan.neighbours + missing, taken)
        order = torch.randperm(int(off.sum()), generator=draw)
        random = self._distinct(self.pool[off][order].tolist(), plan.random, taken)
        return Trial(latent, examples, positives, random, same, near)

    def _same_tokens(
        self, latent: int, positives: list[int], draw: torch.Generator
    ) -> Iterable[int]:
        """For each positive in turn a row with its token, then for each a second one, and so on."""
        found = []
        for row in positives:
            ends = [
                int(torch.searchsorted(self.sorted_tokens, self.token[row], right=r))
                for r in (False, True)
            ]
            rows = self.by_token[ends[0] + torch.randint(ends[1] - ends[0], (FEW,), generator=draw)]
            off = rows[~self.bits[rows].column(latent).bool()]
            found.append(off.tolist() if len(off) >= OFTEN_OFF * FEW else [])
        return _in_turn(found)

    def _neighbours(self, off: Tensor, positives: list[int]) -> Iterable[int]:
        """For each positive in turn the nearest row, then for each the second one, and so on."""
        rows = self.pool[off]
        if not positives or not len(rows):
            return []
        _, found = nearest(
            self.bits[torch.tensor(positives)], self.pool_bits[off], min(NEAREST, len(rows))
        )
        return rows[found.T.flatten()].tolist()

    def _distinct(self, rows: Iterable[int], n: int, taken: set[int]) -> list[int]:
        """The first n rows that are not taken, each from another document."""
        found: dict[int, int] = {}
        for row in rows:
            if len(found) == n:
                break
            if row not in taken:
                found.setdefault(int(self.document[row]), row)
        taken.update(found.values())
        return list(found.values())


def _in_turn(lists: list[list[int]]) -> Iterable[int]:
    for place in range(max(map(len, lists), default=0)):
        yield from (rows[place] for rows in lists if place < len(rows))
