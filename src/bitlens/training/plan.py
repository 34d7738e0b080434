"""What a training run will take of memory."""

from __future__ import annotations

from dataclasses import replace

from bitlens.autoencoders.descent import GRAM_UP_TO
from bitlens.autoencoders.learner import LARGE_SAMPLE
from bitlens.autoencoders.settings import Settings
from bitlens.bits.descent import BLOCK_BYTES, GRAM_BYTES
from bitlens.hidden.source import HiddenSource
from bitlens.memory import MemoryPlan, at_peak, gaps, require

FLOAT = 4  # bytes
DENSE = 8  # floats of a row and latent where a batch is one matrix, with what autograd keeps


def require_memory(source: HiddenSource, settings: Settings, d_out: int) -> None:
    """BitlensError if the run would not fit."""

    def plan(batch_size: int, n_latents: int) -> MemoryPlan:
        changed = replace(settings, batch_size=batch_size, n_latents=n_latents)
        return train_plan(source, changed, d_out)

    require(plan, batch_size=settings.batch_size, n_latents=settings.n_latents)


def train_plan(source: HiddenSource, settings: Settings, d_out: int) -> MemoryPlan:
    """Of a run on the rows of `source`, which reconstructs `d_out` components."""
    m, n, width = settings.n_latents, settings.batch_size, source.d_in + d_out
    weights, (rows, more_rows) = FLOAT * (m * width + m + d_out), source.memory()
    always = {"weights": weights, "Adam": 2 * weights, "gradients": weights}
    sample = min(LARGE_SAMPLE, source.training_rows())
    batch = {"batch": 4 * FLOAT * n * width}
    one = FLOAT * sample * (width if d_out != source.d_in else source.d_in)
    of_sample = {"sample of rows": 3 * one, **gaps(one, 3 * one)}
    if settings.coding == "descent":
        kept = 0 if FLOAT * m * m > GRAM_BYTES else FLOAT * m * m
        phases = [
            {"W W^T": kept * (m <= GRAM_UP_TO * n), "gains": _gains(n, m), **batch},
            {"codes": 9 * n * m, "new gradient": weights // 2, **batch},
            {"W W^T": kept * (m <= GRAM_UP_TO * sample), "gains": _gains(sample, m), **of_sample},
        ]
    else:
        phases = [{"codes": DENSE * FLOAT * n * m, **batch}, of_sample]
    reading = {"the next rows": more_rows}
    in_memory = {"rows": rows}
    if settings.device == "cpu":
        return MemoryPlan("train", at_peak(always | in_memory, reading, *phases))
    checkpoint = {"checkpoint": 3 * weights}
    main = at_peak(in_memory, reading, checkpoint)
    return MemoryPlan("train", main, at_peak(always, *phases), settings.device)


def _gains(rows: int, n_latents: int) -> int:
    return min(FLOAT * rows * n_latents, BLOCK_BYTES)
