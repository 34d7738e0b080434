"""Many processes at one piece of work: which this one is, their group, and what they exchange.

`torchrun` starts them and says in the environment which is which (RANK, WORLD_SIZE, LOCAL_RANK);
with one process everything here does nothing. Nothing is pickled: tensors and JSON alone travel.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from bitlens import memory, remote, terminal
from bitlens.devices import pick_device
from bitlens.errors import BitlensError

if TYPE_CHECKING:
    from torch import Tensor

TIMEOUT = "BITLENS_PROCESS_TIMEOUT"  # environment variable: seconds that a process is waited for
DEFAULT_TIMEOUT = 600.0
AS_ONE, SHARED = {"train"}, {"harvest"}  # commands of many: done together; each a share
ROLL_CALL = 5.0  # seconds in which those that are left say so, after one was missed
ALONE = 1 << 20  # elements from which a tensor travels by itself, without being copied
ERROR, PRESENT = "bitlens/error", "bitlens/present"  # keys of the store

T = TypeVar("T")
sent: Counter[str] = Counter()
"""bytes that this process has handed to each collective since it started"""


class Elsewhere(BitlensError):
    """The work ended because of another process, which has said why."""


def rank() -> int:
    """Which process this is, from 0."""
    return int(os.environ.get("RANK", "0")) if world_size() > 1 else 0


def world_size() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this is the process that writes files and speaks."""
    return rank() == 0


def speaks(command: str) -> bool:
    """Whether an error of this process is to be said: before they have joined, the first says what
    all have to say; afterwards `together` sees to it that one does. Of work that is shared out,
    each says its own."""
    return is_first() or command in SHARED or _store.cache_info().currsize > 0


def timeout() -> float:
    """Seconds that one process waits for the others."""
    given = os.environ.get(TIMEOUT, "")
    try:
        seconds = float(given or DEFAULT_TIMEOUT)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise BitlensError(f"The environment variable {TIMEOUT} is '{given}'; give it seconds.")
    return seconds


def part(n: int, of: int | None = None) -> slice:
    """Which of n rows are those of this process, or of process `of`: neighbours, as many each as
    can be."""
    size, r = world_size(), rank() if of is None else of
    return slice(n * r // size, n * (r + 1) // size)


# --- the group ------------------------------------------------------------------------------------


def start() -> None:
    """Join the group, once; a script may have made it.

    Each process takes a GPU of its own; where they are fewer than processes, these share them, and
    what they exchange goes through the CPU.
    """
    if world_size() == 1:
        return
    import torch
    from torch import distributed
    from torch.distributed.rendezvous import rendezvous

    if (own := pick_device("auto")) != "cpu":
        torch.cuda.set_device(torch.device(own).index or 0)
    if not is_first():
        terminal.hide()
    if distributed.is_initialized() or _store.cache_info().currsize:
        return
    here, wait = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), timedelta(seconds=timeout())
    own_gpus = torch.cuda.is_available() and torch.cuda.device_count() >= here
    backend = "cpu:gloo,cuda:nccl" if own_gpus and distributed.is_nccl_available() else "gloo"
    try:
        store, _, _ = next(rendezvous("env://", timeout=wait))
        distributed.init_process_group(
            backend, store=store, rank=rank(), world_size=world_size(), timeout=wait
        )
    except (RuntimeError, ValueError, StopIteration) as error:
        raise BitlensError(
            f"Process {rank()} of {world_size()} could not join the others ({remote.said(error)}); "
            "start all of them with torchrun."
        ) from error
    _store()
    atexit.register(_leave)


def _leave() -> None:
    """Close the connections: who still waits for this process learns that it is gone."""
    from torch import distributed

    if distributed.is_initialized():
        # aborting what a GPU still waits for may take for ever
        _asked(distributed.destroy_process_group, None, 2.0)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """In the block, all processes do one piece of work: an error in one of them ends all, and is
    said once. It is raised as it is where it happened, as `Elsewhere` in the others."""
    start()
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if world_size() > 1 and not isinstance(error, Elsewhere):
            _publish(error)
        raise


def _publish(error: BaseException) -> None:
    """Leave word of this error and leave the group; `Elsewhere` if another came first."""
    said = str(error) if isinstance(error, BitlensError) else f"{type(error).__name__}: {error}"
    if isinstance(error, KeyboardInterrupt):
        said = f"{terminal.interrupt.signal.name} told it to."
    _ignore_stop()
    mine = json.dumps([rank(), said])
    first = _asked(lambda: _store().compare_set(ERROR, "", mine).decode(), mine)
    _leave()
    if first != mine:
        raise _elsewhere(first) from error


def _elsewhere(word: str) -> Elsewhere:
    who, said = json.loads(word)
    return Elsewhere(f"Process {who} stopped: {said}")


@functools.cache
def _store() -> Any:
    """What the processes write words into; it outlives the group."""
    from torch.distributed import distributed_c10d

    return distributed_c10d._get_default_store()


