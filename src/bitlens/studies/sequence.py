"""Entropy along a text and through the layers: the bits of a hidden state at each position and depth of ordinary text.

After the section on normal text of arXiv 2509.20997, with two kinds of autoencoders: one of its own for every layer and
position, and one for a layer that all its positions share. See docs/study-sequence.md.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bitlens.autoencoders import Autoencoder
from bitlens.errors import BitlensError
from bitlens.hidden import ActivationStore, Corpus, LanguageModel, TensorSource
from bitlens.hidden.harvest import folder_name, harvest
from bitlens.hidden.text import ContextReader
from bitlens.studies.cells import Cell, Report, Row, library, measure_cells, open_study, write_table
from bitlens.studies.configs import SequenceConfig
from bitlens.studies.figures import figure
from bitlens.studies.measuring import measure_rows
from bitlens.training import train
from bitlens.training.signals import stop_on_signals

KINDS: dict[str, str] = {
    "cell": "an autoencoder for each position",
    "shared": "one autoencoder for all positions",
}
FEWEST_TRAINING, FEWEST_TEST = 64, 8
SETTINGS = (
    "model", "revision", "model_digest", "corpus", "context_length", "packed", "prepend_bos", "dtype", "max_rows",
)  # fmt: skip


def run_sequence(
    config: SequenceConfig,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    workers: int = 1,
    report: Report = lambda done, total, row: None,
    say: Callable[[str], None] = lambda stage: None,
) -> list[Row]:
    """Harvest, train and measure every cell -> their rows, also in `out`/table.parquet and .csv, with three figures.

    workers: processes that train and measure. report: called after every cell, see `measure_cells`. say: told each stage.
    The stores, the shared autoencoders and the cells are kept in `out`, and a resumed study goes on from them.
    """
    model, reader, positions = _open(config)
    open_study(out, "sequence", asdict(config), resume, overwrite)
    hooks = list(dict.fromkeys(hook.name for hook in model.hooks))
    say(f"Harvesting hidden states at {len(hooks)} hook points")
    store, *_ = _harvest(config, model, reader, out, hooks, say)
    rows = common_rows(store, positions, config.max_rows)
    same = {
        **{name: store.manifest.get(name) for name in SETTINGS}, "rows": rows._asdict(),
        **{name: getattr(config, name) for name in ("test_fraction", "preset", "n_latents", "steps")},
    }  # fmt: skip
    layers = [{"layer": hook, "seed": seed} for hook in hooks for seed in config.seeds]
    if "shared" in config.autoencoders:
        say(f"Training {len(layers)} autoencoders that positions share")
        work = functools.partial(_train_shared, out, config)
        measure_cells(
            out,
            [{"train": "shared", **layer} for layer in layers],
            work,
            same=same,
            workers=workers,
        )
    kinds = dict.fromkeys(config.autoencoders)
    cells = [
        {"autoencoder": kind, **layer, "position": p}
        for layer in layers
        for p in positions
        for kind in kinds
    ]
    say(
        f"Measuring {len(cells)} cells, each of {rows.training:,} rows to train on and {rows.test:,} held out"
    )
    measure = functools.partial(_measure, out, config, rows)
    table = measure_cells(out, cells, measure, same=same, workers=workers, report=report)
    write_table(out / "table", table)
    draw(table, out)
    return table


# --- the text and its hidden states ----------------------------------------------------------------------------------


def _open(config: SequenceConfig) -> tuple[LanguageModel, ContextReader, list[int]]:
    """The model, the text and the positions; everything that can be wrong with them is refused before a file is written."""
    if not config.seeds or not config.autoencoders or not set(config.autoencoders) <= set(KINDS):
        raise BitlensError(
            "The study needs at least one seed, and autoencoders of the kinds 'cell', 'shared' or both."
        )
    if config.max_rows is not None and config.max_rows < FEWEST_TRAINING + FEWEST_TEST:
        raise BitlensError(
            f"`max_rows` must be at least {FEWEST_TRAINING + FEWEST_TEST}, not {config.max_rows}."
        )
    corpus = Corpus(
        config.text, config.text_column, config.split, config.streaming, config.documents
    )
    load = functools.partial(
        LanguageModel.load, config.model, dtype=config.dtype, device=config.device
    )
    hooks = list(config.hooks)
    if not hooks:
        lowest = load(["layers.0"])
        hooks = [f"layers.{i}" for i in range(lowest.config.get_text_config().num_hidden_layers)]
    model = load(hooks)
    model.require_context(config.context)
    config.training(0).resolved(
        max(model.widths().values()), "cpu"
    )  # refuses what it cannot be trained with
    reader = ContextReader(
        corpus, model.tokenizer, config.context, config.packed, config.bos, config.test_fraction
    )
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
                f"There are no rows at position {position}: in a context of {config.context} tokens of this tokenizer "
                f"the text's own are at {first} to {last}."
            )
    return sorted(set(config.positions))


def _harvest(
    config: SequenceConfig, model: LanguageModel, reader: ContextReader, out: Path, hooks: list[str],
    say: Callable[[str], None],
) -> list[ActivationStore]:  # fmt: skip
    folder = out / "stores" if len(hooks) > 1 else _store_folder(out, hooks[0])
    folder.parent.mkdir(exist_ok=True)
    with stop_on_signals() as stop:
        harvest(
            model, reader, folder, batch_size=config.batch_size, max_rows=config.max_tokens,
            store_dtype=None if config.store_dtype == "auto" else getattr(torch, config.store_dtype),
            resume=folder.exists(), announce=lambda plan: say(f"Plan: {plan}"), stop=lambda: stop.signal,
        )  # fmt: skip
    return [ActivationStore(_store_folder(out, hook)) for hook in hooks]


def _store_folder(out: Path, hook: str) -> Path:
    return out / "stores" / folder_name(hook)


class Rows(NamedTuple):
    """How many rows of a position a cell has: of training documents and of held-out ones."""

    training: int
    test: int


class Sample(NamedTuple):
    """Rows of one position in the order of the text: hidden `[n, d]` float32, document `[n]`, test bool `[n]`."""

    hidden: Tensor
    document: Tensor
    test: Tensor


def common_rows(
    store: ActivationStore, positions: Sequence[int], max_rows: int | None = None
) -> Rows:
    """The rows that every one of these positions has: an entropy's error depends on their number, so all get the same."""
    found = {position: torch.zeros(2, dtype=torch.long) for position in positions}
    for index in range(len(store.shards)):
        columns = store.shard(index, ["document", "position"])
        test = store.is_test(columns["document"])
        for position in positions:
            here = columns["position"] == position
            found[position] += torch.tensor([int((here & ~test).sum()), int((here & test).sum())])
    for position, (training, test) in ((p, n.tolist()) for p, n in found.items()):
        if training < FEWEST_TRAINING or test < FEWEST_TEST:
            raise BitlensError(
                f"Position {position} has {training} rows to train on and {test} of held-out documents, fewer than "
                f"{FEWEST_TRAINING} and {FEWEST_TEST}; give more text, or leave the position out."
            )
    training, test = torch.stack(list(found.values())).min(0).values.tolist()
    if max_rows is not None and training + test > max_rows:
        test = max(FEWEST_TEST, round(max_rows * test / (training + test)))
        training = min(training, max_rows - test)
    return Rows(training, test)


