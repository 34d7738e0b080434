"""`python -m benchmarks.scale STORE`: what each command takes as rows grow, and what that makes of
many more rows than are there.

Every command runs as a process of its own on the first 1, 2, 4, ... shards of a store; time and
peak memory are a line in the number of rows, fitted by least squares.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from bitlens.files import read_manifest
from bitlens.hidden.store import MANIFEST, SCHEMA, WHAT
from bitlens.hidden.writer import StoreWriter

FINISHED = ("schema", "kind", "complete", "rows", "shards", "documents", "mean", "std")
FINISHED += ("outlier_norm", "outliers", "zeros")


@dataclass(frozen=True)
class Spent:
    """By one run of one command."""

    rows: int
    cpu_seconds: float
    peak_bytes: int
    disk_bytes: int


def first_shards(store: Path, out: Path, count: int) -> int:
    """A store of the first shards of another -> its rows"""
    manifest = read_manifest(store / MANIFEST, SCHEMA, WHAT)
    out.mkdir()
    about = {k: v for k, v in manifest.items() if k not in FINISHED}
    writer = StoreWriter(out, about, about.pop("outlier_multiple"))
    writer.shards = dict(enumerate(manifest["shards"][:count]))
    for shard in writer.shards.values():
        (out / shard["file"]).symlink_to((store / shard["file"]).resolve())
    return len(writer.finish())


def spend(rows: int, out: Path, *arguments: str | Path) -> Spent:
    """Run a command of bitlens. out: what it writes"""
    command = [sys.executable, "-m", "bitlens", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"`{' '.join(command[1:])}` failed.")
    disk = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    return Spent(rows, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, disk)


def measure(store: Path, shards: tuple[int, ...], n_latents: int, steps: int) -> dict:
    """What training, encoding, entropy and features spend on each number of shards."""
    spent: dict[str, list[Spent]] = {"train": [], "encode": [], "entropy": [], "features": []}
    with tempfile.TemporaryDirectory(dir=".") as name:
        folder = Path(name)
        for count in shards:
            part, run, codes, none = (folder / what for what in ("store", "run", "codes", "none"))
            rows = first_shards(store, part, count)
            settings = ["--n-latents", str(n_latents), "--steps", str(steps)]
            spent["train"].append(spend(rows, run, "train", part, "--out", run, *settings))
            spent["encode"].append(spend(rows, codes, "encode", run, part, "--out", codes))
            for command in ("entropy", "features"):
                spent[command].append(spend(rows, none, command, codes))
            for each in (part, run, codes):
                shutil.rmtree(each)
    return spent


def line(spent: list[Spent], what: str) -> tuple[float, float]:
    """(constant, growth a row)"""
    slope, constant = np.polyfit([s.rows for s in spent], [getattr(s, what) for s in spent], 1)
    return float(constant), float(slope)


def scale(
    store: tyro.conf.Positional[Path],
    shards: tuple[int, ...] = (1, 2, 4),
    n_latents: int = 2304,
    steps: int = 100,
    rows: int = 100_000_000,
) -> None:
    """Print time and memory of each command by rows, and for `rows`, as a Markdown table.

    Args:
        store: of at least as many shards as the most that are named.
        shards: the first so many are taken, each in turn.
        n_latents: of the autoencoder.
        steps: of its training.
        rows: to extrapolate to.
    """
    measured = measure(store, shards, n_latents, steps)
    print("| command | rows | CPU time | peak memory | disk |\n| --- | ---: | ---: | ---: | ---: |")
    for command, spent in measured.items():
        for s in spent:
            cells = f"{s.cpu_seconds:,.1f} s | {s.peak_bytes / 1e6:,.0f} MB"
            print(f"| {command} | {s.rows:,} | {cells} | {s.disk_bytes / 1e6:,.1f} MB |")
        seconds, memory, disk = (
            line(spent, what) for what in ("cpu_seconds", "peak_bytes", "disk_bytes")
        )
        hours = (seconds[0] + seconds[1] * rows) / 3600
        print(
            f"| {command}, extrapolated | {rows:,} | {hours:,.1f} h ({seconds[1] * 1e6:,.1f} µs a "
            f"row) | {(memory[0] + memory[1] * rows) / 1e9:,.1f} GB ({memory[1]:,.0f} bytes a row) "
            f"| {(disk[0] + disk[1] * rows) / 1e9:,.1f} GB ({disk[1]:,.0f} bytes a row) |"
        )


if __name__ == "__main__":
    tyro.cli(scale, prog="python -m benchmarks.scale")
