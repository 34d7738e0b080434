"""Run a language model over a corpus and keep the hidden states: a store for each hook point."""

from __future__ import annotations

import shutil
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from bitlens import terminal
from bitlens.errors import BitlensError, Interrupted
from bitlens.files import prepare_output, verify_shard
from bitlens.hidden.documents import Corpus
from bitlens.hidden.hooks import HookPoint
from bitlens.hidden.models import LanguageModel
from bitlens.hidden.split import documents_of
from bitlens.hidden.store import KIND, MANIFEST, OUTLIER_MULTIPLE, ActivationStore
from bitlens.hidden.text import ContextReader, Contexts
from bitlens.hidden.writer import StoreWriter

SHARD_BYTES = 1 << 26
ROW_COLUMNS_BYTES = 28  # token, document, position, context, norm, context_tokens


@dataclass(frozen=True)
class HarvestPlan:
    """What a harvest will take; None where the text's size is unknown."""

    rows: int | None
    model_bytes: int
    batch_bytes: int
    store_bytes: int | None
    free_bytes: int
    left_out: list[str]
    """files that are not read as text"""

    def __str__(self) -> str:
        from rich.filesize import decimal

        rows, stores = (
            "an unknown number of rows (cap it with `max_rows`)",
            "stores of unknown size",
        )
        if self.rows is not None and self.store_bytes is not None:
            rows, stores = f"about {self.rows:,} rows", f"{decimal(self.store_bytes)} of stores"
        sentence = (
            f"{rows}; memory: {decimal(self.model_bytes)} model + {decimal(self.batch_bytes)} "
            f"batch and shard buffers; disk: {stores}, {decimal(self.free_bytes)} free"
        )
        if self.left_out:
            more = f" and {len(self.left_out) - 5:,} more" if len(self.left_out) > 5 else ""
            sentence += f"; not read as text: {', '.join(self.left_out[:5])}{more}"
        return sentence


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
    announce: Callable[[HarvestPlan], None] = lambda plan: None,
    stop: Callable[[], str | None] = lambda: None,
    progress: bool = True,
) -> list[ActivationStore]:
    """Harvest every hook point of `model` -> its stores: row i is the same token in all of them.

    reader: the text; a string is a source as in `Corpus`, read in contexts of 256 tokens (fewer if
    the model reads fewer). out: the store, or with several hook points a folder of stores.
    batch_size: contexts of full length in a forward pass; of shorter ones, as many as make as many
    tokens, together with others of like length.
    max_rows: stop after so many rows. store_dtype: by default the model's. stop: asked after every
    batch; a name (of a signal) ends the harvest by `Interrupted`, and `resume` continues it.
    progress: show it on standard error.
    """
    _refuse_nonsense(model, batch_size, max_rows)
    if isinstance(reader, str):
        length = min(256, model.longest_context() or 256)
        reader = ContextReader(Corpus((reader,)), model.tokenizer, length)
    job = _Job(model, reader, Path(out), batch_size, max_rows, store_dtype or model.dtype)
    plan = job.plan()
    announce(plan)
    job.refuse_impossible(plan, resume)
    names = list(model.widths())
    folders = {name: job.out / folder_name(name) for name in names}
    if len(names) == 1:
        folders = {names[0]: job.out}
    marker = (next(iter(folders.values())) / MANIFEST).relative_to(job.out)
    prepare_output(job.out, resume, overwrite, str(marker), KIND)
    writers = {}
    for hook in model.hooks:
        folders[hook.name].mkdir(exist_ok=True)
        settings = {"max_rows": max_rows, "batch_size": batch_size}
        about = origin(model, reader, hook, job.dtype) | settings
        writers[hook.name] = StoreWriter(folders[hook.name], about, outlier_multiple)
    if all(writer.complete for writer in writers.values()):
        return [ActivationStore(folder) for folder in folders.values()]
    done = min(len(writer.shards) for writer in writers.values())
    for writer in writers.values():
        writer.shards = writer.shards[:done]  # a shard that not all of them have is written again
        for shard in writer.shards:
            verify_shard(writer.path / shard["file"], shard["sha256"])
    job.write(writers, plan.rows, stop)
    return [writer.finish() for writer in writers.values()]


