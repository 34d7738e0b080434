"""The figures and the page of the study `compare`."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bitlens.causal.losses import SCORES, SpliceSums
from bitlens.hidden import ActivationStore
from bitlens.information.intervals import difference, mean
from bitlens.studies.cells import Row
from bitlens.studies.compare.config import BAE, BINARY_VARIANTS, NULLS, VARIANTS, CompareConfig
from bitlens.studies.compare.curves import curves, draw_curves
from bitlens.studies.compare.curves import table as table_of_curves
from bitlens.studies.figures import Panel, draw_panels, groups
from bitlens.studies.measuring import not_measured, over_gaussian, total_bits
from bitlens.studies.pages import table, write_page

CONTEXTS = "contexts_spliced"  # a row's sums over contexts, for paired differences
HIGH, LOW, NEITHER = 1, -1, 0
FLOAT = torch.float64


class Number(NamedTuple):
    """A line of the tables."""

    heading: str
    digits: int
    better: int
    """HIGH, LOW or NEITHER"""


NUMBERS = {
    "fvu": Number("`fvu`", 4, LOW),
    "l0": Number("`l0`", 1, NEITHER),
    "bits": Number("bits", 0, LOW),
    "bits_gaussian": Number("Gaussian", 0, NEITHER),
    "over_gaussian": Number("of the Gaussian", 2, LOW),
    "ce_loss_score": Number("`ce_loss_score`", 4, HIGH),
    "kl_div": Number("`kl_div`", 4, LOW),
    "top1": Number("`top1`", 3, HIGH),
    "dead": Number("dead", 0, LOW),
    "stuck": Number("stuck", 0, LOW),
    "dense": Number("dense", 0, LOW),
    "highest_rate": Number("highest rate", 3, NEITHER),
    "latents_f1": Number("latents of one label", 0, HIGH),
    "latents_f1_cut": Number("the same, each at its best cut", 0, HIGH),
    "labels_covered": Number("labels covered", 0, HIGH),
    "labels_covered_cut": Number("the same, each latent at its best cut", 0, HIGH),
    "token_latents": Number("latents that tokens predict", 0, HIGH),
    "token_latents_cut": Number("the same, each at its best cut", 0, HIGH),
    "stability": Number("stability", 3, HIGH),
    "train_seconds": Number("training, s", 0, LOW),
    "seconds": Number("training and measuring, s", 0, NEITHER),
}
SHORT = (
    *("fvu", "bits", "over_gaussian", "l0", "ce_loss_score"),
    *("dense", "highest_rate", "latents_f1", "stability"),
)
"""What the short table has: an architecture a line."""


def with_totals(row: Row) -> Row:
    """With what is made of several numbers."""
    bits = total_bits(row)
    return {**row, "bits": bits, "over_gaussian": over_gaussian(row, bits)}


def draw(rows: Sequence[Row], out: Path) -> None:
    """`compare`: the architectures; `rate_distortion`: their bits over fvu, of several prices at
    the first width; `variants`: the same of all binary ones."""
    rows = [with_totals(row) for row in rows]
    draw_curves([row for row in rows if row["n_latents"] == rows[0]["n_latents"]], out)
    main = [row for row in rows if row["name"] not in VARIANTS]
    # the others lie far off and would shrink the rest
    trained = [row for row in main if row["name"] not in NULLS]
    priced = [row for row in main if row["price"] == main[0]["price"]]
    binary = [row for row in rows if row["name"] in (BAE, *BINARY_VARIANTS)]
    unexplained, on = "fraction of variance unexplained", "latents on in a row"
    style: dict[str, Any] = {"series": "name", "kind": "points"}
    bounded: dict[str, Any] = {"references": {"bits_gaussian": "Gaussian bound"}, **style}
    bounded["labels"] = (unexplained, "bits a row, magnitudes included")
    bits = Panel(trained, "fvu", "bits", **bounded)
    fvu = Panel(trained, "l0", "fvu", labels=(on, unexplained), **style)
    kept = (on, "loss kept (ce_loss_score)")
    loss = Panel(trained, "l0", "ce_loss_score", labels=kept, **style)
    named = Panel(priced, "name", "latents_f1", labels=("", "latents of one label"), **style)
    draw_panels(out / "compare", [[bits, fvu], [loss, named]], (5.0, 3.7))
    draw_panels(out / "variants", [[Panel(binary, "fvu", "bits", **bounded)]], (6.4, 4.4))


def write_report(
    out: Path, rows: Sequence[Row], config: CompareConfig, store: ActivationStore
) -> None:
    """`compare.md`: the tables, and what is best at what."""
    hook = (store.manifest.get("hook") or {}).get("module")
    model = Path(str(store.manifest.get("model"))).name
    measured = [with_totals(row) for row in rows if "error" not in row]
    lines = [
        f"# Architectures compared: {hook} of {model}",
        "",
        f"Made by `bitlens study compare`: {config.steps:,} steps on {len(store):,} rows of "
        f"{store.d_in}, less {config.test_fraction:.0%} of the documents, on which everything is "
        f"measured; {len(config.seeds)} seeds. Every baseline has the `l0` of the BAE of the same "
        "width and price of a bit. A latent is on wherever it is not zero, in every row but those "
        "that say otherwise. In brackets: seeds that a column's means are over; after ±: half of "
        "the 95 % interval over them; stability is one number of them all. Bold: better than every "
        "other trained architecture by more than chance between seeds (Welch's t at 5 %) and, of "
        "`ce_loss_score` and `kl_div`, between contexts (paired); of one seed only these can be.",
    ]
    widths = dict.fromkeys(row["n_latents"] for row in rows)
    for width in widths:
        own = [row for row in measured if row["n_latents"] == width]
        lines += ["", f"## In short: {width:,} latents, price {config.prices[0]}", ""]
        lines += short_table([row for row in own if row["price"] == config.prices[0]])
        if of_curves := table_of_curves(curves(own)):
            lines += ["", f"## At equal fvu and at equal bits: {width:,} latents", "", CURVES, ""]
            lines += [*of_curves, "", "![Bits over fvu, loss over bits](rate_distortion.svg)"]
    for price, width in itertools.product(config.prices, widths):
        part = [row for row in measured if (row["price"], row["n_latents"]) == (price, width)]
        for variants, kind in ((False, ""), (True, ", variants")):
            if own := [row for row in part if (row["name"] in VARIANTS) == variants]:
                lines += ["", f"## {width:,} latents, price {price}{kind}", "", *_table(own)]
    lines += ["", "![Bits, l0, loss and labels](compare.svg)", ""]
    lines += ["![Binary autoencoders of all kinds](variants.svg)"]
    failed = [
        f"{row['name']}, price {row['price']}, seed {row['seed']}: {reason}"
        for row in rows
        if (reason := not_measured(row))
    ]
    write_page(out / "compare.md", lines, failed)


CURVES = (
    "Of one seed and several prices (k). Bits have magnitudes in them, quantised more or less "
    "coarsely, each alone or in context, whichever needs fewest at its fvu. Between two points the "
    "logarithm of the bits is linear in fvu; a - is outside of what was measured. The score is "
    "that of exact magnitudes, at the bits of the finest quantiser."
)


def short_table(rows: list[Row]) -> list[str]:
    """An architecture a line: means over seeds, with half of their interval."""
    keys = [key for key in SHORT if any(row.get(key) is not None for row in rows)]
    lines = []
    for name, own in groups(rows, "name").items():
        cells = [_cell(_values(k, own), NUMBERS[k].digits, False, len(own)) for k in keys]
        lines.append([name, *(cell.replace(" ± ", "±") for cell in cells)])
    return table(["", *(NUMBERS[key].heading for key in keys)], "l" + "r" * len(keys), lines)


def _table(rows: list[Row]) -> list[str]:
    """Numbers down, architectures across: means over seeds, with half of their interval where there
    are several; a mean over fewer seeds says over how many."""
    columns = groups(rows, "name")
    heads = [f"{n} ({len(rows)})" if len(rows) > 1 else n for n, rows in columns.items()]
    lines = []
    for key, number in NUMBERS.items():
        values = {name: _values(key, rows) for name, rows in columns.items()}
        if any(values.values()):
            best = _best(key, {n: rows for n, rows in columns.items() if n not in NULLS})
            cells = [
                _cell(values[name], number.digits, name == best, len(columns[name]))
                for name in columns
            ]
            lines.append([number.heading, *cells])
    return table(["", *heads], "l" + "r" * len(heads), lines)


def _values(key: str, rows: list[Row]) -> list[float]:
    return [row[key] for row in rows if row.get(key) is not None]


def _cell(values: list[float], digits: int, best: bool, seeds: int) -> str:
    if not values:
        return "-"
    text = f"{statistics.mean(values):,.{digits}f}"
    text = f"**{text}**" if best else text
    over_seeds = mean(values)
    if over_seeds.known and over_seeds.half:
        text += f" ± {over_seeds.half:,.{digits}f}"
    return text if len(values) == seeds else f"{text} ({len(values)})"


def _best(key: str, rivals: dict[str, list[Row]]) -> str | None:
    """The one that is better than all others by more than chance, if there is one."""
    better = NUMBERS[key].better
    means = {
        n: better * statistics.mean(v) for n, rows in rivals.items() if (v := _values(key, rows))
    }
    best = max(means, key=lambda name: means[name], default=None)
    if not better or best is None or len(means) < 2:
        return None
    others = [rows for name, rows in rivals.items() if name != best]
    return best if all(_differs(key, rivals[best], rows) for rows in others) else None


def _differs(key: str, ours: list[Row], theirs: list[Row]) -> bool:
    """Whether two architectures differ in a number, between seeds and, where they were spliced,
    between contexts; one that lacks the number is no rival."""
    values = _values(key, ours), _values(key, theirs)
    if not all(values):
        return True
    if key == "stability":  # one number of all seeds
        return False
    over_seeds = difference(*values)
    if key not in SCORES or not all(CONTEXTS in row for row in (*ours, *theirs)):
        return over_seeds.differs
    a, b = (
        SpliceSums.mean([SpliceSums(*torch.tensor(row[CONTEXTS], dtype=FLOAT)) for row in rows])
        for rows in (ours, theirs)
    )
    return a.less(b)[key].differs and (over_seeds.differs or not over_seeds.known)
