"""Run a language model over a corpus and keep the hidden states: one store for each hook point."""

from __future__ import annotations

import queue
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitlens import terminal
from bitlens.errors import BitlensError, Interrupted
from bitlens.files import prepare_output
from bitlens.hidden.documents import Corpus
from bitlens.hidden.models import LanguageModel
from bitlens.hidden.split import documents_of
from bitlens.hidden.store import MANIFEST, OUTLIER_MULTIPLE, ActivationStore
from bitlens.hidden.text import ContextReader, Contexts
from bitlens.hidden.writer import StoreWriter

SHARD_BYTES = 1 << 26
ROW_COLUMNS_BYTES = 28  # token, document, position, context, norm, context_tokens


@dataclass(frozen=True)
class Plan:
    """What a harvest will take, known before it starts."""

    rows: int | None
    model_bytes: int
    batch_bytes: int
    store_bytes: int | None
    free_bytes: int
    left_out: list[str]
    """files in the folders of text that are not read"""

    def __str__(self) -> str:
        rows = (
            f"about {self.rows:,} rows"
            if self.rows is not None
            else "an unknown number of rows (cap it with `max_rows`)"
        )
        store = (
            f"{_size(self.store_bytes)} of stores"
            if self.store_bytes is not None
            else "stores of unknown size"
        )
        return (
            f"{rows}; memory: {_size(self.model_bytes)} model + {_size(self.batch_bytes)} batch and shard buffers; "
            f"disk: {store}, {_size(self.free_bytes)} free{_left_out(self.left_out)}"
        )


@terminal.shown("harvest")
def harvest(
    model: LanguageModel,
    reader: ContextReader | str,
    out: Path | str,
    *,
    batch_size: int = 16,
    max_rows: int | None = None,
    store_dtype: torch.dtype | None = None,
    outlier_multiple: float = OUTLIER_MULTIPLE,
    resume: bool = False,
    overwrite: bool = False,
    announce: Callable[[Plan], None] = lambda plan: None,
    stop: Callable[[], str | None] = lambda: None,
    progress: bool = True,
) -> list[ActivationStore]:
    """Harvest every hook point of `model` -> its stores, which share rows: row i is the same token in all of them.

    reader: the text; a string is a source as in `Corpus`, read in contexts of 256 tokens (fewer if the model
    reads fewer).
    out: the store, or with several hook points a folder with a store for each. max_rows: stop after so many rows.
    stop: asked after every batch; a name (of a signal) ends the harvest, which `resume` then continues.
    progress: show it on standard error.
    """
    out = Path(out)
    if max_rows is not None and max_rows < 1:
        raise BitlensError(f"`max_rows` must be at least 1, not {max_rows}.")
    if not model.hooks:
        raise BitlensError(
            "There is nothing to harvest: the language model was loaded without a hook point."
        )
    if batch_size < 1:
        raise BitlensError(f"`batch_size` must be at least 1, not {batch_size}.")
    if isinstance(reader, str):
        reader = ContextReader(
            Corpus((reader,)), model.tokenizer, min(256, model.longest_context() or 256)
        )
    widths = model.widths()
    dtype = store_dtype or model.dtype
    folders = {name: out if len(widths) == 1 else out / folder_name(name) for name in widths}
    marker = MANIFEST if len(widths) == 1 else f"{folder_name(next(iter(widths)))}/{MANIFEST}"
    plan = make_plan(model, reader, out, widths, dtype, batch_size, max_rows)
    announce(plan)
    model.require_context(reader.length)
    if next(reader.contexts(), None) is None:  # the text is tried before a former store is replaced
        raise BitlensError("The text gave no usable tokens: it is empty.")
    if plan.store_bytes is not None and plan.store_bytes > plan.free_bytes and not resume:
        raise BitlensError(
            f"The disk is too full: the stores need about {_size(plan.store_bytes)}, {out} has {_size(plan.free_bytes)} free; "
            "lower `max_rows` or choose another disk."
        )
    prepare_output(out, resume, overwrite, marker)
    shard_contexts = _shard_contexts(reader.length, max(widths.values()), dtype, batch_size)
    writers = {}
    for hook in model.hooks:
        folders[hook.name].mkdir(exist_ok=True)
        about = {
            **model.record, "hook": hook.names(), "d_in": widths[hook.name],
            "dtype": str(dtype).removeprefix("torch."), "corpus": reader.corpus.fingerprint(),
            "documents_of": documents_of(reader.corpus), "text": reader.corpus.origin(),
            "context_length": reader.length, "packed": reader.packed, "test_fraction": reader.test_fraction,
            "prepend_bos": reader.prepends_bos, "max_rows": max_rows, "batch_size": batch_size,
        }  # fmt: skip
        writers[hook.name] = StoreWriter(folders[hook.name], about, outlier_multiple)
    if all(writer.complete for writer in writers.values()):
        return [ActivationStore(folder) for folder in folders.values()]
    done = min(len(writer.shards) for writer in writers.values())
    for writer in writers.values():
        writer.keep(done)
    first = next(iter(writers.values()))
    begun, rows_before = time.perf_counter(), first.rows
    rows = rows_before
    shard = _Shard(dtype, reader.length)
    with _BackgroundWriter(writers) as background:
        batches = reader.batches(batch_size, skip=first.contexts)
        for batch in batches if max_rows is None or rows < max_rows else ():
            left = None if max_rows is None else max_rows - rows
            rows += shard.add(batch, model.hidden_states(batch.tokens, batch.mask), left)
            speed = (rows - rows_before) / (time.perf_counter() - begun)
            terminal.at(rows, f"{speed:,.0f} rows/s", plan.rows)
            if shard.contexts >= shard_contexts:
                background.put(shard)
                shard = _Shard(dtype, reader.length)
            if max_rows is not None and rows >= max_rows:
                break
            if name := stop():
                raise Interrupted(
                    f"Stopped by {name} after {rows:,} rows: whole shards are kept; continue with `resume=True`."
                )
        if shard.contexts:
            background.put(shard)
    return [writer.finish() for writer in writers.values()]


