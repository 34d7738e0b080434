"""Rows that show what a latent is on for: drawn at random, each from another document."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from bitlens.bits.shards import AnyBits, SomeBits
from bitlens.bits.statistics import firing_rates
from bitlens.bits.words import WORD
from bitlens.errors import BitlensError
from bitlens.hidden.source import held_out
from bitlens.seeding import generator, mixed

SALT = 1 << 40  # the split is independent of that of training's held-out documents
CANDIDATES = 64  # times as many rows as are drawn, among which there are mostly documents enough


def canonical(bits: SomeBits, among: Tensor | None = None) -> SomeBits:
    """The code with the rare state of every latent as 1, by the rates in `among` (bool `[rows]`, by
    default all rows)."""
    common = firing_rates(bits if among is None else bits.where(among)) > 0.5
    return bits.turned(common) if common.any() else bits


def explainers_part(document: Tensor) -> Tensor:
    """Which rows are of documents that only an explainer sees, by a hash -> bool `[rows]`"""
    return torch.from_numpy(held_out(document.numpy() + SALT, 0.5))


def refuse_unknown(latents: Sequence[int], n_latents: int) -> None:
    """BitlensError for the first of these latents that codes of `n_latents` do not have."""
    if wrong := [latent for latent in latents if not 0 <= latent < n_latents]:
        raise BitlensError(
            f"There is no latent {wrong[0]}; these codes have latents 0 to {n_latents - 1}."
        )


def on_rows(
    bits: AnyBits,
    document: Tensor,
    n: int,
    chosen: Tensor | None = None,
    seed: int = 0,
    latents: Sequence[int] | None = None,
) -> Tensor:
    """Up to n random on-rows of each latent, every one from another document.

    The n documents with the smallest pseudo-random keys of their on-rows are drawn (bottom-k
    sampling, Cohen & Kaplan 2007). document: int64 `[rows]`; chosen: bool `[rows]`, the rows to
    draw from; latents: by default all -> int64 `[latents, n]`, -1 where there are fewer documents.
    """
    if n < 1:
        raise BitlensError(f"A sample has at least one row of each latent, not {n}.")
    wanted = range(bits.n_latents) if latents is None else latents
    start = torch.randint(2**62, (1,), generator=generator(seed, "reservoir")).numpy()
    salts = mixed(mixed(np.arange(bits.n_latents, dtype=np.uint64)) ^ start.astype(np.uint64))
    drawn = np.full((len(wanted), n), -1, np.int64)
    column, columns = -1, np.empty(0)
    for place in sorted(range(len(wanted)), key=wanted.__getitem__):
        word, latent = divmod(wanted[place], WORD)
        if word != column:  # a word of latents at a time, so that memory does not grow with them
            column, columns = word, bits.word(word).transpose().numpy().view(np.uint8)
        on = np.unpackbits(columns[latent], count=len(bits), bitorder="little").view(bool)
        rows = np.flatnonzero(on if chosen is None else on & chosen.numpy())
        keys = mixed(rows.astype(np.uint64) + salts[wanted[place]])
        picked = first_of_documents(rows, keys, document.numpy(), n)
        drawn[place, : len(picked)] = picked
    return torch.from_numpy(drawn)


def one_by_one(rows: Tensor) -> Iterator[int]:
    """Each of them in turn: of many rows, mostly the first few are looked at."""
    return chain.from_iterable(some.tolist() for some in rows.split(256))


def one_a_document(rows: Iterable[int], document: Tensor, n: int) -> list[int]:
    """The first n rows, each of another document. document: of every row there is."""
    distinct: dict[int, int] = {}
    for row in rows:
        if len(distinct) == n:
            break
        distinct.setdefault(int(document[row]), row)
    return list(distinct.values())


def first_of_documents(
    rows: np.ndarray, keys: np.ndarray, document: np.ndarray, n: int
) -> np.ndarray:
    """The n rows with the smallest keys, one of each document, in the order of the keys."""
    for size in (CANDIDATES * n, len(rows)):
        order = np.arange(len(rows))
        if size < len(rows):
            order = np.argpartition(keys, size)[:size]
        order = order[keys[order].argsort()]
        firsts = np.sort(np.unique(document[rows[order]], return_index=True)[1])
        if len(firsts) >= n:
            break
    return rows[order[firsts[:n]]]
