"""What harvesting costs over the model's own forward pass up to the hooked layer."""

import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import bitlens.hidden.harvest as harvesting
from bitlens.hidden import Corpus, LanguageModel
from bitlens.hidden.text import ContextReader
from bitlens.options import BUNDLED


def harvest_overhead(
    folder: Path, rows: int, repeats: int
) -> Iterator[tuple[str, float, float, int]]:
    """The bundled model, and a random one of width 768 on fewer rows -> (name, forward s, harvest
    s, rows) of each"""
    bundled = LanguageModel.load(BUNDLED, ["layers.2"])
    yield (
        "bundled model, 3 layers of width 256",
        *_compare(bundled, rows, repeats, torch.float16, folder / "a"),
    )
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
    yield (
        "random Llama, 6 layers of width 768",
        *_compare(model, rows * 2 // 5, max(1, repeats - 2), torch.float32, folder / "b"),
    )


def _compare(
    model: LanguageModel, rows: int, repeats: int, dtype: torch.dtype, folder: Path
) -> tuple[float, float, int]:
    """Median seconds of the bare forward pass and of a harvest of the same tokens, in turn, and the
    rows they make.

    The forward pass is the bare one: tokens in memory, nothing read out, nothing stored. A run
    writes about eight shards, as many as a long one in a few minutes, so that writing behind the
    forward pass is measured, not a run's end alone.
    """
    reader = ContextReader(Corpus((BUNDLED,)), model.tokenizer, 256)
    batches, kept = [], 0
    for batch in reader.batches(16):
        batches.append(batch)
        kept += int(batch.keep.sum())
        if kept >= rows:
            break
    (width,) = model.widths().values()
    shard_bytes = harvesting.SHARD_BYTES
    harvesting.SHARD_BYTES = kept * width * dtype.itemsize // 8
    bare, whole = [], []
    try:
        for repeat in range(repeats + 1):
            begun = time.perf_counter()
            for batch in batches:
                model.hidden_states(batch.tokens)
            middle = time.perf_counter()
            harvesting.harvest(
                model, reader, folder / str(repeat), max_rows=kept, store_dtype=dtype
            )
            ended = time.perf_counter()
            if repeat:  # the first round warms up
                bare.append(middle - begun)
                whole.append(ended - middle)
    finally:
        harvesting.SHARD_BYTES = shard_bytes
    return statistics.median(bare), statistics.median(whole), kept
