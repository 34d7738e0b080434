"""Contexts of the corpus that are like a text, or that have some bits on and others off."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bitlens.bits.packed import PackedBits
from bitlens.explorer.keeping import Record
from bitlens.explorer.subject import Subject
from bitlens.features.search import matching, nearest


def near(subject: Subject, bits: PackedBits, limit: int) -> Record:
    """The contexts nearest to one row of bits. A token's value: the share of these bits, in their
    rare state, that are on there."""
    wanted = subject.rare(bits).numpy()[0]
    total = max(1, int(np.bitwise_count(wanted).sum()))

    def values(rows: slice) -> list[float]:
        both = subject.rare(subject.codes.bits[rows]).numpy() & wanted
        return (np.bitwise_count(both).sum(1) / total).round(3).tolist()

    contexts = []
    for hit in nearest(subject.codes, bits, limit):
        about = {"similarity": round(hit.similarity, 4), "shared": hit.shared}
        contexts.append(subject.context(hit.row, values) | about)
    return {"contexts": contexts}


def find(subject: Subject, on: Sequence[int], off: Sequence[int], limit: int) -> Record:
    """How many rows have these latents on and those off, and some of them, each of another
    document. A token's value: whether it is such a row."""

    def values(rows: slice) -> list[float]:
        states = [subject.on(latent, rows) for latent in on]
        states += [[1 - value for value in subject.on(latent, rows)] for latent in off]
        return [float(all(each)) for each in zip(*states, strict=True)]

    found = matching(subject.codes, on, off, limit)
    contexts = [subject.context(row, values) for row in found.rows]
    about = {"count": found.found, "of": found.of, "documents": found.documents}
    return about | {"contexts": contexts}
