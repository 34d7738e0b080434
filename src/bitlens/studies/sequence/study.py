"""Entropy along a text and through the layers: bits of a hidden state at each position and depth.

After the section on normal text of arXiv 2509.20997; see docs/study-sequence.md.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bitlens.errors import BitlensError
from bitlens.hidden import ActivationStore, TensorSource
from bitlens.hidden.harvest import folder_name
from bitlens.hidden.text import ContextReader
from bitlens.studies.cells import Cell, Row, Study
from bitlens.studies.figures import Panel, draw_panels, groups
from bitlens.studies.measuring import measure_rows, over_gaussian
from bitlens.studies.sequence.config import FEWEST_TEST, FEWEST_TRAINING, KINDS, SequenceConfig
from bitlens.studies.shared import harvest_layers, load_shared, opened, train_shared
from bitlens.training import train

OF_THE_STORE = (
    *("model", "revision", "model_digest", "corpus"),
    *("context_length", "packed", "prepend_bos", "dtype", "max_rows"),
)
SETTINGS = ("test_fraction", "preset", "price", "n_latents", "steps")


def run(config: SequenceConfig, study: Study) -> list[Row]:
    """Harvest, train and measure every cell; stores and shared autoencoders stay in the folder."""
    config.refuse_nonsense()
    model = config.load()
    model.require_context(config.context)
    reader = config.reader(model.tokenizer, config.test_fraction)
    if next(reader.contexts(), None) is None:
        raise BitlensError("The text gave no usable tokens: it is empty.")
    positions = text_positions(config, reader)
    study.open("sequence", asdict(config))  # only now, so that nothing is written of what is wrong
    hooks = list(model.widths())
    study.say(f"Harvesting hidden states at {len(hooks)} hook points")
    store = harvest_layers(
        model, reader, study, config.batch_size, config.max_tokens, config.store_dtype
    )
    rows = common_rows(store, positions, config.max_rows)
    same = {name: store.manifest.get(name) for name in OF_THE_STORE} | {"rows": rows._asdict()}
    same |= {name: getattr(config, name) for name in SETTINGS}
    layers = [{"layer": hook, "seed": seed} for hook in hooks for seed in config.seeds]
    same["positions"] = positions  # what cells share depends on them all
    cells = [
        {"autoencoder": kind, **layer, "position": position}
        for layer in layers
        for position in positions
        for kind in dict.fromkeys(config.autoencoders)
    ]
    how = {"out": study.out, "config": config, "rows": rows, "positions": positions}
    if "shared" in config.autoencoders:
        study.planned = len(layers) + len(cells)
        study.say(f"Training {len(layers)} autoencoders that positions share")
        shared = [{"train": "shared", **layer} for layer in layers]
        for row in study.measure(shared, _train_shared, same, **how):
            if "error" in row:
                study.say(f"{row['layer']} could not be trained on: {row['error']}")
    study.say(
        f"Measuring {len(cells)} cells, each of {rows.training:,} rows to train on and "
        f"{rows.test:,} held out"
    )
    return study.finish(study.measure(cells, _measure, same, **how), draw)


def text_positions(config: SequenceConfig, reader: ContextReader) -> list[int]:
    """The positions of the study in order; one that only special tokens have is refused."""
    first, last = len(reader.before), len(reader.before) + reader.room - 1
    if not config.positions:
        between = (1 << i for i in range(last.bit_length()))
        return sorted({first, *(p for p in between if first < p < last), last})
    for position in config.positions:
        if not first <= position <= last:
            raise BitlensError(
                f"There are no rows at position {position}: in a context of {config.context} "
                f"tokens of this tokenizer the text's own are at {first} to {last}."
            )
    return sorted(set(config.positions))


class RowCounts(NamedTuple):
    """How many rows of a position a cell has: of training documents and of held-out ones."""

    training: int
    test: int


def common_rows(
    store: ActivationStore, positions: Sequence[int], max_rows: int | None = None
) -> RowCounts:
    """The rows that all these positions have: an entropy's error depends on their number."""
    parts = [store.shard(i, ["document", "position"]) for i in range(len(store.shards))]
    position = torch.cat([part["position"] for part in parts])
    test = store.is_test(torch.cat([part["document"] for part in parts]))
    counts = []
    for p in positions:
        at = position == p
        count = RowCounts(int((at & ~test).sum()), int((at & test).sum()))
        counts.append(count)
        if count.training < FEWEST_TRAINING or count.test < FEWEST_TEST:
            raise BitlensError(
                f"Position {p} has {count.training} rows to train on and {count.test} of held-out "
                f"documents, fewer than {FEWEST_TRAINING} and {FEWEST_TEST}; give more text, or "
                "leave the position out."
            )
    training, held_out = (min(numbers) for numbers in zip(*counts, strict=True))
    if max_rows is not None and training + held_out > max_rows:
        held_out = max(FEWEST_TEST, round(max_rows * held_out / (training + held_out)))
        training = min(training, max_rows - held_out)
    return RowCounts(training, held_out)


