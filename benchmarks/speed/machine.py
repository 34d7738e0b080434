"""What this machine can do at most: the floors that timings are held against."""

import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numba
import numpy as np
import torch

from bitlens.bits.kernel import kernel
from bitlens.bits.words import popcount, torch_threads
from bitlens.version import __version__

Peaks = dict[str, float]


@kernel(parallel=True)
def _popcounts(words, sums, rounds):
    for part in numba.prange(len(sums)):
        mine = words[part]
        total = np.uint64(0)
        for r in range(rounds):
            flip = np.uint64(r)
            for w in range(len(mine)):
                total += popcount(mine[w] & flip)  # pyright: ignore[reportCallIssue]
        sums[part] = total


def peaks(folder: Path | None = None) -> Peaks:
    """Measured peaks: float32 operations, pairs of words and-ed, counted and added, bytes read from
    memory and from disk, a second.

    folder: where the file for the disk's share is written; by default the temporary folder.
    """
    a, b = torch.randn(2, 2048, 2048)
    threads = torch.get_num_threads()
    words = np.arange(threads * 2048, dtype=np.uint64).reshape(
        threads, 2048
    )  # 16 KiB a thread: the nearest cache
    sums, rounds = np.zeros(threads, np.uint64), 10_000
    memory = torch.ones(1 << 25, dtype=torch.int64)
    with torch_threads():
        counting = _best(lambda: _popcounts(words, sums, rounds))
    return {
        "float32 operations": 2 * 2048**3 / _best(lambda: a @ b),
        "words counted": threads * 2048 * rounds / counting,
        "bytes from memory": memory.nbytes / _best(lambda: memory.sum()),
        "bytes from disk": _disk(folder),
    }


def about() -> dict[str, str | int]:
    """What the figures depend on, for whoever reads them elsewhere."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numba": numba.__version__,
        "bitlens": __version__,
    }


def _best(function: Callable[[], object], calls: int = 7) -> float:
    function()
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def _disk(folder: Path | None, size: int = 1 << 28) -> float:
    """Bytes a second of reading a file that the system does not hold in memory (as far as it can be
    told to drop it)."""
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        file.write(os.urandom(size))
        file.flush()
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        start = time.perf_counter()
        with Path(file.name).open("rb", buffering=0) as again:
            while again.read(1 << 22):
                pass
        return size / (time.perf_counter() - start)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
