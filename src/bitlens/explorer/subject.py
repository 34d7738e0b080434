"""A run that is looked at: its autoencoder, its codes, and what was gathered of its latents."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bitlens.autoencoders import Autoencoder
from bitlens.autoencoders.binary import NEGLIGIBLE
from bitlens.bits.codes import Codes
from bitlens.bits.packed import PackedBits
from bitlens.bits.statistics import DENSE
from bitlens.errors import BitlensError
from bitlens.explorer.gathering import gathered
from bitlens.explorer.keeping import Record
from bitlens.features.examples import around
from bitlens.features.search import matching, nearest
from bitlens.hidden.hooks import differ
from bitlens.hidden.named import recorded_model
from bitlens.hidden.pieces import apart, token_texts
from bitlens.labels.sources import load_tokenizer

BEFORE, AFTER = 20, 10  # tokens of an example around the marked one
NAMED = 5  # tokens that name a latent where it is only mentioned


class Words:
    """Pieces of a text, a piece for each token; without a tokenizer, the tokens' numbers."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._alone: dict[int, str] = {}

    def alone(self, ids: Sequence[int]) -> list[str]:
        """Each token as it reads within a text."""
        if self.tokenizer is None:
            return [f"[{token}]" for token in ids]
        if unknown := [token for token in ids if token not in self._alone]:
            self._alone.update(token_texts(self.tokenizer, unknown))
        return [self._alone[token] for token in ids]

    def joined(self, ids: Sequence[int]) -> list[str]:
        """Each token as it reads in this text: the pieces join to it."""
        pieces = self.alone(ids)
        return pieces if self.tokenizer is None else apart(self.tokenizer, ids, pieces)


class Subject:
    """One run with the codes that it made."""

    def __init__(self, run: Path, codes: Codes, autoencoder: Autoencoder, promotes: bool) -> None:
        """promotes: load the language model to see which tokens a latent promotes, if that is not
        known from an earlier time."""
        _require_own(run, codes, autoencoder)
        self.run, self.codes, self.autoencoder = run, codes, autoencoder
        self.has_tokens = len(codes) > 0 and int(codes.token.min()) >= 0
        self.has_texts = self.has_tokens and codes.manifest.get("model") is not None
        if self.has_texts:
            recorded_model(codes.manifest, codes.path)  # refuses one that is gone or another now
        self._words: Words | None = None
        self._loading = threading.Lock()
        self.records = gathered(codes, run, autoencoder, self.has_texts, promotes)
        self.flipped = torch.tensor([record["flipped"] for record in self.records])

    def words(self) -> Words:
        """The texts of tokens. The tokenizer is loaded when it is first asked for: that takes as
        long as all else that a page waits for."""
        with self._loading:
            if self._words is None:
                self._words = Words(load_tokenizer(self.codes) if self.has_texts else None)
            return self._words

    def __repr__(self) -> str:
        return f"Subject({self.run}: {self.autoencoder.architecture}, {self.codes!r})"

    @property
    def n_latents(self) -> int:
        """Latents of the run"""
        return len(self.records)

    def record(self, latent: int) -> Record:
        """What was gathered of a latent."""
        if not 0 <= latent < self.n_latents:
            last = self.n_latents - 1
            raise BitlensError(f"There is no latent {latent}; this run has latents 0 to {last}.")
        return self.records[latent]

    def tokens_of(self, latent: int) -> list[str]:
        """The texts of a few tokens that the latent prefers, by which it is recognised."""
        return [token["text"] for token in self.records[latent]["tokens"][:NAMED]]

    def flags(self, latent: int) -> str:
        """dense, dead or stuck."""
        record = self.records[latent]
        if record["rate"] < NEGLIGIBLE:
            return "stuck" if record["flipped"] else "dead"
        return "dense" if record["rate"] > DENSE else ""

    def on(self, latent: int, rows: torch.Tensor | slice) -> list[int]:
        """Whether the latent is in its rare state in these rows, 0 or 1."""
        bits = self.codes.bits[rows].column(latent)
        return (bits ^ int(self.flipped[latent])).tolist()

    def rare(self, bits: PackedBits) -> PackedBits:
        """Rows of bits with each latent's rare state as 1."""
        return PackedBits(bits.words.cpu(), bits.n_latents).turned(self.flipped)

    def context(self, row: int, values: Callable[[slice], Sequence[float]]) -> Record:
        """A row's token amid its neighbours of the same document, each with its value from 0 to 1.

        values: of consecutive rows.
        """
        span = around(self.codes, row, BEFORE, AFTER)
        rows = slice(span.start, span.stop)
        pieces = self.words().joined(self.codes.token[rows].tolist())
        return {
            "document": int(self.codes.document[row]),
            "row": row,
            "at": row - span.start,
            "tokens": [{"t": t, "v": v} for t, v in zip(pieces, values(rows), strict=True)],
        }

    def near(self, bits: PackedBits, limit: int) -> Record:
        """The contexts nearest to one row of bits. A token's value: the share of these bits, in
        their rare state, that are on there."""
        wanted = self.rare(bits).numpy()[0]
        total = max(1, int(np.bitwise_count(wanted).sum()))

        def values(rows: slice) -> list[float]:
            both = self.rare(self.codes.bits[rows]).numpy() & wanted
            return (np.bitwise_count(both).sum(1) / total).round(3).tolist()

        contexts = []
        for hit in nearest(self.codes, bits, limit):
            about = {"similarity": round(hit.similarity, 4), "shared": hit.shared}
            contexts.append(self.context(hit.row, values) | about)
        return {"contexts": contexts}

    def find(self, on: Sequence[int], off: Sequence[int], limit: int) -> Record:
        """How many rows have these latents on and those off, and some of them, each of another
        document. A token's value: whether it is such a row."""

        def values(rows: slice) -> list[float]:
            states = [self.on(latent, rows) for latent in on]
            states += [[1 - value for value in self.on(latent, rows)] for latent in off]
            return [float(all(each)) for each in zip(*states, strict=True)]

        found = matching(self.codes, on, off, limit)
        contexts = [self.context(row, values) for row in found.rows]
        about = {"count": found.found, "of": found.of, "documents": found.documents}
        return about | {"contexts": contexts}


def _require_own(run: Path, codes: Codes, autoencoder: Autoencoder) -> None:
    """BitlensError for codes that cannot be of this run."""
    codes.require_run(run, autoencoder.n_latents)
    own = "name its own codes with `codes`"
    kind = codes.manifest.get("architecture")
    if kind not in (None, autoencoder.architecture):
        raise BitlensError(
            f"{run} is a {autoencoder.architecture}, but the codes {codes.path} are of a {kind}; "
            f"{own}."
        )
    theirs, ours = (about.get("hook") for about in (codes.manifest, autoencoder.metadata))
    if differ(theirs, ours):
        raise BitlensError(
            f"{run} reads {(ours or {}).get('module')}, but the codes {codes.path} are of "
            f"{(theirs or {}).get('module')}; {own}."
        )
