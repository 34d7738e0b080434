"""The figures and the page of the study `compare`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bitlens.causal.losses import SCORES, SpliceSums
from bitlens.files import replacing
from bitlens.hidden import ActivationStore
from bitlens.information.intervals import difference, mean
from bitlens.studies.cells import Row
from bitlens.studies.figures import COLOURS, figure

if TYPE_CHECKING:
    from bitlens.studies.compare.study import CompareConfig

MARKS = "osD^vPX*<>hpd8"
# name: (heading, digits, which is better: +1 high, -1 low, 0 neither)
NUMBERS: dict[str, tuple[str, int, int]] = {
    "fvu": ("`fvu`", 4, -1), "l0": ("`l0`", 1, 0), "bits": ("bits", 0, -1), "bits_gaussian": ("Gaussian", 0, 0),
    "ce_loss_score": ("`ce_loss_score`", 4, 1), "kl_div": ("`kl_div`", 4, -1), "top1": ("`top1`", 3, 1),
    "dead": ("dead", 0, -1), "stuck": ("stuck", 0, -1), "dense": ("dense", 0, -1), "highest_rate": ("highest rate", 3, 0),
    "latents_f1": ("latents of one label", 0, 1), "latents_f1_cut": ("the same, each at its best cut", 0, 1),
    "labels_covered": ("labels covered", 0, 1), "labels_covered_cut": ("the same, each latent at its best cut", 0, 1),
    "token_latents": ("latents that tokens predict", 0, 1), "token_latents_cut": ("the same, each at its best cut", 0, 1),
    "stability": ("stability", 3, 1), "train_seconds": ("training, s", 0, -1),
}  # fmt: skip
NOT_RIVALS = ("random", "PCA")
CONTEXTS = "contexts_spliced"  # a row's sums over contexts, for paired differences


def total_bits(row: Row) -> float | None:
    """Everything that a code needs: which latents are on, and their magnitudes."""
    return None if row.get("bits_joint") is None else row["bits_joint"] + row["bits_magnitudes"]


def _done(rows: Sequence[Row]) -> list[Row]:
    return [{**row, "bits": total_bits(row)} for row in rows if "error" not in row]


def draw(out: Path, rows: Sequence[Row]) -> None:
    """`compare`: bits, l0, cross-entropy and labels of the architectures; `variants`: bits over fvu of all binary ones."""
    from bitlens.studies.compare.study import BAE, VARIANTS

    done = _done(rows)
    if not done:
        return
    main = [row for row in done if row["name"] not in VARIANTS]
    trained = [
        row for row in main if row["name"] not in NOT_RIVALS
    ]  # the others lie far off and would shrink the rest
    with figure(out / "compare", columns=2, rows=2, size=(5.4, 3.7)) as axes:
        _bits(axes[0][0], trained)
        _points(axes[0][1], trained, "l0", "fvu")
        axes[0][1].set(
            xlabel="latents on a row",
            ylabel="fraction of variance unexplained",
            xlim=(0, 2.2 * _l0(done)),
        )
        _points(axes[1][0], trained, "l0", "ce_loss_score")
        axes[1][0].set(
            xlabel="latents on a row", ylabel="loss kept (ce_loss_score)", xlim=(0, 2.2 * _l0(done))
        )
        _bars(axes[1][1], main)
        axes[0][0].legend(fontsize=8)
    with figure(out / "variants", size=(6.4, 4.4)) as axes:
        _bits(axes[0][0], [row for row in done if row["name"] in (BAE, *VARIANTS)])
        axes[0][0].legend(fontsize=8)


def _l0(rows: list[Row]) -> float:
    from bitlens.studies.compare.study import BAE

    return max(row["l0"] for row in rows if row["name"] == BAE)


def _names(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(row["name"] for row in rows))


def _points(panel: Any, rows: list[Row], x: str, y: str) -> None:
    for i, name in enumerate(_names(rows)):
        here = sorted(
            (row[x], row[y]) for row in rows if row["name"] == name and row.get(y) is not None
        )
        if here:
            mark, colour = MARKS[i % len(MARKS)], COLOURS[i % len(COLOURS)]
            panel.plot(*zip(*here, strict=True), mark, color=colour, label=name, alpha=0.85)


def _bits(panel: Any, rows: list[Row]) -> None:
    bound = sorted(
        (row["fvu"], row["bits_gaussian"]) for row in rows if row["bits_gaussian"] is not None
    )
    if bound:
        panel.plot(*zip(*bound, strict=True), "--", color="#404040", label="Gaussian bound")
    _points(panel, rows, "fvu", "bits")
    panel.set(
        xlabel="fraction of variance unexplained",
        ylabel="bits a row, magnitudes included",
        ylim=(0, None),
    )


def _bars(panel: Any, rows: list[Row]) -> None:
    names = [
        name
        for name in _names(rows)
        if any(row.get("latents_f1") is not None for row in rows if row["name"] == name)
    ]
    price = rows[0]["price"]
    for i, name in enumerate(names):
        found = [row["latents_f1"] for row in rows if row["name"] == name and row["price"] == price]
        panel.bar(i, statistics.mean(found), color=COLOURS[i % len(COLOURS)], width=0.7)
        panel.plot([i] * len(found), found, "_", color="#404040")
    panel.set_xticks(range(len(names)), names, rotation=30, ha="right")
    panel.set(ylabel="latents of one label")


def write_report(
    out: Path, rows: Sequence[Row], config: CompareConfig, store: ActivationStore
) -> None:
    """`compare.md`: the tables, and what is best at what."""
    from bitlens.studies.compare.study import VARIANTS

    hook = (store.manifest.get("hook") or {}).get("module")
    done = _done(rows)
    lines = [
        f"# Architectures compared: {hook} of {store.manifest.get('model')}",
        "",
        f"Made by `bitlens study compare`: {config.steps:,} steps on {len(store):,} rows of {store.d_in}, less {config.test_fraction:.0%} of the "
        f"documents, on which everything is measured; {len(config.seeds)} seeds. Every baseline is led to the `l0` of the BAE of "
        "the same width and price of a bit. A latent is on wherever it is not zero, in every row but those that say otherwise. In "
        "brackets: seeds that a column's means are over; after ±: half of the 95 % interval over them; stability is one number of "
        "them all. Bold: better than every other trained architecture by more than chance between seeds (Welch's t at 5 %; of one "
        "seed nothing is) and, of `ce_loss_score` and `kl_div`, between contexts (paired).",
    ]
    for price in config.prices:
        for width in dict.fromkeys(row["n_latents"] for row in rows):
            here = [row for row in done if (row["price"], row["n_latents"]) == (price, width)]
            for title, part in (
                ("", [row for row in here if row["name"] not in VARIANTS]),
                (
                    ", binary autoencoders of other kinds",
                    [row for row in here if row["name"] in VARIANTS],
                ),
            ):
                if part:
                    lines += ["", f"## {width:,} latents, price {price}{title}", "", *_table(part)]
    lines += [
        "",
        "![Bits, l0, loss and labels](compare.svg)",
        "",
        "![Binary autoencoders of all kinds](variants.svg)",
        "",
    ]
    failed = [row for row in rows if "error" in row]
    if failed:
        lines += ["## Not measured", ""]
        lines += [
            f"* {row['name']}, price {row['price']}, seed {row['seed']}: {row['error']}"
            for row in failed
        ] + [""]
    with replacing(out / "compare.md") as temporary:
        temporary.write_text("\n".join(lines), encoding="utf-8")


def _table(rows: list[Row]) -> list[str]:
    """Numbers down, architectures across: means over the column's seeds, with half of their interval where there are several.
    A mean over fewer says over how many."""
    names = _names(rows)
    seeds = {name: sum(row["name"] == name for row in rows) for name in names}
    heads = [f"{name} ({seeds[name]})" if seeds[name] > 1 else name for name in names]
    lines = ["| | " + " | ".join(heads) + " |", "| --- |" + " ---: |" * len(names)]
    for key, (heading, digits, better) in NUMBERS.items():
        found = {
            name: [row[key] for row in rows if row["name"] == name and row.get(key) is not None]
            for name in names
        }
        if any(found.values()):
            rivals = {
                name: [row for row in rows if row["name"] == name]
                for name in names
                if name not in NOT_RIVALS
            }
            best = _best({name: v for name, v in found.items() if name in rivals}, better)
            if best and not all(
                _differs(key, rivals[best], rivals[other]) for other in rivals if other != best
            ):
                best = None
            cells = (_cell(found[name], digits, name == best, seeds[name]) for name in names)
            lines.append(f"| {heading} | " + " | ".join(cells) + " |")
    return lines


def _best(found: dict[str, list[float]], better: int) -> str | None:
    means = {name: better * statistics.mean(values) for name, values in found.items() if values}
    highest = max(means.values(), default=0)
    best = [name for name, mean in means.items() if mean == highest]
    return best[0] if better and len(means) > 1 and len(best) == 1 else None


def _cell(values: list[float], digits: int, best: bool, seeds: int) -> str:
    if not values:
        return "-"
    text = f"{statistics.mean(values):,.{digits}f}"
    text = f"**{text}**" if best else text
    over_seeds = mean(values)
    text = (
        f"{text} ± {over_seeds.half:,.{digits}f}" if over_seeds.known and over_seeds.half else text
    )
    return text if len(values) == seeds else f"{text} ({len(values)})"


def _differs(key: str, ours: list[Row], theirs: list[Row]) -> bool:
    """Whether two architectures differ in a number, between seeds and, where they were spliced, between contexts; one that
    lacks the number is no rival."""
    values = [[row[key] for row in rows if row.get(key) is not None] for rows in (ours, theirs)]
    if not all(values):
        return True
    if key == "stability":  # one number of all seeds
        return False
    over_seeds = difference(*values)
    if key not in SCORES or not all(CONTEXTS in row for row in (*ours, *theirs)):
        return over_seeds.differs
    a, b = (SpliceSums.mean([_sums(row) for row in rows]) for rows in (ours, theirs))
    return a.less(b)[key].differs and (over_seeds.differs or not over_seeds.known)


def _sums(row: Row) -> SpliceSums:
    return SpliceSums(*(torch.tensor(x, dtype=torch.float64) for x in row[CONTEXTS]))
