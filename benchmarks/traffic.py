"""`torchrun --nproc-per-node 2 -m benchmarks.traffic`: bytes that processes exchange in training.

What each hands to the collectives in a step, what passes the loopback, and milliseconds a step.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
import tyro

from bitlens import processes
from bitlens.hidden import TensorSource
from bitlens.training import TrainConfig, train

RUNS = {
    "bae, features": {},
    "bae, measure": {"preset": "measure"},
    "bae, measure, gamma 0.5": {"preset": "measure", "gamma": 0.5},
    "topk": {"architecture": "topk"},
    "batch_topk": {"architecture": "batch_topk"},
    "jumprelu": {"architecture": "jumprelu"},
}
OPERATIONS = ("sum", "max", "gather")  # in every step; "first" only where weights are set anew


def on_the_wire() -> int:
    """Bytes sent over the loopback since the machine started (Linux)."""
    line = next(ln for ln in Path("/proc/net/dev").read_text().splitlines() if "lo:" in ln)
    return int(line.split(":")[1].split()[8])


def run(config: TrainConfig, rows: torch.Tensor) -> tuple[dict[str, float], float, float]:
    """-> (bytes a step by collective, bytes a step on the loopback, milliseconds a step); what two
    runs of different length differ by, so that beginnings and ends cancel"""
    found = []
    for steps in (10, 30):
        processes.wait_for_all()
        processes.sent.clear()
        wire, clock = on_the_wire(), time.perf_counter()
        train(TensorSource(rows), TrainConfig(**{**vars(config), "steps": steps}), progress=False)
        processes.wait_for_all()
        seconds = time.perf_counter() - clock
        found.append((dict(processes.sent), on_the_wire() - wire, seconds))
    (sent, wire, seconds), (more, further, longer) = found
    each = {name: (more.get(name, 0) - sent.get(name, 0)) / 20 for name in OPERATIONS}
    return each, (further - wire) / 20, (longer - seconds) / 20 * 1000


def main(width: int = 256, n_latents: int = 1024, batch_size: int = 512) -> None:
    """Each architecture at one size.

    Args:
        width: of the hidden states.
        n_latents: of the dictionary.
        batch_size: rows of the global batch.
    """
    with processes.together():
        rows = torch.randn(4096, width, generator=torch.Generator().manual_seed(0))
        own = batch_size // processes.world_size()
        if processes.is_first():
            print(f"{processes.world_size()} processes, {width=} {n_latents=} {batch_size=}")
            print(f"codes of its rows: {own * n_latents * 4:,} bytes in floats")
        for name, changes in RUNS.items():
            size = {"n_latents": n_latents, "batch_size": batch_size, "device": "cpu"}
            size |= {"lam": 0.01, "regrow_at": (), "prune_at": (), "log_every": 1000}
            sent, wire, ms = run(TrainConfig(**{**size, **changes}), rows)  # type: ignore[arg-type]
            if processes.is_first():
                parts = "  ".join(f"{k} {v:,.0f}" for k, v in sent.items())
                print(f"{name:24} {parts}  wire {wire:,.0f}  {ms:.1f} ms", flush=True)


if __name__ == "__main__":
    tyro.cli(main)
