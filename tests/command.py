"""The `bitlens` command in processes that can be killed.

Importing torch and transformers takes seconds, so one server process imports them once and every
command is a fork of it: a whole process with its own memory, signals and exit status.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

MANNERLY = {signal.SIGINT, signal.SIGTERM}
PATIENCE = 120.0  # seconds; only a command that hangs is stopped by this

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "bitlens.cli",
        "bitlens.show",
        "bitlens.training",
        "bitlens.hidden.harvest",
        "transformers.models.llama.modeling_llama",
        "torch._dynamo",  # which an optimizer of torch imports
        "matplotlib.pyplot",
    ]
)


# What changes a folder, as Python's audit events call it.
CHANGES = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "os.truncate"}
WRITING = os.O_WRONLY | os.O_RDWR


class Moment(NamedTuple):
    """Before a process changes something in `folder` for the `number`th time, it sends itself
    `signal`: between any two changes it can so be stopped, however short the time between them.
    What it changes is noted in the file `events`."""

    folder: Path
    number: int
    signal: int
    events: Path

    def watch(self) -> None:
        """From here on, in this process."""
        inside, done = f"{self.folder}/", itertools.count(1)
        events = os.open(self.events, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

        def note(event: str, given: tuple[Any, ...]) -> None:
            if event not in CHANGES or not str(given[0]).startswith(inside):
                return
            if event == "open" and not given[2] & WRITING:
                return
            number = next(done)
            os.write(events, f"{event} {given[0]}\n".encode())
            if number == self.number:
                os.kill(os.getpid(), self.signal)

        sys.addaudithook(note)


class Command:
    """A running `bitlens ARGUMENTS`; its standard output and error go to the file `log`.

    constants: module constants to change in that process, for example
    {"bitlens.hidden.harvest.SHARD_BYTES": 4096}. file_limit: the largest file that the process may
    write, in bytes, as on a disk that is full. moment: when it sends itself a signal. A function to
    call may stand for the arguments.
    """

    def __init__(
        self,
        arguments: list[str] | Callable[[], object],
        log: Path,
        constants: dict[str, Any] | None = None,
        file_limit: int | None = None,
        moment: Moment | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.log = log
        self.store: TCPStore | None = None
        self._process = FORKS.Process(
            target=_run,
            args=(arguments, str(log), constants or {}, file_limit, moment, environment or {}),
        )
        self._process.start()

    def wait(self) -> int:
        """-> exit status, negative for the signal that ended it"""
        self._process.join(PATIENCE)
        assert self._process.exitcode is not None, f"the command hangs: {self.output}"
        return self._process.exitcode

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Return once the condition holds or the command has ended."""
        deadline = time.monotonic() + PATIENCE
        while self._process.is_alive() and not condition():
            assert time.monotonic() < deadline, f"the command hangs: {self.output}"
            time.sleep(0.001)

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> int:
        """SIGKILL, if it still runs -> exit status"""
        self._process.kill()
        return self.wait()

    def peak_memory(self) -> int:
        """Wait for the end -> the most memory that the process held, in bytes, what it was forked
        with included"""
        deadline = time.monotonic() + PATIENCE
        peak = 0
        while self._process.is_alive() and time.monotonic() < deadline:
            with contextlib.suppress(OSError, IndexError):
                status = Path(f"/proc/{self._process.pid}/status").read_text()
                peak = max(peak, int(status.split("VmHWM:")[1].split()[0]) * 1024)
            time.sleep(0.005)
        assert self.wait() == 0, self.output
        return peak

    @property
    def output(self) -> str:
        return self.log.read_text(encoding="utf-8") if self.log.exists() else ""


def together(
    n: int, arguments: list[str] | Callable[[], object], folder: Path, **environment: str
) -> list[Command]:
    """The same in n processes with the environment that torchrun gives them, which share a store
    that, as torchrun's, lives in another process: this one. Logs are `folder/RANK.log`."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "WORLD_SIZE": str(n),
        "LOCAL_WORLD_SIZE": str(n),
        "OMP_NUM_THREADS": "1",
    }
    commands = []
    for rank in range(n):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        log = folder / f"{rank}.log"
        commands.append(Command(arguments, log, environment=environment | own))
    commands[0].store = store  # as long as they live
    return commands


def _run(
    arguments: list[str] | Callable[[], object],
    log: str,
    constants: dict[str, Any],
    file_limit: int | None,
    moment: Moment | None,
    environment: dict[str, str],
) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, MANNERLY)
    os.environ.update(environment)
    if "OMP_NUM_THREADS" in environment:  # torch has been imported already
        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    with Path(log).open("wb", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    for name, value in constants.items():
        module, _, constant = name.rpartition(".")
        assert hasattr(importlib.import_module(module), constant)
        setattr(importlib.import_module(module), constant, value)
    if file_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    if moment is not None:
        moment.watch()
    from bitlens import cli

    if callable(arguments):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, MANNERLY)
        arguments()
        return
    # Signals wait until the command has set up what it does with them, as if they came then.
    status = cli._status

    def unblocked(given: list[str]) -> int:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, MANNERLY)
        return status(given)

    cli._status = unblocked
    cli.main(arguments)
