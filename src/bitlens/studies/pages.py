"""Pages of studies, in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from bitlens.files import replacing

MARKS = {"l": "---", "r": "---:"}


def table(heads: Sequence[str], sides: str, lines: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table. sides: of each column, `l` or `r`, where its cells stand."""
    return [_line(heads), _line([MARKS[side] for side in sides]), *map(_line, lines)]


def _line(cells: Sequence[str]) -> str:
    return "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|"


def number(value: float | None, digits: int) -> str:
    """A cell; - where there is none."""
    return "-" if value is None else f"{value:,.{digits}f}"


def write_page(path: Path, lines: Sequence[str], failed: Sequence[str] = ()) -> None:
    """Write these lines, and a list of what was not measured, and why, if there is any."""
    failures = ["", "## Not measured", "", *(f"* {each}" for each in failed)] if failed else []
    with replacing(path) as temporary:
        temporary.write_text("\n".join([*lines, *failures, ""]), encoding="utf-8")
