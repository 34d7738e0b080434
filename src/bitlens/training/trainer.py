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

from bitlens import processes, terminal
from bitlens.autoencoders.base import CONFIG, Autoencoder
from bitlens.autoencoders.beginning import beginning, require_room
from bitlens.autoencoders.learner import LARGE_SAMPLE, diverged, make_learner
from bitlens.autoencoders.objective import Losses
from bitlens.autoencoders.registry import find
from bitlens.autoencoders.settings import Settings
from bitlens.bits.entropies import binary_entropy
from bitlens.devices import pick_device
from bitlens.errors import BitlensError, Interrupted
from bitlens.files import prepare_output, tidy
from bitlens.hidden.hooks import differ
from bitlens.hidden.source import NO_ROWS, HiddenSource, Position
from bitlens.options import Logger
from bitlens.remote import place
from bitlens.seeding import generator
from bitlens.training.checkpoint import (
    RUN,
    STATE,
    Progress,
    load_checkpoint,
    save_checkpoint,
    take_state_from_first,
    write_or_compare,
)
from bitlens.training.config import TrainConfig
from bitlens.training.metrics import MetricsLog, Record
from bitlens.training.plan import require_memory
from bitlens.training.signals import stop_on_signals
from bitlens.training.start import (
    initial_model,
    refuse_idle,
    require_alike,
    require_apart,
    require_shards,
)
from bitlens.writing import holding

WARM_UP = 0.05  # share of the steps in which the learning rate rises
LOWEST_RATE = 0.02  # that it falls to, as a share of its peak
Report = Callable[[Record], None]
Batch = tuple[Tensor, Position]
T = TypeVar("T")


@terminal.shown("train")
@holding(ranks=True)
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
    shard_latents: bool = False,
) -> Autoencoder:
    """Train an autoencoder on the rows of `source` and return it, a BAE in canonical form.

    out: folder for checkpoints, `metrics.jsonl` and the result; without one nothing is written.
    resume: go on from the last checkpoint in `out`, bit-exactly. report: called with every record
    that goes to `metrics.jsonl`. progress: show it on standard error. A `test_fraction` of the
    config other than the source's is set on the source, or refused where it cannot be.

    Called in every process that `torchrun` started, with equal arguments, they train together
    (`docs/many-processes.md`): a batch is shared out among them, the first writes and reports, and
    all return the autoencoder. shard_latents: each holds some of the latents instead and takes all
    rows, for a BAE that fits no one device; what is returned is then on the CPU.
    """
    with processes.together():
        begun = begin(source, config, out, resume, overwrite, loggers, report, shard_latents)
        if isinstance(begun, Autoencoder):
            return begun
        try:
            begun.loop()
        finally:
            begun.close()
        return begun.finish()


def begin(
    source: HiddenSource,
    config: TrainConfig,
    out: Path | str | None,
    resume: bool,
    overwrite: bool,
    loggers: tuple[Logger, ...],
    report: Report,
    sharded: bool = False,
) -> "Run | Autoencoder":
    """Everything before the first step that is left, see `train`; what is finished is loaded."""
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
    refuse_idle(out, resume, loggers)
    held_out = getattr(source, "test_fraction", None)
    if config.test_fraction is not None and config.test_fraction != held_out:
        source, held_out = source.split(config.test_fraction), config.test_fraction
    settings = replace(settings, test_fraction=held_out)  # recorded is what is really held out
    folder = place(out) if out is not None else None
    if sharded:
        require_shards(settings, folder, other)
    require_memory(source, settings, getattr(source, "d_out", source.d_in), sharded)
    model = initial_model(source, settings, sharded).to(device)
    if other is not None:
        require_room(other, model)  # before anything is written
    require_alike(source, settings)
    if folder is not None:
        require_apart(config, folder)
        if processes.is_first():
            prepare_output(folder, resume, overwrite, marker=RUN)
            tidy(folder)
            write_or_compare(folder, settings, source.about)
        if processes.from_first((folder / CONFIG).exists()):
            if processes.is_first():  # a kill between the last two changes of a run leaves it
                (folder / STATE).unlink(missing_ok=True)
            done = Autoencoder.from_pretrained(folder, "cpu" if sharded else device)
            return done.requires_grad_(False)

    return Run(source, model, settings, folder, loggers, report, other, sharded)


