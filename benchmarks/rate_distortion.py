"""Bits over distortion: binary autoencoders found by descent, their rivals, and the bound of a
Gaussian.

python benchmarks/rate_distortion.py STORE --out FOLDER [--figure docs/bits-NAME]

Binary autoencoders of several prices; sparse autoencoders of several k, with their encoder's codes
and with codes searched on their decoder (orthogonal matching pursuit), their magnitudes quantised
at several widths and coded in context. All are trained on the same rows and measured on the same
held-out documents. Every point needs `bits_joint`, the code length of held-out documents; runs and
points are kept in FOLDER, and a stopped benchmark goes on.
"""

from __future__ import annotations

import argparse
import json
import zlib
from pathlib import Path
from typing import Any

import bitlens as bl
from bitlens.autoencoders import Autoencoder
from bitlens.autoencoders.binary import BinaryAutoencoder
from bitlens.autoencoders.sparse import SparseAutoencoder
from bitlens.evaluation import evaluate
from bitlens.evaluation.numbers import first_rows
from bitlens.files import write_json
from bitlens.information.magnitudes import Quantiser
from bitlens.information.moments import Covariance
from bitlens.information.rate_distortion import gaussian_bits, gaussian_bound
from bitlens.studies.compare.config import ARCHITECTURES
from bitlens.studies.figures import COLOURS, figure

RISES = (0.02, 0.1, 0.3)
FIT_ROWS, TEST_ROWS = 32768, 16384
LEAST, MOST = 0.05, 0.31  # fvu in the figure


