"""What harvesting costs over the model's own forward pass up to the last hooked layer."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import bitlens.hidden.harvest as harvesting
from bitlens.hidden import Corpus, LanguageModel
from bitlens.hidden.text import ContextReader, Contexts
from bitlens.options import BUNDLED

LENGTH, BATCH = 256, 16


@dataclass(frozen=True)
class RealModel:
    """A model of the user's, and the text that it reads."""

    name: str
    hooks: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class Overhead:
    """Median seconds of the bare forward pass and of a harvest of the same contexts; cpu: those of
    all threads together."""

    name: str
    rows: int
    forward: float
    harvest: float
    forward_cpu: float
    harvest_cpu: float


def harvest_overhead(
    folder: Path, rows: int, repeats: int, real: RealModel | None
) -> Iterator[Overhead]:
    """Of the model that is named; else of the bundled one, and a random one of width 768 on fewer
    rows."""
    if real is not None:
        model = LanguageModel.load(real.name, list(real.hooks))
        name = f"{Path(real.name).name}, {' + '.join(real.hooks)}"
        yield _compare(name, model, real.text, rows, repeats, model.dtype, folder / "real")
        return
    bundled = LanguageModel.load(BUNDLED, ["layers.2"])
    name = "bundled model, 3 layers of width 256"
    yield _compare(name, bundled, BUNDLED, rows, repeats, torch.float16, folder / "a", shards=8)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=8,
        num_attention_heads=12,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    bundled.tokenizer.save_pretrained(folder / "model")
    model = LanguageModel.load(str(folder / "model"), ["layers.5"])
    name, few = "random Llama, 6 layers of width 768", max(1, repeats - 2)
    yield _compare(name, model, BUNDLED, rows * 2 // 5, few, torch.float32, folder / "b", shards=8)


def _batches(reader: ContextReader, tokens: int, rows: int) -> list[Contexts]:
    """Those of a harvest, tokenized beforehand."""
    parts = reader.runs(tokens, rows=rows)
    return [part.of(chosen) for part in parts for chosen in part.by_length(BATCH * LENGTH)]


def _compare(
    name: str,
    model: LanguageModel,
    text: str,
    rows: int,
    repeats: int,
    dtype: torch.dtype,
    folder: Path,
    shards: int | None = None,
) -> Overhead:
    """Both in turn. The forward pass is the bare one: the truncated module without a hook, the
    harvest's own batches in memory, nothing kept.

    shards: written by a run, as many as a long one writes in a few minutes, so that writing behind
    the forward pass is measured, not a run's end alone; None: as it comes.
    """
    reader = ContextReader(Corpus((text,)), model.tokenizer, LENGTH)
    width = max(model.widths().values())
    usual = harvesting.SHARD_BYTES
    if shards is not None:
        harvesting.SHARD_BYTES = rows * width * dtype.itemsize // shards
    batch_bytes = BATCH * LENGTH * width * dtype.itemsize
    tokens = max(1, harvesting.SHARD_BYTES // batch_bytes) * BATCH * LENGTH
    batches = _batches(reader, tokens, rows)

    @torch.inference_mode()
    def bare() -> None:
        for batch in batches:
            model.base(**model.inputs(batch.tokens, batch.mask))

    def whole() -> None:
        settings = {"max_rows": rows, "batch_size": BATCH, "store_dtype": dtype}
        harvesting.harvest(model, reader, folder, overwrite=True, **settings)

    seconds: dict[str, list[tuple[float, float]]] = {"bare": [], "whole": []}
    try:
        for _ in range(repeats + 1):  # the first round warms up
            for what, function in (("bare", bare), ("whole", whole)):
                begun = time.perf_counter(), time.process_time()
                function()
                ended = time.perf_counter(), time.process_time()
                seconds[what].append((ended[0] - begun[0], ended[1] - begun[1]))
    finally:
        harvesting.SHARD_BYTES = usual
    wall, cpu = (
        {
            what: statistics.median(pair[kind] for pair in taken[1:])
            for what, taken in seconds.items()
        }
        for kind in (0, 1)
    )
    made = min(rows, sum(int(batch.keep.sum()) for batch in batches))
    return Overhead(name, made, wall["bare"], wall["whole"], cpu["bare"], cpu["whole"])
