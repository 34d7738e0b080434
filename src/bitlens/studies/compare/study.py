"""Which architecture is better at what? All on the same rows, at one l0, with several seeds."""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

import torch

from bitlens.autoencoders import Autoencoder
from bitlens.bits.packed import PackedBits
from bitlens.causal.splice import Splice
from bitlens.errors import BitlensError
from bitlens.evaluation import evaluate
from bitlens.hidden import ActivationStore, Corpus, LanguageModel
from bitlens.hidden.harvest import harvest
from bitlens.hidden.text import ContextReader
from bitlens.information.moments import Covariance
from bitlens.labels.sources import Labels, load_tokenizer, own_labels, read_labels
from bitlens.matching import stability
from bitlens.options import BUNDLED
from bitlens.studies.cells import Cell, Row, Study
from bitlens.studies.compare.config import ARCHITECTURES, BAE, VARIANTS, CompareConfig
from bitlens.studies.compare.labels import StoreColumns, label_numbers
from bitlens.studies.compare.report import CONTEXTS, draw, write_report
from bitlens.training import TrainConfig, train

TEXT = BUNDLED  # of the store that is harvested where none is given
BINARY = {BAE, "random", *VARIANTS}


def run(config: CompareConfig, study: Study) -> list[Row]:
    """Train and measure everything; `compare.md` and the trained runs stay in the folder, too."""
    config.refuse_nonsense()
    study.open("compare", asdict(config))
    store = _store(config, study.out)
    widths = config.n_latents or (4 * store.d_in,)
    same = {
        "steps": config.steps,
        "test_fraction": config.test_fraction,
        "corpus": store.manifest.get("corpus"),
        "hook": store.manifest.get("hook"),
        "labels": config.labels and str(config.labels),
        "contexts": config.contexts,
    }
    names = [name for name in (*config.architectures, *config.variants) if name != BAE]
    ours = [cell for width in widths for cell in config.cells(BAE, width)]
    theirs = [cell for width in widths for name in names for cell in config.cells(name, width)]
    stable = [
        {"name": name, "n_latents": width}
        for width in widths
        for name in config.architectures
        if name != "PCA" and len(config.seeds) > 1
    ]
    study.planned = len(ours) + len(theirs) + len(stable)

    def measure(cells: list[dict[str, Any]], measure: Callable[..., Row], **more: Any) -> list[Row]:
        work = functools.partial(measure, config=config, out=study.out, store=str(store.path))
        return study.measure(cells, work, {**same, **more})

    rows = measure(ours, measure_cell)
    for cell in theirs:
        cell["k"] = _matched_l0(rows, cell)
    rows += measure(theirs, measure_cell)
    first = config.prices[0]
    for alike in measure(stable, measure_stability, seeds=config.seeds, price=first):
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
    if not manifest.exists() or not json.loads(manifest.read_text())["complete"]:
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


def run_folder(out: Path, cell: Cell) -> Path:
    """Where the trained run of a cell is."""
    name = re.sub(r"[^a-z0-9]+", "-", cell["name"].lower())
    return out / "runs" / f"{name}-{cell['n_latents']}-price{cell['price']}-seed{cell['seed']}"


class Shared(NamedTuple):
    """What all cells measure with; no splice and no labels for imported hidden states."""

    store: ActivationStore
    covariance: Covariance
    columns: StoreColumns
    splice: Splice | None
    labels: list[Labels]


@functools.cache  # once in a process
def _opened(path: str, test_fraction: float, labels: Path | None, contexts: int) -> Shared:
    store = ActivationStore(path, test_fraction)
    columns = StoreColumns.of(store)
    covariance = Covariance.of(rows.hidden for rows in store.read("usual"))
    if not store.manifest.get("context_length"):
        return Shared(store, covariance, columns, None, [])
    hook = store.manifest["hook"]["module"]
    model = LanguageModel.again(store.manifest, store.path, [hook], causal=True)
    tokenizer = load_tokenizer(columns)
    labellings = (
        read_labels(labels, columns, tokenizer) if labels else own_labels(columns, tokenizer)
    )
    splice = Splice.of_store(model, None, store, contexts)
    usual = [labelling.only(columns.usual) for labelling in labellings]
    return Shared(store, covariance, columns, splice, usual)


def measure_cell(cell: Cell, config: CompareConfig, out: Path, store: str) -> Row:
    """Train one autoencoder, or go on with it, and measure it on held-out documents."""
    shared = _opened(store, config.test_fraction, config.labels, config.contexts)
    settings: dict[str, Any] = {"lam": cell["price"]} if cell["name"] in BINARY else {}
    settings |= {"k": cell["k"]} if "k" in cell else {}
    settings |= {**ARCHITECTURES, **VARIANTS}[cell["name"]]
    if cell["name"] == "random":
        settings["match"] = str(run_folder(out, {**cell, "name": BAE}))
    training = TrainConfig(
        n_latents=cell["n_latents"],
        steps=config.steps,
        seed=cell["seed"],
        test_fraction=config.test_fraction,
        **settings,
    )
    folder, begun = run_folder(out, cell), time.perf_counter()
    trained = train(shared.store, training, folder, resume=folder.exists())
    seconds = _training_seconds(folder, trained) or time.perf_counter() - begun
    numbers = evaluate(trained, shared.store, covariance=shared.covariance)
    row: Row = {name: value for name, value in numbers.as_dict().items() if name not in cell}
    if shared.splice:
        sums = shared.splice.sums(shared.splice.tokens([trained])[0])
        row |= {**sums.losses()._asdict(), CONTEXTS: [x.tolist() for x in sums]}
    row["train_seconds"] = seconds
    return {**row, **label_numbers(trained, shared.store, shared.columns, shared.labels)}


def _training_seconds(folder: Path, trained: Autoencoder) -> float:
    """By the median speed, so that an interruption does not count; 0 where nothing was logged."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    if not lines:
        return 0.0
    rows = lines[-1]["step"] * trained.metadata["training"]["batch_size"]
    return rows / median(line["rows_per_second"] for line in lines)


@torch.inference_mode()
def measure_stability(cell: Cell, config: CompareConfig, out: Path, store: str) -> Row:
    """How alike the runs of all seeds are, by the rows that latents are on in and by direction."""
    rows = ActivationStore(store, config.test_fraction)
    cells = ({**cell, "price": config.prices[0], "seed": seed} for seed in config.seeds)
    folders = [folder for c in cells if ((folder := run_folder(out, c)) / "cfg.json").exists()]
    if len(folders) < 2:
        raise BitlensError(
            f"Fewer than two seeds of {cell['name']} were trained, so there is no stability."
        )
    runs = [Autoencoder.from_pretrained(folder) for folder in folders]
    codes = [
        torch.cat([run.encode_bits(part.hidden).words.cpu() for part in rows.read("test")])
        for run in runs
    ]
    bits = [PackedBits(words, run.n_latents) for words, run in zip(codes, runs, strict=True)]
    alike = stability(bits, [run.W_dec for run in runs])
    measures = {"": alike.shared, "_jaccard": alike.jaccard, "_cosine": alike.cosine}
    return {f"stability{ending}": value for ending, value in measures.items()}
