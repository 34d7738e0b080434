"""A study is a list of cells: settings that are measured one by one, kept on disk as they are done, and end in a table."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch

from bitlens import terminal
from bitlens.errors import BitlensError, Interrupted
from bitlens.files import finite, prepare_output, read_manifest, replacing, write_json
from bitlens.training.signals import stop_on_signals
from bitlens.version import __version__

MANIFEST = "study.json"
SCHEMA = 1
MEANING = (
    2  # of the numbers: raised when one comes to mean something else, so that no folder mixes both
)
Cell = Mapping[str, Any]
Row = dict[str, Any]
Report = Callable[[int, int, Row], None]


def open_study(
    out: Path, name: str, settings: Mapping[str, Any], resume: bool, overwrite: bool
) -> None:
    """Make the folder of a study, or go on in one of the same name.

    settings: what holds for all cells, for the reader of the folder. A resumed study may have other settings and more
    cells: what was measured under the same settings is not measured again.
    """
    fresh = not out.is_dir() or not any(out.iterdir())
    prepare_output(out, resume, overwrite, marker=MANIFEST)
    manifest = out / MANIFEST
    if resume and not fresh:
        before = read_manifest(manifest, SCHEMA, "a study").get("study")
        if before != name:
            raise BitlensError(
                f"{out} holds the study '{before}', not '{name}'; choose another folder."
            )
    about = {
        "schema": SCHEMA,
        "study": name,
        "bitlens_version": __version__,
        "settings": dict(settings),
    }
    write_json(manifest, about)


def measure_cells(
    out: Path,
    cells: Sequence[Cell],
    measure: Callable[[Cell], Row],
    *,
    same: Mapping[str, Any] | None = None,
    workers: int = 1,
    report: Report = lambda done, total, row: None,
) -> list[Row]:
    """Measure every cell that is not measured yet, and return the rows of all in their order, each with its cell's settings.

    measure: a function of a module (workers import it), cell -> numbers. same: what else the numbers depend on; a cell is
    only taken as measured if it was under the same. workers: processes, each of one thread where they are several. A cell
    that cannot be measured gives a row with the sentence under `error`, is not kept, and does not stop the others.
    report: called with the cells done, the number of all, and the row.
    """
    folder = out / "cells"
    folder.mkdir(exist_ok=True)
    places = [
        folder
        / f"{_key({'cell': dict(cell), 'same': dict(same or {}), 'version': [__version__, MEANING]})}.json"
        for cell in cells
    ]
    rows: dict[int, Row] = {}
    missing = []
    for i, place in enumerate(places):
        if place.exists():
            rows[i] = json.loads(place.read_text(encoding="utf-8"))
        else:
            missing.append(i)
    with (
        stop_on_signals() as stop,
        contextlib.suppress(Interrupted),
    ):  # of a cell: said below for all
        for i, row in _measured(
            [(i, cells[i]) for i in missing], measure, workers, lambda: bool(stop.signal)
        ):
            rows[i] = finite({**cells[i], **row})  # as it will be read again
            if "error" not in row:
                write_json(places[i], rows[i])
            report(len(rows), len(cells), rows[i])
    if len(rows) < len(cells):
        raise Interrupted(
            f"Stopped after {len(rows)} of {len(cells)} cells: they are kept in {out}; continue with `resume=True`."
        )
    return [rows[i] for i in range(len(cells))]


def _measured(
    cells: list[tuple[int, Cell]],
    measure: Callable[[Cell], Row],
    workers: int,
    stopped: Callable[[], bool],
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
            while (
                len(running) < workers
                and not (interrupted or stopped())
                and (following := next(waiting, None)) is not None
            ):
                running[pool.submit(_guarded, measure, following[1])] = following[0]
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                cell = running.pop(future)
                try:
                    yield cell, future.result()
                except Interrupted:
                    interrupted = True
                except BrokenProcessPool as broken:
                    raise BitlensError(
                        "A worker was killed, perhaps for want of memory: go on with `resume=True` and fewer `workers`."
                    ) from broken


def _start_worker() -> None:
    torch.set_num_threads(1)
    terminal.hide()
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C goes to all processes; a training in hand still hears it


def _guarded(measure: Callable[[Cell], Row], cell: Cell) -> Row:
    try:
        return measure(cell)
    except Interrupted:
        raise
    except BitlensError as error:
        return {"error": str(error)}


def _key(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:24]


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """Write rows as `path`.parquet and `path`.csv, with every name that occurs as a column."""
    arrow, parquet, csv = (library(name) for name in ("pyarrow", "pyarrow.parquet", "pyarrow.csv"))
    names = dict.fromkeys(name for row in rows for name in row)
    table = arrow.table({name: [row.get(name) for row in rows] for name in names})
    with replacing(path.with_suffix(".parquet")) as temporary:
        parquet.write_table(table, temporary)
    with replacing(path.with_suffix(".csv")) as temporary:
        csv.write_csv(table, temporary)


def library(name: str) -> Any:
    """A module for tables or figures, imported when a study first needs it."""
    return importlib.import_module(name)
