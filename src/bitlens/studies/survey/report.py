"""The page and the figures of the study `survey`, and where its files are."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bitlens.bits.statistics import DENSE
from bitlens.comsem.interpret import Summary
from bitlens.errors import BitlensError
from bitlens.evaluation import Evaluation
from bitlens.features.habits import Preference
from bitlens.features.profiles import Profile, arranged
from bitlens.hidden import ActivationStore
from bitlens.hidden.harvest import folder_name
from bitlens.information.moments import Covariance
from bitlens.information.rate_distortion import gaussian_bits
from bitlens.results import Number, numbers_of, plain, shown
from bitlens.studies.cells import Cell, Row
from bitlens.studies.figures import COLOURS, MARKS, figure, groups
from bitlens.studies.measuring import not_measured
from bitlens.studies.pages import table, write_page
from bitlens.studies.shared import store_folder
from bitlens.studies.survey.config import BAE

PAGE = "survey.md"
CLEAREST = 20  # latents on the page
TOKENS = 4  # shown of each
RARE = 1e-5  # the left end of the histogram of firing rates
OWN = {
    "bits": Number("all that a code needs: `bits_joint` and `bits_magnitudes`", ".1f"),
    "of_gaussian": Number("`bits` over `bits_gaussian`", ".2f"),
    "token_latents": Number("latents that a set of tokens predicts, F1 above .5"),
    "balanced_accuracy": Number("of the token that explains a latent; chance is .5", ".3f"),
}
SHOWN = {  # number: the command that gives it
    **dict.fromkeys(("rows", "fvu", "l0", "dead", "dense", "highest_rate"), "evaluate"),
    "bits_joint": "entropy",
    "bits_magnitudes": "evaluate",
    "bits": "entropy, evaluate",
    "bits_gaussian": "evaluate",
    "of_gaussian": "entropy, evaluate",
    **dict.fromkeys(("ce_original", "ce_loss_score", "kl_div", "top1"), "evaluate"),
    "token_latents": "features",
    **dict.fromkeys(("judged", "interpretable", "balanced_accuracy", "shuffled"), "interpret"),
}
COMMANDS = (
    "bitlens evaluate {run} {store} --no-joint --contexts {contexts}",
    "bitlens entropy {codes}",
    "bitlens features {codes} --run {run} --out {features}",
    "bitlens interpret {codes} --out {meanings}",
)


class Files(NamedTuple):
    """What is made of one autoencoder."""

    run: Path
    codes: Path
    features: Path
    meanings: Path


def run_name(cell: Cell) -> str:
    """Of an autoencoder, as files have it."""
    return f"{folder_name(cell['hook'])}-{cell['autoencoder'].lower()}-{cell['seed']}"


def files_of(out: Path, cell: Cell) -> Files:
    """Where they are."""
    name = run_name(cell)
    features, meanings = out / f"features/{name}.jsonl", out / f"meanings/{name}/scores.jsonl"
    return Files(out / "runs" / name, out / "codes" / name, features, meanings)


def read_profiles(out: Path, cell: Cell) -> list[Profile]:
    """What was written of the latents of an autoencoder."""
    profiles, file = [], files_of(out, cell).features
    try:
        for line in file.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            record["tokens"] = [Preference(**token) for token in record["tokens"]]
            f1 = record["token_f1"]
            profiles.append(Profile(**record | {"token_f1": math.nan if f1 is None else f1}))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise BitlensError(
            f"{file} is damaged; restore it, or make the study again with `overwrite=True`."
        ) from error
    return profiles


# --- figures --------------------------------------------------------------------------------------


def draw(rows: Sequence[Row], out: Path) -> None:
    """`bits`: bits over fvu beside the Gaussian bound; `rates`: how often latents are on."""
    by_hook = groups(rows, "hook")
    with figure(out / "bits", len(by_hook), size=(4.4, 3.6)) as axes:
        for panel, (hook, mine) in zip(axes.flat, by_hook.items(), strict=True):
            _draw_bits(panel, store_folder(out, hook), mine)
            panel.set(title=hook, xlabel="fraction of variance unexplained, held out")
        axes[0, 0].set_ylabel("bits a row, magnitudes included")
        axes[0, 0].legend()
    with figure(out / "rates", len(by_hook), size=(4.4, 3.2), sharey=True) as axes:
        for panel, (hook, mine) in zip(axes.flat, by_hook.items(), strict=True):
            _draw_rates(panel, out, mine)
            panel.set(
                title=hook, xlabel="share of rows in which it is on (left end: less)", xscale="log"
            )
        axes[0, 0].set_ylabel("latents")
        axes[0, 0].legend()


def _draw_bits(panel: Any, folder: Path, rows: Sequence[Row]) -> None:
    covariance = Covariance.of(block.hidden for block in ActivationStore(folder).read("usual"))
    fvus = [row["fvu"] for row in rows]
    grid = np.linspace(0.7 * min(fvus), min(1.0, 1.3 * max(fvus)), 60)
    if all(row["bits_gaussian"] for row in rows):  # rows enough
        bound = [gaussian_bits(covariance.matrix, fvu) for fvu in grid]
        panel.plot(grid, bound, "--", color="#404040", label="Gaussian bound")
        panel.plot(grid, [b / 2 for b in bound], ":", color="#8a8a8a", label="half of it")
    series = groups(rows, "autoencoder").items()
    # labels of ours, which has fewer bits, below and of the rival above
    for (name, mine), colour, mark, below in zip(series, COLOURS, MARKS, (-14, 6), strict=False):
        places = [row["fvu"] for row in mine], [row["bits"] for row in mine]
        panel.plot(*places, mark, color=colour, markersize=7, label=name)
        for row in mine:
            if row["of_gaussian"]:
                words = f"{row['of_gaussian']:.2f} of the bound"
                near = {"textcoords": "offset points", "xytext": (8, below), "color": colour}
                panel.annotate(words, (row["fvu"], row["bits"]), fontsize=8, **near)
    panel.set_ylim(bottom=0)


def _draw_rates(panel: Any, out: Path, rows: Sequence[Row]) -> None:
    bins = np.geomspace(RARE, 1, 41)
    for (name, mine), colour in zip(groups(rows, "autoencoder").items(), COLOURS, strict=False):
        rates = [profile.rate for row in mine for profile in read_profiles(out, row)]
        panel.hist(np.clip(rates, RARE, 1), bins, histtype="step", color=colour, label=name, lw=1.6)
    panel.axvline(DENSE, color="#404040", linestyle=":", label="dense")


# --- the page -------------------------------------------------------------------------------------


def write_report(out: Path, rows: Sequence[Row], store: ActivationStore, contexts: int) -> None:
    """`survey.md`: what was run, every number with its command, and the clearest latents."""
    manifest = store.manifest
    measured = [row for row in rows if "error" not in row]
    text = ", ".join(Path(source).name for source in manifest["text"])
    test = sum(len(held_out) for _, held_out in store.splits())
    lines = [
        f"# {Path(manifest['model']).name}, {' and '.join(groups(rows, 'hook'))}",
        "",
        f"Made by `bitlens study survey`: {len(store):,} tokens of {manifest['documents']:,} "
        f"documents ({text}) in contexts of {manifest['context_length']}; {test:,} rows of "
        "held-out documents, on which the numbers are. After ±: half of the 95 % interval, of "
        "`bits_joint` over documents, of losses over contexts.",
        "",
        *_table(measured),
        "",
        "![Bits beside the Gaussian bound](bits.svg)",
        "",
        "![How often latents are on](rates.svg)",
        "",
        "## The commands behind the numbers",
        "",
        "Settings are in `study.json`; each line can be repeated in this folder.",
        "",
    ]
    lines += [f"    {command}" for row in measured for command in _commands(row, contexts)]
    for row in measured:
        if row["autoencoder"] == BAE and row["seed"] == rows[0]["seed"]:
            lines += _clearest(out, row)
    failed = [f"{run_name(row)}: {why}" for row in rows if (why := not_measured(row))]
    write_page(out / PAGE, lines, failed)


def _table(rows: Sequence[Row]) -> list[str]:
    """Numbers down, autoencoders across."""
    numbers = numbers_of(Evaluation) | numbers_of(Summary) | OWN
    seeds = len(groups(rows, "seed")) > 1
    heads = [
        f"{row['hook']}, {row['autoencoder']}" + (f", seed {row['seed']}" if seeds else "")
        for row in rows
    ]
    lines = []
    for name, command in SHOWN.items():
        values = [shown(name, row, numbers[name].format) for row in rows]
        if any(value != "-" for value in values):
            meaning = numbers[name].meaning.replace("|", "\\|")
            lines.append([f"`{name}`", *values, meaning, command])
    return table(["", *heads, "", "from"], "l" + "r" * len(rows) + "ll", lines)


def _commands(row: Row, contexts: int) -> list[str]:
    files = files_of(Path(), row)
    places = {**files._asdict(), "meanings": files.meanings.parent, "contexts": contexts}
    store = store_folder(Path(), row["hook"])
    return [command.format(**places, store=store) for command in COMMANDS]


def _clearest(out: Path, row: Row) -> list[str]:
    """A table of the latents that tokens predict best."""
    said = [
        "",
        f"## The clearest latents of {row['hook']}, {row['autoencoder']}",
        "",
        "F1: how well the best set of tokens predicts the latent in other documents. · is a space, "
        "⏎ the end of a line; the latent is on at the token in «».",
        "",
    ]
    lines = []
    for profile in arranged(read_profiles(out, row), "clear")[:CLEAREST]:
        names = " ".join(as_text(token.text.replace(" ", "·")) for token in profile.tokens[:TOKENS])
        example = as_text(profile.examples[0].strip()) if profile.examples else ""
        numbers = f"{profile.latent}", f"{100 * profile.rate:.2f}", f"{profile.token_f1:.2f}"
        lines.append([*numbers, names, example])
    return said + table(("latent", "on, %", "F1", "tokens", "where it is on"), "rrrll", lines)


def as_text(text: str) -> str:
    """Text without markup, on one line of a table."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", plain(text))
