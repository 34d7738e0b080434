"""The figures of the study `synthetic`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bitlens.studies.cells import Row
from bitlens.studies.figures import COLOURS, figure

EXACT = ("independent", "pairs", "chain", "tree", "nested")
"""Families whose entropy an autoencoder could find: nothing but bits is planted."""


def draw(out: Path, rows: Sequence[Row]) -> None:
    """`calibration`, `variants`, `noise` and `magnitudes`, of what was measured, as .png and .svg in the folder `out`."""
    rows = [row for row in rows if "error" not in row]
    measured = [row for row in rows if row["variant"] == "measure"]
    if exact := [row for row in measured if row["family"] in EXACT]:
        _calibration(out / "calibration", exact)
    if len({row["variant"] for row in rows if row["family"] == "independent"}) > 1:
        _variants(out / "variants", [row for row in rows if row["family"] == "independent"])
    for family, label in (
        ("noise", "share of noise in the variance"),
        ("magnitudes", "spread of the magnitudes' logarithm"),
    ):
        if chosen := [row for row in measured if row["family"] == family]:
            _failure(out / family, chosen, label)


def _calibration(path: Path, rows: Sequence[Row]) -> None:
    """Three estimates over the truth, each family in its colour."""
    names = {
        "bits_marginal": "sum of marginals",
        "bits_tree": "Chow-Liu tree",
        "bits_joint": "held-out code length",
    }
    top = 1.4 * max(max(row[name] for name in names) for row in rows)
    low = 0.7 * min(row["truth_of_rows"] for row in rows)
    with figure(path, columns=3, size=(3.6, 3.5), sharey=True) as axes:
        for panel, (name, title) in zip(axes[0], names.items(), strict=True):
            panel.plot([low, top], [low, top], color="#404040", linewidth=0.9, zorder=1)
            for family, colour in zip(EXACT, COLOURS, strict=False):
                here = [row for row in rows if row["family"] == family]
                points = [[row[key] for row in here] for key in ("truth_of_rows", name)]
                panel.plot(*points, "o", color=colour, alpha=0.6, markeredgewidth=0, label=family)
            scale: dict[str, Any] = {f"{axis}scale": "log" for axis in "xy"} | {
                f"{axis}lim": (low, top) for axis in "xy"
            }
            panel.set(title=f"{title} ({name})", xlabel="true entropy, bits a row", **scale)
            ticks = [tick for tick in (0.1, 0.3, 1, 3, 10, 30, 100, 300) if low <= tick <= top]
            for axis in (panel.xaxis, panel.yaxis):
                axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
                axis.set_ticks([], minor=True)
        axes[0][0].set_ylabel("measured, bits a row")
        axes[0][0].legend(loc="upper left", handletextpad=0.1)


def _variants(path: Path, rows: Sequence[Row]) -> None:
    """Measured over true entropy and fvu of every way of training, on the same independent bits."""
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    cases = {(row["rank"], row["p"], row["seed"]) for row in rows if row["variant"] == variants[-1]}
    rows = [row for row in rows if (row["rank"], row["p"], row["seed"]) in cases]
    with figure(path, columns=2, size=(4.8, 0.34 * len(variants) + 1.1), sharey=True) as axes:
        ratio, error = axes[0]
        for place, variant in enumerate(variants):
            for shift, (p, colour) in enumerate(
                zip(sorted({row["p"] for row in rows}), COLOURS, strict=False)
            ):
                here = [row for row in rows if (row["variant"], row["p"]) == (variant, p)]
                y = [place + 0.24 * (shift - 0.5)] * len(here)
                label = f"p = {p:g}" if place == 0 else None
                style: dict[str, Any] = {
                    "color": colour,
                    "alpha": 0.55,
                    "markeredgewidth": 0,
                    "label": label,
                }
                ratio.plot(
                    [row["bits_marginal"] / row["truth_of_rows"] for row in here], y, "o", **style
                )
                error.plot([max(row["fvu"], 1e-6) for row in here], y, "o", **style)
        ratio.axvline(1, color="#404040", linewidth=0.9, zorder=1)
        ratio.set(xscale="log", xlabel="bits_marginal / true entropy", title="entropy")
        ratio.set_yticks(range(len(variants)), variants)
        ratio.invert_yaxis()
        error.axvline(0.01, color="#404040", linewidth=0.9, zorder=1)
        error.set(xscale="log", xlabel="fvu (1e-6 and less on the left)", title="reconstruction")
        error.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), handletextpad=0.1)


def _failure(path: Path, rows: Sequence[Row], label: str) -> None:
    """What is measured where more than bits is planted, beside the planted entropy and the bounds."""
    rates = sorted({row["p"] for row in rows}, reverse=True)
    lines = {
        "truth": ("planted bits", "#404040", "-"), "bits_marginal": ("bits_marginal", COLOURS[0], "o-"),
        "bits_joint": ("bits_joint", COLOURS[1], "o-"), "bits_gaussian": ("Gaussian bound", COLOURS[5], "--"),
        "bits_shannon": ("Shannon's lower bound", COLOURS[2], "--"),
    }  # fmt: skip
    with figure(path, columns=len(rates) + 1, size=(3.8, 3.4)) as axes:
        for panel, p in zip(axes[0], rates, strict=False):
            here = [row for row in rows if row["p"] == p]
            for name, (title, colour, style) in lines.items():
                points = _means(here, name)
                if points:
                    panel.plot(*zip(*points, strict=True), style, color=colour, label=title)
            panel.set(
                title=f"{here[0]['rank']} bits, p = {p:g}",
                xlabel=label,
                ylabel="bits a row",
                xscale="log",
                ylim=(0, None),
            )
        axes[0][0].figure.legend(
            *axes[0][0].get_legend_handles_labels(), loc="outside right center"
        )
        for p, colour in zip(rates, COLOURS, strict=False):
            axes[0][-1].plot(
                *zip(*_means([row for row in rows if row["p"] == p], "fvu"), strict=True),
                "o-",
                color=colour,
                label=f"p = {p:g}",
            )
        if rows[0]["family"] == "noise":
            shares = sorted({row["strength"] for row in rows})
            axes[0][-1].plot(
                shares, shares, color="#404040", linewidth=0.9, label="the noise itself"
            )
        axes[0][-1].set(title="fvu", xlabel=label, xscale="log", ylim=(0, None))
        axes[0][-1].legend()


def _means(rows: Sequence[Row], name: str) -> list[tuple[float, float]]:
    """(strength, mean over the seeds), where the number is one."""
    points = []
    for strength in sorted({row["strength"] for row in rows}):
        values = [row[name] for row in rows if row["strength"] == strength]
        values = [value for value in values if value is not None and value == value]
        if values:
            points.append((strength, sum(values) / len(values)))
    return points
