"""Planted bits: how often each preset recovers an entropy that is known.

    x = c M,  c in {0, 1}^r with firing probability p,  M r orthonormal rows of 64

The truth is the entropy of the held-out bits themselves. A cell counts as recovered when the learned bits' entropy is
within 2 % of it and fvu is below 1 %.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from bitlens.bits.statistics import binary_entropy
from bitlens.hidden import TensorSource
from bitlens.training import TrainConfig, train

D_IN, ROWS, N_LATENTS = 64, 8192, 256


def planted(rank: int, p: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """-> rows `[ROWS, D_IN]` and their bits `[ROWS, rank]`"""
    g = torch.Generator().manual_seed(seed)
    directions = torch.linalg.qr(torch.randn(D_IN, D_IN, generator=g))[0][:rank]
    bits = (torch.rand(ROWS, rank, generator=g) < p).float()
    return bits @ directions, bits


def cell(preset: str, rank: int, p: float, seed: int, steps: int) -> dict[str, float | int | str | bool]:
    rows, bits = planted(rank, p, seed)
    split = int(0.8 * ROWS)
    begun = time.perf_counter()
    model = train(TensorSource(rows[:split]), TrainConfig(preset=preset, n_latents=N_LATENTS, seed=seed, steps=steps))  # pyright: ignore
    codes = model.encode(rows[split:])
    test = rows[split:]
    fvu = float((test - model.decode(codes)).square().sum() / (test - test.mean(0)).square().sum())
    found, truth = float(binary_entropy(codes.mean(0)).sum()), float(binary_entropy(bits[split:].mean(0)).sum())
    return {
        "preset": preset, "rank": rank, "p": p, "seed": seed, "bits": found, "truth": truth, "fvu": fvu,
        "recovered": abs(found / truth - 1) <= 0.02 and fvu < 0.01, "seconds": time.perf_counter() - begun,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["measure", "features"])
    parser.add_argument("--ranks", nargs="+", type=int, default=[4, 8, 16, 32, 48, 64])
    parser.add_argument("--rates", nargs="+", type=float, default=[0.1, 0.5])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    cells = []
    for preset in args.presets:
        for p in args.rates:
            for rank in args.ranks:
                for seed in args.seeds:
                    c = cell(preset, rank, p, seed, args.steps)
                    cells.append(c)
                    print(
                        f"{preset:9s} p {p:.2f} r {rank:2d} seed {seed}: {c['bits']:6.2f} bits, truth {c['truth']:6.2f}, "
                        f"fvu {c['fvu']:.4f} {'recovered' if c['recovered'] else 'MISSED'}  {c['seconds']:.0f} s",
                        flush=True,
                    )
        mine = [c for c in cells if c["preset"] == preset]
        print(f"{preset}: {sum(bool(c['recovered']) for c in mine)} of {len(mine)} recovered", flush=True)
    if args.json:
        args.json.write_text(json.dumps(cells, indent=1))


if __name__ == "__main__":
    main()
