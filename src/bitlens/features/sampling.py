"""Which rows show what a latent is on for, drawn from packed codes.

"On" is the rare state of a latent here: `canonical` flips those that are 1 in most rows.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from bitlens.bits.packed import PackedBits
from bitlens.bits.statistics import firing_rates
from bitlens.bits.words import WORD
from bitlens.errors import BitlensError
from bitlens.hidden.source import held_out
from bitlens.seeding import generator, mixed

SALT = 1 << 40  # makes the halves independent of the documents that training holds out
ENOUGH = 32  # rows with the smallest keys, for each row to draw: their documents are mostly enough


def canonical(bits: PackedBits, among: Tensor | None = None) -> PackedBits:
    """The code with the rare state of every latent as 1: those with a rate above 1/2 are flipped,
    in a copy.

    among: bool `[rows]`, the rows that the rates are of, by default all.
    """
    common = firing_rates(bits if among is None else bits[among]) > 0.5
    if not common.any():
        return bits
    return PackedBits(bits.words ^ PackedBits.pack(common[None]).words, bits.n_latents)


def explainers_part(document: Tensor, share: float = 0.5) -> Tensor:
    """Which rows are of documents to learn from, the others being for a judge: a fixed
    pseudo-random choice by document -> bool `[rows]`"""
    return torch.from_numpy(held_out(document.numpy() + SALT, share))


def rows_on(bits: PackedBits) -> Iterator[np.ndarray]:
    """The rows in which each latent is 1, ascending; 64 latents are unpacked at a time."""
    for word in range(bits.words.shape[1]):
        n_latents = min(WORD, bits.n_latents - word * WORD)
        block = PackedBits(bits.words[:, word : word + 1].contiguous(), n_latents)
        for column in block.transpose().numpy():
            unpacked = np.unpackbits(column.view(np.uint8), count=len(bits), bitorder="little")
            yield np.flatnonzero(unpacked)


def on_rows(
    bits: PackedBits, document: Tensor, n: int, among: Tensor | None = None, seed: int = 0
) -> Tensor:
    """Up to n random rows in which each latent is 1, each from another document -> int64
    `[n_latents, n]`, in random order, -1 where there are fewer.

    Every pair of latent and row has a pseudo-random key; the n documents with the smallest keys
    stay (bottom-k sampling, Cohen & Kaplan 2007). This is as if rows were drawn one by one, and
    those of documents seen before put back. among: bool `[rows]`, the rows to draw from.
    """
    if n < 1:
        raise BitlensError(f"A sample has at least one row of each latent, not {n}.")
    start = torch.randint(2**62, (1,), generator=generator(seed, "reservoir"))
    salts = mixed(mixed(np.arange(bits.n_latents, dtype=np.uint64)) ^ start.numpy().view(np.uint64))
    documents = document.numpy()
    sample = np.full((bits.n_latents, n), -1)
    for latent, rows in enumerate(rows_on(bits)):
        if among is not None:
            rows = rows[among.numpy()[rows]]
        keys = mixed(rows.astype(np.uint64) + salts[latent])
        few = np.argpartition(keys, ENOUGH * n)[: ENOUGH * n] if len(keys) > ENOUGH * n else slice(None)
        drawn = _one_of_each_document(rows[few], keys[few], documents)
        if len(drawn) < n:
            drawn = _one_of_each_document(rows, keys, documents)
        sample[latent, : len(drawn[:n])] = drawn[:n]
    return torch.from_numpy(sample)


def _one_of_each_document(rows: np.ndarray, keys: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """Rows in the order of their keys, without those of a document that came before."""
    rows = rows[np.argsort(keys)]
    return rows[np.sort(np.unique(documents[rows], return_index=True)[1])]
