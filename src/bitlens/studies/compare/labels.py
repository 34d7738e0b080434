"""How many latents and labels meet, with every latent on where not zero, and cut at its best."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bitlens.autoencoders import Autoencoder
from bitlens.bits.packed import PackedBits
from bitlens.features.token_scores import token_scores
from bitlens.hidden import ActivationStore
from bitlens.hidden.store import COLUMNS
from bitlens.labels.scores import MIN_GROUPS, best_labels, f1_scores, label_scores
from bitlens.labels.sources import Labels
from bitlens.studies.cells import Row

CUTS = (0.0, 0.25, 0.5, 0.75)
"""Quantiles of a latent's values where it is on, above which it may count as on."""
CUT_EVERY = 32  # training rows from which the quantiles are taken
GROUPS = 2 * MIN_GROUPS


class StoreColumns(NamedTuple):
    """What labels need to know of a store's rows."""

    path: Path
    manifest: dict[str, Any]
    token: Tensor
    document: Tensor
    position: Tensor
    usual: Tensor
    """bool: rows whose norm is not outlying"""

    @classmethod
    def of(cls, store: ActivationStore) -> StoreColumns:
        """The columns of all rows of a store."""
        parts = [store.shard(i, list(COLUMNS)) for i in range(len(store.shards))]
        columns = {name: torch.cat([part[name] for part in parts]) for name in COLUMNS}
        return cls(store.path, store.manifest, **columns, usual=store.usual())


@torch.inference_mode()
def label_numbers(
    trained: Autoencoder, store: ActivationStore, columns: StoreColumns, labels: list[Labels]
) -> Row:
    """How many latents and labels meet, in all and by labelling; nothing without labels or enough
    documents.

    `latents_f1`: latents with a label; `labels_covered`: labels with a latent; `token_latents`:
    sparse latents that a set of tokens predicts with an F1 above .5. All of them twice: with every
    latent on wherever it is not zero, and, as `..._cut`, only above that quantile of its values, of
    `CUTS`, with which it meets some label best on the fitting rows.
    """
    test, usual = store.is_test(columns.document), columns.usual
    if not labels or len(columns.document[test & usual].unique()) < GROUPS:
        return {}
    codes = codes_above(trained, store, CUTS)
    row: Row = {}
    for suffix, bits in (("", codes[0]), ("_cut", _best_cuts(codes, labels, ~test))):
        scores = [label_scores(bits, one, columns.document, test, groups=GROUPS) for one in labels]
        tokens = token_scores(bits[usual], columns.token[usual], test[usual])
        row[f"latents_f1{suffix}"] = sum(score.good for score in best_labels(scores))
        row[f"labels_covered{suffix}"] = sum(score.good for s in scores for score in s.by_class())
        row[f"token_latents{suffix}"] = sum(score.good for score in tokens)
        for labelling in scores:
            summary = labelling.summary()
            for name in ("latents_f1", "labels_covered"):
                row[f"{name}{suffix}: {labelling.name}"] = summary[name]
    return row


def graded(trained: Autoencoder, x: Tensor) -> tuple[Tensor, Tensor]:
    """Raw rows -> which latents are on, bool, and how far, both `[n, n_latents]`: a float latent by
    its value, a bit, whose value is always 1, by its pre-activation."""
    codes = trained.encode(x)
    values = trained.pre_activations(trained.standardise(x)) if trained.binary else codes
    return codes != 0, values


def codes_above(
    trained: Autoencoder, store: ActivationStore, cuts: tuple[float, ...]
) -> list[PackedBits]:
    """For each quantile of a latent's values where it is on: a code of the latents above it."""
    device, samples = trained.mean.device, []
    for rows in store.read("train"):
        on, values = graded(trained, rows.hidden[::CUT_EVERY].to(device))
        samples.append(values.masked_fill(~on, torch.nan))
    sample = torch.cat(samples)
    limits = [sample.nanquantile(cut, 0) if cut else None for cut in cuts]
    words: list[list[Tensor]] = [[] for _ in cuts]
    for rows in store.read("all"):
        on, values = graded(trained, rows.hidden.to(device))
        for of_cut, limit in zip(words, limits, strict=True):
            above = on if limit is None else on & (values > limit)
            of_cut.append(PackedBits.pack(above).words.cpu())
    return [PackedBits(torch.cat(of_cut), trained.n_latents) for of_cut in words]


def _best_cuts(codes: list[PackedBits], labels: list[Labels], fit: Tensor) -> PackedBits:
    """Of every latent the (first) code with the highest F1 of any label on the fitting rows."""
    met = [torch.cat([f1_scores(code, one, fit) for one in labels], 1).max(1) for code in codes]
    best = torch.stack([highest.values for highest in met]).argmax(0)
    words = torch.zeros_like(codes[0].words)
    for i, code in enumerate(codes):
        words |= code.words & PackedBits.pack((best == i)[None]).words
    return PackedBits(words, codes[0].n_latents)
