"""The cells of a study: none is measured twice or lost, whatever stops it; one table of all."""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import threading
import types
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow.csv
import pyarrow.parquet
import pytest

from bitlens import cli
from bitlens.errors import BitlensError, Interrupted
from bitlens.studies import registry
from bitlens.studies.cells import Study, write_table
from bitlens.studies.figures import COLOURS, Panel, draw_panels

CELLS = [{"layer": f"layers.{i}", "position": i} for i in range(6)]


def measure(log, cell):
    """Leaves a line in `log` for each time it is called; position 3 cannot be measured."""
    with Path(log).open("a") as file:
        file.write(f"{cell['position']}\n")
    if cell["position"] == 3:
        raise BitlensError("Position 3 has no rows; leave it out.")
    return {"bits": cell["position"] / 3, "process": None}


def kept(out):
    return len(list((out / "cells").glob("*.json")))


def calls(log):
    return [int(line) for line in log.read_text().split()]


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "study"
    Study(folder).open("test", {"steps": 3})
    return folder


@pytest.fixture
def log(tmp_path):
    return tmp_path / "calls"


# --- cells


def test_rows_are_the_cells_with_their_numbers_in_order_and_each_is_reported(out, log):
    told = []
    study = Study(out, report=lambda *told_now: told.append(told_now))
    rows = study.measure(CELLS, functools.partial(measure, log))
    assert [{k: row[k] for k in ("layer", "position")} for row in rows] == CELLS
    assert [row["bits"] for row in rows if "error" not in row] == [p / 3 for p in (0, 1, 2, 4, 5)]
    assert told == [(i + 1, 6, row) for i, row in enumerate(rows)]


def test_a_cell_that_fails_is_a_sentence_in_its_row_and_is_tried_again(out, log):
    work = functools.partial(measure, log)
    rows = Study(out).measure(CELLS, work)
    assert rows[3] == {**CELLS[3], "error": "Position 3 has no rows; leave it out."}
    assert kept(out) == 5
    assert Study(out).measure(CELLS, work) == rows
    assert calls(log) == [0, 1, 2, 3, 4, 5, 3]


def test_only_cells_measured_under_the_same_settings_are_taken_as_measured(out, log):
    work = functools.partial(measure, log)
    Study(out).measure(CELLS[:2], work, same={"steps": 3})
    Study(out).measure(CELLS[:3], work, same={"steps": 3})
    assert calls(log) == [0, 1, 2]
    Study(out).measure(CELLS[:2], work, same={"steps": 4})
    assert calls(log) == [0, 1, 2, 0, 1]


@pytest.mark.slow
def test_two_workers_give_the_rows_of_one(out, log, tmp_path):
    work = functools.partial(measure, log)
    alone = Study(out).measure(CELLS, work)
    told = []
    study = Study(tmp_path / "two", workers=2, report=lambda *now: told.append(now[:2]))
    study.open("test", {})
    rows = study.measure(CELLS, work)
    assert rows == alone
    assert told == [(i, 6) for i in range(1, 7)]
    assert sorted(calls(log)) == sorted(2 * [0, 1, 2, 3, 4, 5])
    files = [
        {p.name: p.read_bytes() for p in (folder / "cells").iterdir()}
        for folder in (out, tmp_path / "two")
    ]
    assert files[0] == files[1]


# --- the folder and the table


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_answered_at_once_and_the_cell_in_hand_is_kept(out, number):
    told, asked = [], threading.Event()

    def measure_signalled(cell):
        os.kill(os.getpid(), number)
        assert asked.wait(60)
        return {"bits": 1.0}

    def say(sentence):
        told.append(sentence)
        asked.set()

    study = Study(out, say=say)
    with pytest.raises(Interrupted, match=f"after 1 of {len(CELLS)} cells"):
        study.measure(CELLS, measure_signalled)
    assert told == ["Stopping once what is being measured is done; a second signal stops now."]
    assert kept(out) == 1


def test_the_folder_of_another_study_is_refused_and_left_alone(out):
    before = (out / "study.json").read_bytes()
    with pytest.raises(
        BitlensError, match="holds the study 'test', not 'sequence'; choose another folder"
    ):
        Study(out, resume=True).open("sequence", {})
    with pytest.raises(
        BitlensError, match="is not empty; pass `resume=True` to continue it or `overwrite=True`"
    ):
        Study(out).open("test", {})
    assert (out / "study.json").read_bytes() == before