def _refuse_nonsense(model: LanguageModel, batch_size: int, max_rows: int | None) -> None:
    for name, value in (("max_rows", max_rows), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise BitlensError(f"`{name}` must be at least 1, not {value}.")
    if not model.hooks:
        raise BitlensError(
            "There is nothing to harvest: the model was loaded without a hook point."
        )


def folder_name(hook: str) -> str:
    """A hook point's name as a folder."""
    return hook.replace(":", "-").replace("/", "-")


def origin(
    model: LanguageModel, reader: ContextReader, hook: HookPoint, dtype: torch.dtype
) -> dict[str, Any]:
    """What manifests and checkpoints say of the origin of hidden states."""
    return {
        **model.record,
        "hook": hook.names(),
        "d_in": model.widths()[hook.name],
        "dtype": str(dtype).removeprefix("torch."),
        "corpus": reader.corpus.fingerprint(),
        "documents_of": documents_of(reader.corpus),
        "text": reader.corpus.origin(),
        "context_length": reader.length,
        "packed": reader.packed,
        "test_fraction": reader.test_fraction,
        "prepend_bos": reader.prepends_bos,
    }


@dataclass(frozen=True)
class _Job:
    """What is harvested, and where to."""

    model: LanguageModel
    reader: ContextReader
    out: Path
    batch_size: int
    max_rows: int | None
    dtype: torch.dtype

    def plan(self) -> HarvestPlan:
        corpus, widths = self.reader.corpus, self.model.widths().values()
        rows = self.max_rows if corpus.streaming else self.reader.estimate_rows()
        if rows is not None and self.max_rows is not None:
            rows = min(rows, self.max_rows)
        per_row = sum(width * self.dtype.itemsize + ROW_COLUMNS_BYTES for width in widths)
        existing = next(p for p in (self.out, *self.out.absolute().parents) if p.exists())
        batch = self.batch_size * self.reader.length * sum(widths) * self.model.dtype.itemsize
        return HarvestPlan(
            rows=rows,
            model_bytes=self.model.memory(),
            batch_bytes=batch + 3 * SHARD_BYTES * len(widths),
            store_bytes=None if rows is None else rows * per_row,
            free_bytes=shutil.disk_usage(existing).free,
            left_out=corpus.left_out(),
        )

    def refuse_impossible(self, plan: HarvestPlan, resume: bool) -> None:
        """Before a former store is replaced."""
        self.model.require_context(self.reader.length)
        # An estimate of some rows has seen them already.
        unseen = self.reader.corpus.streaming or not plan.rows
        if unseen and next(self.reader.contexts(), None) is None:
            raise BitlensError("The text gave no usable tokens: it is empty.")
        if plan.store_bytes is not None and plan.store_bytes > plan.free_bytes and not resume:
            raise BitlensError(
                f"The disk is too full: the stores need about {plan.store_bytes:,} bytes, "
                f"{self.out} has {plan.free_bytes:,} free; lower `max_rows` or choose another disk."
            )

    def write(
        self, writers: dict[str, StoreWriter], planned: int | None, stop: Callable[[], str | None]
    ) -> None:
        """Write the shards that are not there yet. While the model works on one, the text of the
        next is tokenized and the one before is written."""
        first = next(iter(writers.values()))
        begun, before = time.perf_counter(), first.rows
        rows = before  # `first` grows in another thread
        left = None if self.max_rows is None else self.max_rows - rows
        # Batches are of one shard, so that a resumed harvest has the same ones.
        runs = self.reader.runs(self.shard_tokens(), first.contexts, left)
        batch_tokens = self.batch_size * self.reader.length
        with ThreadPoolExecutor(1) as ahead, ThreadPoolExecutor(len(writers)) as behind:
            writing: list[Future[None]] = []
            contexts = next(runs, None)  # skips what is done; in this thread, which Ctrl-C ends
            while contexts is not None:
                coming = ahead.submit(next, runs, None)
                left = None if self.max_rows is None else self.max_rows - rows
                shard = _Shard(contexts, left, self.dtype, self.reader.length)
                for chosen in contexts.by_length(batch_tokens):
                    batch = contexts.of(chosen)
                    states = self.model.hidden_states(batch.tokens, batch.mask)
                    rows += shard.add(chosen, states)
                    speed = (rows - before) / (time.perf_counter() - begun)
                    terminal.at(rows, f"{speed:,.0f} rows/s", planned)
                    if rows != self.max_rows and (signal := stop()):
                        raise Interrupted(
                            f"Stopped by {signal} after {rows:,} rows: whole shards are kept; "
                            "continue with `resume=True`."
                        )
                for written in writing:
                    written.result()  # raises what went wrong there
                writing = [behind.submit(shard.write, *each) for each in writers.items()]
                contexts = coming.result()
            for written in writing:
                written.result()

    def shard_tokens(self) -> int:
        """How many tokens the contexts of a shard have at least: those of whole batches."""
        row_bytes = max(self.model.widths().values()) * self.dtype.itemsize
        batch_tokens = self.batch_size * self.reader.length
        return max(1, SHARD_BYTES // (batch_tokens * row_bytes)) * batch_tokens


class _Shard:
    """The rows of consecutive contexts, in the order of the text, whatever that of the batches."""

    def __init__(
        self, contexts: Contexts, limit: int | None, dtype: torch.dtype, length: int
    ) -> None:
        """limit: number of rows at most. length: of the stored contexts"""
        self.dtype = dtype
        context, position = (index[:limit] for index in contexts.keep.nonzero(as_tuple=True))
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
        self.hidden: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        self.devices: set[torch.device] = set()

    def add(self, chosen: Tensor, states: dict[str, Tensor]) -> int:
        """states: hidden states of the chosen contexts -> number of rows taken"""
        for name, state in states.items():
            row = self.row[chosen, : state.shape[1]]
            if state.is_cuda:  # the GPU goes on meanwhile
                self.devices.add(state.device)
            state = state.to(self.dtype).to("cpu", non_blocking=state.is_cuda)
            self.hidden[name].append((row, state))
        return int((self.row[chosen] >= 0).sum())

    def write(self, name: str, writer: StoreWriter) -> None:
        """The rows of a hook point; what is written is not kept."""
        for device in self.devices:
            torch.cuda.synchronize(device)
        parts = self.hidden.pop(name)
        hidden = torch.empty(self.rows, parts[0][1].shape[-1], dtype=self.dtype)
        for row, state in parts:
            hidden[row[row >= 0]] = state[row >= 0]
        writer.add(hidden, self.columns, self.tokens, done=self.contexts)