def cells(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Everything that is trained: (name, settings of the training)"""
    ours: list[dict[str, Any]] = [{"lam": lam, "seed": 0} for lam in args.prices]
    ours += [
        {"lam": args.prices[len(args.prices) // 2], "seed": seed} for seed in args.seeds if seed
    ]
    best = {rival["architecture"]: rival for rival in ARCHITECTURES.values() if rival}
    theirs = [{**best[name], "k": k, "seed": 0} for name in args.rivals for k in args.k]
    common = {"n_latents": args.n_latents, "steps": args.steps}
    return [{**cell, **common} for cell in ours + theirs]


def trained(store: bl.ActivationStore, cell: dict[str, Any], out: Path) -> Autoencoder:
    folder = out / ("run-" + "-".join(f"{key}{value}" for key, value in cell.items()))
    print(folder.name, flush=True)
    return bl.train(store, bl.TrainConfig(**cell), folder, resume=folder.exists())


def points_of(
    autoencoder: Autoencoder, store: bl.ActivationStore, cell: dict[str, Any], spread: Covariance
) -> list[dict[str, Any]]:
    """(fvu, bits) of an autoencoder: of a sparse one for each width of the quantiser, by its
    encoder and by pursuit."""
    name = str(cell.get("architecture", "BAE"))
    ways: dict[str, Autoencoder] = {name: autoencoder}
    if isinstance(autoencoder, SparseAutoencoder):
        ways[f"{name}, pursuit"] = autoencoder.coded(cell["k"])
    elif isinstance(autoencoder, BinaryAutoencoder) and cell["seed"] == 0:
        ways["BAE, encoder alone"] = autoencoder.coded("step")
    points = []
    for way, coded in ways.items():
        n = evaluate(coded, store, covariance=spread).as_dict()
        point = {"name": way, **cell, **{key: n[key] for key in NUMBERS}, "bits": n["bits_joint"]}
        if isinstance(coded, SparseAutoencoder):
            fit, test = first_rows(store, "train", FIT_ROWS), first_rows(store, "test", TEST_ROWS)
            quantiser = Quantiser(coded, test, fit)
            for rise in RISES:
                m = quantiser.magnitudes(rise)
                bits = (n["bits_joint"] or 0.0) + m.bits
                points.append(
                    {
                        **point,
                        "rise": rise,
                        "fvu": m.fvu,
                        "bits": bits,
                        "bits_magnitudes": m.bits,
                        "alone": m.bits_alone,
                    }
                )
        else:
            points.append(point)
        print(json.dumps(points[-1]), flush=True)
    return points


NUMBERS = (
    "fvu",
    "l0",
    "live",
    "dead",
    "dense",
    "highest_rate",
    "bits_marginal",
    "bits_tree",
    "bits_joint",
    "rows_per_second",
)


def draw(path: Path, title: str, points: list[dict[str, Any]], spread: Covariance) -> None:
    fvus = [LEAST + 0.01 * i for i in range(1, 27)]
    with figure(path, size=(6.4, 4.4)) as axes:
        panel = axes[0][0]
        bound = [gaussian_bits(spread.matrix, f) for f in fvus]
        panel.plot(fvus, bound, "--", color="#404040", label="Gaussian bound")
        panel.plot(fvus, [b / 2 for b in bound], ":", color="#404040", label="half of it")
        seen = [p for p in points if LEAST < p["fvu"] < MOST]
        for name, colour in zip(dict.fromkeys(p["name"] for p in seen), COLOURS, strict=False):
            mine = sorted((p["fvu"], p["bits"]) for p in seen if p["name"] == name)
            label = name.replace("topk", "TopK").replace("pursuit", "codes by matching pursuit")
            panel.plot(
                *zip(*mine, strict=True),
                "o-" if name.startswith("BAE") else "x",
                color=colour,
                label=label,
            )
        panel.set(
            xlabel="fraction of variance unexplained, held out",
            ylabel="bits a row",
            ylim=(0, 1.1 * bound[0]),
            xlim=(LEAST, MOST),
        )
        panel.set_title(title)
        panel.legend(fontsize=8)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("store", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--n-latents", type=int, default=None)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--prices", type=float, nargs="*", default=[0.03, 0.06, 0.12, 0.2])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rivals", nargs="*", default=["topk"])
    parser.add_argument("--k", type=int, nargs="*", default=[8, 16, 32])
    parser.add_argument("--figure", type=Path, help="where the figure goes, without its ending")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    store = bl.ActivationStore(args.store, 0.1)
    args.n_latents = args.n_latents or 4 * store.d_in
    spread, points = Covariance.of(rows.hidden for rows in store.read("usual")), []
    if gaussian_bound(spread, 0.5) is None:
        parser.error(
            f"{args.store} has {spread.rows:,} rows, too few for the covariance of {store.d_in} "
            "components."
        )
    for cell in cells(args):
        key = zlib.crc32(json.dumps(cell, sort_keys=True).encode())
        kept = args.out / f"points-{key:08x}.json"
        if not kept.exists():
            write_json(
                kept,
                {
                    "bitlens": "rate_distortion",
                    "points": points_of(trained(store, cell, args.out), store, cell, spread),
                },
            )
        points += json.loads(kept.read_text())["points"]
    for p in points:
        p["gaussian"] = gaussian_bits(spread.matrix, p["fvu"])
    write_json(args.out / "points.json", {"bitlens": "rate_distortion", "points": points})
    print(
        "| | fvu | l0 | bits | joint / magnitudes | over Gaussian | dense | highest | dead |\n| "
        "--- |" + " ---: |" * 8
    )
    for p in points:
        name = f"{p['name']} " + (
            f"k {p['k']}, rise {p['rise']}" if "k" in p else f"lam {p['lam']}, seed {p['seed']}"
        )
        print(
            f"| {name} | {p['fvu']:.3f} | {p['l0']:.1f} | {p['bits']:.0f} | {p['bits_joint']:.0f} "
            f"/ {p.get('bits_magnitudes', 0):.0f} | {p['bits'] / max(p['gaussian'], 1e-9):.2f} | "
            f"{p['dense']} | {p['highest_rate']:.2f} | {p['dead']} |"
        )
    if args.figure:
        manifest = store.manifest
        draw(
            args.figure,
            f"{Path(manifest['model']).name}, {manifest['hook']['module']}, {args.n_latents:,} "
            "latents",
            points,
            spread,
        )


if __name__ == "__main__":
    main()
