"""What takes long is kept in the run's folder, under a digest of all that it was made from: when
any of that has changed, it is made anew."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bitlens import terminal
from bitlens.autoencoders.base import WEIGHTS
from bitlens.autoencoders.formats.registry import weights_of
from bitlens.bits.codes import Codes
from bitlens.errors import BitlensError
from bitlens.files import replacing, sha256

SCHEMA = 2
FOLDER = "explorer"  # in the run's folder

Record = dict[str, Any]


def origin(run: Path, codes: Codes) -> list[Any]:
    """What tells a run with its codes from any other: checksums of weights and of all rows."""
    shards = [shard["sha256"] for shard in codes.manifest["shards"]]
    about = [codes.manifest.get(name) for name in ("model", "revision", "model_digest", "hook")]
    return [sha256(weights_of(run, WEIGHTS)), shards, about]


def kept(
    file: Path, origins: Any, make: Callable[[], Sequence[Record]], better: Any = None
) -> list[Record]:
    """The records of `make`: from the file, if it holds those of these origins, whole.

    better: origins of records that do as well.
    """
    key, *others = (_digest(each) for each in (origins, better) if each is not None)
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        return _read(file, {key, *others})
    with alone(file.parent) as unwritable:
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            return _read(file, {key, *others})  # another process has made it meanwhile
        records = list(make())
        try:
            if unwritable:
                raise unwritable
            with replacing(file) as temporary, temporary.open("w", encoding="utf-8") as out:
                content = "".join(json.dumps(each, allow_nan=False) + "\n" for each in records)
                out.write(json.dumps({"key": key, "sha256": _sha256(content.encode())}) + "\n")
                out.write(content)
        except (OSError, BitlensError) as error:
            terminal.say(f"What was found out is not kept for the next start: {error}")
    return records


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[OSError | None]:
    """Makes the folder; of processes that want to write in it, one at a time enters the block. ->
    the reason why nothing can be written there, if so."""
    try:
        folder.mkdir(exist_ok=True)
        lock = (folder / ".lock").open("a")
    except OSError as error:
        yield error
        return
    with lock:
        with contextlib.suppress(ImportError, OSError):  # another system, or a file system without
            import fcntl

            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                terminal.say(f"Another process prepares {folder}; waiting for it.")
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield None


def _digest(origins: Any) -> str:
    return _sha256(json.dumps([SCHEMA, origins]).encode())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _read(file: Path, keys: set[str]) -> list[Record]:
    """The records; ValueError if they are others, or not whole."""
    with file.open("rb") as lines:
        head = json.loads(next(lines, b"{}"))
        if head["key"] not in keys:
            raise ValueError("made from something else")
        content = lines.read()
    if _sha256(content) != head["sha256"]:
        raise ValueError("not whole, or altered")
    with _uncollected():
        return [json.loads(line) for line in content.splitlines()]


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Without the garbage collector, which would go through all that has been read again and again:
    half of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
