"""What harvesting costs over the model's own forward pass up to the hooked layer.

Both run in one process on the same batches, in turn, and the ratio of the medians is what counts. The forward pass is
the bare one: tokens in memory, nothing read out, nothing stored. A run here writes about eight shards, as many as a long one
writes in a few minutes, so that writing behind the forward pass is measured and not the end of a short run alone.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import bitlens.hidden.harvest as harvesting
from bitlens.hidden import Corpus, LanguageModel
from bitlens.hidden.models import BUNDLED
from bitlens.hidden.text import ContextReader


def compare(model: LanguageModel, rows: int, repeats: int, dtype: torch.dtype, folder: Path) -> dict[str, float]:
    """Seconds of the bare forward pass and of a harvest of the same tokens -> medians and their ratio."""
    reader = ContextReader(Corpus((BUNDLED,)), model.tokenizer, 256)
    batches = []
    for batch in reader.batches(16):
        batches.append(batch)
        if sum(int(b.keep.sum()) for b in batches) >= rows:
            break
    kept = sum(int(b.keep.sum()) for b in batches)
    (width,) = model.widths().values()
    harvesting.SHARD_BYTES = kept * width * dtype.itemsize // 8
    bare, whole = [], []
    for repeat in range(repeats + 1):
        begun = time.perf_counter()
        for batch in batches:
            model.hidden_states(batch.tokens)
        middle = time.perf_counter()
        harvesting.harvest(model, reader, folder / str(repeat), max_rows=kept, store_dtype=dtype)
        ended = time.perf_counter()
        if repeat:  # the first round warms up
            bare.append(middle - begun)
            whole.append(ended - middle)
    forward, total = statistics.median(bare), statistics.median(whole)
    return {
        "rows": kept,
        "forward_s": forward,
        "harvest_s": total,
        "overhead": total / forward - 1,
        "rows_per_s": kept / total,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as scratch:
        bundled = LanguageModel.load(BUNDLED, ["layers.2"])
        results["bundled model, 3 layers of width 256"] = compare(
            bundled, 40_000, 5, torch.float16, Path(scratch) / "a"
        )
        larger = Path(scratch) / "model"
        torch.manual_seed(0)
        LlamaForCausalLM(
            LlamaConfig(
                vocab_size=4096, hidden_size=768, intermediate_size=2048, num_hidden_layers=8, num_attention_heads=12
            )
        ).save_pretrained(larger)
        bundled.tokenizer.save_pretrained(larger)
        model = LanguageModel.load(str(larger), ["layers.5"])
        results["random Llama, 6 layers of width 768"] = compare(model, 16_000, 3, torch.float32, Path(scratch) / "b")
    for name, row in results.items():
        print(
            f"{name}: forward {row['forward_s']:.2f} s, harvest {row['harvest_s']:.2f} s, overhead {100 * row['overhead']:.1f} %, "
            f"{row['rows_per_s']:,.0f} rows/s"
        )
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
