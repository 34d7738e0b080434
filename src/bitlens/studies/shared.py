"""What the cells of a layer share: a store of text, an autoencoder, and a code of its bits.

A cell of some hundred rows is too small for an autoencoder of its own, and for a model of thousands
of latents: both are fitted on the rows of all cells, and each cell is measured with them.
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from torch import Tensor

from bitlens.autoencoders import Autoencoder
from bitlens.bits.packed import PackedBits
from bitlens.devices import pick_device
from bitlens.errors import BitlensError
from bitlens.files import read_tensors, write_tensors
from bitlens.hidden import ActivationStore, LanguageModel
from bitlens.hidden.harvest import folder_name, harvest
from bitlens.hidden.source import HiddenSource
from bitlens.hidden.text import ContextReader
from bitlens.information.autoregression import Autoregression
from bitlens.studies.cells import Row, Study
from bitlens.studies.measuring import BLOCK
from bitlens.training import TrainConfig, train
from bitlens.training.signals import stop_on_signals

FIELDS = ("order", "rates", "biases")


# --- text -----------------------------------------------------------------------------------------


def store_folder(out: Path, hook: str) -> Path:
    """Where the study in `out` keeps the hidden states of a text at a hook point."""
    return out / "stores" / folder_name(hook)


def harvest_layers(
    model: LanguageModel,
    reader: ContextReader,
    study: Study,
    batch_size: int,
    max_rows: int | None,
    store_dtype: str = "auto",
) -> ActivationStore:
    """Harvest every hook point, or go on -> the store of the first; all have the same rows."""
    first, *others = (store_folder(study.out, hook) for hook in model.widths())
    folder = first.parent if others else first
    folder.parent.mkdir(exist_ok=True)
    with stop_on_signals() as stop:
        harvest(
            model,
            reader,
            folder,
            batch_size=batch_size,
            max_rows=max_rows,
            store_dtype=getattr(torch, store_dtype, None),  # None for auto
            resume=folder.exists(),
            announce=lambda plan: study.say(f"Plan: {plan}"),
            stop=lambda: stop.signal,
        )
    return ActivationStore(first)


def opened(out: Path, hook: str) -> ActivationStore:
    """The store of a hook point."""
    manifest = store_folder(out, hook) / "manifest.json"
    return _last_opened(manifest.parent, manifest.stat().st_mtime_ns)


@functools.lru_cache(maxsize=1)
def _last_opened(path: Path, written: int) -> ActivationStore:
    """The store of the cells in hand: one that is opened anew checks all its shards again."""
    return ActivationStore(path)


# --- autoencoder and code -------------------------------------------------------------------------


def train_shared(
    source: HiddenSource,
    training: TrainConfig,
    folder: Path,
    rows: Tensor,
    documents: Tensor,
    name: str = "code",
) -> Row:
    """Train an autoencoder on a source and fit a code on rows of all cells; both stay in `folder`.

    rows: raw `[n, d]`, none of them held out; documents `[n]`: rows of one document together.
    name: of the code, where a folder may hold those of several choices of rows.
    """
    autoencoder, file = train(source, training, folder, resume=True), folder / f"{name}.safetensors"
    if not file.exists():
        with torch.inference_mode():
            words = [autoencoder.encode_bits(block).words.cpu() for block in rows.split(BLOCK)]
        bits = PackedBits(torch.cat(words), autoencoder.n_latents)
        device = autoencoder.mean.device
        code = Autoregression.fit(bits, documents, training.seed, device=device).to("cpu")
        weights = {f"weights.{i}": block for i, block in enumerate(code.weights)}
        write_tensors(file, {field: getattr(code, field) for field in FIELDS} | weights)
    return {"live": autoencoder.n_latents}


def load_shared(
    folder: Path, device: str, name: str = "code"
) -> tuple[Autoencoder, Autoregression]:
    """What `train_shared` left in a folder: the autoencoder, on this device, and the code of its
    bits, fitted on the rows of all cells that none measures."""
    file = folder / f"{name}.safetensors"
    if not file.exists():
        raise BitlensError(
            f"There is no autoencoder with its code in {folder}: it was not trained."
        )
    return _last_loaded(folder, pick_device(device), file, file.stat().st_mtime_ns)


@functools.lru_cache(maxsize=1)
def _last_loaded(
    folder: Path, device: str, file: Path, written: int
) -> tuple[Autoencoder, Autoregression]:
    tensors = read_tensors(file)
    weights = [tensors[f"weights.{i}"] for i in range(len(tensors) - len(FIELDS))]
    order, rates, biases = (tensors[field] for field in FIELDS)
    code = Autoregression(order, rates, biases, weights)
    return Autoencoder.from_pretrained(folder, device), code
