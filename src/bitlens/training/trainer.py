"""The training loop."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitlens import terminal
from bitlens.autoencoders import Autoencoder, Transcoder
from bitlens.autoencoders.base import CONFIG
from bitlens.bits.statistics import binary_entropy
from bitlens.errors import BitlensError, Interrupted
from bitlens.files import prepare_output, read_manifest, write_json
from bitlens.hidden.paired import PairedStore
from bitlens.hidden.source import NO_ROWS, HiddenSource, Position
from bitlens.options import Logger
from bitlens.seeding import generator
from bitlens.training.checkpoint import STATE, Progress, load_checkpoint, save_checkpoint
from bitlens.training.config import TrainConfig
from bitlens.training.learners import build, make_learner
from bitlens.training.metrics import MetricsLog
from bitlens.training.objective import Losses
from bitlens.training.prefetch import Prefetch
from bitlens.training.signals import stop_on_signals
from bitlens.version import __version__

RUN = "training.json"
SCHEMA = 1
Report = Callable[[dict[str, Any]], None]


@terminal.shown("train")
def train(
    source: HiddenSource,
    config: TrainConfig = TrainConfig(),  # noqa: B008
    out: Path | str | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    loggers: tuple[Logger, ...] = (),
    report: Report = lambda record: None,
    progress: bool = True,
) -> Autoencoder:
    """Train an autoencoder on the rows of `source` and return it, a BAE in canonical form.

    out: folder for checkpoints, `metrics.jsonl` and the result; without one nothing is written. resume: go on from the
    last checkpoint in `out`, with the same weights as if the run had never stopped. report: called with every record
    that goes to `metrics.jsonl`. progress: show it on standard error. A `test_fraction` of the config other than the
    source's is set on the source, or refused where it cannot be; which documents were held out is recorded, and
    `evaluate` keeps to it.
    """
    device = (
        ("cuda" if torch.cuda.is_available() else "cpu")
        if config.device == "auto"
        else config.device
    )
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise BitlensError(f"There is no device '{device}' here; use cpu.")
    torch.set_num_threads(
        torch.get_num_threads()
    )  # kernels do this later, and the sums of MKL may change with it
    config = config.resolved(source.d_in, device)
    held_out = getattr(source, "test_fraction", None)
    if config.test_fraction is not None and config.test_fraction != held_out:
        source, held_out = source.split(config.test_fraction), config.test_fraction
    config = dataclasses.replace(
        config, test_fraction=held_out
    )  # recorded: what is really held out
    model = _build(source, config).to(device)
    folder = Path(out) if out is not None else None
    if folder is not None:
        prepare_output(folder, resume, overwrite, marker=RUN)
        _write_or_compare(folder / RUN, config, source)
        if (folder / CONFIG).exists():
            return Autoencoder.from_pretrained(folder, device)

    learner = make_learner(model, config, _sampler(source, model, device))
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr or 0.0, fused=True)
    reached = load_checkpoint(folder, learner, optimizer) if folder is not None else None
    if reached is None:
        reached = Progress(0, Position())
        learner.start()
    log = (
        MetricsLog(folder, reached.step, loggers, dataclasses.asdict(config))
        if folder is not None
        else None
    )
    batches = _standardised_batches(source, model, config, reached.position, device)
    if device.startswith("cuda"):  # on a CPU a second thread would only take cores from the step
        batches = Prefetch(batches)
    clock, rows_done = time.perf_counter(), 0

    try:
        with stop_on_signals() as stop:
            for step in range(reached.step, config.steps if learner.descends else 0):
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(config, step)
                x, position = next(batches)
                learner.step = step
                losses, rates = learner.backward(x)
                optimizer.step()
                learner.after_step(step, optimizer)
                reached = Progress(step + 1, position)
                rows_done += len(x)

                last = reached.step == config.steps
                if reached.step % config.log_every == 0 or last:
                    record = _record(
                        reached.step,
                        losses,
                        model.on_rates(rates),
                        rows_done / (time.perf_counter() - clock),
                    )
                    _refuse_divergence(record)
                    report(record)
                    terminal.at(reached.step, _in_words(record), config.steps)
                    if log is not None:
                        log.write(record)
                    clock, rows_done = time.perf_counter(), 0
                signal = stop.signal  # read once: what is said below was done here
                if (
                    folder is not None
                    and not last
                    and (reached.step % config.checkpoint_every == 0 or signal)
                ):
                    save_checkpoint(folder, learner, optimizer, reached)
                if signal and not last:
                    saved = (
                        f"saved in {folder}; continue it with `resume=True`"
                        if folder is not None
                        else "nothing was saved"
                    )
                    raise Interrupted(
                        f"Stopped by {signal} after step {reached.step} of {config.steps}: {saved}."
                    )
    finally:
        if isinstance(batches, Prefetch):
            batches.close()
        if log is not None:
            log.close()

    with torch.no_grad():
        model = learner.finish()
    if folder is not None:
        model.save(folder)
        (folder / STATE).unlink(missing_ok=True)
    return model.eval().requires_grad_(False)


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up over 5 % of the steps, linear decay over the last ones down to 2 %."""
    left = (1 - step / config.steps) / (config.decay or 0.3)
    return (
        (config.lr or 0.0)
        * min(1.0, (step + 1) / (0.05 * config.steps))
        * max(0.02, min(1.0, left))
    )


