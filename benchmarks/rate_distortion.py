"""Bits and distortion on the bundled model: binary and sparse autoencoders, PCA, and the bound of a Gaussian.

The table: preset `features` on three layers with three seeds. The figure: on one layer, autoencoders of several prices
and sparsities. `bits_joint` is the code length of held-out documents; to a sparse autoencoder's comes that of its
magnitudes, at several widths of the quantiser.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

import bitlens as bl
from bitlens.information.magnitudes import quantise_magnitudes
from bitlens.information.rate_distortion import gaussian_bits, pca_bits
from bitlens.studies.figures import COLOURS, figure

RISES = (0.005, 0.02, 0.05, 0.1, 0.2, 0.4)


def rows_of(store: bl.ActivationStore, part: str) -> torch.Tensor:
    return torch.cat([rows.hidden.float() for rows in store.read(part)])


def table(stores: dict[int, bl.ActivationStore], seeds: list[int], steps: int) -> list[dict[str, Any]]:
    print("| layer | seed | fvu | bits_marginal | bits_tree | bits_joint | bits_gaussian | joint / gaussian | PCA |")
    print("| ---: " * 9 + "|")
    lines = []
    for layer, store in stores.items():
        fit, test = rows_of(store, "train"), rows_of(store, "test")
        for seed in seeds:
            n = bl.evaluate(bl.train(store, bl.TrainConfig(n_latents=1024, steps=steps, seed=seed)), store)
            pca = pca_bits(fit, test, n.fvu)
            lines.append({"layer": layer, "seed": seed, **n.as_dict(), "pca": pca})
            print(
                f"| {layer} | {seed} | {n.fvu:.3f} | {n.bits_marginal:.0f} | {n.bits_tree:.0f} | {n.bits_joint:.1f} | "
                f"{n.bits_gaussian:.1f} | {(n.bits_joint or 0) / n.bits_gaussian:.3f} | {pca:.1f} |",
                flush=True,
            )
    return lines


def curves(store: bl.ActivationStore, steps: int) -> list[dict[str, Any]]:
    """(fvu, bits) of every autoencoder, one dict each; of TopK one for every width of the quantiser."""
    test, points = rows_of(store, "test"), []
    settings: list[dict[str, Any]] = [
        *({"preset": "features", "lam": lam} for lam in (0.05, 0.1, 0.2)),
        {"preset": "measure"},
        *({"architecture": "topk", "k": k} for k in (16, 37)),
    ]
    for setting in settings:
        autoencoder = bl.train(store, bl.TrainConfig(n_latents=1024, steps=steps, **setting))
        n = bl.evaluate(autoencoder, store)
        name = f"TopK, k {setting['k']}" if "k" in setting else f"BAE, {setting['preset']}"
        point = {"name": name, "fvu": n.fvu, "bits": n.bits_joint or 0.0, "bits_marginal": n.bits_marginal}
        wanted = [quantise_magnitudes(autoencoder, test[:16384], rise) for rise in RISES] if "k" in setting else []
        points += [{**point, "fvu": m.fvu, "bits": point["bits"] + m.bits} for m in wanted] or [point]
        print(points[-1 if not wanted else -len(wanted)], flush=True)
    return points


def draw(path: Path, store: bl.ActivationStore, points: list[dict[str, Any]]) -> None:
    fit, test = rows_of(store, "train"), rows_of(store, "test")
    fvus = [0.07, 0.09, 0.11, 0.13, 0.16, 0.2, 0.25, 0.3]
    covariance = torch.cov(test.T.double())
    with figure(path, size=(6.4, 4.4)) as axes:
        panel = axes[0][0]
        panel.plot(fvus, [gaussian_bits(covariance, f) for f in fvus], "--", color="#404040", label="Gaussian bound")
        panel.plot(fvus, [pca_bits(fit, test, f) for f in fvus], color="#8a8a8a", label="PCA, uniform quantiser")
        for name, colour in zip(dict.fromkeys(p["name"] for p in points), COLOURS, strict=False):
            here = sorted((p["fvu"], p["bits"]) for p in points if p["name"] == name)
            panel.plot(*zip(*here, strict=True), "o-", color=colour, label=name)
        panel.set(xlabel="fraction of variance unexplained, held out", ylabel="bits a row", ylim=(0, None))
        panel.set_title("layers.2 of the bundled model: everything a code needs")
        panel.legend()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--figure-layer", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--figure", type=Path, help="where the figure goes, without its ending")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    layers = sorted({*args.layers, args.figure_layer})
    with tempfile.TemporaryDirectory() as scratch:
        model = bl.LanguageModel.load("bundled", hooks=[f"layers.{layer}" for layer in layers])
        stores = dict(zip(layers, bl.harvest(model, "bundled", Path(scratch) / "store"), strict=True))
        result: dict[str, Any] = {"table": table({i: stores[i] for i in args.layers}, args.seeds, args.steps)}
        if args.figure:
            store = stores[args.figure_layer]
            result["curves"] = curves(store, args.steps)
            draw(args.figure, store, result["curves"])
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
