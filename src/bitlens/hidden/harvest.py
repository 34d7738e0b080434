"""Run a language model over a corpus and keep the hidden states: a store for each hook point."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from bitlens import processes, terminal
from bitlens.errors import BitlensError, Interrupted
from bitlens.files import free_space, holds_something, prepare_output, verify_shard
from bitlens.hidden.documents import Corpus
from bitlens.hidden.hooks import HookPoint
from bitlens.hidden.models import LanguageModel
from bitlens.hidden.shards import Due, Shard
from bitlens.hidden.source import NORM_ROWS
from bitlens.hidden.split import documents_of
from bitlens.hidden.store import KIND, MANIFEST, OUTLIER_MULTIPLE, ActivationStore
from bitlens.hidden.text import ContextReader
from bitlens.hidden.writer import StoreWriter
from bitlens.memory import MemoryPlan, require
from bitlens.remote import is_remote, place
from bitlens.writing import Share

SHARD_BYTES = 1 << 26
ROW_COLUMNS_BYTES = 28  # token, document, position, context, norm, context_tokens


@dataclass(frozen=True)
class HarvestPlan:
    """What a harvest will take; None where the text's size is unknown."""

    rows: int | None
    memory: MemoryPlan
    store_bytes: int | None
    free_bytes: int | None
    """None for an address"""
    left_out: list[str]
    """files that are not read as text"""

    def __str__(self) -> str:
        from rich.filesize import decimal

        rows = "an unknown number of rows (cap it with `max_rows`)"
        stores = "stores of unknown size"
        if self.rows is not None and self.store_bytes is not None:
            rows, stores = f"about {self.rows:,} rows", f"{decimal(self.store_bytes)} of stores"
        sentence = f"{rows}; {self.memory}; disk: {stores}"
        if self.free_bytes is not None:
            sentence += f", {decimal(self.free_bytes)} free"
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
    rank: int | None = None,
    ranks: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    announce: Callable[[HarvestPlan], None] = lambda plan: None,
    stop: Callable[[], str | None] = lambda: None,
    progress: bool = True,
) -> list[ActivationStore]:
    """Harvest every hook point of `model` -> its stores: row i is the same token in all of them.

    Of several processes with the same arguments each writes every `ranks`-th shard, and the last to
    end completes the stores, which are those of a single process bit for bit; the others get no
    stores. Started again, a rank makes what it lacks.

    reader: the text; a string is a source as in `Corpus`, read in contexts of 256 tokens (fewer if
    the model reads fewer). out: the store, or with several hook points a folder of stores.
    batch_size: contexts of full length in a forward pass; of shorter ones, as many as make as many
    tokens, together with others of like length.
    max_rows: stop after so many rows. store_dtype: by default the model's. rank, ranks: of this
    process, by default RANK and WORLD_SIZE of the environment, as torchrun sets them. stop: asked
    after every batch; a name (of a signal) ends the harvest by `Interrupted`, and `resume`
    continues it. progress: show it on standard error.
    """
    _refuse_nonsense(model, batch_size, max_rows)
    share = Share() if model.split and rank is ranks is None else Share.of(rank, ranks)
    if share.ranks > 1:
        _refuse_together(share.ranks, out, overwrite)
    if isinstance(reader, str):
        length = min(256, model.longest_context() or 256)
        reader = ContextReader(Corpus((reader,)), model.tokenizer, length)
    job = _Job(model, reader, place(out), batch_size, max_rows, store_dtype or model.dtype, share)
    plan = job.plan()
    if share.rank == 0:
        announce(plan)
    require(lambda **sizes: replace(job, **sizes).memory(plan.rows), batch_size=batch_size)
    job.refuse_impossible(plan, resume)
    with contextlib.ExitStack() as stack:
        if model.split:  # the first process writes, the others only run their part of the model
            stack.enter_context(processes.together())
            if not processes.is_first():
                job.write({}, plan.rows, stop)
                return []
        stack.enter_context(share.held(job.out))
        with share.in_turn(job.out):
            writers = job.open(resume, overwrite, outlier_multiple)
        shards = job.write(writers, plan.rows, stop)
        with share.in_turn(job.out):
            return job.finish(list(writers.values()), shards)


