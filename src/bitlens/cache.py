"""Copies of remote files on this disk, bounded in bytes and shared by processes.

A copy is called by the sha256 of its content, or of its address and version where nobody states
that. It appears when it is whole and was compared with its checksum; those that were not used for
longest are thrown out first. `BITLENS_CACHE` names the folder, `BITLENS_CACHE_SIZE` the bound.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from bitlens.errors import BitlensError
from bitlens.remote import is_remote, saying

FOLDER, SIZE = "BITLENS_CACHE", "BITLENS_CACHE_SIZE"
DEFAULT_SIZE = "16GiB"
NAME = re.compile(r"[0-9a-f]{64}")
PART = re.compile(r"([0-9a-f]{64})\.(\d+)\..*part")  # the copy that it becomes, and its size then
AT_ONCE = 4  # files that are fetched ahead
HEAD = 1 << 14  # bytes that hold the header of a shard
MOST_HEAD = 100_000_000  # bytes, safetensors' own limit

T = TypeVar("T")
_verified: set[Path] = set()  # copies, by this process or as it fetched them
_coming: dict[str, threading.Thread] = {}  # that fetch a file ahead, by its sha256
_turns = threading.Semaphore(AT_ONCE)


def folder() -> Path:
    """Where the copies are."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    path = Path(os.environ.get(FOLDER) or Path(base, "bitlens"))
    try:
        path.mkdir(parents=True, exist_ok=True)
        (path / "lock").touch()
    except OSError as error:
        raise BitlensError(
            f"The cache {path} cannot be written: {error.strerror}; name another in {FOLDER}."
        ) from error
    return path


def limit() -> int:
    """How many bytes the copies take together, at most."""
    text = os.environ.get(SIZE) or DEFAULT_SIZE
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kmgt]?)(i?)b?", text.strip().lower())
    if match is None:
        raise BitlensError(f"'{text}' is no size of a cache; take one such as 500MB or 16GiB.")
    number, letter, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** " kmgt".index(letter or " "))


def local(path: Path, read: Callable[[Path], T], digest: str | None = None) -> T:
    """`read` of a file, of a remote one of its copy here. digest: the sha256 that it must have."""
    if not is_remote(path):
        return read(path)
    if digest is not None and not (isinstance(digest, str) and NAME.fullmatch(digest)):
        raise BitlensError(f"The manifest beside {path} is damaged: a checksum of it is none.")
    key = digest or _version(path)
    if (coming := _coming.pop(key, None)) is not None:
        coming.join()
    while True:
        copy = _copy(path, key, digest)
        with contextlib.suppress(FileNotFoundError):  # another process has thrown it out meanwhile
            return read(copy)


def has(digest: str) -> bool:
    """Whether there is a copy of the file with this sha256."""
    return NAME.fullmatch(str(digest)) is not None and (folder() / digest).exists()


def ahead(files: Iterable[tuple[Path, str, int]]) -> None:
    """Begin to fetch remote files that are wanted soon (where it is, sha256, bytes), in this order,
    as far as half of the bound goes. What fails is tried again where it is read."""

    def fetch(path: Path, digest: str) -> None:
        with _turns, contextlib.suppress(BaseException):  # whatever it is, the reader meets it
            _copy(path, digest, digest)

    left = limit() // 2
    for path, digest, size in files:
        left -= size
        if left < 0:
            break
        if (before := _coming.get(digest)) is None or not before.is_alive():
            # it ends with the process, whatever it is doing then
            thread = threading.Thread(target=fetch, args=(path, digest), name="fetch", daemon=True)
            _coming[digest] = thread
            thread.start()


def altered(path: Path, actual: str, expected: str) -> BitlensError:
    """What is said of a shard whose bytes are not those that were written."""
    return BitlensError(
        f"Shard {path} is truncated or altered: its sha256 is {actual[:16]}…, the manifest "
        f"says {expected[:16]}…; restore it, or make its folder again."
    )


# --- one copy -------------------------------------------------------------------------------------


def _version(path: Any) -> str:
    """A name for what a remote file holds now, by all that its file system knows of it. (fsspec's
    `ukey` takes what a web server has for unchanging.)"""
    with saying(path):
        return hashlib.sha256(f"{path} {path.fs.info(path.path)}".encode()).hexdigest()


def _copy(path: Path, key: str, digest: str | None) -> Path:
    """The copy of this file, fetched if it is not there; one process fetches it, others wait."""
    copy = folder() / key
    if not _whole(copy, digest):
        lock = copy.with_suffix(".lock")
        with _lock(lock):
            if not _whole(copy, digest):
                _fetch(path, copy, digest)
            with contextlib.suppress(OSError):  # whoever waits for it notices
                lock.unlink()
    return copy


