"""Search in packed codes: contexts like a given one, contexts with some bits on and others off.

Rows are read shard by shard from memory-mapped files, a block at a time, and only those of usual
norm are found. "On" is a latent's rare state.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch

from bitlens import terminal
from bitlens.bits import search_cpu
from bitlens.bits.codes import Codes
from bitlens.bits.packed import PackedBits
from bitlens.errors import BitlensError
from bitlens.features.on_rows import first_of_documents, refuse_unknown
from bitlens.results import brief
from bitlens.seeding import generator, mixed

BLOCK = 1 << 16  # rows that are compared at a time
RUN = 1 << 10  # and one after another, at most


class Hit(NamedTuple):
    """A row that was found, and what it has in common with what was asked for."""

    __repr__ = brief

    row: int
    document: int
    similarity: float
    """of the document where there were several queries, from 0 to 1"""
    query: int
    """the place, among the rows that were given, of the one that this row is nearest to"""
    shared: list[int]
    """latents that are on in both, the rarest first"""


class Matching(NamedTuple):
    """Rows that have some bits on and others off."""

    __repr__ = brief

    found: int
    of: int
    """rows that were looked at, all of usual norm"""
    documents: int
    """in which there is such a row"""
    rows: list[int]
    """some of them, drawn at random, each from another document"""


class Rates(NamedTuple):
    """How often latents are on in rows of usual norm; codes are read through once for it."""

    __repr__ = brief

    rate: np.ndarray
    """of the rare state, float64 `[n_latents]`, at least that of half a row"""
    flips: np.ndarray
    """uint64 `[words]`: the latents whose rare state is 0 in the codes"""
    rows: int
    """of usual norm"""

    @property
    def surprisal(self) -> np.ndarray:
        """Bits of an on-state, `[n_latents]`"""
        return -np.log2(self.rate)

    def canonical(self, bits: PackedBits) -> PackedBits:
        """Other rows of the same autoencoder, with the rare state as 1."""
        flips = torch.from_numpy(self.flips.view(np.int64))
        return PackedBits(bits.words.cpu() ^ flips, bits.n_latents)


_rates: WeakKeyDictionary[Codes, Rates] = WeakKeyDictionary()


def rates(codes: Codes) -> Rates:
    """The rates of these codes; kept for as long as the codes are."""
    if codes not in _rates:
        _rates[codes] = _count(codes)
    return _rates[codes]


def _count(codes: Codes) -> Rates:
    counts, rows = torch.zeros(codes.n_latents, dtype=torch.int64), len(codes) - codes.outliers
    if not rows:
        raise BitlensError(f"{codes.path} has no row of usual norm to search.")
    for first, bits in codes.shards():
        outlying = ~codes.usual[first : first + len(bits)]
        counts += bits.column_counts() - bits[outlying].column_counts()
    common = 2 * counts > rows
    rate = torch.where(common, rows - counts, counts).double().clamp_min(0.5) / rows
    return Rates(rate.numpy(), PackedBits.pack(common[None]).numpy()[0], rows)


# --- contexts like a given one --------------------------------------------------------------------


@terminal.shown("search")
def nearest(
    codes: Codes,
    bits: PackedBits,
    limit: int = 10,
    *,
    per_document: bool = True,
    without: int | None = None,
    progress: bool = True,
) -> list[Hit]:
    """The rows whose bits are most like those given, the most similar first, one a document.

    Similarity is Jaccard's, each bit weighted by its surprisal -log2(rate): the information of the
    on-bits that both rows have, over that of the on-bits that either has. So sharing a rare bit
    says more than sharing a frequent one, unlike in Hamming distance, and two rows are not alike
    because both lack most bits.

    bits: one row, or several, as of a whole text, in the state of the codes (as `encode_bits` gives
    them). A document's similarity to several is the mean over these of its best row for each
    ("MaxSim", Khattab & Zaharia 2020), which favours long documents; shown is the row that is
    nearest to any of them. per_document: if not, every row stands for itself. without: a document
    that is left out, that of the row itself. Rows that share no bit are no hits. Memory: 8 bytes
    for every document and row of bits.
    """
    if bits.n_latents != codes.n_latents:
        raise BitlensError(
            f"Bits of {bits.n_latents} latents cannot be found in codes of {codes.n_latents}; "
            "encode with the autoencoder that made the codes."
        )
    if limit < 1 or not len(bits):
        raise BitlensError(
            f"A search is for at least one row, with `limit` at least 1, not {limit}."
        )
    known = rates(codes)
    queries = known.canonical(bits).numpy()
    bar = _Bar(limit if len(queries) == 1 else 0)
    runs = _similarities(codes, queries, known, per_document, without, bar)
    names, starts, ends, best = (np.concatenate(each, -1) for each in zip(*runs, strict=True))
    scores, order = _by_name(names, best)
    chosen = np.argsort(-scores, kind="stable")[:limit]
    hits: list[Hit] = []
    for score, name in zip(scores[chosen], order[chosen], strict=True):
        if score > 0:
            of_it = names == name
            spans = list(zip(starts[of_it], ends[of_it], strict=True))
            hits.append(_hit(codes, queries, known, spans, float(score)))
    return hits


class _Bar:
    """What a row has to reach to be among the best so far; of several queries there is none."""

    def __init__(self, limit: int) -> None:
        self.limit, self.least = limit, 0.0
        self.names, self.best = np.empty(0, np.int64), np.empty((1, 0))

    def rise(self, names: np.ndarray, best: np.ndarray) -> None:
        """After similarities of runs, `[1, runs]`, with their documents."""
        if not self.limit:
            return
        joined = np.concatenate([self.names, names]), np.concatenate([self.best, best], 1)
        scores, order = _by_name(*joined)
        if len(scores) >= self.limit:
            top = np.argpartition(-scores, self.limit - 1)[: self.limit]
            self.names, self.best = order[top], scores[None, top]
            self.least = max(0.0, float(scores[top].min()))
        else:
            self.names, self.best = order, scores[None]


def _similarities(
    codes: Codes,
    queries: np.ndarray,
    known: Rates,
    per_document: bool,
    without: int | None,
    bar: _Bar,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Of every run of rows of one document, block after block: its document (or row), first row,
    end, and best similarities `[queries, runs]`, -1 where no row is to be found"""
    document, usual, weights = codes.document.numpy(), codes.usual.numpy(), known.surprisal
    for first, bits in codes.shards():
        for start in range(0, len(bits), BLOCK):
            block = bits[start : start + BLOCK].numpy()
            rows = slice(first + start, first + start + len(block))
            own = document[rows]
            found = usual[rows] if without is None else usual[rows] & (own != without)
            ends = _ends(own) if per_document else np.arange(1, len(block) + 1)
            starts = np.concatenate([[0], ends])
            best = search_cpu.best_jaccard(
                block, known.flips, queries, weights, starts, found, bar.least
            )
            at = starts[:-1] + rows.start
            names = own[starts[:-1]] if per_document else at
            bar.rise(names, best)
            yield names, at, ends + rows.start, best
            terminal.at(rows.stop, total=len(codes))


