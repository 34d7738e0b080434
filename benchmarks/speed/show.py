"""The benchmark in a terminal: a table for each case, as its figures come."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from benchmarks.speed.cases import Figure
from benchmarks.speed.machine import Peaks
from benchmarks.speed.rivals import RIVALS
from bitlens import show


class Screen:
    """Shows a case when the first figure of the next one arrives."""

    def __init__(self) -> None:
        self._figures: list[Figure] = []

    def started(self, machine: Mapping[str, Any], peaks: Peaks) -> None:
        show.out.print(
            f"{machine['processor']}, {machine['threads']} threads of torch {machine['torch']}. "
            "Measured peaks: "
            + ", ".join(f"{value / 1e9:,.1f} G {name}/s" for name, value in peaks.items())
            + ".",
            markup=False,
        )

    def figure(self, figure: Figure) -> None:
        if self._figures and self._figures[0].case != figure.case:
            self._flush()
        self._figures.append(figure)

    def done(self, installed: Mapping[str, str]) -> None:
        self._flush()
        absent = [name for name in RIVALS if name not in installed]
        if absent:
            show.out.print(
                f"Not installed, so not compared: {', '.join(absent)} (docs/speed.md says how to "
                "install them)."
            )

    def _flush(self) -> None:
        if not self._figures:
            return
        case = self._figures[0].case
        growth = case.startswith("growth")
        grid = Table(
            title=f"\n{case}", title_justify="left", title_style="bold", header_style="bold"
        )
        grid.add_column("")
        floors = () if growth else ("floor", "times floor")
        for heading in (
            "median",
            "times the first" if growth else "times bitlens",
            *floors,
            "memory",
        ):
            grid.add_column(heading, justify="right")
        size = ""
        for figure in self._figures:
            if figure.size != size and not growth:
                grid.add_section()
                grid.add_row(figure.size, style="dim")
            size = figure.size
            floor = figure.floor
            limits = (
                ("", "") if floor is None else (duration(floor), f"{figure.seconds / floor:.1f}")
            )
            grid.add_row(
                size if growth else f"  {figure.name}",
                duration(figure.seconds),
                f"{figure.times:.2f}",
                *limits[: len(floors)],
                "" if figure.peak_bytes is None else f"{figure.peak_bytes / 2**20:,.0f} MiB",
            )
            if figure.detail:
                grid.add_row(f"    {figure.detail}", style="dim")
        show.out.print(grid)
        self._figures = []


def duration(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms" if seconds < 10 else f"{seconds:,.1f} s"
