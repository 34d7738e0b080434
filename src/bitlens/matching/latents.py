"""Which latents of one dictionary are the same as, part of, or absent from those of another."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import permutations
from typing import Annotated, NamedTuple, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from bitlens import terminal
from bitlens.autoencoders.binary import NEGLIGIBLE
from bitlens.bits.packed import PackedBits
from bitlens.errors import BitlensError
from bitlens.matching.pairs import BLOCK, Pairs
from bitlens.results import Number, brief

SAME, CONTAINED, COSINE = 0.5, 0.8, 0.7
ALPHA = 0.05
CATEGORIES = ("same", "contained", "contains", "absent", "dead", "stuck")
Decoders = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Matching:
    """What becomes of every latent of A in B, `[n]`; -1 (index) or 0 (value) where there is
    none."""

    __repr__ = brief

    category: list[str]
    """same, contained, contains, absent; dead or stuck where a is on, or off, in fewer than 1 row
    in 10,000"""
    rate: Tensor
    best: Tensor
    """the latent of B with the highest Jaccard, corrected for chance"""
    jaccard: Tensor
    """that Jaccard, corrected"""
    partner: Tensor
    """the latent of B under the one-to-one assignment with the highest sum of corrected Jaccards"""
    partner_jaccard: Tensor
    partner_cosine: Tensor
    """of the decoder directions, NaN without decoders"""
    container: Tensor
    """the latent of B that a implies most"""
    implication: Tensor
    """how much: containment, corrected for chance"""
    parts: list[list[int]]
    """latents of B that imply a"""
    covered: Tensor
    """share of a's rows in which one of its parts is on"""
    nearest_cosine: Tensor
    """highest cosine of its decoder direction, also if it is dead, to that of a live latent of B;
    NaN without decoders"""

    @property
    def live(self) -> Tensor:
        """Latents that are neither dead nor stuck, bool `[n]`"""
        return ~self.are("dead", "stuck")

    def are(self, *categories: str) -> Tensor:
        """Which latents are of one of these categories, bool `[n]`"""
        return torch.tensor([c in categories for c in self.category], dtype=torch.bool)


@terminal.shown("match")
def match(
    a: PackedBits,
    b: PackedBits,
    decoders: Decoders | None = None,
    *,
    same: float = SAME,
    contained: float = CONTAINED,
    alpha: float = ALPHA,
    progress: bool = True,
) -> Matching:
    """Find every latent of A in B, where both are codes of the same rows.

    A latent of A is, by the first that holds, `same` as one whose corrected Jaccard reaches `same`;
    `contained` in one that it implies by `contained` or more; `contains` if latents of B imply it
    so; else `absent`. A pair counts only if chance alone would show any such overlap among all
    pairs with a probability below `alpha` (Bonferroni; rows are taken as independent). decoders:
    `W_dec` of both, `[n, d]` and `[m, d]`, for the cosines.
    """
    for name, value in (("same", same), ("contained", contained), ("alpha", alpha)):
        if not 0 < value <= 1:
            raise BitlensError(f"{name} must be above 0 and at most 1, not {value}.")
    pairs = Pairs.of(a, b)
    n, m = pairs.both.shape
    rate = pairs.a.double() / pairs.rows
    live, live_b = _live(rate), _live(pairs.b.double() / pairs.rows)
    agreement, implied = torch.zeros(2, n, m)
    implying = torch.zeros(n, m, dtype=torch.bool)
    for block, some in pairs.blocks():
        credible = (some.surprise() >= math.log2(n * m / alpha)) & live[block, None] & live_b
        agreement[block] = some.agreement().clamp_min(0) * credible
        implied[block] = some.implication().clamp_min(0) * credible
        implying[block] = some.T.implication().T.ge(contained) & credible
    best, jaccard = _highest(agreement)
    container, implication = _highest(implied)
    parts = [row.nonzero()[:, 0].tolist() for row in implying]
    partner, partner_jaccard = _one_to_one(agreement, live, live_b)
    partner_cosine, nearest_cosine = _cosines(decoders, partner, live_b)
    conditions = {
        "dead": ~live & (rate < 0.5),
        "stuck": ~live,
        "same": jaccard >= same,
        "contained": implication >= contained,
        "contains": implying.any(1),
        "absent": torch.ones_like(live),
    }
    first_that_holds = torch.stack(list(conditions.values())).int().argmax(0).tolist()
    return Matching(
        category=[list(conditions)[i] for i in first_that_holds],
        rate=rate,
        best=best,
        jaccard=jaccard,
        partner=partner,
        partner_jaccard=partner_jaccard,
        partner_cosine=partner_cosine,
        container=container,
        implication=implication,
        parts=parts,
        covered=_covered(a, b, parts),
        nearest_cosine=nearest_cosine,
    )


