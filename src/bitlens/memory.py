"""What work will take of memory, before it begins, against what is there.

A plan counts what the work itself allocates, beside what the process holds already. Files that are
memory-mapped do not count: the system takes their pages back when it needs them.
"""

from __future__ import annotations

import errno
import math
import os
import re
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bitlens.errors import BitlensError

MEMINFO, CGROUPS, OWN_CGROUPS = Path("/proc/meminfo"), Path("/sys/fs/cgroup"), "/proc/self/cgroup"
LIMITS = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))
GIVEN_BACK = ("inactive_file", "active_file", "slab_reclaimable")  # before a group's limit is met
LARGE = 32 << 20  # bytes of a block for which the C library asks the system alone
RAN_OUT = re.compile("out of memory|tried to allocate|cannot allocate memory", re.IGNORECASE)
ASKED = re.compile(r"allocate ([\d.]+) ?(bytes|[KMGTP]iB)")
only_plan: ContextVar[bool] = ContextVar("only_plan", default=False)
"""whether work ends where its plan is known"""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that work will hold at its peak, by what they are for."""

    work: str
    parts: Mapping[str, int]
    on_gpu: Mapping[str, int] = field(default_factory=dict)
    device: str = "cpu"
    there: int = 0
    """bytes of the parts that are allocated already"""

    @property
    def total(self) -> int:
        """Bytes of main memory"""
        return sum(self.parts.values())

    def short_of(self) -> str:
        """Which memory does not suffice, in words; empty if all do, or none is known."""
        free, gpu = free_memory(), sum(self.on_gpu.values())
        if free is not None and self.total - self.there > free:
            return f"only {size(free)} of memory are free"
        if gpu and gpu > (on_gpu := free_on_gpu(self.device)):
            return f"only {size(on_gpu)} are free on {self.device}"
        return ""

    def __str__(self) -> str:
        known = {"memory": (self.parts, free_memory())}
        if self.on_gpu:
            free = free_on_gpu(self.device)
            known[self.device] = (self.on_gpu, None if free == math.inf else int(free))
        return f"{self.work} takes " + " and ".join(
            f"{size(sum(parts.values()))} of {where} "
            f"({', '.join(f'{name} {size(n)}' for name, n in parts.items() if n)}"
            f"{'' if free is None else f'; {size(free)} free'})"
            for where, (parts, free) in known.items()
        )

    def as_dict(self) -> dict[str, Any]:
        """The parts, their sum and what is free"""
        return {**asdict(self), "total": self.total, "free": free_memory()}


class PlanOnly(BaseException):
    """Ends work of which only the plan was asked for."""

    def __init__(self, plan: MemoryPlan) -> None:
        super().__init__(str(plan))
        self.plan = plan


def at_peak(always: Mapping[str, int], *phases: Mapping[str, int]) -> dict[str, int]:
    """Parts of work in phases, of which the one that takes most counts."""
    return {**always, **max(phases, key=lambda phase: sum(phase.values()))}


def gaps(each: int, taken: int) -> dict[str, int]:
    """What blocks of `each` bytes, of `taken` in all, leave free in the heap of the C library when
    they come and go; larger ones are given back to the system."""
    return {"fragmentation": taken if each < LARGE else 0}


def require(plan_of: Callable[..., MemoryPlan], otherwise: str = "", **options: int) -> None:
    """BitlensError if work would take more memory than there is, with the option that would make it
    fit.

    plan_of: of these options, the first of which that suffices is named with a value, some power of
    two below its own. otherwise: the way out where none does.
    """
    plan = plan_of(**options)
    if only_plan.get():
        raise PlanOnly(plan)
    if not (short := plan.short_of()):
        return
    for name, value in options.items():
        while (value := value // 2) and plan_of(**{**options, name: value}).short_of():
            pass
        if value:
            raise BitlensError(f"{plan}: {short}; `{name}={value}` would fit.")
    raise BitlensError(f"{plan}: {short}; {otherwise or 'take a larger machine'}.")


def asked_for(error: BaseException) -> str | None:
    """What was asked for, in words, when memory ran out; empty if the error does not say. None for
    an error of another kind: torch's is a RuntimeError and HDF5's an OSError that only their words
    tell from others."""
    said = str(error)
    of_torch = isinstance(error, RuntimeError) and RAN_OUT.search(said)
    of_files = isinstance(error, OSError) and (
        error.errno == errno.ENOMEM or "memory allocation failed" in said
    )
    if not (isinstance(error, MemoryError) or of_torch or of_files):
        return None
    if not (asked := ASKED.search(said)):
        return ""
    number, unit = asked.groups()
    amount = size(float(number)) if unit == "bytes" else f"{number.rstrip('.')} {unit}"
    return f"{amount} of {'GPU ' if 'CUDA' in said else ''}memory"


def refuse(error: BaseException, file: object) -> None:
    """BitlensError if it was memory that ended the reading of a file. What else ends it may be
    called damage; but a damaged file may also say that it holds more than there is."""
    if (asked := asked_for(error)) is not None:
        what = f": {asked} was asked for" if asked else ""
        raise BitlensError(
            f"Memory ran out while {file} was read{what}; take a larger machine, or restore the "
            "file if it cannot hold so much."
        ) from error


def size(n: float) -> str:
    """A number of bytes, for a person."""
    from rich.filesize import decimal

    return decimal(int(n))


def free_on_gpu(device: str) -> float:
    """Bytes, with those that torch holds and does not use; of other accelerators infinite."""
    import torch

    if not device.startswith("cuda"):
        return math.inf
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def free_memory() -> int | None:
    """Bytes that this process may still take: of the machine, and within every control group that
    it is in; its share, of several processes that `torchrun` starts here. None: unknown."""
    known = [_available(), *_left_in_groups()]
    free = min((n for n in known if n is not None), default=None)
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if free is None or here == 1:
        return free
    held = _held_beside(here)  # those that began earlier have taken of their shares
    return max(0, (free + sum(held.values())) // here - held.get(os.getpid(), 0))


def _held_beside(here: int) -> dict[int, int]:
    """Bytes that each of so many processes of one parent holds, by its id; empty if unknown."""
    parent = os.getppid()
    try:
        beside = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    except OSError:
        return {}
    return {int(pid): own_memory(int(pid)) for pid in beside} if len(beside) == here else {}


def own_memory(pid: int) -> int:
    """Bytes of a process that no file stands for; 0 of one that has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))
    except (OSError, StopIteration):
        return 0


