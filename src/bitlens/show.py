"""How results look in a terminal: tables and sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from bitlens import terminal

if TYPE_CHECKING:
    from bitlens.information.entropy import Entropy

out = terminal.open_console(stderr=False)
err = terminal.console()


def marked(markup: str, **how: Any) -> None:
    """Print text with rich's markup, in which everything from elsewhere is escaped."""
    out.print(markup, markup=True, **how)


_FORMATS = {
    "fvu": ".4f", "explained_variance": ".4f", "mse": ".4g", "cosine": ".4f", "l0": ".1f", "bits_marginal": ".1f", "bits_tree": ".1f", "bits_joint": ".1f", "bits_magnitudes": ".1f",
    "bits_gaussian": ".1f", "highest_rate": ".3f", "rows_per_second": ",.0f", "balanced_accuracy": ".3f", "balanced_accuracy_hard": ".3f",
    "sensitivity": ".3f", "specificity": ".3f", "specificity_hard": ".3f", "shuffled": ".3f", "ce_original": ".3f", "ce_spliced": ".3f", "ce_zero": ".3f",
    "ce_mean": ".3f", "ce_loss_score": ".3f", "ce_loss_score_mean": ".3f", "kl_div": ".3f", "top1": ".3f", "surprisal": ".1f", "tokens": ",d", "rows": ",d", "outliers": ",d",
}  # fmt: skip
_MEANINGS = {
    "rows": "measured", "outliers": "rows of outlying norm, left out", "n_latents": "latents trained", "live": "neither dead nor stuck",
    "fvu": "fraction of variance unexplained", "explained_variance": "1 - fvu", "mse": "in the model's own units",
    "cosine": "of hidden state and reconstruction", "l0": "latents on, per row",
    "dead": "on in < 1 of 10,000 rows, or pruned", "stuck": "off in < 1 of 10,000 rows", "dense": "on in more than 10 % of rows", "highest_rate": "of the latent that is on most",
    "bits_marginal": "sum of the latents' entropies", "bits_tree": "the same, each given one other",
    "bits_joint": "code length, each given all before it", "bits_magnitudes": "floats on top, at 1.005 of the fvu",
    "bits_gaussian": "rate-distortion bound at this fvu",
    "rows_per_second": "encode and decode", "ce_original": "next-token loss of the model, nats",
    "ce_spliced": "the same through the autoencoder", "ce_zero": "the same with hidden states zeroed",
    "ce_mean": "the same with hidden states at their mean", "ce_loss_score": "1: nothing lost, 0: as bad as zeros",
    "ce_loss_score_mean": "the same against the mean", "kl_div": "nats a token",
    "top1": "likeliest next token unchanged", "surprisal": "bits: -log2 p of the latents on", "tokens": "scored",
    "judged": "latents with examples enough, explained", "skipped": "latents with too few rows", "unexplained": "latents without an explanation",
    "interpretable": "better than other explanations, accuracy above .7 at 5 %", "untested": "neither interpretable nor not",
    "interpretable_hard": "with hard negatives, too", "interpretable_paper": "more than half of the positives, as the paper counts",
    "balanced_accuracy": "chance is .5", "balanced_accuracy_hard": "on tokens and codes like the positives'",
    "sensitivity": "yes among positives: the paper's score", "specificity": "no among random tokens",
    "specificity_hard": "no among hard negatives", "shuffled": "accuracy of other latents' explanations",
    "unparsed": "answers that were neither yes nor no", "unfinished": "answers that came to no end",
    "token_latents": "sparse latents that tokens predict, F1 > .5",
}  # fmt: skip


def number(name: str, value: Any) -> str:
    """A value as it appears in a table."""
    if value is None:
        return "-"
    return format(value, _FORMATS[name]) if name in _FORMATS else str(value)


BESIDE = 4  # columns of numbers beside which there is room for what the numbers mean
SIGNS = "· is a space within a token, ⏎ the end of a line; a latent is on at the token in «»."


def table(title: str, columns: Mapping[str, Mapping[str, Any]]) -> None:
    """Numbers side by side: a column for each autoencoder, a row for each number, with what it means."""
    grid = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    grid.add_column("", no_wrap=True)
    for heading in columns:
        grid.add_column(heading, justify="right")
    beside = len(columns) <= BESIDE
    if beside:
        grid.add_column("", style="dim")
    meanings = Table.grid(padding=(0, 1))
    names = dict.fromkeys(
        name for column in columns.values() for name in column if name != "architecture"
    )
    for name in names:
        if (
            name.removesuffix("_low").removesuffix("_high") != name
            and name.rsplit("_", 1)[0] in names
        ):
            continue  # shown beside the number that it is the interval of
        values = [_with_interval(name, column) for column in columns.values()]
        if any(value != "-" for value in values):
            grid.add_row(name, *values, *([_MEANINGS.get(name, "")] if beside else []))
            meanings.add_row("", name, _MEANINGS.get(name, ""))
    out.print(grid)
    if not beside:
        out.print(meanings)