def folder_name(hook: str) -> str:
    """A hook point's name as a folder."""
    return hook.replace(":", "-").replace("/", "-")


def make_plan(
    model: LanguageModel, reader: ContextReader, out: Path, widths: dict[str, int], dtype: torch.dtype,
    batch_size: int, max_rows: int | None,
) -> Plan:  # fmt: skip
    """The size of a harvest: rows, memory and disk."""
    rows = max_rows if reader.corpus.streaming else reader.estimate_rows()
    if rows is not None and max_rows is not None:
        rows = min(rows, max_rows)
    per_row = sum(width * dtype.itemsize + ROW_COLUMNS_BYTES for width in widths.values())
    existing = next(p for p in (out, *out.absolute().parents) if p.exists())
    batch = batch_size * reader.length * sum(widths.values()) * model.dtype.itemsize
    return Plan(
        rows=rows, model_bytes=model.memory(), batch_bytes=batch + 3 * SHARD_BYTES * len(widths),
        store_bytes=None if rows is None else rows * per_row, free_bytes=shutil.disk_usage(existing).free,
        left_out=reader.corpus.left_out(),
    )  # fmt: skip


class _Shard:
    """Rows of consecutive contexts, gathered until there are enough for a shard."""

    def __init__(self, dtype: torch.dtype, length: int) -> None:
        self.dtype, self.length, self.contexts = dtype, length, 0
        self.hidden: dict[str, list[Tensor]] = {}
        self.columns: dict[str, list[Tensor]] = {
            k: [] for k in ("token", "document", "position", "context")
        }
        self.tokens: list[Tensor] = []

    def add(self, batch: Contexts, states: dict[str, Tensor], limit: int | None) -> int:
        """-> number of rows taken, at most `limit`"""
        context, position = batch.keep.nonzero(as_tuple=True)
        context, position = context[:limit], position[:limit]
        for name, state in states.items():
            where = context.to(state.device), position.to(state.device)
            self.hidden.setdefault(name, []).append(state[where].to(self.dtype).cpu())
        self.columns["token"].append(batch.tokens[context, position])
        self.columns["document"].append(batch.document[context, position])
        self.columns["position"].append(position)
        self.columns["context"].append(context + self.contexts)
        tokens = batch.tokens.masked_fill(~batch.mask, -1)
        self.tokens.append(
            torch.nn.functional.pad(tokens, (0, self.length - tokens.shape[1]), value=-1)
        )
        self.contexts += len(tokens)
        return len(context)


class _BackgroundWriter:
    """Writes shards from a thread of its own, so that the model need not wait for the disk."""

    def __init__(self, writers: dict[str, StoreWriter]) -> None:
        self.writers = writers
        self.error: BaseException | None = None
        self.queue: queue.Queue[_Shard | None] = queue.Queue(1)
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while (shard := self.queue.get()) is not None:
            if self.error is None:
                try:
                    columns = {name: torch.cat(parts) for name, parts in shard.columns.items()}
                    for name, writer in self.writers.items():
                        hidden = torch.cat(shard.hidden.pop(name))
                        writer.add(hidden, columns, torch.cat(shard.tokens), done=shard.contexts)
                except BaseException as error:  # raised again in the main thread
                    self.error = error

    def put(self, shard: _Shard) -> None:
        self.queue.put(shard)
        self._raise()

    def _raise(self) -> None:
        if self.error is not None:
            raise self.error

    def __enter__(self) -> _BackgroundWriter:
        self.thread.start()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.queue.put(None)
        self.thread.join()
        if error is None:
            self._raise()


def _shard_contexts(length: int, width: int, dtype: torch.dtype, batch_size: int) -> int:
    """Contexts of a shard: whole batches, so that a resumed harvest sees the same batches."""
    batches = SHARD_BYTES // (batch_size * length * width * dtype.itemsize)
    return max(1, batches) * batch_size


def _left_out(names: list[str]) -> str:
    more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
    return f"; not read as text: {', '.join(names[:5])}{more}" if names else ""


def _size(n: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if n < 1024:
            return f"{n:.0f} {unit}" if n >= 10 or unit == "bytes" else f"{n:.1f} {unit}"
        n /= 1024
    return f"{n:.1f} TiB"


def iterate_rows(
    model: LanguageModel, batches: Iterator[Contexts]
) -> Iterator[tuple[Tensor, Tensor]]:
    """For a model with one hook point: (hidden states `[rows, d]`, their documents) of every batch of contexts."""
    (hook,) = model.hooks
    for batch in batches:
        context, position = batch.keep.nonzero(as_tuple=True)
        state = model.hidden_states(batch.tokens, batch.mask)[hook.name]
        yield (
            state[context.to(state.device), position.to(state.device)].cpu(),
            batch.document[context, position],
        )
