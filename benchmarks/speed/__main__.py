"""`python -m benchmarks.speed`: time bitlens on this machine, side by side with naive code and other libraries."""

from __future__ import annotations

from pathlib import Path

import tyro

from benchmarks.speed.run import run_bench
from benchmarks.speed.show import Screen
from bitlens.cli.common import write_result


def bench(
    sizes: tuple[str, ...] = ("256x1024", "512x2048", "2048x8192"),
    cases: tuple[str, ...] = (
        "covariance",
        "step",
        "harvest",
        "encode",
        "pairs",
        "search",
        "growth",
    ),
    rows: int = 1_000_000,
    budget: float = 20.0,
    json: Path | None = None,
) -> None:
    """Time bitlens on this machine, side by side with naive code and other libraries.

    All comparisons run in one process, in turn, and medians are shown; each also against what the machine's measured
    peaks would allow at best. Other libraries join in where they are installed.

    Args:
        sizes: width of the hidden states x latents.
        cases: which of covariance, step, harvest, encode, pairs, search and growth.
        rows: rows of the cases that go by rows.
        budget: seconds that the repetitions of one comparison may take.
        json: also write the numbers to this file.
    """
    screen = Screen()
    result = run_bench(sizes, cases, rows, budget, started=screen.started, report=screen.figure)
    screen.done(result["rivals"])
    write_result(json, result)


if __name__ == "__main__":
    tyro.cli(bench, prog="python -m benchmarks.speed")
