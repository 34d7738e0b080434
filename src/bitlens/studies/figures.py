"""Figures of tables: panels with one column over another, a series for each value of a third."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from bitlens.files import replacing
from bitlens.studies.cells import Row

COLOURS = ("#2a6fbb", "#e07b39", "#3c9d6f", "#b23a5d", "#7a5cb0", "#8a8a8a", "#c2a32b", "#2aa6b8")
MARKS = "osD^vPX*<>hpd8"
REFERENCES = (("#404040", "--"), ("#8a8a8a", ":"), ("#8a8a8a", "-."))
MOST_NAMES = 12  # in a legend of ordered series
STYLE: dict[Any, Any] = {
    "savefig.dpi": 160,
    "font.size": 9.5,
    "font.family": "DejaVu Sans",
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=COLOURS),
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "svg.hashsalt": "bitlens",  # the same file each time
    "svg.fonttype": "none",
}
Size = tuple[float, float]


@contextlib.contextmanager
def figure(
    path: Path, columns: int = 1, rows: int = 1, size: Size = (4.6, 3.4), **shared: Any
) -> Iterator[Any]:
    """Matplotlib's axes, `[rows, columns]`; saved as `path`.png and .svg when the block ends.

    size: inches of one panel. shared: for `Figure.subplots`, such as sharey.
    """
    with matplotlib.rc_context(STYLE):
        sheet = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
        yield sheet.subplots(rows, columns, squeeze=False, **shared)
        for ending, metadata in ((".png", {}), (".svg", {"Date": None})):
            with replacing(path.with_suffix(ending)) as temporary:
                sheet.savefig(temporary, metadata=metadata)


@dataclass(frozen=True)
class Panel:
    """The column `y` of some rows over their column `x`."""

    rows: Sequence[Row]
    x: str
    y: str
    series: str
    """column whose values are drawn each on its own"""
    kind: Literal["line", "points"] = "line"
    """line: means over rows of one x, banded from least `y_low` to largest `y_high`, with a gap
    where none has the number; points: all"""
    references: Mapping[str, str] = field(default_factory=dict)
    """columns whose means are broken lines, and their names"""
    ordered: bool = False
    """series in shades from dark to light, as of layers"""
    even: bool = False
    """values of x at even distances, as words are"""
    log: str = ""
    """axes with a logarithmic scale, such as xy"""
    title: str = ""
    labels: tuple[str, str] = ("", "")


def groups(rows: Sequence[Row], column: str) -> dict[Any, list[Row]]:
    """Rows by their value in a column: numbers in ascending order, words in that of the rows."""
    by_value: dict[Any, list[Row]] = {}
    for row in rows:
        by_value.setdefault(row[column], []).append(row)
    words = any(isinstance(value, str) for value in by_value)
    return by_value if words else dict(sorted(by_value.items()))


def draw_panels(
    path: Path, grid: Sequence[Sequence[Panel]], size: Size = (4.6, 3.4), **shared: Any
) -> None:
    """Draw rows of panels, with one legend, as `path`.png and .svg; see `figure`."""
    panels = list(itertools.chain(*grid))
    styles = _styles(panels)
    with figure(path, len(grid[0]), len(grid), size, **shared) as sheet:
        for axes, panel in zip(sheet.flat, panels, strict=True):
            _draw(axes, panel, styles)
            axes.set(title=panel.title, xlabel=panel.labels[0], ylabel=panel.labels[1])
            if shared:  # labels on the outside only
                axes.label_outer()
        for line, drawn in zip(grid, sheet, strict=True):
            values = [row[panel.y] for panel in line for row in _with(panel.y, panel.rows)]
            linear = not any(panel.log for panel in line)
            if line[0].kind == "line" and linear and min(values, default=0) >= 0:
                for axes in drawn:  # when all have their upper limit
                    axes.set_ylim(bottom=0)
        named = (axes.get_legend_handles_labels() for axes in sheet.flat)
        handles = {name: handle for pair in named for handle, name in zip(*pair, strict=True)}
        step = len(handles) // MOST_NAMES + 1 if panels[0].ordered else 1
        if names := list(handles)[::step]:
            legend = ([handles[name] for name in names], names)
            sheet[0, 0].figure.legend(*legend, loc="outside right center")


def _styles(panels: Sequence[Panel]) -> dict[Any, dict[str, Any]]:
    """Colour and mark of every series and reference, the same in all panels."""
    names = list(dict.fromkeys(name for p in panels for name in groups(p.rows, p.series)))
    colours = itertools.cycle(COLOURS)
    if panels[0].ordered:
        colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(names)))
    styles: dict[Any, dict[str, Any]] = {
        name: {"color": colour, "marker": mark, "label": str(name)}
        for name, colour, mark in zip(names, colours, itertools.cycle(MARKS), strict=False)
    }
    labels = dict.fromkeys(label for panel in panels for label in panel.references.values())
    for label, (colour, dashes) in zip(labels, itertools.cycle(REFERENCES), strict=False):
        styles[label] = {"color": colour, "linestyle": dashes, "label": label, "zorder": 1}
    return styles


def _with(column: str, rows: Sequence[Row]) -> list[Row]:
    """Rows with a number in this column."""
    return [row for row in rows if row.get(column) is not None and row[column] == row[column]]


def _places(axes: Any, panel: Panel) -> dict[Any, float]:
    """Where each value of x is on the axis, whose scale and ticks are set."""
    values = list(groups(panel.rows, panel.x))
    for name in panel.log:
        axis = getattr(axes, f"{name}axis")
        axes.set(**{f"{name}scale": "log"})
        axis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(NullLocator())
    words = any(isinstance(value, str) for value in values)
    if not (words or panel.even):
        return {value: value for value in values}
    axes.set_xticks(range(len(values)), values)
    if words:
        axes.tick_params("x", rotation=90 if len(values) > 8 else 30)
    return {value: place for place, value in enumerate(values)}


def _draw(axes: Any, panel: Panel, styles: Mapping[Any, dict[str, Any]]) -> None:
    places = _places(axes, panel)

    def line(rows: list[Row], column: str, over: Any = fmean) -> tuple[list[float], list[float]]:
        by_x = {x: _with(column, same) for x, same in groups(rows, panel.x).items()}
        # where no row has the number a line has a gap
        values = [over(row[column] for row in same) if same else math.nan for same in by_x.values()]
        return [places[x] for x in by_x], values

    for column, label in panel.references.items():
        x, y = line(list(panel.rows), column)
        if not all(map(math.isnan, y)):
            axes.plot(x, y, **styles[label])
    series = groups(panel.rows, panel.series)
    for i, (name, rows) in enumerate(series.items()):
        if panel.kind == "line":
            axes.plot(*line(rows, panel.y), **{**styles[name], "marker": "o"})
            low, high = f"{panel.y}_low", f"{panel.y}_high"
            (x, lowest), (_, highest) = line(rows, low, min), line(rows, high, max)
            band = {"color": styles[name]["color"], "alpha": 0.18, "linewidth": 0}
            axes.fill_between(x, lowest, highest, **band)
            continue
        rows = _with(panel.y, rows)
        beside = panel.even and panel.x != panel.series
        shift = 0.12 * (i - (len(series) - 1) / 2) if beside else 0.0
        x = [places[row[panel.x]] + shift for row in rows]
        style = {"linestyle": "", "alpha": 0.7, "markeredgewidth": 0, **styles[name]}
        axes.plot(x, [row[panel.y] for row in rows], **style)
