"""Commands that run by themselves: the demo and the benchmarks."""

from __future__ import annotations

from pathlib import Path

from bitlens.cli.common import Json, write_result


def demo(
    out: Path = Path("bitlens-demo"),
    n_latents: int = 1024,
    steps: int = 2000,
    overwrite: bool = False,
    json: Json = None,
) -> None:
    """The whole job on the bundled model and text, offline, in minutes.

    Args:
        out: folder for everything that is made.
        n_latents: width of both autoencoders.
        steps: training steps of both.
        overwrite: replace a former demo.
        json: also write the numbers to this file.
    """
    from bitlens.demo import run_demo

    write_result(json, run_demo(out, n_latents, steps, overwrite))


def bench(
    sizes: tuple[str, ...] = ("256x1024", "512x2048", "2048x8192"),
    cases: tuple[str, ...] = ("covariance", "step", "harvest", "encode", "pairs", "search", "growth"),
    rows: int = 1_000_000,
    budget: float = 20.0,
    json: Json = None,
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
    from bitlens.bench.run import run_bench
    from bitlens.bench.show import Screen

    screen = Screen()
    result = run_bench(sizes, cases, rows, budget, started=screen.started, report=screen.figure)
    screen.done(result["rivals"])
    write_result(json, result)
