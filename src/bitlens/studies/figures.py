"""How the figures of all studies look, and their files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bitlens.files import replacing
from bitlens.studies.cells import library

COLOURS = ("#2a6fbb", "#e07b39", "#3c9d6f", "#b23a5d", "#7a5cb0", "#8a8a8a", "#c2a32b", "#2aa6b8")
STYLE = {
    "figure.dpi": 100, "savefig.dpi": 160, "font.size": 9.5, "font.family": "DejaVu Sans", "axes.titlesize": 10.5,
    "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": "#e6e6e6", "grid.linewidth": 0.8, "axes.axisbelow": True, "legend.frameon": False,
    "lines.linewidth": 1.6, "lines.markersize": 4.5, "svg.hashsalt": "bitlens", "svg.fonttype": "none",
}  # fmt: skip


@contextlib.contextmanager
def figure(
    path: Path, columns: int = 1, rows: int = 1, size: tuple[float, float] = (4.6, 3.4), **how: Any
) -> Iterator[Any]:
    """Panels to draw on, `[rows, columns]` of matplotlib's axes; saved as `path`.png and `path`.svg when the block ends.

    size: inches of one panel. how: for `Figure.subplots`, such as sharey.
    """
    matplotlib, new_figure = library("matplotlib"), library("matplotlib.figure").Figure
    colours = library("cycler").cycler(color=COLOURS)
    with matplotlib.rc_context({**STYLE, "axes.prop_cycle": colours}):
        sheet = new_figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
        yield sheet.subplots(rows, columns, squeeze=False, **how)
        for ending, metadata in ((".png", {}), (".svg", {"Date": None})):
            with replacing(path.with_suffix(ending)) as temporary:
                sheet.savefig(temporary, metadata=metadata)
