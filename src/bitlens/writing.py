"""Who writes an output: one process at a time, or so many that each have a share of it.

Nobody waits for anybody and nobody is told anything: files are where processes meet.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import hashlib
import inspect
import os
import re
import socket
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from bitlens import processes
from bitlens.errors import BitlensError
from bitlens.remote import is_address, place

F = TypeVar("F", bound=Callable[..., Any])
FOR_EVER, MOMENT = -1.0, 2.0  # seconds to wait for a lock


@contextlib.contextmanager
def locked(path: Path, part: str = "", wait: float = 0.0) -> Iterator[None]:
    """Keep this file or folder, or the `part` of it that has this name, to this process while the
    block runs. Another that wants it is refused by a sentence that names this one, after it has
    waited so many seconds. What a killed process held is free.

    The lock lies beside `path`; where nothing can be written there, in the folder for temporary
    files, which other computers do not see. A file system without locks goes without, as does
    object storage.
    """
    if is_address(path):
        yield
        return
    from filelock import FileLock, Timeout

    real = path.resolve()
    file = real.with_name(f".{real.name}{part}.lock")
    with contextlib.suppress(OSError):
        real.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(real.parent, os.W_OK | os.X_OK):
        name = hashlib.sha256(str(file).encode()).hexdigest()
        file = Path(tempfile.gettempdir()) / f"bitlens-{name[:32]}.lock"
    # a soft lock would outlive a process that is killed
    lock, holder = FileLock(file, timeout=wait, fallback_to_soft=False), ""
    with contextlib.suppress(OSError, ValueError):
        holder = file.read_text("utf-8")  # before others that are refused, too, open it
    try:
        lock.acquire()
    except Timeout:
        raise BitlensError(
            f"{path} is being written by {holder or 'another process'}; wait for it, end it, or "
            "name another output."
        ) from None
    except OSError:
        pass
    try:
        if lock.is_locked:
            with contextlib.suppress(OSError):
                file.write_text(f"process {os.getpid()} on {socket.gethostname()}", "utf-8")
        yield
    finally:
        if lock.is_locked:
            with contextlib.suppress(OSError):
                file.unlink()
            lock.release()


@dataclass(frozen=True)
class Share:
    """The part of one process: pieces `rank`, `rank + ranks`, `rank + 2 ranks`, ..."""

    rank: int = 0
    ranks: int = 1

    @classmethod
    def of(cls, rank: int | None, ranks: int | None) -> Share:
        """As asked for; None: as `processes` says, which is all of it without torchrun."""
        if rank is None and ranks is None:
            rank, ranks = processes.rank(), processes.world_size()
        if rank is None or ranks is None or not 0 <= rank < ranks:
            raise BitlensError(
                f"A share needs `rank` and `ranks`: of N processes each has `ranks=N` and a `rank` "
                f"of its own, 0 to N - 1, not {rank} of {ranks}."
            )
        return cls(rank, ranks)

    def has(self, piece: int) -> bool:
        """Whether the piece of this number is this process's."""
        return piece % self.ranks == self.rank

    @contextlib.contextmanager
    def held(self, out: Path) -> Iterator[None]:
        """Keep this share of `out` to this process while the block runs, and `out` to so many
        ranks."""
        if is_address(out):
            yield
            return
        real = out.resolve()
        with locked(out, f".{self.rank}-of-{self.ranks}" if self.ranks > 1 else ""):
            for file in real.parent.glob(f"{glob.escape(f'.{real.name}')}*.lock"):
                part = file.name.removeprefix(f".{real.name}").removesuffix(".lock")
                match = re.fullmatch(r"(?:\.\d+-of-(\d+))?", part)
                if match and int(match[1] or 1) != self.ranks:
                    # Refused while another number of processes is at it; what was left by one
                    # that was killed, others of this number may be looking at.
                    with locked(out, part, MOMENT):
                        pass
            yield

    @contextlib.contextmanager
    def in_turn(self, out: Path) -> Iterator[None]:
        """One rank after the other runs the block."""
        with locked(out, ".manifest", FOR_EVER) if self.ranks > 1 else contextlib.nullcontext():
            yield


def holding(ranks: bool = False) -> Callable[[F], F]:
    """Decorator: while the function runs its `out`, unless it is None, is kept to this process, or
    to the ranks that the environment names."""

    def decorate(function: F) -> F:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            out = signature.bind(*args, **kwargs).arguments.get("out")
            if out is None:
                return function(*args, **kwargs)
            with Share.of(None, None).held(place(out)) if ranks else locked(place(out)):
                return function(*args, **kwargs)

        return cast("F", call)

    return decorate
