"""`python -m benchmarks.speed`: bitlens timed beside naive code and other libraries."""

from __future__ import annotations

import sys
from pathlib import Path

import tyro

from benchmarks.speed.harvest import RealModel
from benchmarks.speed.run import DEFAULT_CASES, SIZES, run_bench
from benchmarks.speed.show import Screen
from bitlens.errors import BitlensError
from bitlens.files import refuse_unwritable, write_json
from bitlens.options import BUNDLED


def bench(
    sizes: tuple[str, ...] = SIZES,
    cases: tuple[str, ...] = DEFAULT_CASES,
    rows: int = 1_000_000,
    budget: float = 20.0,
    json: Path | None = None,
    model: str | None = None,
    hook: tuple[str, ...] = (),
    text: str = BUNDLED,
) -> None:
    """Time bitlens on this machine, side by side with naive code and other libraries.

    All comparisons run in one process, in turn, and medians are shown; each also against what the
    machine's measured peaks would allow at best. Other libraries join in where they are installed.

    Args:
        sizes: width of the hidden states x latents.
        cases: covariance, step, descent, harvest, encode, pairs, search, contexts, growth.
        rows: rows of the cases that go by rows.
        budget: seconds that the repetitions of one comparison may take.
        json: also write the numbers to this file.
        model: a model that the case harvest runs, by name or folder.
        hook: its hook points.
        text: what it reads.
    """
    if json is not None:
        refuse_unwritable(json)
    real = None if model is None else RealModel(model, hook, text)
    screen = Screen()
    shown = {"started": screen.started, "report": screen.figure}
    result = run_bench(sizes, cases, rows, budget, real=real, **shown)
    screen.done(result["rivals"])
    if json is not None:
        write_json(json, result)


def main(arguments: list[str] | None = None) -> None:
    """Exit status: 0 done, 2 bad input, after one sentence."""
    try:
        tyro.cli(bench, prog="python -m benchmarks.speed", args=arguments)
    except BitlensError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