def _ends(document: np.ndarray) -> np.ndarray:
    """Where runs of rows of one document end; a long one is several, as each is one thread's."""
    ends = np.append(np.flatnonzero(np.diff(document)) + 1, len(document))
    return np.union1d(ends, np.arange(RUN, len(document), RUN))


def _by_name(names: np.ndarray, best: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean of the best similarities of each name `[names]`, and the names, which may have several
    runs; in the order in which they are first seen."""
    if (np.diff(names) > 0).all():
        return best.mean(0), names
    order, seen, place = np.unique(names, return_index=True, return_inverse=True)
    joined = np.full((len(best), len(order)), -1.0)
    for query, similar in enumerate(best):
        np.maximum.at(joined[query], place, similar)
    by_place = np.argsort(seen, kind="stable")
    return joined.mean(0)[by_place], order[by_place]


def _hit(
    codes: Codes, queries: np.ndarray, known: Rates, spans: Sequence[tuple[int, int]], score: float
) -> Hit:
    """The best row in these spans of rows, with what it shares with the query nearest to it."""
    rows = np.concatenate([np.arange(start, end) for start, end in spans])
    rows = rows[codes.usual.numpy()[rows]]
    words = rows_of(codes, rows).numpy()
    each = np.arange(len(rows) + 1)
    similar = search_cpu.best_jaccard(words, known.flips, queries, known.surprisal, each)
    query, at = np.unravel_index(np.argmax(similar), similar.shape)
    both = PackedBits.from_numpy((words[at] ^ known.flips)[None] & queries[query], codes.n_latents)
    shared = both.unpack()[0].nonzero()[:, 0].numpy()
    rarest = shared[np.argsort(known.rate[shared], kind="stable")].tolist()
    row = int(rows[at])
    return Hit(row, int(codes.document[row]), score, int(query), rarest)


def rows_of(codes: Codes, rows: np.ndarray | Sequence[int]) -> PackedBits:
    """The bits of some rows, in the order given, without reading the others."""
    wanted = np.asarray(rows, np.int64)
    if len(wrong := wanted[(wanted < 0) | (wanted >= len(codes))]):
        raise BitlensError(
            f"There is no row {wrong[0]}; {codes.path} has rows 0 to {len(codes) - 1}."
        )
    return codes.parts[torch.from_numpy(wanted)]


# --- contexts with some bits on and others off ----------------------------------------------------


def matching(
    codes: Codes, on: Sequence[int] = (), off: Sequence[int] = (), limit: int = 10, seed: int = 0
) -> Matching:
    """How many rows have all latents of `on` on and all of `off` off, and some of them."""
    refuse_unknown([*on, *off], codes.n_latents)
    if both := set(on) & set(off):
        raise BitlensError(f"Latent {min(both)} cannot be on and off in one row; name it once.")
    if not on and not off:
        raise BitlensError("Name at least one latent that is to be `on` or `off`.")
    if limit < 1:
        raise BitlensError(f"`limit` must be at least 1, not {limit}.")
    known = rates(codes)
    asked, wanted = (_mask(latents, codes.n_latents) for latents in ([*on, *off], on))
    # where the codes have to be 1: at what is asked for, turned where the rare state is 0
    pattern = (wanted ^ known.flips) & asked
    usual = codes.usual.numpy()
    parts: list[np.ndarray] = []
    for first, bits in codes.shards():
        words = bits.words.numpy().view(np.uint64)
        for start in range(0, len(bits), BLOCK):
            found = usual[first + start : first + min(start + BLOCK, len(bits))].copy()
            for w in np.flatnonzero(asked):
                found &= words[start : start + BLOCK, w] & asked[w] == pattern[w]
            parts.append(np.flatnonzero(found) + first + start)
    rows, document = np.concatenate(parts), codes.document.numpy()
    salt = torch.randint(2**62, (1,), generator=generator(seed, "matching")).numpy()
    keys = mixed(rows.astype(np.uint64) + salt.astype(np.uint64))
    drawn = first_of_documents(rows, keys, document, limit)
    return Matching(len(rows), known.rows, len(np.unique(document[rows])), drawn.tolist())


def _mask(latents: Sequence[int], n_latents: int) -> np.ndarray:
    on = torch.zeros(1, n_latents)
    on[0, list(latents)] = 1
    return PackedBits.pack(on).numpy()[0]