def rows_at(store: ActivationStore, position: int, rows: Rows) -> Sample:
    """So many rows of this position, evenly spread over the text. Rows of outlying norm are among them: a position
    where all have it, as the first often does, is measured like any other."""
    hidden, documents = [], []
    for index in range(len(store.shards)):
        tensors = store.shard(index, ["hidden", "document", "position"])
        here = (tensors["position"] == position).nonzero()[:, 0]
        hidden.append(tensors["hidden"][here])
        documents.append(tensors["document"][here])
    document = torch.cat(documents)
    test = store.is_test(document)
    chosen = torch.cat([_spread(~test, rows.training), _spread(test, rows.test)]).sort().values
    return Sample(torch.cat(hidden)[chosen].float(), document[chosen], test[chosen])


def _spread(which: Tensor, n: int) -> Tensor:
    """n of the indices where `which` holds, at even distances."""
    indices = which.nonzero()[:, 0]
    return indices[torch.arange(n) * len(indices) // n]


def _measure(out: Path, config: SequenceConfig, rows: Rows, cell: Cell) -> Row:
    manifest = _store_folder(out, cell["layer"]) / "manifest.json"
    store = _opened(manifest.parent, manifest.stat().st_mtime_ns)
    hidden, document, test = rows_at(store, cell["position"], rows)
    if cell["autoencoder"] == "shared":
        autoencoder = _shared(out, config, store, cell)
    else:
        about = {**store.about, "position": cell["position"]}
        autoencoder = train(TensorSource(hidden[~test], about), config.training(cell["seed"]))
    numbers, _ = measure_rows(
        autoencoder.cpu(), hidden, test, documents=document, seed=cell["seed"]
    )
    gaussian = numbers["bits_gaussian"]
    return {
        **numbers,
        "joint_over_gaussian": numbers["bits_joint"] / gaussian if gaussian else None,
    }


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
    return train(store, config.training(cell["seed"]), folder, resume=True)


# --- figures ---------------------------------------------------------------------------------------------------------


def draw(table: Sequence[Row], out: Path) -> None:
    """`out`/bits, fvu and map (.png and .svg): bits and fvu over the position, a line a layer; bits as a map of both."""
    table = [row for row in table if "error" not in row]
    kinds = [kind for kind in KINDS if any(row["autoencoder"] == kind for row in table)]
    if not kinds:
        return
    layers = list(dict.fromkeys(row["layer"] for row in table))
    positions = sorted({row["position"] for row in table})

    def grid(
        kind: str, name: str, over: Callable[[list[float]], float] = statistics.fmean
    ) -> np.ndarray:
        """One number of the table, over the seeds -> `[layers, positions]`, NaN where there is none"""
        values = np.full((len(layers), len(positions)), np.nan)
        for i, j in np.ndindex(values.shape):
            here = {"autoencoder": kind, "layer": layers[i], "position": positions[j]}
            found = [
                row[name] for row in table if here.items() <= row.items() and row[name] is not None
            ]
            values[i, j] = over(found) if found else np.nan
        return values

    for name, number, label in (
        ("bits", "bits_joint", "bits_joint, a row"),
        ("fvu", "fvu", "fvu, held out"),
    ):
        with figure(out / name, len(kinds), sharey=True) as panels:
            for axes, kind in zip(panels[0], kinds, strict=True):
                band = (
                    (grid(kind, f"{number}_low", min), grid(kind, f"{number}_high", max))
                    if name == "bits"
                    else None
                )
                _lines(axes, layers, positions, grid(kind, number), band)
                axes.set(title=KINDS[kind], xlabel="position in the context")
            panels[0][0].set(ylabel=label, ylim=(0, None))
            handles, names = panels[0][-1].get_legend_handles_labels()
            step = -(-len(names) // 12)  # of many layers some are named
            panels[0][-1].legend(
                handles[::-step], names[::-step], loc="center left", bbox_to_anchor=(1.01, 0.5)
            )
    _map(layers, positions, {kind: grid(kind, "bits_joint") for kind in kinds}, out / "map")


def _lines(
    axes: Any,
    layers: list[str],
    x: list[int],
    y: np.ndarray,
    band: tuple[np.ndarray, np.ndarray] | None,
) -> None:
    """A line a layer, dark for the first and light for the last."""
    colours = library("matplotlib").colormaps["viridis"](np.linspace(0, 0.93, len(layers)))
    for depth, layer in enumerate(layers):
        axes.plot(x, y[depth], "o-", color=colours[depth], label=layer)
        if band is not None:
            axes.fill_between(
                x, band[0][depth], band[1][depth], color=colours[depth], alpha=0.18, linewidth=0
            )
    axes.set_xscale("symlog", base=2, linthresh=1)
    axes.set_xticks(x, x)
    axes.set_xticks([], minor=True)


def _map(layers: list[str], positions: list[int], grids: dict[str, np.ndarray], path: Path) -> None:
    top = max(float(np.nanmax(grid)) for grid in grids.values())
    size = (max(3.7, 0.55 * len(positions) + 1), max(2.6, 0.32 * len(layers) + 1))
    with figure(path, len(grids), size=size, sharey=True) as panels:
        for axes, (kind, grid) in zip(panels[0], grids.items(), strict=True):
            axes.imshow(grid, cmap="viridis", vmin=0, vmax=top, aspect="auto", origin="lower")
            axes.set(title=KINDS[kind], xlabel="position in the context")
            axes.set_xticks(range(len(positions)), positions)
            axes.set_yticks(range(len(layers)), layers)
            axes.grid(False)
            for (i, j), bits in np.ndenumerate(grid):
                if not np.isnan(bits):
                    colour = "white" if bits < 0.6 * top else "black"
                    axes.text(
                        j, i, f"{bits:.0f}", ha="center", va="center", color=colour, fontsize=8
                    )
        panels[0][0].figure.colorbar(
            panels[0][0].images[0], ax=list(panels[0]), label="bits_joint, a row"
        )
