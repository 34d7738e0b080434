"""One cell of the study `compare`: an autoencoder trained, or one that was, with other codes, and
everything that is measured of it."""

from __future__ import annotations

import functools
import re
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from bitlens.autoencoders import Autoencoder
from bitlens.autoencoders.sparse import SparseAutoencoder
from bitlens.bits.packed import PackedBits
from bitlens.causal.splice import Splice, load_spliced
from bitlens.devices import pick_device
from bitlens.errors import BitlensError
from bitlens.evaluation import Evaluation, evaluate
from bitlens.evaluation.numbers import some_rows
from bitlens.hidden import ActivationStore
from bitlens.information.magnitudes import RISE, Quantiser
from bitlens.information.moments import Covariance
from bitlens.labels.sources import Labels, load_tokenizer, own_labels, read_labels
from bitlens.matching import stability
from bitlens.studies.cells import Cell, Row
from bitlens.studies.compare.config import (
    ARCHITECTURES,
    BAE,
    BINARY_VARIANTS,
    NULLS,
    SEARCHED,
    CompareConfig,
)
from bitlens.studies.compare.curves import POINTS
from bitlens.studies.compare.labels import StoreColumns, label_numbers
from bitlens.studies.compare.report import CONTEXTS
from bitlens.studies.measuring import entropies_that_count
from bitlens.training import TrainConfig, train
from bitlens.training.metrics import records

BINARY = {BAE, "random", *BINARY_VARIANTS}
RISES = (RISE, 0.02, 0.1, 0.3)
"""Shares by which quantised magnitudes may raise the fvu: each is a point of bits over fvu."""
PARTS = ("train", "evaluate", "splice", "labels")  # of the seconds of a cell
FIT_ROWS, TEST_ROWS = 16384, 8192  # of magnitudes that are coded in context


def run_folder(out: Path, cell: Cell) -> Path:
    """Where the trained run of a cell is."""
    name: str = cell["name"]
    name = re.sub(r"[^a-z0-9]+", "-", SEARCHED.get(name, name).lower())
    return out / "runs" / f"{name}-{cell['n_latents']}-price{cell['price']}-seed{cell['seed']}"


class Shared(NamedTuple):
    """What all cells measure with; no splice and no labels for imported hidden states."""

    store: ActivationStore
    covariance: Covariance
    columns: StoreColumns
    splice: Splice | None
    labels: list[Labels]


@functools.cache  # once in a process
def opened(config: CompareConfig, path: str) -> Shared:
    """The store and all that is made of it alone."""
    store = ActivationStore(path, config.test_fraction)
    columns = StoreColumns.of(store)
    device = pick_device(config.device)
    covariance = Covariance.of(rows.hidden.to(device) for rows in store.read("usual"))
    if not store.manifest.get("context_length"):
        return Shared(store, covariance, columns, None, [])
    model = load_spliced(None, store, device, dtype=config.dtype)
    tokenizer = load_tokenizer(columns)
    if config.labels:
        labellings = read_labels(config.labels, columns, tokenizer)
    else:
        labellings = own_labels(columns, tokenizer)
    splice = Splice.of_store(model, None, store, config.contexts)
    usual = [labelling.only(columns.usual) for labelling in labellings]
    return Shared(store, covariance, columns, splice, usual)


def measure_cell(cell: Cell, config: CompareConfig, out: Path, store: str) -> Row:
    """Train one autoencoder, or go on with it, and measure it on held-out documents."""
    shared, times = opened(config, store), [time.perf_counter()]
    trained = _trained(cell, config, out, shared.store)
    times.append(time.perf_counter())
    numbers = evaluate(trained, shared.store, covariance=shared.covariance)
    row: Row = entropies_that_count(numbers.as_dict())
    row = {name: value for name, value in row.items() if name not in cell}
    # curves are drawn of one seed and several prices
    drawn = cell["name"] not in NULLS and not row["left_out"]
    if drawn and len(config.prices) > 1 and cell["seed"] == config.seeds[0]:
        row[POINTS] = rate_distortion(trained, shared.store, numbers)
    times.append(time.perf_counter())
    if shared.splice:
        sums = shared.splice.sums(shared.splice.tokens([trained])[0])
        row |= {**sums.losses()._asdict(), CONTEXTS: [x.tolist() for x in sums]}
    times.append(time.perf_counter())
    row |= label_numbers(trained, shared.store, shared.columns, shared.labels)
    times.append(time.perf_counter())
    for part, (begun, ended) in zip(PARTS, pairwise(times), strict=True):
        row[f"{part}_seconds"] = ended - begun
    if seconds := _training_seconds(run_folder(out, cell), trained):
        row["train_seconds"] = seconds
    if trained.mean.is_cuda:
        torch.cuda.empty_cache()  # for the processes beside this one
    return {**row, "seconds": times[-1] - times[0]}


