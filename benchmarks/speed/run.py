"""All cases, one after the other, and one object of numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.speed import rivals
from benchmarks.speed.cases import CASES, Figure, Scope
from benchmarks.speed.harvest import RealModel
from benchmarks.speed.machine import Peaks, about, peaks
from bitlens.errors import BitlensError

SIZES = ("256x1024", "512x2048", "2048x8192")
DEFAULT_CASES = ("covariance", "step", "harvest", "encode", "pairs", "search", "contexts", "growth")


def run_bench(
    sizes: Sequence[str] = SIZES,
    cases: Sequence[str] = tuple(CASES),
    rows: int = 1_000_000,
    budget: float = 20.0,
    *,
    real: RealModel | None = None,
    started: Callable[[dict[str, Any], Peaks], None] = lambda machine, measured: None,
    report: Callable[[Figure], None] = lambda figure: None,
) -> dict[str, Any]:
    """Time the cases on this machine, interleaved with what they are compared with.

    real: a model for the case `harvest`. started: called with the machine and its measured peaks
    before the first case. report: called with every figure.

    -> machine, measured peaks, versions of the rivals that are installed, and the figures
    """
    scope = Scope(tuple(_size(text) for text in sizes), rows, budget, real)
    unknown = [case for case in cases if case not in CASES]
    if unknown or not sizes:
        raise BitlensError(
            f"There is no case {', '.join(unknown) or 'without a size'}; choose from: "
            f"{', '.join(CASES)}."
        )
    if rows < 4096 or budget < 0:
        raise BitlensError(
            "A benchmark needs at least 4,096 rows and a budget of at least 0 seconds, not "
            f"{rows} and {budget}."
        )
    machine, measured = about(), peaks()
    started(machine, measured)
    figures = []
    for case in cases:
        for figure in CASES[case](scope, measured):
            report(figure)
            figures.append(dataclasses.asdict(figure))
    return {
        "machine": machine,
        "peaks_per_second": measured,
        "rivals": rivals.versions(),
        "figures": figures,
    }


def _size(text: str) -> tuple[int, int]:
    try:
        d_in, n_latents = (int(part) for part in text.split("x"))
    except ValueError:
        d_in = n_latents = 0
    if d_in < 1 or n_latents < 64 or n_latents % 64:
        raise BitlensError(
            "A size is written as 512x2048, width by latents, the latents a multiple of 64; not "
            f"'{text}'."
        )
    return d_in, n_latents
