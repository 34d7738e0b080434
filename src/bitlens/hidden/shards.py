"""The shards of a store: which of them a process has to write, and the rows of one."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from bitlens.hidden.text import ContextReader, Contexts
from bitlens.hidden.writer import StoreWriter
from bitlens.writing import Share


class Due:
    """The contexts of the shards that a process has to write, each with the shard's number.

    All text is read, and tokenized, for it: where a shard begins depends on what is before it.
    """

    def __init__(
        self,
        reader: ContextReader,
        share: Share,
        done: Mapping[int, Mapping[str, Any]],
        tokens: int,
        max_rows: int | None,
    ) -> None:
        """done: by number, what the manifest says of shards that are there. tokens: of a shard, at
        least. max_rows: of all shards."""
        self.reader, self.share, self.done, self.tokens = reader, share, done, tokens
        self.shards = next(i for i in itertools.count() if i not in done)
        """how many there are, as far as the text was read: all of them at the end"""
        skipped = [done[i] for i in range(self.shards)]
        self.skip = sum(shard["contexts"] for shard in skipped)
        rows = sum(shard["rows"] for shard in skipped)
        self.rows = None if max_rows is None else max_rows - rows

    def __iter__(self) -> Iterator[tuple[int, Contexts]]:
        runs = self.reader.unpadded_runs(self.tokens, self.skip, self.rows)
        for number, run in enumerate(runs, self.shards):
            self.shards = number + 1
            if self.share.has(number) and number not in self.done:
                yield number, self.reader.padded(run)


class Shard:
    """The rows of consecutive contexts, in the order of the text, whatever that of the batches."""

    def __init__(self, number: int, contexts: Contexts, dtype: torch.dtype, length: int) -> None:
        """number: in the order of the text. length: of the stored contexts"""
        self.number, self.dtype = number, dtype
        context, position = contexts.keep.nonzero(as_tuple=True)
        self.rows, self.contexts = len(context), len(contexts.tokens)
        self.row = torch.full(contexts.keep.shape, -1)  # of each token
        self.row[context, position] = torch.arange(self.rows)
        self.columns = {
            "token": contexts.tokens[context, position],
            "document": contexts.document[context, position],
            "position": position,
            "context": context,
        }
        tokens = contexts.tokens.masked_fill(~contexts.mask, -1)
        self.tokens = pad(tokens, (0, length - tokens.shape[1]), value=-1)
        self.hidden: dict[str, Tensor] = {}
        self.coming: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        self.devices: set[torch.device] = set()

    def add(self, chosen: Tensor, states: dict[str, Tensor]) -> int:
        """states: hidden states of the chosen contexts -> number of rows taken"""
        for name, state in states.items():
            row = self.row[chosen, : state.shape[1]]
            on_gpu = state.is_cuda
            if on_gpu:  # it goes on meanwhile
                self.devices.add(state.device)
            state = state.to(self.dtype).to("cpu", non_blocking=on_gpu)
            self.coming[name].append((row, state))
            if not on_gpu:
                self._place(name)
        return int((self.row[chosen] >= 0).sum())

    def _place(self, name: str) -> None:
        """Put what has come of a hook point where it belongs: pieces left lying until a shard is
        whole would leave holes in memory as large as shards."""
        parts = self.coming.pop(name)
        if name not in self.hidden:
            width = parts[0][1].shape[-1]
            self.hidden[name] = torch.empty(self.rows, width, dtype=self.dtype)
        for row, state in parts:
            self.hidden[name][row[row >= 0]] = state[row >= 0]

    def write(self, name: str, writer: StoreWriter) -> None:
        """The rows of a hook point; what is written is not kept."""
        for device in self.devices:
            torch.cuda.synchronize(device)
        if name in self.coming:
            self._place(name)
        hidden = self.hidden.pop(name)
        writer.add(hidden, self.columns, self.tokens, self.contexts, self.number)