def _with_interval(name: str, column: Mapping[str, Any]) -> str:
    low, high = (column.get(f"{name}_{end}") for end in ("low", "high"))
    half = "" if low is None or high is None else f" ± {number(name, (high - low) / 2)}"
    return number(name, column.get(name)) + half


def rows(title: str, lines: Sequence[Mapping[str, Any]]) -> None:
    """Lines of one table, a column for each name."""
    grid = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    names = list(dict.fromkeys(name for line in lines for name in line))
    for name in names:
        grid.add_column(
            name,
            justify="left" if any(isinstance(line.get(name), str) for line in lines) else "right",
        )
    for line in lines:
        values = (line.get(name) for name in names)
        grid.add_row(
            *("-" if v is None else f"{v:.3g}" if isinstance(v, float) else str(v) for v in values)
        )
    out.print(grid)


_ESTIMATES = {
    "bits_marginal": "sum of the latents' own entropies",
    "bits_tree": "every latent given one other (Chow-Liu)",
    "code_marginal": "code length of unseen documents, latents on their own",
    "code_tree": "the same, every latent given one other",
    "bits_joint": "the same, every latent given all before it: an upper bound on the joint entropy",
}


def entropy(title: str, result: Entropy) -> None:
    """Estimates and bounds with their intervals, in bits a row."""
    grid = Table(
        title=f"{title}: {result.rows:,} rows",
        title_justify="left",
        title_style="bold",
        header_style="bold",
    )
    grid.add_column("bits a row")
    grid.add_column("", justify="right")
    grid.add_column("95 % interval", justify="right")
    grid.add_column("", style="dim")
    for name, meaning in _ESTIMATES.items():
        estimate = getattr(result, name)
        interval = (
            f"{estimate.low:.2f} to {estimate.high:.2f}" if estimate.low == estimate.low else "-"
        )
        grid.add_row(name, f"{estimate.value:.2f}", interval, meaning)
    grid.add_row(
        "bits_lower",
        f"{result.bits_lower:.2f}",
        "-",
        "at least this, whatever the distribution (95 % sure)",
    )
    out.print(grid)


def left_out(outliers: int) -> None:
    """Says how many rows of outlying norm a command leaves out."""
    if outliers:
        err.print(f"{outliers:,} rows of outlying norm are left out.")


def plain(text: str) -> str:
    """Text from a model or a corpus on one line: line ends become ⏎, other control characters a dot."""
    return "".join(c if c.isprintable() else "⏎" if c == "\n" else "·" for c in text)


def token(text: str) -> str:
    """A single token with its spaces as dots, so that they can be seen, and other characters of no ink by their codes."""
    named = {" ": "·", "\n": "⏎"}
    return "".join(named.get(c) or (c if c.isprintable() else ascii(c)[1:-1]) for c in text) or "''"


def example(before: str, token: str, after: str) -> str:
    """A token in its context, marked, as escaped markup; spaces before it are shown outside."""
    from bitlens.hidden.pieces import outside

    space, core = outside(token)
    before, core, after = (escape(plain(text)) for text in (before + space, core, after))
    return f"[dim]{before}[/dim][bold]«{core}»[/bold][dim]{after}[/dim]"


_WAYS = {
    "streams": ("streams of this file", ""),
    "file": ("this file as a whole", "over all its rows: with its model and index"),
    "words": ("packed words", "as they are"),
    "words_zstd": ("packed words, zstd -19", ""),
    "int8_zstd": ("int8, zstd -19", "one scale a component, not counted"),
    "stored_zstd": ("stored values, zstd -19", "the hidden states themselves"),
}


def compression(title: str, result: Any) -> None:
    """A `bitlens.compression.store.Compression`: bytes, bits a row and fvu of every way to store the held-out rows."""
    grid = Table(
        title=f"{title}: {result.rows:,} rows",
        title_justify="left",
        title_style="bold",
        header_style="bold",
    )
    grid.add_column(f"{result.held_out_rows:,} held-out rows")
    for heading in ("bytes of these", "bits a row", "fvu"):
        grid.add_column(heading, justify="right")
    grid.add_column("", style="dim")
    notes = {
        "streams": f"{result.ratio:.4f} of the code length",
        "stored_zstd": f"the {result.dtype} themselves",
    }
    for name, (way, note) in _WAYS.items():
        if line := result.lines.get(name):
            grid.add_row(
                way,
                f"{line.bytes:,}",
                f"{line.bits_a_row:.2f}",
                f"{line.fvu:.4f}",
                notes.get(name, note),
            )
    grid.add_row(
        "code length (bits_joint)",
        "",
        f"{result.bits_joint:.2f}",
        "",
        "of the model before it is quantised",
    )
    out.print(grid)