def _available() -> int | None:
    try:
        lines = MEMINFO.read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if "MemAvailable" in line)
    except (OSError, StopIteration):
        pass
    try:  # elsewhere, all that there is
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _left_in_groups() -> list[int]:
    """Of the process's control groups (version 1 and 2) and those around them that have a limit"""
    try:
        own = [line.split(":", 2) for line in Path(OWN_CGROUPS).read_text().splitlines()]
    except OSError:
        return []
    left = []
    for _, controllers, path in own:
        if controllers in ("", "memory"):
            top = CGROUPS / controllers
            group = top / path.lstrip("/")
            around = [group, *group.parents]
            left += [_left(each) for each in around if each.is_relative_to(top)]
    return [n for n in left if n is not None]


def _left(group: Path) -> int | None:
    """The limit of a control group, less what it uses without what it only keeps, of files."""
    for limit, usage in LIMITS:
        try:
            most = int((group / limit).read_text())
            used = int((group / usage).read_text())
            pairs = (line.split() for line in (group / "memory.stat").read_text().splitlines())
            kept = {name.removeprefix("total_"): int(n) for name, n in pairs}
        except (OSError, ValueError):  # no such file, or "max"
            continue
        given_back = sum(kept.get(name, 0) for name in GIVEN_BACK)
        return max(0, most - used + given_back)
    return None
