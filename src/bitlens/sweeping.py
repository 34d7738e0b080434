"""Several trainings in one pass over the same rows.

Every run reads in the order that its own seed and batch size give, as it would alone, so its result
is the same bit for bit; what is shared is what lies behind: a source keeps its last window, and the
runs advance side by side, so that each window is read, or made by a language model, once.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from numba import get_num_threads, threading_layer  # pyright: ignore[reportPrivateImportUsage]

from bitlens import processes, terminal
from bitlens.autoencoders.base import Autoencoder
from bitlens.autoencoders.objective import Losses
from bitlens.bits.entropies import binary_entropy
from bitlens.errors import BitlensError, Interrupted
from bitlens.files import prepare_output, write_json
from bitlens.hidden.source import HiddenSource
from bitlens.hidden.store import ActivationStore
from bitlens.information.moments import Variance, squared_error
from bitlens.memory import MemoryPlan, PlanOnly, only_plan
from bitlens.options import Logger
from bitlens.remote import place
from bitlens.seeding import generator
from bitlens.training.config import PRESETS, TrainConfig, settings_that_apply
from bitlens.training.metrics import Record, records
from bitlens.training.signals import stop_on_signals
from bitlens.training.trainer import Batch, Run, begin, prefetched
from bitlens.version import __version__
from bitlens.writing import holding, locked

SUMMARY, KIND, SCHEMA = "summary.json", "bitlens.sweep", 1
HELD_OUT_ROWS = 8192  # that the runs are compared on
OF_EACH = {"weights", "Adam", "gradients"}  # what every run holds all the time
Setting = Mapping[str, Any]
Row = dict[str, Any]


@terminal.shown("train")
@holding()
def sweep(
    source: HiddenSource,
    settings: Mapping[str, Sequence[Any]] | Sequence[Setting],
    out: Path | str,
    config: TrainConfig = TrainConfig(),  # noqa: B008
    *,
    resume: bool = False,
    overwrite: bool = False,
    loggers: tuple[Logger, ...] = (),
    report: Callable[[str, Record], None] = lambda name, record: None,
    progress: bool = True,
) -> list[Row]:
    """Train several autoencoders on the rows of `source` in one pass -> a row of numbers for each.

    settings: fields of `TrainConfig`, each with its values, of which every combination is trained;
    or a list of settings. config: all others. out: a folder for `summary.json` and the runs, which
    are what `train` makes of the same settings. A setting without effect on a run is left out of
    it, and of runs that are the same one is trained. report: called with a run's name and each of
    its records.

    A row has `run` (its folder), its settings, `latents` (left), and `fvu`, `l0` and `bits` of
    `rows`: of some held-out ones of a store, the last training batch's of another source. A run
    that is refused or diverges has `error` instead, and does not stop the others. resume: go on
    with those that are not finished; there may be new ones among them.
    """
    if processes.world_size() > 1:
        raise BitlensError(
            "A sweep trains in one process: start it without torchrun, or train one run at a time."
        )
    out = place(out)
    members = [_Member(name, out / name, s, c) for name, s, c in _runs(settings, config)]
    if only_plan.get():
        raise PlanOnly(_plan(members, source))
    prepare_output(out, resume, overwrite, marker=SUMMARY, kind=KIND)
    _written(out, members)
    sources = {None: source, getattr(source, "test_fraction", None): source}
    with contextlib.ExitStack() as stack:
        for member in members:
            stack.callback(member.close)
            with member.alone():
                stack.enter_context(locked(member.folder))  # nobody trains it alone meanwhile
                fraction = member.config.test_fraction
                if fraction not in sources:
                    sources[fraction] = source.split(fraction or 0.0)
                member.source = sources[fraction]
                member.begin(resume, loggers, report)
        _train(members, out)
    return _written(out, members)


def _written(out: Path, members: list[_Member]) -> list[Row]:
    about = {"schema": SCHEMA, "kind": KIND, "bitlens_version": __version__}
    rows = [member.row() for member in members]
    write_json(out / SUMMARY, {**about, "runs": rows})
    return rows


def _plan(members: list[_Member], source: HiddenSource) -> MemoryPlan:
    """Of all runs: what each of them holds, and the most that one takes beside, as often as steps
    are taken, or windows kept, at once."""
    plans, refused = [], None
    for member in members:
        try:
            begin(source, member.config, None, False, False, (), lambda record: None)
        except PlanOnly as stopped:
            plans.append(stopped.plan)
        except BitlensError as error:  # it ends alone, and takes nothing
            refused = error
    if refused is not None and not plans:
        raise refused
    device, orders = plans[0].device, len({member.config.seed for member in members})
    at_once = _side_by_side(len(plans)) if device == "cpu" else 1

    def together(all_parts: list[Mapping[str, int]]) -> dict[str, int]:
        found = dict[str, int]()
        for name in dict.fromkeys(name for parts in all_parts for name in parts):
            each = [parts.get(name, 0) for parts in all_parts]
            times = orders if name == "rows" else at_once
            found[name] = sum(each) if name in OF_EACH else times * max(each)
        return found

    parts, on_gpu = together([plan.parts for plan in plans]), together([p.on_gpu for p in plans])
    return MemoryPlan(f"a sweep of {len(plans)} runs", parts, on_gpu, device)


def _runs(
    settings: Mapping[str, Sequence[Any]] | Sequence[Setting], config: TrainConfig
) -> Iterator[tuple[str, Setting, TrainConfig]]:
    """(name, setting, config) of every run; the settings that have an effect on it name it."""
    if isinstance(settings, Mapping):
        combinations = itertools.product(*settings.values())
        settings = [dict(zip(settings, values, strict=True)) for values in combinations]
    known, seen = {each.name for each in fields(TrainConfig)}, dict[str, TrainConfig]()
    asked, used = set[str](), set[str]()
    for given in settings:
        if unknown := given.keys() - known:
            raise BitlensError(f"There is no setting '{min(unknown)}' of a training to sweep.")
        one = replace(config, **given)
        coding = PRESETS.get(one.preset, {}).get("coding")
        applying = settings_that_apply(one.architecture, coding)
        own = {name: value for name, value in given.items() if name in applying}
        name = ",".join(f"{key}={_text(value)}" for key, value in own.items()) or "default"
        one = replace(config, **own)
        if seen.setdefault(name, one) is one:
            yield name, own, one
        elif seen[name] != one:
            raise BitlensError(f"Two runs of the sweep would be called {name}; rename their files.")
        used |= own.keys()
        asked |= given.keys()
    if idle := asked - used:
        raise BitlensError(
            f"`{min(idle)}` has no effect on any run of the sweep: leave it out, or sweep an "
            "architecture or preset that reads it, too."
        )
    if not seen:
        raise BitlensError("A sweep needs a setting with its values, or a list of settings.")


def _text(value: Any) -> str:
    words = value if isinstance(value, tuple | list) else [value]
    return re.sub(r"[^\w.+-]", "_", "+".join(map(str, words)))


@dataclass
class _Member:
    """One run of a sweep. It may end while a thread that reads ahead takes its batches."""

    name: str
    folder: Path
    setting: Setting
    config: TrainConfig
    source: HiddenSource | None = None
    run: Run | None = None
    taken: int = 0  # steps whose rows were read
    model: Autoencoder | None = None
    error: str | None = None
    reading: threading.Lock = field(default_factory=threading.Lock)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """What goes wrong within ends this run, and is kept as its sentence."""
        try:
            yield
        except Interrupted:
            raise
        except BitlensError as error:
            self.error = str(error)
            self.close()

    def begin(self, resume: bool, loggers: tuple[Logger, ...], report: Any) -> None:
        assert self.source is not None
        own = lambda record: report(self.name, record)  # noqa: E731
        begun = begin(self.source, self.config, self.folder, resume, False, loggers, own)
        if isinstance(begun, Autoencoder):
            self.model = begun
        else:
            self.run, self.taken = begun, begun.reached.step
            self.end_if_done()

    @property
    def read(self) -> int:
        """Rows that were read."""
        return self.taken * self.config.batch_size

    @property
    def to_read(self) -> bool:
        run = self.run
        return run is not None and run.left > 0 and self.taken < self.config.steps

    def take(self) -> Batch | BitlensError | None:
        """The next batch; None of a run that has ended meanwhile."""
        self.taken += 1
        with self.reading:
            try:
                return None if self.run is None else next(self.run.batches)
            except BitlensError as error:
                return error

    def step(self, batch: Batch | BitlensError) -> tuple[Losses, torch.Tensor] | BitlensError:
        assert self.run is not None
        try:
            return batch if isinstance(batch, BitlensError) else self.run.step(*batch)
        except BitlensError as error:
            return error

    def keep(self, results: tuple[Losses, torch.Tensor] | BitlensError, save: bool) -> None:
        assert self.run is not None
        if isinstance(results, BitlensError):
            raise results
        with terminal.bar(self.name, shown=False):  # all runs share one bar
            self.run.keep(*results, save)
        self.end_if_done()

    def end_if_done(self) -> None:
        if (run := self.run) is not None and not run.left:
            self.close()
            self.model = run.finish()

    def close(self) -> None:
        with self.reading:
            run, self.run = self.run, None
            if run is not None:
                run.close()

    def row(self) -> Row:
        row: Row = {"run": str(self.folder), **self.setting}
        if self.error is not None:
            return {**row, "error": self.error}
        if self.model is None:
            return row
        row["latents"] = self.model.n_latents
        if isinstance(self.source, ActivationStore):
            rows = self.source.sample(HELD_OUT_ROWS, generator("sweep"), "test")
            if len(rows) > 1:
                return row | _held_out(self.model, rows)
        for last in records(self.folder)[-1:]:
            row |= {"fvu": last["mse"], "l0": last["l0"], "bits": last["bits_batch"]}
            row["rows"] = "of training"
        return row


@torch.no_grad()
def _held_out(autoencoder: Autoencoder, rows: torch.Tensor) -> Row:
    """fvu, mean number of latents on, and the sum of the entropies of their rates."""
    variance, error, on = Variance(), 0.0, []
    for block in rows.split(1024):
        x, target = autoencoder.pair(block.to(autoencoder.mean.device))
        codes = autoencoder.encode(x)
        error += squared_error(target, autoencoder.decode(codes, x))
        on.append((codes != 0).double().sum(0))
        variance.add(target)
    rates = autoencoder.on_rates(torch.stack(on).sum(0) / len(rows))
    numbers = {"l0": float(rates.sum()), "bits": float(binary_entropy(rates).sum())}
    return {"fvu": variance.fvu(error), **numbers, "rows": f"{len(rows):,} held out"}


def _rounds(members: list[_Member]) -> Iterator[list[tuple[_Member, Any]]]:
    """Who takes a step now, with its batch: all but those that are a batch ahead of another, so
    that no window is needed twice."""
    while open_ := [member for member in members if member.to_read]:
        behind = min(member.read for member in open_)
        ahead = max(member.config.batch_size for member in open_)
        yield [(member, member.take()) for member in open_ if member.read - behind < ahead]


def _train(members: list[_Member], out: Path) -> None:
    """All steps of all of them that are left."""
    total = sum(member.config.steps for member in members)
    cuda = _on_gpu(members)
    rounds: Any = prefetched(_rounds(members)) if cuda else _rounds(members)
    threads = 1 if cuda else _side_by_side(sum(member.to_read for member in members))
    with contextlib.closing(rounds), ThreadPoolExecutor(threads) as pool, stop_on_signals() as stop:
        step: Any = map if threads == 1 else pool.map
        for turn in rounds:
            taken = [(member, batch) for member, batch in turn if member.run is not None]
            results = list(step(lambda pair: pair[0].step(pair[1]), taken))
            signal = stop.signal  # read once, so that what is said was done
            for (member, _), result in zip(taken, results, strict=True):
                with member.alone():
                    member.keep(result, save=bool(signal))
            open_ = [member for member in members if member.run is not None]
            if signal and open_:
                _interrupted(signal, open_, [member for member, _ in taken], len(members), out)
            done = sum(m.run.reached.step if m.run else m.config.steps for m in members)
            terminal.at(done, f"{len(open_)} of {len(members)} runs", total)


def _on_gpu(members: list[_Member]) -> bool:
    return any(member.run is not None and member.run.model.W_enc.is_cuda for member in members)


def _interrupted(
    signal: str, open_: list[_Member], saved: list[_Member], runs: int, out: Path
) -> None:
    for member in open_:
        if member not in saved and member.run is not None:
            member.run.save()
    steps = sorted({member.run.reached.step for member in open_ if member.run is not None})
    where = " to ".join(map(str, dict.fromkeys((steps[0], steps[-1]))))
    raise Interrupted(
        f"Stopped by {signal}: {len(open_)} of {runs} runs are saved after step {where} in {out}; "
        "continue them with `resume=True`."
    )


def _side_by_side(runs: int) -> int:
    """Threads that take steps at once: as many as torch has, where the kernels' threads allow it.

    Each step has all of torch's threads, as alone, since their number changes the last bits.
    """
    get_num_threads()  # numba chooses its threads when they are first asked for
    shared = threading_layer() != "workqueue"
    return max(1, min(runs, torch.get_num_threads() if shared else 1))
