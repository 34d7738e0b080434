"""Entropy along a text and through the layers: the bits of a hidden state at each position and depth of ordinary text.

After the section on normal text of arXiv 2509.20997, with two kinds of autoencoders: one of its own for every layer and
position, and one for a layer that all its positions share. See docs/study-sequence.md.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from bitlens.autoencoders import Autoencoder
from bitlens.errors import BitlensError
from bitlens.hidden import ActivationStore, LanguageModel, TensorSource
from bitlens.hidden.harvest import folder_name, harvest
from bitlens.hidden.text import ContextReader
from bitlens.studies.cells import Cell, Row, Study
from bitlens.studies.figures import Panel, draw_panels, groups
from bitlens.studies.measuring import measure_rows
from bitlens.studies.sequence.config import KINDS, SequenceConfig
from bitlens.studies.sequence.rows import Rows, common_rows, rows_at
from bitlens.training import train
from bitlens.training.signals import stop_on_signals

STORE_SETTINGS = (
    "model",
    "revision",
    "model_digest",
    "corpus",
    "context_length",
    "packed",
    "prepend_bos",
    "dtype",
    "max_rows",
)
SETTINGS = ("test_fraction", "preset", "n_latents", "steps")


def run(config: SequenceConfig, study: Study) -> list[Row]:
    """Harvest, train and measure every cell.

    The stores, the shared autoencoders and the cells are kept in the folder, and a resumed study goes on from them.
    """
    model, reader, positions = _open(config)
    study.open("sequence", asdict(config))
    hooks = list(dict.fromkeys(hook.name for hook in model.hooks))
    study.say(f"Harvesting hidden states at {len(hooks)} hook points")
    store = _harvest(config, model, reader, study, hooks)
    rows = common_rows(store, positions, config.max_rows)
    same = {name: store.manifest.get(name) for name in STORE_SETTINGS} | {"rows": rows._asdict()}
    same |= {name: getattr(config, name) for name in SETTINGS}
    layers = [{"layer": hook, "seed": seed} for hook in hooks for seed in config.seeds]
    cells = [
        {"autoencoder": kind, **layer, "position": position}
        for layer in layers
        for position in positions
        for kind in dict.fromkeys(config.autoencoders)
    ]
    if "shared" in config.autoencoders:
        study.planned = len(layers) + len(cells)
        study.say(f"Training {len(layers)} autoencoders that positions share")
        work = functools.partial(_train_shared, study.out, config)
        study.measure([{"train": "shared", **layer} for layer in layers], work, same)
    study.say(
        f"Measuring {len(cells)} cells, each of {rows.training:,} rows to train on and "
        f"{rows.test:,} held out"
    )
    measured = study.measure(cells, functools.partial(_measure, study.out, config, rows), same)
    return study.finish(measured, draw)


def _open(config: SequenceConfig) -> tuple[LanguageModel, ContextReader, list[int]]:
    """The model, the text and the positions; whatever is wrong with them is refused before a file is written."""
    config.refuse_nonsense()
    model = config.load()
    model.require_context(config.context)
    # refuses what it cannot be trained with
    config.training(0, config.preset).resolved(max(model.widths().values()), "cpu")
    reader = config.reader(model.tokenizer, config.test_fraction)
    if next(reader.contexts(), None) is None:
        raise BitlensError("The text gave no usable tokens: it is empty.")
    return model, reader, text_positions(config, reader)


def text_positions(config: SequenceConfig, reader: ContextReader) -> list[int]:
    """The positions of the study in order; one that only special tokens have is refused."""
    first, last = len(reader.before), len(reader.before) + reader.room - 1
    if not config.positions:
        between = (1 << i for i in range(last.bit_length()))
        return sorted({first, *(p for p in between if first < p < last), last})
    for position in config.positions:
        if not first <= position <= last:
            raise BitlensError(
                f"There are no rows at position {position}: in a context of {config.context} tokens "
                f"of this tokenizer the text's own are at {first} to {last}."
            )
    return sorted(set(config.positions))


def _harvest(
    config: SequenceConfig,
    model: LanguageModel,
    reader: ContextReader,
    study: Study,
    hooks: list[str],
) -> ActivationStore:
    """Harvest every hook point -> the store of the first; all have the same rows."""
    folder = study.out / "stores" if len(hooks) > 1 else _store_folder(study.out, hooks[0])
    folder.parent.mkdir(exist_ok=True)
    dtype = None if config.store_dtype == "auto" else getattr(torch, config.store_dtype)
    with stop_on_signals() as stop:
        harvest(
            model,
            reader,
            folder,
            batch_size=config.batch_size,
            max_rows=config.max_tokens,
            store_dtype=dtype,
            resume=folder.exists(),
            announce=lambda plan: study.say(f"Plan: {plan}"),
            stop=lambda: stop.signal,
        )
    return ActivationStore(_store_folder(study.out, hooks[0]))


def _store_folder(out: Path, hook: str) -> Path:
    return out / "stores" / folder_name(hook)


def _measure(out: Path, config: SequenceConfig, rows: Rows, cell: Cell) -> Row:
    manifest = _store_folder(out, cell["layer"]) / "manifest.json"
    store = _opened(manifest.parent, manifest.stat().st_mtime_ns)
    hidden, document, test = rows_at(store, cell["position"], rows)
    if cell["autoencoder"] == "shared":
        autoencoder = _shared(out, config, store, cell)
    else:
        about = {**store.about, "position": cell["position"]}
        autoencoder = train(
            TensorSource(hidden[~test], about), config.training(cell["seed"], config.preset)
        )
    numbers, _ = measure_rows(
        autoencoder.cpu(), hidden, test, documents=document, seed=cell["seed"]
    )
    gaussian = numbers["bits_gaussian"]
    ratio = numbers["bits_joint"] / gaussian if gaussian else None
    return {**numbers, "joint_over_gaussian": ratio}


@functools.lru_cache(maxsize=1)
def _opened(path: Path, written: int) -> ActivationStore:
    """The store of the cells in hand: one that is opened anew checks all its shards again."""
    return ActivationStore(path)


def _train_shared(out: Path, config: SequenceConfig, cell: Cell) -> Row:
    store = ActivationStore(_store_folder(out, cell["layer"]))
    return {"live": _shared(out, config, store, cell).n_latents}


def _shared(out: Path, config: SequenceConfig, store: ActivationStore, cell: Cell) -> Autoencoder:
    """The autoencoder that all positions of a layer share; trained where it is not there yet."""
    settings = f"{config.preset}-{config.n_latents or 4 * store.d_in}-{config.steps}"
    folder = out / "shared" / settings / f"{folder_name(cell['layer'])}-{cell['seed']}"
    return train(store, config.training(cell["seed"], config.preset), folder, resume=True)


def draw(rows: Sequence[Row], out: Path) -> None:
    """`bits` and `fvu` over the position, a line a layer; `layers`: bits over the depth, a line a position."""
    position = "position in the context"
    for name, x, series, number, labels in (
        ("bits", "position", "layer", "bits_joint", (position, "bits_joint, a row")),
        ("fvu", "position", "layer", "fvu", (position, "fvu, held out")),
        ("layers", "layer", "position", "bits_joint", ("", "bits_joint, a row")),
    ):
        panels = [
            Panel(
                part, x, number, series, ordered=True, even=True, title=KINDS[kind], labels=labels
            )
            for kind, part in groups(rows, "autoencoder").items()
        ]
        draw_panels(out / name, [panels], sharey=True)