def test_overwrite_begins_a_study_anew(out, log):
    Study(out).measure(CELLS, functools.partial(measure, log))
    Study(out, overwrite=True).open("sequence", {"steps": 9})
    assert [path.name for path in out.iterdir()] == ["study.json"]
    about = json.loads((out / "study.json").read_text())
    assert (about["study"], about["settings"]) == ("sequence", {"steps": 9})


def test_a_table_holds_every_name_and_is_the_same_in_both_formats(tmp_path):
    rows = [
        {"layer": "a", "bits": 1.5},
        {"layer": "b", "error": 'It is "empty", sorry.'},
        {"layer": "c", "bits": 0.1},
    ]
    write_table(tmp_path / "table", rows)
    options = pyarrow.csv.ConvertOptions(strings_can_be_null=True)
    tables = (
        pyarrow.parquet.read_table(tmp_path / "table.parquet"),
        pyarrow.csv.read_csv(tmp_path / "table.csv", convert_options=options),
    )
    for table in tables:
        assert table.column_names == ["layer", "bits", "error"]
        assert [
            {k: v for k, v in row.items() if v is not None} for row in table.to_pylist()
        ] == rows


def test_a_study_ends_in_its_table_and_figures_of_what_was_measured(out):
    drawn = []
    rows = [{"x": 1}, {"x": 2, "error": "It diverged."}, {"x": 3, "sums": [1, 2]}]
    assert Study(out).finish(rows, lambda *given: drawn.append(given)) is rows
    assert drawn == [([rows[0], rows[2]], out)]
    assert pyarrow.parquet.read_table(out / "table.parquet").column_names == ["x", "error"]
    Study(out).finish(rows[1:2], lambda *given: drawn.append(given))
    assert len(drawn) == 1


@pytest.mark.slow
def test_a_figure_of_a_table_is_a_png_and_an_svg_that_is_the_same_each_time(tmp_path):
    rows = [
        {"x": x, "y": x + i, "y_low": x, "y_high": None if i else x + 2, "name": name, "one": 1}
        for i, name in enumerate(("red", "blue"))
        for x in (1, 2, 4)
    ]
    style = {"references": {"one": "the truth"}, "title": "beside it", "labels": ("steps", "")}
    grid = [
        [Panel(rows, "x", "y", "name", **style), Panel(rows, "x", "y", "name", "points", log="xy")],
        [
            Panel(rows, "name", "y", "x", "points", even=True),
            Panel(rows, "x", "y", "x", ordered=True),
        ],
    ]
    for name in ("a", "b"):
        draw_panels(tmp_path / name, grid)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    drawn = (tmp_path / "a.svg").read_text()
    assert drawn == (tmp_path / "b.svg").read_text()
    for text in (COLOURS[0], "beside it", "the truth", "red", "steps"):
        assert text in drawn


# --- another study


@dataclass(frozen=True)
class ToyConfig:
    """Settings of the toy."""

    positions: tuple[int, ...] = (1, 2)
    """what is measured"""


def run_toy(config, study):
    study.open("toy", asdict(config))
    rows = study.measure([{"position": p} for p in config.positions], double)
    return study.finish(rows, lambda rows, out: (out / "toy.png").touch())


def double(cell):
    return {"bits": 2 * cell["position"]}


def test_a_study_is_a_folder_and_a_line_in_the_registry(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(registry.STUDIES, "toy", "Twice a number.")
    monkeypatch.setitem(cli.GROUPS["study"], "toy", "studies:toy")
    for name, content in (("config", {"ToyConfig": ToyConfig}), ("study", {"run": run_toy})):
        module = types.SimpleNamespace(**content)
        monkeypatch.setitem(sys.modules, f"bitlens.studies.toy.{name}", module)
    monkeypatch.setitem(sys.modules, "bitlens.studies.toy", types.ModuleType("toy"))
    with pytest.raises(SystemExit):
        cli.main(["study", "--help"])
    assert "toy           Twice a number." in capsys.readouterr().out
    cli.main(["study", "toy", "--out", str(tmp_path / "toy"), "--positions", "3", "4"])
    assert "table.csv with 2 rows; toy.png" in capsys.readouterr().out
    table = pyarrow.parquet.read_table(tmp_path / "toy" / "table.parquet").to_pylist()
    assert table == [{"position": 3, "bits": 6}, {"position": 4, "bits": 8}]
