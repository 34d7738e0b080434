"""Whole experiments, each one command: bitlens study NAME."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Annotated, Any

import tyro

from bitlens import terminal
from bitlens.studies.options import RunOptions
from bitlens.studies.registry import STUDIES, config_type
from bitlens.writing import locked

MOST_FAILURES = 5


def __getattr__(name: str) -> Callable[..., dict[str, Any]]:
    """The command of a study of the registry."""
    if name not in STUDIES:
        raise AttributeError(f"There is no study '{name}'.")

    def command(options: Any, config: Any) -> dict[str, Any]:
        return _run(name, options, config)

    command.__name__ = name
    command.__doc__ = (
        f"{STUDIES[name]}\n\nWrites table.parquet, table.csv and figures, and keeps what was "
        "trained and measured: a stopped study goes on with --resume."
    )
    command.__annotations__ = {
        "options": Annotated[RunOptions, tyro.conf.arg(name="")],
        "config": Annotated[config_type(name), tyro.conf.arg(name="")],
        "return": dict[str, Any],
    }
    return command


def _run(name: str, options: RunOptions, config: Any) -> dict[str, Any]:
    from bitlens import show
    from bitlens.studies.cells import Row, Study

    module = importlib.import_module(f"bitlens.studies.{name}.study")
    with locked(options.out), terminal.bar(name) as bar:

        def report(done: int, total: int, row: Row) -> None:
            fvu = f"fvu {row['fvu']:.4f}" if "fvu" in row else ""
            bar.at(done, "not measured" if "error" in row else fvu, total)

        rows = module.run(config, Study(**vars(options), report=report, say=show.warn))
    result: dict[str, Any] = {"rows": rows}
    if hasattr(module, "summary"):
        result = {"summary": module.summary(rows)}
        show.rows(STUDIES[name], result["summary"])
    failed = [row for row in rows if "error" in row]
    for row in failed[:MOST_FAILURES]:
        settings = ", ".join(f"{name} {value}" for name, value in row.items() if name != "error")
        show.warn(f"Not measured: {settings}: {row['error']}")
    if (left := len(failed) - MOST_FAILURES) > 0:
        show.warn(f"{left} more were not measured; the table says why.")
    files = sorted(path.name for path in options.out.iterdir() if path.suffix in (".md", ".png"))
    show.say(
        f"{options.out}: table.parquet and table.csv with {len(rows)} rows; {', '.join(files)} "
        "(figures also as .svg)"
    )
    return {"study": str(options.out), **result}
