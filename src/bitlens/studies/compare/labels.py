"""How many latents and labels meet, with every latent on where not zero, and cut at its best."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bitlens.autoencoders import Autoencoder
from bitlens.bits.packed import PackedBits
from bitlens.features.token_scores import token_scores
from bitlens.hidden import ActivationStore
from bitlens.hidden.source import held_out
from bitlens.hidden.store import COLUMNS
from bitlens.labels.matches import Matches, good_latents
from bitlens.labels.scores import MIN_GROUPS, f1_scores
from bitlens.labels.sources import Labels
from bitlens.studies.cells import Row

CUTS = (0.0, 0.25, 0.5, 0.75)
"""Quantiles of a latent's values where it is on, above which it may count as on."""
CUT_EVERY, CUT_ROWS = 32, 16384  # training rows from which the quantiles are taken: every, at most
QUANTILES_AT_ONCE = 512  # latents; a GPU sorts no more than 2^24 numbers
FIT_ROWS, TEST_ROWS = 196608, 65536  # about, in whole documents
BLOCK = 8192
SAMPLE = 0x1ABE1  # makes this choice of documents another one than that of the held-out ones
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
    `CUTS`, with which it meets some label best on the fitting rows. Of a large store the rows of
    some documents are taken, the same ones of every autoencoder.
    """
    test, usual = store.is_test(columns.document), columns.usual
    if not labels or len(columns.document[test & usual].unique()) < GROUPS:
        return {}
    rows = chosen_rows(columns.document, test)
    token, test, usual = columns.token[rows], test[rows], usual[rows]
    labels = [labelling._replace(ids=labelling.ids[rows]) for labelling in labels]
    codes = codes_above(trained, store, CUTS, rows)
    row: Row = {"label_rows": int(usual.sum())}
    for suffix, bits in (("", codes[0]), ("_cut", _best_cuts(codes, labels, ~test))):
        matches = [Matches.of(bits, one, test) for one in labels]
        tokens = token_scores(bits[usual], token[usual], test[usual])
        row[f"latents_f1{suffix}"] = int(good_latents(matches).sum())
        row[f"labels_covered{suffix}"] = sum(int(one.classes().sum()) for one in matches)
        row[f"token_latents{suffix}"] = sum(score.good for score in tokens)
        for one in matches:
            row[f"latents_f1{suffix}: {one.name}"] = int(one.latents().sum())
            row[f"labels_covered{suffix}: {one.name}"] = int(one.classes().sum())
    return row


def chosen_rows(document: Tensor, test: Tensor) -> Tensor:
    """Rows of some documents, about `FIT_ROWS` and, of `test` (bool `[rows]`), `TEST_ROWS`, or of
    all where they are no more, int64 ascending."""
    chosen = torch.zeros_like(test)
    for part, most in ((~test, FIT_ROWS), (test, TEST_ROWS)):
        share = most / max(1, int(part.sum()))
        chosen |= part & torch.from_numpy(held_out(document.numpy() ^ SAMPLE, share))
    return chosen.nonzero()[:, 0]


def graded(trained: Autoencoder, x: Tensor) -> tuple[Tensor, Tensor]:
    """Raw rows -> which latents are on, bool, and how far, both `[n, n_latents]`: a float latent by
    its value, a bit, whose value is always 1, by its pre-activation."""
    codes = trained.encode(x)
    values = trained.pre_activations(trained.standardise(x)) if trained.binary else codes
    return codes != 0, values


def codes_above(
    trained: Autoencoder, store: ActivationStore, cuts: tuple[float, ...], rows: Tensor
) -> list[PackedBits]:
    """For each quantile of a latent's values where it is on: a code of the latents above it, of
    these of the store's rows, ascending."""
    limits = _limits(trained, store, cuts)
    words: list[list[Tensor]] = [[] for _ in cuts]
    for hidden in _hidden(store, rows):
        on, values = graded(trained, hidden.to(trained.mean.device))
        for of_cut, limit in zip(words, limits, strict=True):
            of_cut.append(PackedBits.pack(on & (values > limit)).words.cpu())
    return [PackedBits(torch.cat(of_cut), trained.n_latents) for of_cut in words]


def _limits(trained: Autoencoder, store: ActivationStore, cuts: tuple[float, ...]) -> Tensor:
    """The value of each latent at every quantile, `[cuts, n_latents]`; at 0 any value will do."""
    every = max(CUT_EVERY, sum(len(split.train) for split in store.splits()) // CUT_ROWS)
    samples = []
    for rows in store.read("train"):
        on, values = graded(trained, rows.hidden[::every].to(trained.mean.device))
        samples.append(values.masked_fill(~on, torch.nan))
    sample = torch.cat(samples)
    q = torch.tensor(cuts).to(sample)
    parts = [block.nanquantile(q, 0) for block in sample.split(QUANTILES_AT_ONCE, 1)]
    return torch.cat(parts, 1).masked_fill_(q[:, None] == 0, -torch.inf)


def _hidden(store: ActivationStore, rows: Tensor) -> Iterator[Tensor]:
    """Raw rows of a store by their index, ascending, in blocks."""
    first = 0
    for index, shard in enumerate(store.shards):
        own = rows[(rows >= first) & (rows < first + shard["rows"])] - first
        first += shard["rows"]
        if len(own):
            hidden = store.shard(index, ["hidden"])["hidden"]
            yield from (hidden[block] for block in own.split(BLOCK))


def _best_cuts(codes: list[PackedBits], labels: list[Labels], fit: Tensor) -> PackedBits:
    """Of every latent the (first) code with the highest F1 of any label on the fitting rows."""
    met = [torch.cat([f1_scores(code, one, fit) for one in labels], 1).max(1) for code in codes]
    best = torch.stack([highest.values for highest in met]).argmax(0)
    words = torch.zeros_like(codes[0].words)
    for i, code in enumerate(codes):
        words |= code.words & PackedBits.pack((best == i)[None]).words
    return PackedBits(words, codes[0].n_latents)
