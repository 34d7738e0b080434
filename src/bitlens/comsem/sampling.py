"""Which rows a latent is explained and judged by: on-rows for each, and off-rows to tell them from.

A document is either the explainer's or the judge's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from typing import NamedTuple

import torch
from torch import Tensor

from bitlens.bits.codes import Columns
from bitlens.bits.shards import AnyBits
from bitlens.bits.statistics import nearest
from bitlens.errors import BitlensError
from bitlens.features.on_rows import (
    explainers_part,
    on_rows,
    one_a_document,
    one_by_one,
    refuse_unknown,
)
from bitlens.results import brief
from bitlens.seeding import generator

POOL = 1 << 15  # rows of the judge that negatives are sought among
FEW = 256  # rows of one token that are looked at for some with the latent off
OFTEN_OFF = 0.1  # share of them: below, the token decides the latent and off is an exception
NEAREST = 8  # neighbours of a positive that are looked at for one of a new document


@dataclass(frozen=True)
class Plan:
    """How many rows of each kind a latent is explained and judged by."""

    examples: int = 10
    """on-rows that the explainer sees; as many off-rows where it explains by examples"""
    positives: int = 20
    """on-rows of the judge's documents"""
    random: int = 20
    """off-rows drawn at random"""
    same_token: int = 5
    """off-rows with the token of a positive, of those tokens at which the latent is off at times"""
    neighbours: int = 5
    """off-rows with codes nearest to a positive's; more where there are too few with its token"""
    window: int = 16
    """tokens shown on each side"""
    seed: int = 0


class JudgedRow(NamedTuple):
    """A row that the judge is asked about."""

    row: int
    kind: str
    """positive, random or hard"""


@dataclass(frozen=True)
class Trial:
    """The rows that one latent is explained and judged by; of a kind, one a document at most."""

    __repr__ = brief

    latent: int
    examples: list[int]
    positives: list[int]
    random: list[int]
    same_token: list[int]
    neighbours: list[int]
    counterexamples: list[int] = field(default_factory=list)
    """off-rows of the explainer's documents"""

    @property
    def hard(self) -> list[int]:
        """Negatives that are like a positive."""
        return self.same_token + self.neighbours

    @property
    def judged(self) -> list[JudgedRow]:
        """All rows that the judge is asked about."""
        kinds = {"positive": self.positives, "random": self.random, "hard": self.hard}
        return [JudgedRow(row, kind) for kind, rows in kinds.items() for row in rows]


def trials(
    bits: AnyBits,
    columns: Columns,
    latents: Iterable[int],
    plan: Plan = Plan(),
    among: Tensor | None = None,
) -> list[Trial]:
    """Draw the rows of each of these latents, fewer for one that is rarely on or rarely off.

    bits: as from `canonical`; among: bool `[rows]`, the rows to draw from, by default all.
    """
    document, chosen = columns.document, list(latents)
    refuse_unknown(chosen, bits.n_latents)
    explainers = explainers_part(document)
    drawn_from = torch.ones_like(explainers) if among is None else among
    explained, judged = drawn_from & explainers, drawn_from & ~explainers
    if not explained.any() or not judged.any():
        raise BitlensError(
            "Explainer and judge need documents of their own; encode, or label, more documents."
        )
    examples = on_rows(bits, document, plan.examples, explained, plan.seed, chosen)
    positives = on_rows(bits, document, plan.positives, judged, plan.seed, chosen)
    negatives = _Negatives(bits, columns, judged.nonzero()[:, 0], plan)
    counterexamples = _Counterexamples(bits, document, explained.nonzero()[:, 0], plan)
    return [
        negatives.trial(latent, shown[shown >= 0], asked[asked >= 0], counterexamples.of(latent))
        for latent, shown, asked in zip(chosen, examples, positives, strict=True)
    ]


