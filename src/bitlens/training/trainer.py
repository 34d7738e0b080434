"""The training loop."""

import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from bitlens import terminal
from bitlens.autoencoders.base import CONFIG, Autoencoder
from bitlens.autoencoders.beginning import beginning, require_room
from bitlens.autoencoders.learner import LARGE_SAMPLE, build, make_learner
from bitlens.autoencoders.objective import Losses
from bitlens.autoencoders.registry import find
from bitlens.autoencoders.settings import Settings
from bitlens.bits.entropies import binary_entropy
from bitlens.devices import pick_device
from bitlens.errors import BitlensError, Interrupted
from bitlens.files import prepare_output
from bitlens.hidden.hooks import differ
from bitlens.hidden.source import NO_ROWS, HiddenSource, Position
from bitlens.hidden.store import PairedStore
from bitlens.options import Logger
from bitlens.seeding import generator
from bitlens.training.checkpoint import (
    RUN,
    STATE,
    Progress,
    load_checkpoint,
    save_checkpoint,
    write_or_compare,
)
from bitlens.training.config import TrainConfig
from bitlens.training.metrics import MetricsLog, Record
from bitlens.training.signals import stop_on_signals
from bitlens.version import __version__

WARM_UP = 0.05  # share of the steps in which the learning rate rises
LOWEST_RATE = 0.02  # that it falls to, as a share of its peak
NO_SPREAD = 1e-7  # of the largest mean: what rounding leaves of no spread at all
Report = Callable[[Record], None]
T = TypeVar("T")


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

    out: folder for checkpoints, `metrics.jsonl` and the result; without one nothing is written.
    resume: go on from the last checkpoint in `out`, bit-exactly. report: called with every record
    that goes to `metrics.jsonl`. progress: show it on standard error. A `test_fraction` of the
    config other than the source's is set on the source, or refused where it cannot be.
    """
    device = pick_device(config.device)
    # Compiled kernels set the number of threads when they are loaded, later, and the sums of MKL
    # may change with that: it is settled before the first product.
    torch.set_num_threads(torch.get_num_threads())
    other = None
    if config.init and "init" in find(config.architecture).settings:
        other = Autoencoder.from_pretrained(config.init, device)
        config = replace(config, n_latents=config.n_latents or other.n_latents)
        places = [about.get("hook") for about in (other.metadata, source.about)]
        if differ(*places):
            theirs, ours = ((place or {}).get("module") for place in places)
            terminal.say(
                f"`init` names an autoencoder of {theirs}, not of {ours}, as the rows are."
            )
    settings = config.resolved(source.d_in, device)
    held_out = getattr(source, "test_fraction", None)
    if config.test_fraction is not None and config.test_fraction != held_out:
        source, held_out = source.split(config.test_fraction), config.test_fraction
    settings = replace(settings, test_fraction=held_out)  # recorded is what is really held out
    model = _initial_model(source, settings).to(device)
    if other is not None:
        require_room(other, model)  # before anything is written
    folder = Path(out) if out is not None else None
    if folder is not None:
        for name in ("init", "match"):
            given = getattr(config, name)
            if given and Path(given).resolve() == folder.resolve():
                raise BitlensError(f"`{name}` names {folder}, which is written: name another.")
        prepare_output(folder, resume, overwrite, marker=RUN)
        write_or_compare(folder, settings, source.about)
        if (folder / CONFIG).exists():
            return Autoencoder.from_pretrained(folder, device)

    run = _Run(source, model, settings, folder, loggers, report, other)
    try:
        if not run.learner.closed_form:
            run.loop()
    finally:
        run.close()
    with torch.no_grad():
        model = run.learner.finish()
    if folder is not None:
        model.save(folder)
        (folder / STATE).unlink(missing_ok=True)
    return model.eval().requires_grad_(False)


class _Run:
    """A training under way: the learner, the optimiser, and how far they have come."""

    def __init__(
        self,
        source: HiddenSource,
        model: Autoencoder,
        settings: Settings,
        folder: Path | None,
        loggers: tuple[Logger, ...],
        report: Report,
        other: Autoencoder | None = None,
    ) -> None:
        """other: at whose dictionary the training begins."""
        self.model, self.settings, self.folder, self.report = model, settings, folder, report

        def sample(n: int, seed: torch.Generator) -> Tensor:
            rows = source.sample(n, seed)
            if len(rows) < 2:
                raise BitlensError(NO_ROWS)
            return model.standardise_rows(rows.to(model.W_enc.device))

        self.learner = make_learner(model, settings, sample)
        self.optimizer = torch.optim.Adam(model.parameters(), lr=self.settings.lr, fused=True)
        reached = load_checkpoint(folder, self.learner, self.optimizer) if folder else None
        if reached is None:
            self.learner.start()
            if other is not None:
                rows = sample(LARGE_SAMPLE, generator(settings.seed, "init"))
                self.learner.begin_at(beginning(other, model, rows))
        self.reached = reached or Progress(0, Position())
        self.log = None
        if folder is not None:
            self.log = MetricsLog(folder, self.reached.step, loggers, asdict(settings))
        position, device = self.reached.position, model.W_enc.device
        self.batches = (
            (model.standardise_rows(rows.to(device, non_blocking=True)), position)
            for rows, position in source.batches(settings.batch_size, settings.seed, position)
        )
        if model.W_enc.is_cuda:  # on a CPU a second thread would only take cores from the step
            self.batches = prefetched(self.batches)
        self.clock, self.rows_since = time.perf_counter(), 0

    def loop(self) -> None:
        """All steps that are left."""
        steps = self.settings.steps
        with stop_on_signals() as stop:
            while self.reached.step < steps:
                losses, rates = self._step()
                step, last = self.reached.step, self.reached.step == steps
                if step % self.settings.log_every == 0 or last:
                    self._log(losses, rates)
                signal = stop.signal  # read once, so that what is said was done
                if last:
                    break
                if self.folder and (signal or step % self.settings.checkpoint_every == 0):
                    save_checkpoint(self.folder, self.learner, self.optimizer, self.reached)
                if signal:
                    where = f"saved in {self.folder}; continue it with `resume=True`"
                    done = (
                        f"step {step} of {steps}: {where if self.folder else 'nothing was saved'}"
                    )
                    raise Interrupted(f"Stopped by {signal} after {done}.")

    def _step(self) -> tuple[Losses, Tensor]:
        step, learner = self.reached.step, self.learner
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.settings, step)
        x, position = next(self.batches)
        learner.step = step
        losses, rates = learner.backward(x)
        self.optimizer.step()
        learner.after_step(step, self.optimizer)
        self.reached = Progress(step + 1, position)
        self.rows_since += len(x)
        return losses, rates

    @torch.no_grad()
    def _log(self, losses: Losses, rates: Tensor) -> None:
        """One record; the only place where the loop waits for the device."""
        step, rates = self.reached.step, self.model.on_rates(rates)
        record: Record = {"step": step}
        record |= {name: float(value) for name, value in losses._asdict().items()}
        record |= {"l0": float(rates.sum()), "bits_batch": float(binary_entropy(rates).sum())}
        speed = self.rows_since / (time.perf_counter() - self.clock)
        record["rows_per_second"] = round(speed, 1)
        if not math.isfinite(record["total"]):
            cure = "training diverged; lower `lr`, or check the hidden states"
            raise BitlensError(f"The loss is not finite at step {step}: {cure}.")
        self.report(record)
        words = "mse {mse:.4f}  l0 {l0:.1f}  {rows_per_second:,.0f} rows/s".format(**record)
        terminal.at(step, words, self.settings.steps)
        if self.log is not None:
            self.log.write(record)
        self.clock, self.rows_since = time.perf_counter(), 0

    def close(self) -> None:
        """End the reading ahead and the log."""
        self.batches.close()
        if self.log is not None:
            self.log.close()


def learning_rate(settings: Settings, step: int) -> float:
    """Linear warm-up over 5 % of the steps, linear decay over the last ones down to 2 %."""
    left = (1 - step / settings.steps) / settings.decay
    risen = min(1.0, (step + 1) / (WARM_UP * settings.steps))
    return settings.lr * risen * max(LOWEST_RATE, min(1.0, left))


def _initial_model(source: HiddenSource, settings: Settings) -> Autoencoder:
    """Initialised, with the standardisation of the source and all metadata."""
    paired = isinstance(source, PairedStore)
    model: Any = build(settings, source.d_in, source.d_out if paired else source.d_in)
    if model.transcodes and not paired:
        what = "two stores of one harvest, what an MLP reads and what it adds"
        raise BitlensError(f"A transcoder needs {what}: pass the second as `target`.")
    if paired and not model.transcodes:
        raise BitlensError(f"{settings.architecture} reconstructs its input: it takes no target.")
    if not source.scale > NO_SPREAD * float(source.mean.abs().max()):
        raise BitlensError("All hidden states are equal; check the hook point and the text.")
    model.initialise(generator(settings.seed, "weights"))
    model.mean.copy_(source.mean)
    model.scale.fill_(source.scale)
    if paired:
        model.mean_out.copy_(source.mean_out)
        model.scale_out.fill_(source.scale_out)
    model.metadata = {
        **source.about,
        "n_latents_trained": model.n_latents,
        "training": asdict(settings),
        "bitlens_version": __version__,
        "sae_lens_version": "6.18.0",  # without it, SAELens reads cfg.json as before version 6
    }
    return model


def prefetched(source: Iterator[T], depth: int = 2) -> Generator[T, None, None]:
    """The items of `source`, prepared in a thread of its own, at most `depth` ahead. An error there
    is raised here. To be closed when it is left early."""
    end = object()
    with ThreadPoolExecutor(1) as thread:
        ahead: deque[Any] = deque(thread.submit(next, source, end) for _ in range(depth))
        while (item := ahead.popleft().result()) is not end:
            ahead.append(thread.submit(next, source, end))
            yield item
