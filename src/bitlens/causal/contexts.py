"""The contexts of a store in which a language model's predictions are scored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bitlens.errors import BitlensError
from bitlens.hidden.store import ActivationStore
from bitlens.results import brief
from bitlens.seeding import generator


class ScoredContexts(NamedTuple):
    """Contexts that a language model is to be run on."""

    __repr__ = brief

    contexts: Tensor
    """token ids `[n, length]`; -1 is padding"""
    scored: Tensor
    """bool `[n, length]`: the tokens whose prediction counts"""
    units: Tensor
    """int64 `[n]`, from 0: contexts that begin in the same document vary together, so they are one
    unit of the intervals"""


def draw_contexts(
    store: ActivationStore, limit: int, part: str = "test", seed: int = 0
) -> ScoredContexts:
    """Up to `limit` contexts with tokens of this part (`test` or `all`), drawn at random, in the
    order of the text; refused if there is none."""
    if limit < 1:
        raise BitlensError(f"At least one context must be read, not {limit}.")
    counts = torch.tensor([len(shard.contexts) for shard in _shards(store, part)])
    total = int(counts.sum())
    drawn = torch.randperm(total, generator=generator(seed, "contexts"))[:limit].sort().values
    if not len(drawn):
        raise BitlensError(
            f"{store.path} has no context with held-out rows to score; harvest more documents, or "
            "measure all (`part='all'`)."
        )
    ends = counts.cumsum(0)
    of_shards = drawn.tensor_split(torch.searchsorted(drawn, ends)[:-1])
    parts = [
        ScoredContexts(*(column[rows - start] for column in shard))
        for shard, rows, start in zip(_shards(store, part), of_shards, ends - counts, strict=True)
    ]
    whole = ScoredContexts(*map(torch.cat, zip(*parts, strict=True)))
    return whole._replace(units=whole.units.unique(return_inverse=True)[1])


def _shards(store: ActivationStore, part: str) -> Iterator[ScoredContexts]:
    """Every shard's contexts with tokens of this part; the unit is the document of the first."""
    for contexts, columns in store.contexts():
        chosen = store.is_test(columns["document"]) | (part == "all")
        context, position = columns["context"][chosen].long(), columns["position"][chosen].long()
        scored = torch.zeros(contexts.shape, dtype=torch.bool)
        scored[context, position] = True
        rows, first = np.unique(context.numpy(), return_index=True)
        document = columns["document"][chosen][first].long()
        yield ScoredContexts(contexts[rows], scored[rows], document)