def rows_at(
    store: ActivationStore, position: int, rows: RowCounts
) -> tuple[Tensor, Tensor, Tensor]:
    """So many rows of this position, evenly spread over the text: hidden states, float32 `[n, d]`,
    documents, and whether these are held out.

    Rows of outlying norm are among them: all of the first position often have it.
    """
    hidden, documents = [], []
    for index in range(len(store.shards)):
        tensors = store.shard(index, ["hidden", "document", "position"])
        at = tensors["position"] == position
        hidden.append(tensors["hidden"][at])
        documents.append(tensors["document"][at])
    document = torch.cat(documents)
    test = store.is_test(document)
    chosen = torch.cat([_spread(~test, rows.training), _spread(test, rows.test)]).sort().values
    return torch.cat(hidden)[chosen].float(), document[chosen], test[chosen]


def fitting_rows(
    store: ActivationStore, positions: Sequence[int], rows: RowCounts
) -> tuple[Tensor, Tensor]:
    """The rows of all these positions that are not held out -> `[n, d]` and their documents, those
    of one document together."""
    parts = [rows_at(store, position, rows) for position in positions]
    hidden = torch.cat([hidden[~test] for hidden, _, test in parts])
    documents = torch.cat([document[~test] for _, document, test in parts])
    order = documents.argsort(stable=True)
    return hidden[order], documents[order]


def _spread(which: Tensor, n: int) -> Tensor:
    """n of the indices where `which` holds, at even distances."""
    indices = which.nonzero()[:, 0]
    return indices[torch.arange(n) * len(indices) // n]


def _measure(
    cell: Cell, out: Path, config: SequenceConfig, rows: RowCounts, positions: Sequence[int]
) -> Row:
    store, common = opened(out, cell["layer"]), None
    hidden, document, test = rows_at(store, cell["position"], rows)
    if cell["autoencoder"] == "shared":
        folder = _shared_folder(out, config, store, cell)
        name = code_name(positions, rows)
        autoencoder, common = load_shared(folder, config.device, name)
    else:
        source = TensorSource(hidden[~test], {**store.about, "position": cell["position"]})
        autoencoder = train(source, config.training(cell["seed"]))
    numbers, _ = measure_rows(
        autoencoder, hidden, test, documents=document, common=common, seed=cell["seed"]
    )
    return {**numbers, "joint_over_gaussian": over_gaussian(numbers, numbers["bits_joint"])}


def _train_shared(
    cell: Cell, out: Path, config: SequenceConfig, rows: RowCounts, positions: Sequence[int]
) -> Row:
    """The autoencoder that all positions of a layer share, and the code of its bits at them."""
    store = opened(out, cell["layer"])
    hidden, documents = fitting_rows(store, positions, rows)
    training, folder = config.training(cell["seed"]), _shared_folder(out, config, store, cell)
    name = code_name(positions, rows)
    return train_shared(store, training, folder, hidden, documents, name)


def code_name(positions: Sequence[int], rows: RowCounts) -> str:
    """Of the code that is fitted on so many rows of these positions."""
    content = json.dumps([list(positions), *rows])
    return f"code-{hashlib.sha256(content.encode()).hexdigest()[:12]}"


def _shared_folder(out: Path, config: SequenceConfig, store: ActivationStore, cell: Cell) -> Path:
    settings = f"{config.preset}-{config.n_latents or 4 * store.d_in}-{config.steps}"
    settings += "" if config.price is None else f"-{config.price}"
    return out / "shared" / settings / f"{folder_name(cell['layer'])}-{cell['seed']}"


def summary(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """bits_joint of each layer at each position, fvu in brackets, means over seeds; whichever are
    more, layers or positions, are the lines of the table."""
    measured = [row for row in rows if "error" not in row]
    several = len({row["autoencoder"] for row in measured}) > 1
    cells: dict[tuple[str, str], list[Row]] = {}
    for row in measured:
        layer = f"{row['layer']}, {row['autoencoder']}" if several else row["layer"]
        cells.setdefault((layer, str(row["position"])), []).append(row)
    layers, positions = (list(dict.fromkeys(key[i] for key in cells)) for i in (0, 1))

    def text(layer: str, position: str) -> str:
        own = cells.get((layer, position), [])
        bits = [row["bits_joint"] for row in own if row["bits_joint"] is not None]
        known = f"{fmean(bits):.0f}" if bits else "-"
        return f"{known} ({fmean(row['fvu'] for row in own):.2f})" if own else "-"

    if len(layers) < len(positions):
        return [{"position": p, **{n: text(n, p) for n in layers}} for p in positions]
    return [{"layer": n, **{p: text(n, p) for p in positions}} for n in layers]


def draw(rows: Sequence[Row], out: Path) -> None:
    """`bits` and `fvu` over the position, a line a layer; `layers`: bits over the depth."""
    position = "position in the context"
    for name, x, series, number, labels in (
        ("bits", "position", "layer", "bits_joint", (position, "bits_joint, a row")),
        ("fvu", "position", "layer", "fvu", (position, "fvu, held out")),
        ("layers", "layer", "position", "bits_joint", ("", "bits_joint, a row")),
    ):
        panel = Panel(rows, x, number, series, ordered=True, even=True, labels=labels)
        panels = [
            replace(panel, rows=part, title=KINDS[kind])
            for kind, part in groups(rows, "autoencoder").items()
        ]
        draw_panels(out / name, [panels], sharey=True)