def _live(rates: Tensor) -> Tensor:
    return torch.minimum(rates, 1 - rates) >= NEGLIGIBLE


def _highest(values: Tensor) -> tuple[Tensor, Tensor]:
    """The column of the highest value in each row, -1 where none is above 0, and that value."""
    highest, column = values.max(1)
    return torch.where(highest > 0, column, -1), highest


def _one_to_one(agreement: Tensor, live: Tensor, live_b: Tensor) -> tuple[Tensor, Tensor]:
    """Each latent's partner in the optimal assignment (Crouse 2016), -1 for none; agreement."""
    from scipy.optimize import linear_sum_assignment

    ours, theirs = live.nonzero()[:, 0], live_b.nonzero()[:, 0]
    i, j = linear_sum_assignment(agreement[ours][:, theirs].numpy(), maximize=True)
    partner, value = torch.full_like(live, -1, dtype=torch.int64), torch.zeros(len(live))
    partner[ours[torch.from_numpy(i)]] = theirs[torch.from_numpy(j)]
    value[partner >= 0] = agreement[partner >= 0, partner[partner >= 0]]
    return torch.where(value > 0, partner, -1), value


def _covered(a: PackedBits, b: PackedBits, parts: list[list[int]]) -> Tensor:
    """Share of each latent's rows in which one of its parts is on `[n]`"""
    ours, theirs = a.transpose().numpy(), b.transpose().numpy()
    covered = torch.zeros(len(parts), dtype=torch.float64)
    for i, some in enumerate(parts):
        if some:
            both = ours[i] & np.bitwise_or.reduce(theirs[some])
            covered[i] = float(np.bitwise_count(both).sum() / np.bitwise_count(ours[i]).sum())
    return covered


def _cosines(decoders: Decoders | None, partner: Tensor, live_b: Tensor) -> tuple[Tensor, Tensor]:
    """Decoder cosines of each latent of A to its partner, and the highest to a live one of B."""
    unknown = torch.full(partner.shape, torch.nan)
    if decoders is None:
        return unknown, unknown
    for decoder, latents in zip(decoders, (partner, live_b), strict=True):
        if decoder.ndim != 2 or len(decoder) != len(latents):
            raise BitlensError(
                f"A decoder of {len(latents)} latents must be [{len(latents)}, d], not "
                f"{list(decoder.shape)}."
            )
    ours, theirs = (normalize(decoder.detach().float().cpu(), dim=1) for decoder in decoders)
    if ours.shape[1] != theirs.shape[1]:
        raise BitlensError(
            f"Decoders of width {ours.shape[1]} and {theirs.shape[1]} cannot be compared; both "
            "must read one hook point."
        )
    if not live_b.any():
        return unknown, unknown
    to_partner = torch.where(partner >= 0, (ours * theirs[partner]).sum(1), torch.nan)
    return to_partner, torch.cat([(x @ theirs[live_b].T).amax(1) for x in ours.split(BLOCK)])