def _whole(copy: Path, digest: str | None) -> bool:
    """Whether the copy is there; a process that meets it first looks whether the disk kept it."""
    try:
        if copy not in _verified and digest is not None and sha256(copy) != digest:
            copy.unlink()
            return False
        _verified.add(copy)
        with contextlib.suppress(PermissionError):  # another user's
            os.utime(copy)
        return True
    except FileNotFoundError:
        return False


def _fetch(path: Any, copy: Path, digest: str | None) -> None:
    with saying(path):
        size = path.stat().st_size
    part = _reserved(path, copy, size)
    try:
        with saying(path):
            path.fs.get_file(path.path, str(part))
        if digest is not None and (actual := sha256(part)) != digest:
            raise altered(path, actual, digest)
        with _lock(copy.with_name("lock")):
            part.replace(copy)
        _verified.add(copy)
    finally:
        part.unlink(missing_ok=True)


def sha256(file: Path) -> str:
    """Hexadecimal digest of a file here."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _lock(path: Path, timeout: float = -1) -> Any:
    """One that a process loses when it is killed."""
    from filelock import FileLock

    return FileLock(path, timeout=timeout)


def _reserved(path: Path, copy: Path, size: int) -> Path:
    """An empty file that stands for what is fetched next, once there is room for it."""
    for former in copy.parent.glob(f"{copy.name}.*.part"):  # of a process that was killed
        former.unlink(missing_ok=True)
    part = copy.with_name(f"{copy.name}.{size}.{os.getpid()}-{threading.get_ident()}.part")
    while True:
        with _lock(copy.with_name("lock")):
            if _room(path, copy.parent, size):
                part.touch()
                return part
        time.sleep(0.05)  # until what others fetch is there, and can be thrown out


def _room(path: Path, place: Path, size: int) -> bool:
    """Whether there is room for so many bytes, after others were thrown out; not yet, where files
    are being fetched. BitlensError if there never is."""
    copies, coming, left = [], 0, limit()
    free = shutil.disk_usage(place).free
    for file in place.iterdir():
        try:
            found = file.stat()
        except FileNotFoundError:  # removed since it was listed
            continue
        if (part := PART.fullmatch(file.name)) and not _abandoned(file, place / part[1]):
            coming += 1
            left -= int(part[2])
            free -= int(part[2]) - found.st_size
        elif NAME.fullmatch(file.name):
            copies.append((found.st_mtime_ns, found.st_size, file))
            left -= found.st_size
    for _, bytes_, file in sorted(copies):
        if size <= min(left, free):
            break
        with contextlib.suppress(OSError):  # in use, on a system that keeps such files
            file.unlink()
            left, free = left + bytes_, free + bytes_
    if size <= min(left, free):
        return True
    if coming:
        return False
    if size > left:
        raise BitlensError(
            f"{path} has {size:,} bytes, and the cache {place} is bounded to {limit():,}; raise "
            f"{SIZE}."
        )
    raise BitlensError(
        f"The disk is full: {path} has {size:,} bytes, and {max(free, 0):,} are free in {place}; "
        f"free some space, or name a folder of another disk in {FOLDER}."
    )


def _abandoned(part: Path, copy: Path) -> bool:
    """Remove what a killed process has left; its lock is free."""
    from filelock import Timeout

    lock = _lock(copy.with_suffix(".lock"), timeout=0)
    try:
        with lock:
            part.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                copy.with_suffix(".lock").unlink()
    except Timeout:
        return False
    return True


# --- pieces ---------------------------------------------------------------------------------------


def pieces(path: Any, names: list[str]) -> dict[str, torch.Tensor]:
    """Some tensors of a remote safetensors file, without the others: no checksum is compared.
    SafetensorError for a damaged one."""
    with saying(path):
        head: bytes = path.fs.cat_file(path.path, start=0, end=HEAD)
        first = 8 + int.from_bytes(head[:8], "little")
        if HEAD < first < MOST_HEAD:
            head = path.fs.cat_file(path.path, start=0, end=first)
    try:
        header = json.loads(head[8:first])
        wanted = {name: header[name] for name in names}
        spans = [each["data_offsets"] for each in wanted.values()]
        starts, ends = ([first + int(span[i]) for span in spans] for i in (0, 1))
    except (ValueError, LookupError, TypeError) as error:
        raise SafetensorError(f"its header is none, or lacks {', '.join(names)}") from error
    with saying(path):
        parts = path.fs.cat_ranges([path.path] * len(starts), starts, ends, on_error="raise")
    begin = 0
    for about, part in zip(wanted.values(), parts, strict=True):
        about["data_offsets"], begin = [begin, begin + len(part)], begin + len(part)
    text = json.dumps(wanted).encode()
    return load(b"".join([len(text).to_bytes(8, "little"), text, *parts]))