def _trained(cell: Cell, config: CompareConfig, out: Path, store: ActivationStore) -> Autoencoder:
    name, folder = cell["name"], run_folder(out, cell)
    if name in SEARCHED:
        if not (folder / "cfg.json").exists():
            raise BitlensError(f"{SEARCHED[name]} was not trained, so its codes are not searched.")
        trained = SparseAutoencoder.from_pretrained(folder, pick_device(config.device))
        return trained.coded(cell["k"])
    settings: dict[str, Any] = {"lam": cell["price"]} if name in BINARY else {}
    settings |= {"k": cell["k"]} if "k" in cell else {}
    settings |= {**ARCHITECTURES, **BINARY_VARIANTS}[name]
    if name == "random":
        settings["match"] = str(run_folder(out, {**cell, "name": BAE}))
    training = TrainConfig(
        n_latents=cell["n_latents"],
        steps=config.steps,
        seed=cell["seed"],
        test_fraction=config.test_fraction,
        device=pick_device(config.device),
        precision="fp32",  # as a BAE has it anyway
        **settings,
    )
    return train(store, training, folder, resume=folder.exists())


def _training_seconds(folder: Path, trained: Autoencoder) -> float:
    """By the median speed, so that an interruption does not count; 0 where nothing was logged."""
    lines = records(folder)
    if not lines:
        return 0.0
    rows = lines[-1]["step"] * trained.metadata["training"]["batch_size"]
    return rows / median(line["rows_per_second"] for line in lines)


def rate_distortion(
    trained: Autoencoder, store: ActivationStore, numbers: Evaluation
) -> list[tuple[float, float]]:
    """(fvu, bits a row) that the autoencoder can be used at: of floats one for each of `RISES`,
    their magnitudes by the cheaper of two codes."""
    if numbers.bits_joint is None:
        return []
    if trained.binary:
        return [(numbers.fvu, numbers.bits_joint)]
    splits = store.splits()
    fit = some_rows(store, "train", FIT_ROWS, sum(len(split.train) for split in splits))
    test = some_rows(store, "test", TEST_ROWS, sum(len(split.test) for split in splits))
    quantiser = Quantiser(trained, test, fit)
    return [
        (numbers.fvu * (1 + rise), numbers.bits_joint + quantiser.magnitudes(rise).bits)
        for rise in RISES
    ]


@torch.inference_mode()
def measure_stability(cell: Cell, config: CompareConfig, out: Path, store: str) -> Row:
    """How alike the runs of all seeds are, by the rows that latents are on in and by direction."""
    rows, device = ActivationStore(store, config.test_fraction), pick_device(config.device)
    cells = ({**cell, "price": config.prices[0], "seed": seed} for seed in config.seeds)
    folders = [folder for c in cells if ((folder := run_folder(out, c)) / "cfg.json").exists()]
    if len(folders) < 2:
        raise BitlensError(
            f"Fewer than two seeds of {cell['name']} were trained, so there is no stability."
        )
    runs = [Autoencoder.from_pretrained(folder, device) for folder in folders]
    bits = []
    for run in runs:
        words = [run.encode_bits(part.hidden).words.cpu() for part in rows.read("test")]
        bits.append(PackedBits(torch.cat(words), run.n_latents))
    alike = stability(bits, [run.W_dec.cpu() for run in runs])
    measures = {"": alike.shared, "_jaccard": alike.jaccard, "_cosine": alike.cosine}
    return {f"stability{ending}": value for ending, value in measures.items()}
