"""A run as others may see it: in a folder of its own, only what is meant for them, and without the
paths of this machine."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from bitlens.autoencoders import Autoencoder
from bitlens.autoencoders.base import CONFIG, WEIGHTS
from bitlens.files import write_json, write_json_lines
from bitlens.report import REPORT, contents, write_report
from bitlens.report.kept import EVALUATION, LATENTS, kept_evaluation, kept_latents
from bitlens.studies.figures import figure
from bitlens.training.metrics import METRICS

CARD, FIGURE = "README.md", "figure.png"
FILES = (CARD, CONFIG, WEIGHTS, EVALUATION, LATENTS, METRICS, REPORT, FIGURE)  # and no others
LOCAL = {"store", "codes", "match", "init"}  # keys whose values are always places of this machine
CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)")  # how the hub's client names a folder
CURVES = {"mse": "squared error of a batch", "l0": "latents on, per row of a batch"}


def lay_out(
    autoencoder: Autoencoder, run: Path | None, folder: Path, called: str, *, latents: bool = False
) -> Autoencoder:
    """Write what is published of an autoencoder into an empty folder, but for its card -> the same
    autoencoder with what others may know of it.

    run: its folder, for its evaluation and curves. called: its name in the report. latents: with
    its clearest latents, which quote the text.
    """
    autoencoder = copy.copy(autoencoder)
    autoencoder.metadata = without_paths(autoencoder.metadata)
    autoencoder.save(folder)
    evaluation = kept_evaluation(run) if run else None
    if evaluation is not None:
        write_json(folder / EVALUATION, without_paths(evaluation))
    if run and latents and (clearest := kept_latents(run)) is not None:
        write_json(folder / LATENTS, {**clearest, "codes": _last(clearest["codes"])})
    records = [
        {name: value for name, value in record.items() if type(value) in (int, float)}
        for record in (contents.records(run) if run else [])
    ]
    if records:
        write_json_lines(folder / METRICS, records)
    write_report(folder, called=called)
    _draw(folder, records, (evaluation or {}).get("rates"))
    return autoencoder


def without_paths(value: Any, key: str = "") -> Any:
    """The same, with every path of this machine as its last part alone, and a model in the hub's
    cache as its name on the hub."""
    if isinstance(value, Mapping):
        return {name: without_paths(inner, str(name)) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(inner, key) for inner in value]
    if isinstance(value, str) and value and (key in LOCAL or _is_path(value)):
        return _last(value)
    return value


def _is_path(text: str) -> bool:
    absolute = PurePosixPath(text).is_absolute() or PureWindowsPath(text).drive
    return bool(absolute) or text.startswith(("~", "./", "../", ".\\", "..\\", "\\", "file:"))


def _last(path: str) -> str:
    if cached := CACHED.search(path):
        return "/".join(cached.groups())
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def _draw(folder: Path, records: list[dict[str, float]], rates: Any) -> None:
    """`figure.png`, as the hub shows no SVG: training curves and firing rates that are known."""
    curves = {
        name: [(one["step"], one[name]) for one in records if {"step", name} <= set(one)]
        for name in CURVES
    }
    curves = {name: points for name, points in curves.items() if len(points) > 1}
    panels = len(curves) + bool(rates)
    if not panels:
        return
    with figure(folder / FIGURE, columns=panels, size=(3.6, 2.6)) as axes:
        for axis, (name, points) in zip(axes[0], curves.items(), strict=False):
            axis.plot(*zip(*points, strict=True))
            axis.set(title=f"{name}: {CURVES[name]}", xlabel="step")
            axis.set_ylim(bottom=0)
        if rates:
            edges, counts = rates["edges"], rates["counts"]
            axis = axes[0, -1]
            axis.stairs(counts[1:], edges, fill=True)
            axis.set(xscale="log", title="Firing rates", xlabel="share of rows", ylabel="latents")
    (folder / FIGURE).with_suffix(".svg").unlink()
