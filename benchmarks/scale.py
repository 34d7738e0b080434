"""`python -m benchmarks.scale`: what each command takes as rows and latents grow, and what that
makes of many more rows than are there.

Every command runs as a process of its own, with one thread, on synthetic stores and codes of the
form that commands write; CPU time, memory of its own and disk are a line in the number of rows,
fitted by least squares.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tyro

from benchmarks.spending import Spent, spend
from benchmarks.synthetic import write_codes, write_store, write_text
from bitlens.memory import size


def disk(path: Path) -> int:
    """Bytes of a folder."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def runs(
    folder: Path, commands: tuple[str, ...], rows: int, d_in: int, n_latents: int
) -> Iterator[tuple[str, Spent, int]]:
    """What each command spends on so many rows, and the bytes that it writes."""
    codes, run, store, out = (folder / name for name in ("codes", "run", "store", "out"))
    asked: dict[str, list[str | Path]] = {}
    if "harvest" in commands:
        text = write_text(folder / "text.txt", rows)
        settings = ["--hook", "layers.2", "--documents", "line", "--max-rows", str(rows)]
        asked["harvest"] = ["bundled", "--text", text, *settings, "--out", out]
    if {"train", "encode", "compress"} & set(commands):
        write_store(store, rows, d_in)
        settings = ["--n-latents", str(n_latents), "--steps", "100"]
        asked["train"] = [store, *settings, "--out", run]
        asked["encode"] = [run, store, "--out", out]
        asked["compress"] = [run, store, "--out", out]
    if {"entropy", "features", "interpret"} & set(commands):
        write_codes(codes, rows, n_latents)
        asked |= {"entropy": [codes], "features": [codes]}
        asked["interpret"] = [codes, "--out", out, "--sample", "100"]
    needed = {"train"} if {"encode", "compress"} & set(commands) else set()
    for command, arguments in asked.items():
        if command in commands or command in needed:
            spent = spend(command, *arguments)
            written = run if command == "train" else out
            wrote = written.stat().st_size if written.is_file() else disk(written)
            yield command, spent, wrote
            if out.is_dir():
                shutil.rmtree(out)
            else:
                out.unlink(missing_ok=True)


def line(rows: list[int], values: list[float]) -> tuple[float, float]:
    """(constant, growth a row)"""
    slope, constant = np.polyfit(rows, values, 1)
    return float(constant), float(slope)


def scale(
    rows: tuple[int, ...] = (10_000, 100_000),
    n_latents: tuple[int, ...] = (1024,),
    d_in: int = 256,
    commands: tuple[str, ...] = ("harvest", "train", "encode", "entropy", "features", "interpret"),
    to: int = 1_000_000_000,
) -> None:
    """Print time, memory and disk of each command by rows and width, and for `to` rows.

    Args:
        rows: of the stores and codes.
        n_latents: widths of the autoencoder, each on all numbers of rows.
        d_in: width of the hidden states.
        commands: harvest, train, encode, entropy, features, interpret, compress.
        to: rows to extrapolate to.
    """
    print("| command | latents | rows | CPU time | memory | disk |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for width in n_latents:
        found: dict[str, list[tuple[int, Spent, int]]] = {}
        for n in rows:
            with tempfile.TemporaryDirectory(dir=".") as name:
                for command, spent, wrote in runs(Path(name), commands, n, d_in, width):
                    found.setdefault(command, []).append((n, spent, wrote))
                    cells = f"{spent.cpu_seconds:,.1f} s | {size(spent.peak_bytes)}"
                    print(
                        f"| {command} | {width:,} | {n:,} | {cells} | {size(wrote)} |", flush=True
                    )
        for command, each in found.items():
            counts = [n for n, _, _ in each]
            if len(counts) < 2 or command == "train":  # that goes by steps
                continue
            seconds, memory, wrote = (
                line(counts, values)
                for values in (
                    [spent.cpu_seconds for _, spent, _ in each],
                    [float(spent.peak_bytes) for _, spent, _ in each],
                    [float(wrote) for _, _, wrote in each],
                )
            )
            hours = (seconds[0] + seconds[1] * to) / 3600
            print(
                f"| {command}, extrapolated | {width:,} | {to:,} | {hours:,.1f} h "
                f"({seconds[1] * 1e6:,.1f} µs a row) | {size(memory[0] + memory[1] * to)} "
                f"({memory[1]:,.0f} bytes a row) | {size(wrote[0] + wrote[1] * to)} "
                f"({wrote[1]:,.0f} bytes a row) |",
                flush=True,
            )


if __name__ == "__main__":
    tyro.cli(scale, prog="python -m benchmarks.scale")
