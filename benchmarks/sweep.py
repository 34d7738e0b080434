"""`python -m benchmarks.sweep`: several trainings in one pass beside one after the other."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Annotated, Literal

import tyro

import bitlens as bl
from bitlens.hidden.live import LiveSource
from bitlens.hidden.source import HiddenSource


def timed(work: Callable[[], object]) -> float:
    """Seconds."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def ratio(
    source: Callable[[], HiddenSource], config: bl.TrainConfig, rounds: int
) -> tuple[float, float]:
    """Median seconds of four trainings one after the other, and in one pass, in turn."""
    settings = {"lam": [0.05, 0.1], "seed": [0, 1]}
    each = [
        dict(zip(settings, values, strict=True)) for values in itertools.product(*settings.values())
    ]

    def alone() -> None:
        with tempfile.TemporaryDirectory() as folder:
            for i, one in enumerate(each):
                settings = bl.TrainConfig(**{**vars(config), **one})
                bl.train(source(), settings, Path(folder) / str(i), progress=False)

    def together() -> None:
        with tempfile.TemporaryDirectory() as folder:
            bl.sweep(source(), settings, Path(folder) / "out", config, progress=False)

    bl.train(source(), bl.TrainConfig(**{**vars(config), "steps": 2}), progress=False)
    times = [(timed(alone), timed(together)) for _ in range(rounds)]
    return median(t[0] for t in times), median(t[1] for t in times)


def main(
    store: Annotated[Path, tyro.conf.Positional],
    rounds: int = 3,
    steps: int = 300,
    n_latents: tuple[int, ...] = (256, 1024),
    sources: tuple[Literal["store", "stream"], ...] = ("store", "stream"),
) -> None:
    """Args:
    store: of hidden states; those of `stream` are made as they are needed, by the bundled model.
    rounds: of which the median counts.
    steps: of each training.
    sources: store, stream or both.
    n_latents: of each training, one table row each.
    """
    model = bl.LanguageModel.load("bundled", ["layers.2"], device="cpu")
    reader = bl.ContextReader(bl.Corpus(("bundled",)), model.tokenizer, 128)
    print(
        "| four trainings | one after the other, s | in one pass, s | ratio |\n"
        "| --- | ---: | ---: | ---: |"
    )
    opened = bl.ActivationStore(store)
    makes = {"store": lambda: opened, "stream": lambda: LiveSource(model, reader)}
    for m, name in itertools.product(n_latents, sources):
        config = bl.TrainConfig(steps=steps, device="cpu", n_latents=m)
        alone, together = ratio(makes[name], config, rounds)
        times = f"{alone:.1f} | {together:.1f} | {alone / together:.2f}"
        print(f"| {name}, {m:,} latents | {times} |", flush=True)


if __name__ == "__main__":
    tyro.cli(main)
