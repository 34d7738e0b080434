"""What a training run will take of memory."""

from __future__ import annotations

from dataclasses import replace

from bitlens import processes, shards
from bitlens.autoencoders.descent import GRAM_UP_TO
from bitlens.autoencoders.learner import LARGE_SAMPLE
from bitlens.autoencoders.settings import Settings
from bitlens.bits.descent import BLOCK_BYTES, GRAM_BYTES
from bitlens.bits.descent_sharded import TOGETHER, block_rows
from bitlens.hidden.source import HiddenSource
from bitlens.memory import MemoryPlan, at_peak, gaps, require

FLOAT = 4  # bytes
DENSE = 8  # floats of a row and latent where a batch is one matrix, with what autograd keeps


def require_memory(
    source: HiddenSource, settings: Settings, d_out: int, sharded: bool = False
) -> None:
    """BitlensError if the run would not fit."""

    def plan(batch_size: int, n_latents: int) -> MemoryPlan:
        changed = replace(settings, batch_size=batch_size, n_latents=n_latents)
        return train_plan(source, changed, d_out, sharded)

    require(plan, batch_size=settings.batch_size, n_latents=settings.n_latents)


def train_plan(
    source: HiddenSource, settings: Settings, d_out: int, sharded: bool = False
) -> MemoryPlan:
    """Of a run on the rows of `source`, which reconstructs `d_out` components. sharded: of which
    each process holds some of the latents."""
    own = processes.part(settings.n_latents)
    m, n = own.stop - own.start if sharded else settings.n_latents, settings.batch_size
    width = source.d_in + d_out
    weights, (rows, more_rows) = FLOAT * (m * width + m + d_out), source.memory()
    always = {"weights": weights, "Adam": 2 * weights, "gradients": weights}
    sample = min(LARGE_SAMPLE, source.training_rows())
    batch = {"batch": 4 * FLOAT * n * width}
    one = FLOAT * sample * (width if d_out != source.d_in else source.d_in)
    of_sample = {"sample of rows": 3 * one, **gaps(one, 3 * one)}
    if settings.coding == "descent":
        search = _sharded_search if sharded else _search
        phases = [
            search(n, m, source.d_in) | batch,
            {"codes": 9 * n * m, "new gradient": weights // 2, **batch},
            search(sample, m, source.d_in) | of_sample,
        ]
    else:
        phases = [{"codes": DENSE * FLOAT * n * m, **batch}, of_sample]
    reading = {"the next rows": more_rows}
    in_memory = {"rows": rows}
    # what is spread is written by blocks, and then read by every process
    ending = {"checkpoint": 3 * weights}
    if sharded:
        blocks = 3 * min(weights, shards.BLOCK_BYTES)
        ending = {"result": FLOAT * settings.n_latents * width, "blocks": blocks}
    if settings.device == "cpu":
        written = [{**ending, "latents that are on": weights}] if sharded else []
        return MemoryPlan("train", at_peak(always | in_memory, reading, *phases, *written))
    main = at_peak(in_memory, reading, ending)
    return MemoryPlan("train", main, at_peak(always, *phases), settings.device)


def _search(rows: int, n_latents: int, d: int) -> dict[str, int]:
    gains = min(FLOAT * rows * n_latents, BLOCK_BYTES)
    kept = 0 if FLOAT * n_latents**2 > GRAM_BYTES else FLOAT * n_latents**2
    return {"W W^T": kept * (n_latents <= GRAM_UP_TO * rows), "gains": gains}


def _sharded_search(rows: int, n_latents: int, d: int) -> dict[str, int]:
    """Gains twice, and bits as bytes twice; of a row what is told, and some three new ones."""
    block = min(rows, block_rows(n_latents, d))
    told = FLOAT * block * d * (TOGETHER + 3)
    return {"gains": 10 * block * n_latents, "told": told}