def _refuse_nonsense(model: LanguageModel, batch_size: int, max_rows: int | None) -> None:
    for name, value in (("max_rows", max_rows), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise BitlensError(f"`{name}` must be at least 1, not {value}.")
    if not model.hooks:
        raise BitlensError(
            "There is nothing to harvest: the model was loaded without a hook point."
        )


def _refuse_together(ranks: int, out: Path | str, overwrite: bool) -> None:
    if overwrite:
        raise BitlensError(
            f"One of {ranks} processes that starts late would delete with `overwrite=True` what "
            f"the others have made; delete {out} first, and leave it out."
        )
    if is_remote(place(out)):
        raise BitlensError(
            f"Several processes cannot write {out} together, for want of locks there: harvest to a "
            "folder here, and copy it."
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
    share: Share

    @cached_property
    def folders(self) -> dict[str, Path]:
        """Of the store of each hook point."""
        names = list(self.model.widths())
        if len(names) == 1:
            return {names[0]: self.out}
        return {name: self.out / folder_name(name) for name in names}

    @property
    def marker(self) -> Path:
        """The first manifest."""
        return next(iter(self.folders.values())) / MANIFEST

    def plan(self) -> HarvestPlan:
        corpus, widths = self.reader.corpus, self.model.widths().values()
        rows = self.max_rows if corpus.streaming else self.reader.estimate_rows()
        if rows is not None and self.max_rows is not None:
            rows = min(rows, self.max_rows)
        per_row = sum(width * self.dtype.itemsize + ROW_COLUMNS_BYTES for width in widths)
        return HarvestPlan(
            rows=rows,
            memory=self.memory(rows),
            store_bytes=None if rows is None else rows * per_row,
            free_bytes=free_space(self.out),
            left_out=corpus.left_out(),
        )

    def memory(self, rows: int | None) -> MemoryPlan:
        widths, model = self.model.widths().values(), {"model": self.model.memory()}
        tokens = self.shard_tokens() if rows is None else min(rows, self.shard_tokens())
        shards = sum(2 * tokens * width * self.dtype.itemsize for width in widths)
        length = self.reader.length
        contexts = self.batch_size if rows is None else min(self.batch_size, -(-rows // length))
        batch = self.model.batch_memory(contexts, length)
        device = str(self.model.device)
        statistics = 8 * min(tokens, NORM_ROWS) * max(widths)
        main = {"shards": shards, "columns": 3 * 60 * tokens, "statistics": statistics}
        if device == "cpu":
            parts = model | main | {"batch": batch}
            return MemoryPlan("harvest", parts, there=self.model.memory())
        return MemoryPlan("harvest", main, {"batch": batch}, device)

    def refuse_impossible(self, plan: HarvestPlan, resume: bool) -> None:
        """Before a former store is replaced."""
        self.model.require_context(self.reader.length)
        # An estimate of some rows has seen them already.
        unseen = self.reader.corpus.streaming or not plan.rows
        if unseen and next(self.reader.contexts(), None) is None:
            raise BitlensError("The text gave no usable tokens: it is empty.")
        begun = resume or (self.share.ranks > 1 and self.marker.exists())
        free = math.inf if plan.free_bytes is None else plan.free_bytes
        if plan.store_bytes is not None and plan.store_bytes > free and not begun:
            raise BitlensError(
                f"The disk is too full: the stores need about {plan.store_bytes:,} bytes, "
                f"{self.out} has {free:,} free; lower `max_rows` or choose another disk."
            )

    def open(
        self, resume: bool, overwrite: bool, outlier_multiple: float
    ) -> dict[str, StoreWriter]:
        """A writer for each hook point; of several ranks all but the first find a store begun."""
        begun = resume or (self.share.ranks > 1 and self.begun())
        prepare_output(self.out, begun, overwrite, str(self.marker.relative_to(self.out)), KIND)
        writers = {}
        for hook in self.model.hooks:
            if not is_remote(self.out):
                self.folders[hook.name].mkdir(exist_ok=True)
            about = {
                **origin(self.model, self.reader, hook, self.dtype),
                "model_dtype": str(self.model.dtype).removeprefix("torch."),
                "max_rows": self.max_rows,
                "batch_size": self.batch_size,
            }
            writer = StoreWriter(self.folders[hook.name], about, outlier_multiple)
            for number, shard in writer.shards.items() if not writer.complete else ():
                if self.share.has(number):
                    verify_shard(writer.path / shard["file"], shard["sha256"])
            writers[hook.name] = writer
        return writers

    def begun(self) -> bool:
        """Whether ranks go on with what is there: a store, or what one that was killed before its
        first manifest left."""
        left = self.out.iterdir() if self.out.is_dir() else ()
        ours = self.folders.values()
        return self.marker.exists() or all(p in ours and not holds_something(p) for p in left)

    def finish(self, writers: list[StoreWriter], shards: int) -> list[ActivationStore]:
        """The stores; none as long as other ranks lack some of the `shards`."""
        for writer in writers:
            writer.look()
        missing = [i for i in range(shards) if not all(i in writer.shards for writer in writers)]
        if not missing:
            return [writer.finish() for writer in writers]
        whose = sorted({i % self.share.ranks for i in missing})
        some = f"{', '.join(map(str, whose[:5]))}{', ...' if len(whose) > 5 else ''}"
        those = f"rank{'s' if len(whose) > 1 else ''} {some}"
        terminal.say(
            f"{self.out}: rank {self.share.rank} is done, {len(missing):,} of {shards:,} shards "
            f"are still to come, of {those}. The last rank to end completes the store; one that "
            "died is started again by the same command."
        )
        return []

    def done(self, writers: list[StoreWriter]) -> dict[int, dict[str, Any]] | None:
        """What is known of the shards that all hook points have; None if the stores are complete.
        Processes that share a model take the first one's word for it."""
        known = None
        if writers and not all(writer.complete for writer in writers):
            first, *others = (writer.shards for writer in writers)
            known = {i: shard for i, shard in first.items() if all(i in each for each in others)}
        if not self.model.split:
            return known
        told = processes.from_first(None if known is None else list(known.items()))
        return told if told is None else dict(told)

    def write(
        self, writers: dict[str, StoreWriter], planned: int | None, stop: Callable[[], str | None]
    ) -> int:
        """Write the shards that are not there yet -> how many there are, those of other ranks, too.
        While the model works on one, the text of the next is tokenized and the one before is
        written."""
        done = self.done(list(writers.values()))
        if done is None:
            return 0
        due = Due(self.reader, self.share, done, self.shard_tokens(), self.max_rows)
        rows = before = sum(shard["rows"] for i, shard in done.items() if self.share.has(i))
        planned = None if planned is None else planned // self.share.ranks
        begun, runs = time.perf_counter(), iter(due)
        states_of = self.model.hidden_states
        if self.model.split:  # its layers exchange what they compute
            states_of = processes.watched(states_of)
        batch_tokens = self.batch_size * self.reader.length
        with ThreadPoolExecutor(1) as ahead, ThreadPoolExecutor(len(writers) or 1) as behind:
            writing: list[Future[None]] = []
            run = next(runs, None)  # skips what is done; in this thread, which Ctrl-C ends
            while run is not None:
                coming = ahead.submit(next, runs, None)
                number, contexts = run
                shard = Shard(number, contexts, self.dtype, self.reader.length)
                for chosen in contexts.by_length(batch_tokens):
                    batch = contexts.of(chosen)
                    states = states_of(batch.tokens, batch.mask)
                    rows += shard.add(chosen, states)
                    speed = (rows - before) / (time.perf_counter() - begun)
                    terminal.at(rows, f"{speed:,.0f} rows/s", planned)
                    signal = processes.agreed(stop()) if self.model.split else stop()
                    if rows != self.max_rows and signal:
                        raise Interrupted(
                            f"Stopped by {signal} after {rows:,} rows: whole shards are kept; "
                            "continue with `resume=True`."
                        )
                for written in writing:
                    written.result()  # raises what went wrong there
                writing = [behind.submit(shard.write, *each) for each in writers.items()]
                run = coming.result()
            for written in writing:
                written.result()
        return due.shards

    def shard_tokens(self) -> int:
        """How many tokens the contexts of a shard have at least: those of whole batches."""
        row_bytes = max(self.model.widths().values()) * self.dtype.itemsize
        batch_tokens = self.batch_size * self.reader.length
        return max(1, SHARD_BYTES // (batch_tokens * row_bytes)) * batch_tokens