def sample_latents(latents: Sequence[int], n: int | None, seed: int) -> list[int]:
    """n of these latents, drawn at random, in order; all of them if n is None or no less."""
    if n is None or n >= len(latents):
        return list(latents)
    drawn = torch.randperm(len(latents), generator=generator(seed, "interpret"))[:n]
    return sorted(latents[i] for i in drawn.tolist())


class _Counterexamples:
    """Off-rows of the explainer's documents, drawn at random."""

    def __init__(self, bits: AnyBits, document: Tensor, rows: Tensor, plan: Plan) -> None:
        order = torch.randperm(len(rows), generator=generator(plan.seed, "counterexamples"))
        self.pool, self.document, self.plan = rows[order[:POOL]], document, plan
        self.bits = bits[self.pool]

    def of(self, latent: int) -> list[int]:
        """As many as there are examples at most, each from another document."""
        off = self.pool[~self.bits.column(latent).bool()]
        draw = generator(self.plan.seed, "counterexamples", latent)
        rows = off[torch.randperm(len(off), generator=draw)]
        return one_a_document(one_by_one(rows), self.document, self.plan.examples)


class _Negatives:
    """Off-rows of the judge's documents that match a latent's positives."""

    def __init__(self, bits: AnyBits, columns: Columns, judged: Tensor, plan: Plan) -> None:
        self.bits, self.plan = bits, plan
        self.token, self.document = columns.token, columns.document
        order = torch.randperm(len(judged), generator=generator(plan.seed, "negatives"))[:POOL]
        self.pool, self.pool_bits = judged[order], bits[judged[order]]
        self.by_token = judged[self.token[judged].argsort(stable=True)]
        self.sorted_tokens = self.token[self.by_token].contiguous()

    def trial(
        self, latent: int, examples: Tensor, positives: Tensor, counterexamples: list[int]
    ) -> Trial:
        """The trial of a latent with these rows, and negatives."""
        plan, draw = self.plan, generator(self.plan.seed, "negatives", latent)
        off = ~self.pool_bits.column(latent).bool()
        used: set[int] = set()
        same = self._distinct(self._same_tokens(latent, positives, draw), plan.same_token, used)
        neighbours = plan.neighbours + plan.same_token - len(same)
        near = self._distinct(self._nearest(off, positives), neighbours, used)
        order = torch.randperm(int(off.sum()), generator=draw)
        random = self._distinct(one_by_one(self.pool[off][order]), plan.random, used)
        on = examples.tolist(), positives.tolist()
        return Trial(latent, *on, random, same, near, counterexamples)

    def _same_tokens(self, latent: int, positives: Tensor, draw: torch.Generator) -> Iterator[int]:
        """For each positive in turn a row with its token, then for each a second one, and so on."""
        lists = []
        tokens = self.token[positives].contiguous()
        firsts = torch.searchsorted(self.sorted_tokens, tokens).tolist()
        lasts = torch.searchsorted(self.sorted_tokens, tokens, right=True).tolist()
        for first, last in zip(firsts, lasts, strict=True):
            rows = self.by_token[first + torch.randint(last - first, (FEW,), generator=draw)]
            off = rows[~self.bits[rows].column(latent).bool()]
            lists.append(off.tolist() if len(off) >= OFTEN_OFF * FEW else [])
        return (row for row in chain.from_iterable(zip_longest(*lists)) if row is not None)

    def _nearest(self, off: Tensor, positives: Tensor) -> Sequence[int]:
        """For each positive in turn the nearest row, then for each the second one, and so on."""
        rows = self.pool[off]
        if not len(positives) or not len(rows):
            return []
        _, places = nearest(self.bits[positives], self.pool_bits[off], min(NEAREST, len(rows)))
        return rows[places.T.flatten()].tolist()

    def _distinct(self, rows: Iterable[int], n: int, used: set[int]) -> list[int]:
        """The first n rows that are not used yet, each from another document; used from now on."""
        distinct = one_a_document((row for row in rows if row not in used), self.document, n)
        used.update(distinct)
        return distinct
