"""What is measured of an autoencoder in one pass over rows, from which all numbers are made."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from bitlens import terminal
from bitlens.autoencoders import Autoencoder
from bitlens.bits.packed import PackedBits
from bitlens.bits.shards import AnyBits, BitShards
from bitlens.bits.statistics import firing_rates, rate_histogram
from bitlens.causal.splice import Splice
from bitlens.errors import BitlensError
from bitlens.hidden.split import same_numbers
from bitlens.hidden.store import ActivationStore
from bitlens.information.moments import Covariance, Variance, squared_error


@dataclass(frozen=True)
class Measured:
    """An autoencoder and the rows it was measured on.

    part: of the store's rows, `test`, `usual` or `all`. variance: of the rows to reconstruct.
    squared_error: over rows and components. cosine: over rows. bits: latents that are not zero.
    seconds: of encoding and decoding. joint, covariance, splice: see `evaluate`.
    """

    autoencoder: Autoencoder
    store: ActivationStore
    part: str
    variance: Variance
    squared_error: float
    cosine: float
    bits: AnyBits
    documents: Tensor
    seconds: float
    joint: bool = True
    covariance: Covariance | None = None
    splice: Splice | None = None

    @classmethod
    def of(cls, autoencoder: Autoencoder, store: ActivationStore, part: str) -> Measured:
        """Encode and decode a part of the rows. BitlensError if they are fewer than two."""
        variance, error, cosine, seconds = Variance(), 0.0, 0.0, 0.0
        parts, documents = [], []
        blocks = store.read(part)
        for rows in terminal.track(blocks, "read", len(store), lambda rows: len(rows.hidden)):
            x, target = autoencoder.pair(rows.hidden.to(autoencoder.mean.device).float())
            begun = _now(x)
            codes = autoencoder.encode(x)
            x_hat = autoencoder.decode(codes, x)
            seconds += _now(x) - begun
            parts.append(PackedBits(PackedBits.pack(codes).words.cpu(), codes.shape[1]))
            documents.append(rows.columns["document"])
            variance.add(target)
            error += squared_error(target, x_hat)
            cosine += float(cosine_similarity(target.double(), x_hat.double(), dim=1).sum())
        if variance.rows < 2:
            kind, way = "rows of usual norm", "two are needed"
            if part == "test":
                kind, way = "held-out rows", "harvest more documents, or pass `part='all'`"
            raise BitlensError(f"{store.path} has {variance.rows} {kind}; {way}.")
        bits, ids = BitShards(parts), torch.cat(documents)
        return cls(autoencoder, store, part, variance, error, cosine, bits, ids, seconds)

    def about(self) -> dict[str, Any]:
        """What was measured: the store and its model, the part of its rows (`test`, `usual` or
        `all`), how codes were found, and how many latents fire how often."""
        autoencoder, manifest = self.autoencoder, self.store.manifest
        return {
            "store": str(self.store.path.resolve()),
            "model": manifest.get("model"),
            "model_digest": manifest.get("model_digest"),
            "hook": manifest.get("hook"),
            "same_text": same_numbers(autoencoder.metadata, manifest),
            "part": self.part,
            "coding": autoencoder.settings.get("coding"),
            "flips": getattr(autoencoder, "flips", None),
            "rates": rate_histogram(autoencoder.on_rates(firing_rates(self.bits))),
        }

    @property
    def rows(self) -> int:
        """Rows measured."""
        return self.variance.rows

    @cached_property
    def fvu(self) -> float:
        """Fraction of variance unexplained."""
        return self.variance.fvu(self.squared_error)


def _now(x: Tensor) -> float:
    """Seconds, once a GPU has done what was asked of it."""
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return time.perf_counter()