def _ignore_stop() -> None:
    """torchrun asks those that are left to stop: they do, after a sentence."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _asked(ask: Callable[[], T], otherwise: T, seconds: float = 2 * ROLL_CALL) -> T:
    """What others answer; `otherwise` where they are gone or silent, as behind a cut cable."""
    answers: list[T] = []

    def wait() -> None:
        with contextlib.suppress(RuntimeError):
            answers.append(ask())

    asking = threading.Thread(target=wait, daemon=True)
    asking.start()
    asking.join(seconds)
    return answers[0] if answers else otherwise


def _roll_call(store: Any, others: list[int]) -> Elsewhere | list[int]:
    """The error that one of the others has left, or who of them does not say that it is here."""
    store.set(f"{PRESENT}/{rank()}", "")
    until, missing = time.monotonic() + ROLL_CALL, others
    while missing and time.monotonic() < until:
        if store.check([ERROR]):
            return _elsewhere(store.get(ERROR).decode())
        missing = [r for r in missing if not store.check([f"{PRESENT}/{r}"])]
        time.sleep(0.05)
    return missing


def _missed(error: Exception, waited: float) -> BitlensError:
    """What went wrong when a collective failed: the error of another process, or who is missing."""
    _ignore_stop()
    store, others = _store(), [r for r in range(world_size()) if r != rank()]
    _leave()  # wakes those that wait for this one
    # the store is of the first process, unless torchrun keeps it, on its host as a rule
    missing = _asked(lambda: _roll_call(store, others), others[:1])
    if isinstance(missing, Elsewhere):
        return missing
    if not missing:
        return BitlensError(f"What the processes exchange failed: {remote.said(error)}.")
    late = " and ".join(map(str, missing))
    what = "ended" if waited < timeout() else f"did not come within {timeout():g} s ({TIMEOUT})"
    return BitlensError(
        f"Process {late} of {world_size()} {what}; what was saved is whole: start again with "
        "`resume=True`."
    )


def watched(exchange: Callable[..., T]) -> Callable[..., T]:
    """Decorator of what uses the group: where it fails, an error says which process was missed."""

    @functools.wraps(exchange)
    def call(*args: Any) -> T:
        begun = time.monotonic()
        try:
            return exchange(*args)
        except RuntimeError as error:
            if memory.asked_for(error) is not None:
                raise
            raise _missed(error, time.monotonic() - begun) from error

    return call


# --- collectives: all processes must call the same ones in the same order -------------------------


@watched
def _exchange(tensors: tuple[Tensor, ...], what: str) -> None:
    """In place; small tensors of one kind travel as one."""
    if world_size() == 1:
        return
    import torch
    from torch import distributed

    def one(tensor: Tensor) -> None:
        sent[what] += tensor.nbytes
        if what == "first":
            distributed.broadcast(tensor, 0)
        else:
            distributed.all_reduce(tensor, getattr(distributed.ReduceOp, what.upper()))

    small: dict[Any, list[Tensor]] = {}
    for tensor in (tensor.detach() for tensor in tensors):
        if tensor.numel() >= ALONE and tensor.is_contiguous():
            one(tensor)
        else:
            small.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for alike in small.values():
        flat = torch.cat([tensor.reshape(-1) for tensor in alike])
        one(flat)
        pieces = flat.split([tensor.numel() for tensor in alike])
        for tensor, piece in zip(alike, pieces, strict=True):
            tensor.copy_(piece.view(tensor.shape))


def add(*tensors: Tensor) -> None:
    """Each tensor becomes the sum of those of all processes, in place and alike to the last bit."""
    _exchange(tensors, "sum")


def largest(*tensors: Tensor) -> None:
    """Each tensor becomes, in place and by element, the largest of all processes (no bool)."""
    _exchange(tensors, "max")


def take_from_first(*tensors: Tensor) -> None:
    """Each tensor becomes that of the first process, in place."""
    _exchange(tensors, "first")


@watched
def _gather(padded: Tensor) -> list[Tensor]:
    import torch
    from torch import distributed

    sent["gather"] += padded.nbytes
    all_of_them = [torch.empty_like(padded) for _ in range(world_size())]
    distributed.all_gather(all_of_them, padded)
    return all_of_them


def gather(rows: Tensor, n: int) -> Tensor:
    """The rows of all processes, `[n, ...]`. rows: those that `part(n)` says."""
    if world_size() == 1:
        return rows
    import torch

    sizes = [part(n, r).stop - part(n, r).start for r in range(world_size())]
    padded = rows.detach().new_zeros(max(sizes), *rows.shape[1:])
    padded[: len(rows)] = rows.detach()
    found = zip(_gather(padded), sizes, strict=True)
    return torch.cat([block[:size] for block, size in found])


def of_each(tensor: Tensor) -> Tensor:
    """A tensor of one shape in all processes -> those of all, `[processes, ...]`"""
    return gather(tensor[None], world_size())


def from_first(value: Any) -> Any:
    """What the first process passes, in all of them: anything that JSON has."""
    if world_size() == 1:
        return value
    import torch

    text = json.dumps(value).encode() if is_first() else b""
    length = torch.tensor([len(text)])
    take_from_first(length)
    octets = torch.zeros(int(length), dtype=torch.uint8)
    octets[: len(text)] = torch.frombuffer(bytearray(text or b" "), dtype=torch.uint8)[: len(text)]
    take_from_first(octets)
    return json.loads(octets.numpy().tobytes())


def agreed(name: str | None) -> str | None:
    """The signal that any process was sent, by its name, at the same step in all of them."""
    if world_size() == 1:
        return name
    import torch

    number = torch.tensor([signal.Signals[name] if name else 0])
    largest(number)
    return signal.Signals(int(number)).name if number else None


def wait_for_all() -> None:
    """Return once every process has come here."""
    if world_size() > 1:
        import torch

        add(torch.zeros(1))