class Summary(TypedDict):
    """A matching in counts of latents, and means over live ones, None if there are none."""

    live: Annotated[int, Number("neither dead nor stuck")]
    same: Annotated[int, Number("Jaccard with one latent of the other >= .5")]
    contained: Annotated[int, Number("implies one latent of the other")]
    contains: Annotated[int, Number("implied by some of the other")]
    absent: Annotated[int, Number("none of these")]
    dead: Annotated[int, Number("on in < 1 of 10,000 rows")]
    stuck: Annotated[int, Number("off in < 1 of 10,000 rows")]
    one_to_one: Annotated[float | None, Number("share with a partner of their own, Jaccard >= .5")]
    jaccard_q50: Annotated[float | None, Number("best Jaccard of live latents: the median")]
    jaccard_q90: Annotated[float | None, Number("10 % are above")]
    parts: Annotated[float | None, Number("latents that imply one that `contains`, mean")]
    covered: Annotated[float | None, Number("share of its rows in which one of them is on, mean")]
    split: Annotated[int, Number("latents that `contains`, covered by .8 or more")]
    partner_cosine: Annotated[float | None, Number("decoder cosine of partners, mean")]
    mcs: Annotated[float | None, Number("highest decoder cosine, mean")]
    """mean max cosine similarity (Sharkey et al. 2022)"""
    revived: Annotated[int, Number("dead, but a live latent has its direction: cosine >= .7")]


def summary(matching: Matching) -> Summary:
    """What becomes of the latents of A in B, in numbers."""
    live, split, dead = matching.live, matching.are("contains"), matching.are("dead")
    parts = torch.tensor([len(p) for p in matching.parts])
    return Summary(
        **{c: matching.category.count(c) for c in CATEGORIES},
        live=int(live.sum()),
        one_to_one=_mean((matching.partner_jaccard >= SAME)[live]),
        jaccard_q50=_quantile(matching.jaccard[live], 0.5),
        jaccard_q90=_quantile(matching.jaccard[live], 0.9),
        parts=_mean(parts[split]),
        covered=_mean(matching.covered[split]),
        split=int((matching.covered[split] >= CONTAINED).sum()),
        partner_cosine=_mean(matching.partner_cosine[live & (matching.partner >= 0)]),
        mcs=_mean(matching.nearest_cosine[live]),
        revived=int((matching.nearest_cosine[dead] >= COSINE).sum()),
    )


def _mean(values: Tensor) -> float | None:
    return float(values.double().mean()) if len(values) and not values.isnan().any() else None


def _quantile(values: Tensor, q: float) -> float | None:
    return float(values.double().quantile(q)) if len(values) else None


class Stability(NamedTuple):
    """How alike several dictionaries are, means over all pairs of them and both directions."""

    __repr__ = brief

    shared: float
    """share of live latents with a one-to-one partner of corrected Jaccard >= .5 and, with
    decoders, of cosine >= .7"""
    jaccard: float
    """mean corrected Jaccard of live latents and their partners, 0 for those without"""
    cosine: float
    """mean decoder cosine of partners; NaN without decoders"""
    mcs: float
    """mean max cosine similarity of live latents (Sharkey et al. 2022); NaN without decoders"""


def stability(codes: list[PackedBits], decoders: list[Tensor] | None = None) -> Stability:
    """Do runs of several seeds find the same latents? Codes of the same rows, and their `W_dec`.

    After Paulo & Belrose 2025 (arXiv 2501.16615), who assign latents by their weights.
    """
    if len(codes) < 2:
        raise BitlensError(f"Stability compares at least two codes, not {len(codes)}.")
    if decoders is not None and len(decoders) != len(codes):
        raise BitlensError(
            f"There are {len(codes)} codes and {len(decoders)} decoders; each code needs its own."
        )
    return likeness(
        match(codes[i], codes[j], (decoders[i], decoders[j]) if decoders else None)
        for i, j in permutations(range(len(codes)), 2)
    )


def likeness(matchings: Iterable[Matching]) -> Stability:
    """`stability` from matchings, one for each ordered pair of codes."""
    numbers = torch.tensor([_likeness(m) for m in matchings], dtype=torch.float64)
    return Stability(*numbers.mean(0).tolist())


def _likeness(matching: Matching) -> list[float]:
    live, jaccard, cosine = matching.live, matching.partner_jaccard, matching.partner_cosine
    shared = (jaccard >= SAME) & (cosine.isnan() | (cosine >= COSINE))
    paired = live & (matching.partner >= 0)
    means = map(_mean, (shared[live], jaccard[live], cosine[paired], matching.nearest_cosine[live]))
    return [math.nan if mean is None else mean for mean in means]