def _build(source: HiddenSource, config: TrainConfig) -> Autoencoder:
    model = build(
        config, source.d_in, source.d_out if isinstance(source, PairedStore) else source.d_in
    )
    if model.transcodes != isinstance(source, PairedStore):
        raise BitlensError(
            "A transcoder needs two stores of one harvest, what an MLP reads and what it adds: pass the second as `target`."
            if model.transcodes
            else f"The architecture {config.architecture} reconstructs its input and takes no target."
        )
    if not source.scale > 1e-7 * float(
        source.mean.abs().max()
    ):  # what rounding leaves of no spread at all
        raise BitlensError(
            "All hidden states are equal: there is nothing to encode; check the hook point and the text."
        )
    model.initialise(generator(config.seed, "weights"))
    model.mean.copy_(source.mean)
    model.scale.fill_(source.scale)
    if isinstance(model, Transcoder) and isinstance(source, PairedStore):
        model.mean_out.copy_(source.mean_out)
        model.scale_out.fill_(source.scale_out)
    model.metadata = {
        **source.about,
        "n_latents_trained": model.n_latents,
        "training": dataclasses.asdict(config),
        "bitlens_version": __version__,
        "sae_lens_version": "6.18.0",  # the version of SAELens' folder layout that this one follows
    }
    return model


def _sampler(
    source: HiddenSource, model: Autoencoder, device: str
) -> Callable[[int, torch.Generator], Tensor]:
    def sample(n: int, seed: torch.Generator) -> Tensor:
        rows = source.sample(n, seed)
        if len(rows) < 2:
            raise BitlensError(NO_ROWS)
        return model.standardise_rows(rows.to(device))

    return sample


def _standardised_batches(
    source: HiddenSource, model: Autoencoder, config: TrainConfig, start: Position, device: str
) -> Iterator[tuple[Tensor, Position]]:
    for rows, position in source.batches(config.batch_size, config.seed, start):
        yield model.standardise_rows(rows.to(device, non_blocking=True)), position


@torch.no_grad()
def _record(step: int, losses: Losses, p: Tensor, rows_per_second: float) -> dict[str, float | int]:
    """The numbers of one logged step, p how often latents are on; the only place where the loop waits for the device."""
    record: dict[str, float | int] = {"step": step}
    record |= {name: float(value) for name, value in losses._asdict().items()}
    record["l0"] = float(p.sum())
    record["bits_batch"] = float(binary_entropy(p).sum())
    record["rows_per_second"] = round(rows_per_second, 1)
    return record


def _in_words(record: dict[str, Any]) -> str:
    return (
        f"mse {record['mse']:.4f}  l0 {record['l0']:.1f}  {record['rows_per_second']:,.0f} rows/s"
    )


def _refuse_divergence(record: dict[str, Any]) -> None:
    if not record["total"] - record["total"] == 0:
        raise BitlensError(
            f"The loss is not finite at step {record['step']}: training diverged; lower `lr`, or check the hidden states."
        )


def _write_or_compare(path: Path, config: TrainConfig, source: HiddenSource) -> None:
    """Record what the run is; a resumed run must be the same one."""
    run = {"schema": SCHEMA, "config": dataclasses.asdict(config), "source": source.about}
    if not path.exists():
        return write_json(path, run)
    former = read_manifest(path, SCHEMA, "a training run")
    settings = dataclasses.asdict(
        TrainConfig()
    )  # what a run said nothing of was as it is by default
    before, now = (
        {**settings, **r.get("source", {}), **r.get("config", {})}
        for r in (former, json.loads(json.dumps(run)))
    )
    ignored = {
        "log_every",
        "checkpoint_every",
        "store",
        "target",
        "documents_of",
    }  # a store or text may have moved
    if now.get("model_digest") is not None and now["model_digest"] == before.get("model_digest"):
        ignored.add("model")  # and a model, too
    changed = [
        f"{name} was {before.get(name)!r} and is {value!r}"
        for name, value in now.items()
        if name not in ignored and value != before.get(name)
    ]
    if changed:
        raise BitlensError(
            f"{path.parent} holds a run with other settings ({'; '.join(changed)}); resume it with the same ones, "
            "or replace it with `overwrite=True`."
        )
    return None
