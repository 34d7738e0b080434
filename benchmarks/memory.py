"""`python -m benchmarks.memory`: what commands say that they will take of memory, beside what they
take.

Each command is a process of its own, at a tiny size, which shows what the libraries take, and at
larger ones. Measured is memory of its own, looked at every 3 ms, without mapped files.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import tyro

from benchmarks.spending import planned, spend
from benchmarks.synthetic import write_codes, write_store, write_text
from bitlens.memory import size

TINY = "tiny"
Arguments = list[str | Path]


class Peak(NamedTuple):
    """Of one command at one size, in bytes beyond what the libraries take."""

    command: str
    of: str
    plan: int
    taken: int

    @property
    def ratio(self) -> float:
        """Of peak and plan"""
        return self.taken / self.plan

    def __str__(self) -> str:
        cells = (self.command, self.of, size(self.plan), size(self.taken), f"{self.ratio:.2f}")
        return f"| {' | '.join(cells)} |"


def peaks(command: str, sizes: list[tuple[str, Arguments]]) -> Iterator[Peak]:
    """sizes: what each is and the arguments of the command, the first one tiny."""
    libraries = 0
    for of, arguments in sizes:
        plan = planned(command, *arguments)
        peak = spend(command, *arguments).peak_bytes
        if of == TINY:
            libraries = peak - plan
        else:
            yield Peak(command, of, plan, peak - libraries)


def cases(folder: Path, large: bool) -> Iterator[tuple[str, list[tuple[str, Arguments]]]]:
    """Every command with its sizes; large: one more for each."""
    texts = [(write_text(folder / f"{n}.txt", n), n) for n in (500, 150_000)]
    harvests = [
        (of, ["bundled", "--text", text, "--hook", "layers.0", "--documents", "line", "--out", out])
        for (text, n) in texts
        for of, out in [(TINY if n == 500 else "150,000 tokens", folder / f"harvested-{n}")]
    ]
    if large:
        several = [*harvests[1][1][:-1], folder / "batches", "--batch-size", "64"]
        harvests.append(("150,000 tokens, 64 contexts a batch", several))
    yield "harvest", harvests
    of_stores: dict[str, list[tuple[str, Arguments]]] = {
        "train": [],
        "encode": [],
        "evaluate": [],
        "compress": [],
        "decompress": [],
    }
    widths = [(1_000, 64, 64), (20_000, 512, 3072), *([(40_000, 512, 6144)] if large else [])]
    for rows, d, m in widths:
        store = write_store(folder / f"store-{m}", rows, d)
        of = TINY if m == 64 else f"{rows:,} rows of {d}, {m:,} latents"
        run, codes = folder / f"run-{m}", folder / f"encoded-{m}"
        arguments: dict[str, Arguments] = {
            "train": [store, "--out", run, "--n-latents", str(m), "--steps", "3"],
            "encode": [run, store, "--out", codes, "--flips", "0"],
            "evaluate": [run, store, "--no-ce"],
            "compress": [run, store, "--out", folder / f"{m}.bits"],
            "decompress": [folder / f"{m}.bits", run, "--out", folder / f"back-{m}"],
        }
        for command, given in arguments.items():
            of_stores[command].append((of, given))
    yield from of_stores.items()
    tiny = write_codes(folder / "codes", 4_000, 64)
    wide = [(20_000, 2048), *([(20_000, 4096)] if large else [])]
    measured: list[tuple[str, Arguments]] = [(TINY, [tiny])]
    measured += [
        (f"{n:,} rows of {m:,} latents", [write_codes(folder / f"codes-{m}", n, m)])
        for n, m in wide
    ]
    yield "entropy", measured
    many = [5_000_000, *([10_000_000] if large else [])]
    rows = [(TINY, tiny)]
    rows += [(f"{n:,} rows of 64 latents", write_codes(folder / f"rows-{n}", n, 64)) for n in many]
    yield "features", [(of, [path]) for of, path in rows]
    judged: Arguments = ["--sample", "16", "--out", folder / "meanings"]
    yield "interpret", [(of, [path, *judged]) for of, path in rows]


def memory(command: str = "", large: bool = True) -> None:
    """Print plans beside peaks.

    Args:
        command: this one alone.
        large: two sizes of each, and not one.
    """
    print("| command | of | plan | peak | ratio |\n| --- | --- | ---: | ---: | ---: |")
    folder = Path(tempfile.mkdtemp(dir="."))
    try:
        for name, sizes in cases(folder, large):
            if not command or name in (command, "train"):  # others take what it trains
                for peak in peaks(name, sizes):
                    print(peak, flush=True)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    tyro.cli(memory, prog="python -m benchmarks.memory")