class Run:
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
        sharded: bool = False,
    ) -> None:
        """other: at whose dictionary the training begins. sharded: the model is of the latents of
        this process."""
        self.model, self.settings, self.folder, self.report = model, settings, folder, report

        def sample(n: int, seed: torch.Generator) -> Tensor:
            rows = source.sample(n, seed)
            if len(rows) < 2:
                raise BitlensError(NO_ROWS)
            return model.standardise_rows(rows.to(model.W_enc.device))

        self.learner = make_learner(model, settings, sample, sharded)
        self.optimizer = torch.optim.Adam(model.parameters(), lr=self.settings.lr, fused=True)
        reached = load_checkpoint(folder, self.learner, self.optimizer) if folder else None
        if reached is None:
            self.learner.start()
            if other is not None:
                rows = sample(LARGE_SAMPLE, generator(settings.seed, "init"))
                self.learner.begin_at(beginning(other, model, rows))
        take_state_from_first(self.learner, self.optimizer)
        self.reached = reached or Progress(0, Position())
        self.log = None
        if folder is not None and processes.is_first():
            self.log = MetricsLog(folder, self.reached.step, loggers, asdict(settings))
        position, device = self.reached.position, model.W_enc.device
        self.batches: Generator[Batch] = (
            (self._own_rows(rows, device), position)
            for rows, position in source.batches(settings.batch_size, settings.seed, position)
        )
        self.clock, self.rows_since = time.perf_counter(), 0

    @property
    def left(self) -> int:
        """Steps to be done."""
        return 0 if self.learner.closed_form else self.settings.steps - self.reached.step

    def _own_rows(self, rows: Tensor, device: torch.device) -> Tensor:
        """Of a batch those of this process, standardised."""
        own = rows[self.learner.part_of_batch(len(rows))]
        return self.model.standardise_rows(own.to(device, non_blocking=True))

    def loop(self) -> None:
        """All steps that are left."""
        if self.model.W_enc.is_cuda:  # on a CPU a second thread would only take cores from the step
            self.batches = prefetched(self.batches)
        with stop_on_signals() as stop:
            while self.left:
                results = self.step(*next(self.batches))
                signal = processes.agreed(stop.signal)  # read once, so that what is said was done
                self.keep(*results, save=bool(signal))
                if signal and self.left:
                    processes.wait_for_all()
                    done = f"step {self.reached.step} of {self.settings.steps}"
                    where = f"saved in {self.folder}; continue it with `resume=True`"
                    kept = where if self.folder else "nothing was saved"
                    raise Interrupted(f"Stopped by {signal} after {done}: {kept}.")

    def keep(self, losses: Losses, rates: Tensor, save: bool) -> None:
        """After a step: log and save what is due. save: whatever is due."""
        step = self.reached.step
        if step % self.settings.log_every == 0 or not self.left:
            self._log(losses, rates)
        if self.left and (save or step % self.settings.checkpoint_every == 0):
            self.save()

    def save(self) -> None:
        """Write a checkpoint, where there is a folder for it."""
        if self.folder:
            if self.log is not None:
                self.log.send()
            save_checkpoint(self.folder, self.learner, self.optimizer, self.reached)

    def step(self, x: Tensor, position: Position) -> tuple[Losses, Tensor]:
        """The next step, with a batch of `batches` -> (losses, firing rates)."""
        step, learner = self.reached.step, self.learner
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.settings, step)
        learner.step = step
        losses, rates = learner.backward(x)
        self.optimizer.step()
        learner.after_step(step, self.optimizer)
        if step in learner.turns:
            take_state_from_first(learner, self.optimizer)
        self.reached = Progress(step + 1, position)
        self.rows_since += self.settings.batch_size
        return losses, rates

    @torch.no_grad()
    def _log(self, losses: Losses, rates: Tensor) -> None:
        """One record; the only place where the loop waits for the device."""
        step = self.reached.step
        rates = self.learner.rates_of_all(self.model.on_rates(rates))
        record: Record = {"step": step}
        record |= self._of_batch(losses)
        record |= {"l0": float(rates.sum()), "bits_batch": float(binary_entropy(rates).sum())}
        speed = self.rows_since / (time.perf_counter() - self.clock)
        record["rows_per_second"] = round(speed, 1)
        if not math.isfinite(record["total"]):
            raise diverged(step)
        if processes.is_first():
            self.report(record)
        words = "mse {mse:.4f}  l0 {l0:.1f}  {rows_per_second:,.0f} rows/s".format(**record)
        terminal.at(step, words, self.settings.steps)
        if self.log is not None:
            self.log.write(record)
        self.clock, self.rows_since = time.perf_counter(), 0

    def _of_batch(self, losses: Losses) -> dict[str, float]:
        """The losses as numbers; each process's count by its share of the rows."""
        values = {name: float(value) for name, value in losses._asdict().items()}
        if processes.world_size() > 1:
            own = processes.part(self.settings.batch_size)
            share = (own.stop - own.start) / self.settings.batch_size
            sums = torch.tensor(list(values.values()), dtype=torch.float64) * share
            processes.add(sums)
            values = dict(zip(values, sums.tolist(), strict=True))
        return values

    def close(self) -> None:
        """End the reading ahead and the log."""
        self.batches.close()
        if self.log is not None:
            self.log.close()

    def finish(self) -> Autoencoder:
        """After the last step: the result, written."""
        with torch.no_grad():
            model = self.learner.finish()
        if self.folder is not None:
            model = self.learner.save(model, self.folder)
            if processes.is_first():
                (self.folder / STATE).unlink(missing_ok=True)
            processes.wait_for_all()
        return model.eval().requires_grad_(False)


def learning_rate(settings: Settings, step: int) -> float:
    """Linear warm-up over 5 % of the steps, linear decay over the last ones down to 2 %."""
    left = (1 - step / settings.steps) / settings.decay
    risen = min(1.0, (step + 1) / (WARM_UP * settings.steps))
    return settings.lr * risen * max(LOWEST_RATE, min(1.0, left))


def prefetched(source: Iterator[T], depth: int = 2) -> Generator[T, None, None]:
    """The items of `source`, prepared in a thread of its own, at most `depth` ahead. An error there
    is raised here. To be closed when it is left early."""
    end = object()
    with ThreadPoolExecutor(1) as thread:
        ahead: deque[Any] = deque(thread.submit(next, source, end) for _ in range(depth))
        while (item := ahead.popleft().result()) is not end:
            ahead.append(thread.submit(next, source, end))
            yield item
