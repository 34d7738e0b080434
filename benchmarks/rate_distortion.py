"""Bits and distortion of the preset `features` on the bundled model, beside the Gaussian bound and PCA.

Three layers, three seeds; every autoencoder is trained on the training documents, and `bits_joint` is the code length of
the held-out ones.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch

import bitlens as bl
from bitlens.hidden.source import held_out
from bitlens.information.entropy import entropy
from bitlens.information.rate_distortion import pca_bits


def rows_of(store: bl.ActivationStore, part: str) -> torch.Tensor:
    return torch.cat([rows.hidden.float() for rows in store.read(part)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    results = []
    print("| layer | seed | fvu | bits_marginal | bits_tree | bits_joint | bits_gaussian | joint / gaussian | PCA |")
    print("| ---: " * 9 + "|")
    with tempfile.TemporaryDirectory() as scratch:
        hooks = [f"layers.{layer}" for layer in args.layers]
        model = bl.LanguageModel.load("bundled", hooks=hooks)
        stores = bl.harvest(model, "bundled", Path(scratch) / "store")
        for layer, store in zip(args.layers, stores, strict=True):
            fit, test = rows_of(store, "train"), rows_of(store, "test")
            for seed in args.seeds:
                bae = bl.train(store, bl.TrainConfig(n_latents=1024, steps=args.steps, seed=seed))
                numbers = bl.evaluate(bae, store)
                codes = bl.encode_store(bae, store, Path(scratch) / "codes", overwrite=True)
                held = torch.from_numpy(held_out(codes.document.numpy(), store.test_fraction))
                measured = entropy(codes.bits, codes.document, held, seed=seed)
                row = {
                    "layer": layer, "seed": seed, "fvu": numbers.fvu, "bits_marginal": measured.bits_marginal.value,
                    "bits_tree": measured.bits_tree.value, "bits_joint": measured.bits_joint.value,
                    "low": measured.bits_joint.low, "high": measured.bits_joint.high, "bits_gaussian": numbers.bits_gaussian,
                    "ratio": measured.bits_joint.value / numbers.bits_gaussian, "pca": pca_bits(fit, test, numbers.fvu),
                }  # fmt: skip
                results.append(row)
                print(
                    f"| {layer} | {seed} | {row['fvu']:.3f} | {row['bits_marginal']:.0f} | {row['bits_tree']:.0f} | "
                    f"{row['bits_joint']:.1f} ({row['low']:.1f} to {row['high']:.1f}) | {row['bits_gaussian']:.1f} | "
                    f"{row['ratio']:.3f} | {row['pca']:.1f} |",
                    flush=True,
                )
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
