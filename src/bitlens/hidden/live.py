"""Train without a store: hidden states made as they are needed, through the same interface."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from bitlens.errors import BitlensError
from bitlens.hidden.harvest import origin
from bitlens.hidden.models import LanguageModel
from bitlens.hidden.source import (
    RESERVOIR_ROWS,
    HiddenSource,
    Spread,
    held_out,
    outlier_limit,
    refuse_non_finite,
    row_norms,
)
from bitlens.hidden.store import ABOUT, OUTLIER_MULTIPLE
from bitlens.hidden.text import ContextReader, Contexts


class LiveSource(HiddenSource):
    """Training rows straight from a model with one hook point.

    A window is consecutive contexts with as many tokens as `window_contexts` full ones; its rows
    are shuffled, the windows come in the order of the corpus. The first ones fill a reservoir, kept
    in memory: standardisation, pruning and regrowing look at that. Restarting skips windows without
    running the model.
    """

    def __init__(
        self,
        model: LanguageModel,
        reader: ContextReader,
        *,
        batch_size: int = 16,
        window_contexts: int = 256,
        outlier_multiple: float = OUTLIER_MULTIPLE,
    ) -> None:
        if len(model.hooks) != 1:
            raise BitlensError("Training without a store takes exactly one hook point.")
        if batch_size < 1:
            raise BitlensError(f"`batch_size` must be at least 1, not {batch_size}.")
        model.require_context(reader.length)
        self.model, self.reader, self.batch_size = model, reader, batch_size
        self.test_fraction = reader.test_fraction
        self.batch_tokens = batch_size * reader.length
        self.window_tokens = max(1, window_contexts // batch_size) * self.batch_tokens
        (self.d_in,) = model.widths().values()
        about = origin(model, reader, model.hooks[0], model.dtype)
        self.about = {key: about[key] for key in ABOUT if key in about} | {"store": None}
        self._runs: Iterator[Contexts] = iter(())
        self._window: Tensor | None = None
        self._at = self._count = math.inf  # the place of this window; how many there are
        self._no_rows = torch.empty(0, self.d_in, dtype=model.dtype)
        self._limit = float("inf")
        reservoir = self._first_rows()
        norm = row_norms(reservoir)
        self._limit, self._at = outlier_limit(norm, outlier_multiple), math.inf
        self.about["outlier_norm"] = self._limit
        self._reservoir = reservoir[norm <= self._limit]
        spread = Spread.of(self._reservoir)
        self.mean, self.scale = spread.mean.float(), spread.std

    def _first_rows(self) -> Tensor:
        """Whole windows of training rows, outliers too, `[about RESERVOIR_ROWS, d_in]`"""
        rows = self._no_rows
        for key in self.windows(0, 0):
            rows = torch.cat([rows, self.window(key)])
            if len(rows) >= RESERVOIR_ROWS:
                break
        if len(rows) < 2:
            raise BitlensError(
                "The text gave no usable training tokens: it is empty or all of it is held out."
            )
        return rows

    def memory(self) -> tuple[int, int]:
        """Of a window, and of the states it is made of"""
        window = self.window_tokens * self.d_in * self.model.dtype.itemsize
        return window, window

    def windows(self, seed: int, epoch: int) -> Iterator[int]:
        """Their places in the order of the corpus, whatever the seed: consecutive contexts."""
        return itertools.takewhile(lambda place: place < self._count, itertools.count())

    def window(self, key: Any) -> Tensor:
        """The training rows of these contexts, `[rows, d_in]`, without outliers; none after the
        end of the corpus. The last are kept: where several go through the text together, the model
        runs for the first of them."""
        if key != self._at:
            self._window, skipped = None, key - self._at - 1
            if skipped < 0:
                self._runs, skipped = self.reader.runs(self.window_tokens), key
            self._at = math.inf  # after an error the text is read from its beginning
            contexts = next(itertools.islice(self._runs, int(skipped), None), None)
            if contexts is None:
                self._count = key
            self._window = contexts and self._rows(contexts)
            self._at = key
        return self._no_rows if self._window is None else self._window

    def _rows(self, key: Contexts) -> Tensor:
        kept = []
        hook = self.model.hooks[0].names()
        for chosen in key.by_length(self.batch_tokens):
            rows, documents = hidden_rows(self.model, key.of(chosen))
            norm = row_norms(rows)
            refuse_non_finite(rows, norm, {"document": documents}, None, hook)
            test = torch.from_numpy(held_out(documents.numpy(), self.test_fraction))
            kept.append(rows[~test & (norm <= self._limit)])
        return torch.cat(kept)

    def sample(self, n: int, seed: torch.Generator) -> Tensor:
        """Up to n rows of the reservoir without replacement, float32 `[<= n, d_in]`"""
        return self._reservoir[torch.randperm(len(self._reservoir), generator=seed)[:n]].float()


def hidden_rows(model: LanguageModel, batch: Contexts) -> tuple[Tensor, Tensor]:
    """(hidden states `[rows, d]`, their documents `[rows]`) of a batch of contexts, without special
    tokens and padding."""
    (hook,) = model.hooks
    state = model.hidden_states(batch.tokens, batch.mask)[hook.name]
    return state[batch.keep.to(state.device)].cpu(), batch.document[batch.keep]
