"""A study is a list of cells: settings measured one by one, kept on disk, and put in a table."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.csv
import pyarrow.parquet
import torch

from bitlens import terminal
from bitlens.errors import BitlensError, Interrupted
from bitlens.files import (
    finite,
    holds_something,
    prepare_output,
    read_manifest,
    replacing,
    tidy,
    write_json,
)
from bitlens.studies.options import RunOptions
from bitlens.training.signals import stop_on_signals
from bitlens.version import __version__

MANIFEST = "study.json"
SCHEMA = 1
MEANING = 3  # raised when a number comes to mean something else, so that no folder mixes both
Cell = dict[str, Any]
Row = dict[str, Any]
Measure = Callable[[Cell], Row]


@dataclass
class Study(RunOptions):
    """A study that is run: its folder, and what was measured in it."""

    report: Callable[[int, int, Row], None] = lambda done, total, row: None
    """called after every cell: cells that are done, all cells, and the row"""
    say: Callable[[str], None] = lambda stage: None
    """told what the study does next"""
    planned: int = 0
    """cells of all calls of `measure`, where they are several"""
    done: int = 0
    """cells of the calls of `measure` that are over"""

    def open(self, name: str, settings: Mapping[str, Any]) -> None:
        """Make the folder, or go on in it; `settings` are written down for its reader."""
        fresh = not holds_something(self.out)
        prepare_output(self.out, self.resume, self.overwrite, marker=MANIFEST)
        tidy(self.out)
        manifest = self.out / MANIFEST
        if self.resume and not fresh:
            before = read_manifest(manifest, SCHEMA, "a study").get("study")
            if before != name:
                raise BitlensError(
                    f"{self.out} holds the study '{before}', not '{name}'; choose another folder."
                )
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in settings.items()}
        about = {"schema": SCHEMA, "study": name, "bitlens_version": __version__}
        write_json(manifest, {**about, "settings": settings})

    def measure(
        self,
        cells: Sequence[Cell],
        measure: Callable[..., Row],
        same: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> list[Row]:
        """Measure every cell that is not measured yet -> the rows of all, each with its settings.

        measure: a function of a module (workers import it), called with a cell and `more`. same:
        what else the numbers depend on. A cell that cannot be measured gives a row with the
        sentence under `error`, is tried again next time, and does not stop the others.
        """
        folder = self.out / "cells"
        folder.mkdir(exist_ok=True)
        version = [__version__, MEANING]
        settings = ({"cell": cell, "same": same or {}, "version": version} for cell in cells)
        texts = (json.dumps(each, sort_keys=True).encode() for each in settings)
        files = [folder / f"{hashlib.sha256(text).hexdigest()[:24]}.json" for text in texts]
        rows = {i: row for i, file in enumerate(files) if (row := _kept(file)) is not None}
        missing = [(i, cell) for i, cell in enumerate(cells) if i not in rows]
        # a cell's own Interrupted is suppressed: the sentence below is that of them all
        waiting = "Stopping once what is being measured is done; a second signal stops now."
        with stop_on_signals(lambda: self.say(waiting)) as stop, contextlib.suppress(Interrupted):
            work = functools.partial(measure, **more)
            for i, row in _measured(missing, work, self.workers, lambda: bool(stop.signal)):
                rows[i] = finite({**cells[i], **row})  # as it will be read again
                if "error" not in row:
                    write_json(files[i], rows[i])
                self.report(self.done + len(rows), max(self.planned, len(cells)), rows[i])
        if len(rows) < len(cells):
            raise Interrupted(
                f"Stopped after {len(rows)} of {len(cells)} cells: they are kept in {self.out}; "
                "continue with `resume=True`."
            )
        self.done += len(cells)
        return [rows[i] for i in range(len(cells))]

    def finish(self, rows: list[Row], draw: Callable[[list[Row], Path], None]) -> list[Row]:
        """Write the table, and let `draw` make figures of what was measured -> all rows. Rows that
        lack entropies, and say why under `left_out`, are warned of."""
        write_table(self.out / "table", rows)
        if left_out := [row for row in rows if row.get("left_out")]:
            worst = max(row["fvu"] for row in left_out)
            self.say(
                f"{len(left_out)} of {len(rows)} rows are without entropies, and `left_out` says "
                f"why: their bits leave up to {worst:.2g} of the variance of held-out rows "
                "unexplained; more rows, steps or latents may help."
            )
        if measured := [row for row in rows if "error" not in row]:
            draw(measured, self.out)
        return rows


def _measured(
    cells: list[tuple[int, Cell]], measure: Measure, workers: int, stopped: Callable[[], bool]
) -> Iterator[tuple[int, Row]]:
    if workers < 2 or len(cells) < 2:
        for i, cell in cells:
            if stopped():
                return
            yield i, _guarded(measure, cell)
        return
    waiting, running, interrupted = iter(cells), dict[Future[Row], int](), False
    context = multiprocessing.get_context("spawn")  # a fork of a process that has run OpenMP hangs
    with ProcessPoolExecutor(min(workers, len(cells)), context, _start_worker) as pool:
        while True:
            # no more than the workers have in hand: what the pool has taken cannot be cancelled
            if not (interrupted or stopped()):
                for i, cell in itertools.islice(waiting, workers - len(running)):
                    running[pool.submit(_guarded, measure, cell)] = i
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                i = running.pop(future)
                try:
                    yield i, future.result()
                except Interrupted:
                    interrupted = True
                except BrokenProcessPool as broken:
                    raise BitlensError(
                        "A worker was killed, perhaps for want of memory: go on with `resume=True` "
                        "and fewer `workers`."
                    ) from broken


def _kept(file: Path) -> Row | None:
    """A cell's row; None of one that is not measured yet, or whose file is damaged."""
    with contextlib.suppress(FileNotFoundError, ValueError, RecursionError):
        row = json.loads(file.read_text("utf-8"))
        return row if isinstance(row, dict) else None
    return None


def _end_with_parent() -> None:
    """A worker whose study was killed would wait for more work for ever."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def _start_worker() -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    terminal.hide()
    # Ctrl-C goes to all processes; a training in hand still hears it
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _guarded(measure: Measure, cell: Cell) -> Row:
    try:
        return measure(cell)
    except Interrupted:
        raise
    except BitlensError as error:
        return {"error": str(error)}


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """Write `path`.parquet and .csv, with every name that occurs as a column, but for lists."""
    names = dict.fromkeys(n for row in rows for n, v in row.items() if not isinstance(v, list))
    table = pyarrow.table({name: [row.get(name) for row in rows] for name in names})
    with replacing(path.with_suffix(".parquet")) as temporary:
        pyarrow.parquet.write_table(table, temporary)
    with replacing(path.with_suffix(".csv")) as temporary:
        pyarrow.csv.write_csv(table, temporary)
