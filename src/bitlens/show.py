"""How results look in a terminal: tables and sentences."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from bitlens import terminal
from bitlens.results import Number, numbers_of, plain, shown
from bitlens.results import token as token

if TYPE_CHECKING:
    from bitlens.compression.store import Compression
    from bitlens.information.entropy import Entropy

BESIDE = 4  # columns of numbers beside which there is room for what the numbers mean
SIGNS = "· is a space within a token, ⏎ the end of a line; a latent is on at the token in «»."

out = terminal.open_console(stderr=False)
err = terminal.console()


def marked(markup: str, **options: Any) -> None:
    """Print text with rich's markup, in which everything from elsewhere is escaped."""
    out.print(markup, markup=True, **options)


def warn(sentence: str) -> None:
    """Print a sentence on standard error, as one line whatever the width."""
    err.print(sentence, soft_wrap=True)


def say(sentence: str) -> None:
    """Print a sentence on standard output, as one line whatever the width."""
    out.print(sentence, soft_wrap=True)


def left_out(outliers: int) -> None:
    """Say how many rows of outlying norm a command leaves out."""
    if outliers:
        err.print(f"{outliers:,} rows of outlying norm are left out.")


def _grid(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", header_style="bold")


# --- tables of numbers ----------------------------------------------------------------------------


@functools.cache
def _numbers() -> dict[str, Number]:
    """Meanings and formats, from the types of the results that are shown as tables."""
    from bitlens.causal.faithfulness import Kept, PositionLosses
    from bitlens.comsem.interpret import Summary
    from bitlens.evaluation import Evaluation

    kinds = (Evaluation, Kept, PositionLosses, Summary)
    return {name: number for kind in kinds for name, number in numbers_of(kind).items()}


def table(
    title: str, columns: Mapping[str, Mapping[str, Any]], also: Mapping[str, Number] | None = None
) -> None:
    """Numbers side by side: a column for each autoencoder, a row for each number, with its meaning.

    also: numbers that no result type describes.
    """
    numbers = _numbers() | dict(also or {})
    grid, meanings = _grid(title), Table.grid(padding=(0, 1))
    grid.add_column("", no_wrap=True)
    for heading in columns:
        grid.add_column(heading, justify="right")
    beside = len(columns) <= BESIDE
    if beside:
        grid.add_column("", style="dim")
    names = dict.fromkeys(name for column in columns.values() for name in column)
    for name in names:
        stem, _, end = name.rpartition("_")
        if name == "architecture" or (end in ("low", "high") and stem in names):
            continue
        number = numbers.get(name, Number(""))
        values = [shown(name, column, number.format) for column in columns.values()]
        if any(value != "-" for value in values):
            grid.add_row(name, *values, *([number.meaning] if beside else []))
            meanings.add_row("", name, number.meaning)
    out.print(grid)
    if not beside:
        out.print(meanings)


def rows(title: str, lines: Sequence[Mapping[str, Any]]) -> None:
    """Lines of one table, a column for each name."""
    grid = _grid(title)
    names = list(dict.fromkeys(name for line in lines for name in line))
    for name in names:
        text = any(isinstance(line.get(name), str) for line in lines)
        grid.add_column(name, justify="left" if text else "right")
    for line in lines:
        values = (line.get(name, "-") for name in names)
        cells = (f"{value:.3g}" if isinstance(value, float) else value for value in values)
        grid.add_row(*("-" if cell is None else str(cell) for cell in cells))
    out.print(grid)


def entropy(title: str, result: Entropy) -> None:
    """Estimates and bounds with their intervals, in bits a row."""
    grid = _grid(f"{title}: {result.rows:,} rows")
    grid.add_column("bits a row")
    grid.add_column("", justify="right")
    grid.add_column("95 % interval", justify="right")
    grid.add_column("", style="dim")
    meanings = numbers_of(type(result))
    lower = meanings.pop("bits_lower")
    for name, number in meanings.items():
        estimate = getattr(result, name)
        known = estimate.low == estimate.low  # not NaN
        interval = f"{estimate.low:.2f} to {estimate.high:.2f}" if known else "-"
        grid.add_row(name, f"{estimate.value:.2f}", interval, number.meaning)
    grid.add_row("bits_lower", f"{result.bits_lower:.2f}", "-", lower.meaning)
    out.print(grid)


_WAYS = {  # of storing rows: what they are called, and a note
    "streams": ("streams of this file", "{ratio:.4f} of the code length"),
    "file": ("this file as a whole", "over all its rows: with its model and index"),
    "words": ("packed words", "as they are"),
    "words_zstd": ("packed words, zstd -19", ""),
    "int8_zstd": ("int8, zstd -19", "one scale a component, not counted"),
    "stored_zstd": ("stored values, zstd -19", "the {dtype} themselves"),
}


def compression(title: str, result: Compression) -> None:
    """Bytes, bits a row and fvu of every way to store the held-out rows."""
    grid = _grid(f"{title}: {result.rows:,} rows")
    grid.add_column(f"{result.held_out_rows:,} held-out rows")
    for heading in ("bytes of these", "bits a row", "fvu"):
        grid.add_column(heading, justify="right")
    grid.add_column("", style="dim")
    for name, (way, note) in _WAYS.items():
        line = result.lines[name]
        note = note.format(ratio=result.ratio, dtype=result.dtype)
        grid.add_row(way, f"{line.bytes:,}", f"{line.bits_a_row:.2f}", f"{line.fvu:.4f}", note)
    length = f"{result.bits_joint:.2f}"
    grid.add_row("code length (bits_joint)", "", length, "", "of the model before it is quantised")
    out.print(grid)


# --- texts ----------------------------------------------------------------------------------------


def example(before: str, token: str, after: str) -> str:
    """A token in its context, marked, as escaped markup; spaces before it are shown outside."""
    from bitlens.hidden.pieces import outside

    space, core = outside(token)
    before, core, after = (escape(plain(text)) for text in (before + space, core, after))
    return f"[dim]{before}[/dim][bold]«{core}»[/bold][dim]{after}[/dim]"
