"""Which architecture is better at what? All on the same rows, at one l0, with several seeds."""

from __future__ import annotations

import itertools
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

from bitlens.errors import BitlensError
from bitlens.files import read_manifest, sha256
from bitlens.hidden import ActivationStore, Corpus, LanguageModel
from bitlens.hidden.harvest import harvest
from bitlens.hidden.store import SCHEMA, WHAT
from bitlens.hidden.text import ContextReader
from bitlens.options import BUNDLED
from bitlens.studies.cells import Cell, Row, Study
from bitlens.studies.compare.config import (
    ARCHITECTURES,
    BAE,
    BINARY_VARIANTS,
    SEARCHED,
    CompareConfig,
)
from bitlens.studies.compare.measuring import measure_cell, measure_stability
from bitlens.studies.compare.report import draw, write_report

OF_THE_STORE = (
    *("model", "revision", "model_digest", "hook", "corpus", "context_length", "packed"),
    *("prepend_bos", "dtype", "rows", "outlier_norm"),
)
TEXT = BUNDLED  # of the store that is harvested where none is given


def run(config: CompareConfig, study: Study) -> list[Row]:
    """Train and measure everything; `compare.md` and the trained runs stay in the folder, too."""
    config.refuse_nonsense()
    study.open("compare", asdict(config))
    store = _store(config, study.out)
    widths = config.n_latents or (4 * store.d_in,)
    same = {
        "steps": config.steps,
        "test_fraction": config.test_fraction,
        "store": {name: store.manifest.get(name) for name in OF_THE_STORE},
        "labels": config.labels and config.labels.is_file() and sha256(config.labels),
        "contexts": config.contexts,
        "dtype": config.dtype,
        # the cells that have points of bits over fvu
        "curves": config.seeds[0] if config.prices[1:] else None,
    }
    names = [name for name in (*config.architectures, *config.variants) if name != BAE]
    trained = [name for name in names if name not in SEARCHED]
    searched = [name for name in names if SEARCHED.get(name) in config.architectures]

    def cells(names: list[str]) -> list[Cell]:
        each = itertools.product(widths, names)
        return [cell for w, name in each for cell in config.cells(name, w, w == widths[0])]

    ours, theirs, of_theirs = cells([BAE]), cells(trained), cells(searched)
    stable = [
        {"name": name, "n_latents": width}
        for width in widths
        for name in config.architectures
        if name != "PCA" and len(config.seeds) > 1
    ]
    study.planned = len(ours) + len(theirs) + len(of_theirs) + len(stable)

    how: dict[str, Any] = {"config": config, "out": study.out, "store": str(store.path)}
    rows = study.measure(ours, measure_cell, same, **how)
    for cell in theirs + of_theirs:
        cell["k"] = _matched_l0(rows, cell)
    settings = {"settings": ARCHITECTURES | BINARY_VARIANTS}
    rows += study.measure(theirs, measure_cell, same | settings, **how)
    rows += study.measure(of_theirs, measure_cell, {**same, "settings": ARCHITECTURES}, **how)
    first = config.prices[0]
    seeds = {"seeds": config.seeds, "price": first}
    for alike in study.measure(stable, measure_stability, same | seeds, **how):
        numbers = {key: value for key, value in alike.items() if key.startswith("stability")}
        same_runs = {"name": alike["name"], "n_latents": alike["n_latents"], "price": first}
        for row in rows:
            if same_runs.items() <= row.items():
                row |= numbers
    write_report(study.out, rows, config, store)
    return study.finish(rows, draw)


def _store(config: CompareConfig, out: Path) -> ActivationStore:
    if config.store:
        return ActivationStore(config.store, config.test_fraction)
    path = out / "store"
    manifest = path / "manifest.json"
    if not manifest.exists() or not read_manifest(manifest, SCHEMA, WHAT).get("complete"):
        model = LanguageModel.load(BUNDLED, ["layers.2"])
        fraction = config.test_fraction
        reader = ContextReader(Corpus((TEXT,)), model.tokenizer, 256, test_fraction=fraction)
        harvest(model, reader, path, resume=path.exists())
    return ActivationStore(path, config.test_fraction)


def _matched_l0(rows: list[Row], cell: Cell) -> int:
    """The BAE's l0 at the cell's width and price, over its seeds."""
    ours = [row for row in rows if all(row[key] == cell[key] for key in ("n_latents", "price"))]
    l0 = [row["l0"] for row in ours if "l0" in row]
    if not l0:
        raise BitlensError(
            f"No BAE of {cell['n_latents']} latents could be measured: {ours[0]['error']}"
        )
    return max(1, round(mean(l0)))
