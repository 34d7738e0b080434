"""The README's table: the presets of the BAE and TopK, trained on the same rows of the bundled model.

python benchmarks/table.py [--hook layers.2] [--steps 3000] [--seeds 0]
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from bitlens.evaluation import evaluate
from bitlens.hidden import ActivationStore, Corpus, LanguageModel
from bitlens.hidden.harvest import harvest
from bitlens.hidden.models import BUNDLED
from bitlens.hidden.text import ContextReader
from bitlens.training import TrainConfig, train

NAMES = (
    "fvu", "cosine", "l0", "live", "dead", "dense", "bits_marginal", "bits_tree", "bits_joint", "bits_magnitudes",
    "bits_gaussian", "ce_loss_score", "kl_div", "train_s",
)  # fmt: skip


def measure(store: ActivationStore, model: LanguageModel, config: TrainConfig) -> dict[str, float]:
    begun = time.perf_counter()
    autoencoder = train(store, config)
    seconds = time.perf_counter() - begun
    numbers = evaluate(autoencoder, store, language_model=model).as_dict()
    return {name: float(numbers.get(name) or 0) for name in NAMES} | {"train_s": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hook", default="layers.2")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--n-latents", type=int, default=1024)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    columns: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        model = LanguageModel.load(BUNDLED, [args.hook])
        reader = ContextReader(Corpus((BUNDLED,)), model.tokenizer, 256, packed=False)
        (store,) = harvest(model, reader, Path(scratch) / "store", store_dtype=torch.float16)
        causal = LanguageModel.load(BUNDLED, [args.hook], causal=True)
        for seed in args.seeds:
            usual = {"n_latents": args.n_latents, "steps": args.steps, "seed": seed}
            for preset in ("features", "measure", "paper"):
                columns.setdefault(preset, []).append(measure(store, causal, TrainConfig(preset=preset, **usual)))
            k = round(columns["features"][-1]["l0"])
            columns.setdefault("topk", []).append(
                measure(store, causal, TrainConfig(architecture="topk", k=k, **usual))
            )
    means = {name: {key: statistics.mean(run[key] for run in runs) for key in NAMES} for name, runs in columns.items()}
    print("| | " + " | ".join(f"`{name}`" for name in means) + " |\n| --- |" + " ---: |" * len(means))
    for key in NAMES:
        digits = {"fvu": 4, "cosine": 4, "ce_loss_score": 3, "kl_div": 3}.get(
            key, 0 if key in ("live", "dead", "dense", "train_s") else 1
        )
        print(f"| {key} | " + " | ".join(f"{column[key]:.{digits}f}" for column in means.values()) + " |")
    if args.json:
        args.json.write_text(json.dumps(columns, indent=1))


if __name__ == "__main__":
    main()
