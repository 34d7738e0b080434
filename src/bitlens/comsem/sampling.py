"""Which rows show what a latent means: on-rows for an explainer and for a judge, and off-rows to tell them from.

Everything is read from packed codes. A document is either the explainer's or the judge's, so a judge never sees one that
the explanation was made from.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from bitlens.bits.codes import Columns
from bitlens.bits.packed import PackedBits
from bitlens.bits.statistics import nearest
from bitlens.errors import BitlensError
from bitlens.features.sampling import explainers_part, on_rows
from bitlens.results import brief
from bitlens.seeding import generator

POOL = 1 << 15  # rows of the judge that negatives are sought among
FEW = 256  # rows of one token that are looked at for some with the latent off
OFTEN_OFF = 0.1  # share of them: below, the token decides the latent and off is an exception, no other meaning
NEAREST = 8  # neighbours of a positive that are looked at for one of a new document


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
