"""Seconds and memory of functions that are compared with one another."""

import contextlib
import ctypes
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

ENOUGH = 15  # rounds of which the median is taken when there is time
LEAST = 3


@dataclass(frozen=True)
class Timing:
    """Median seconds of a call, and the bytes by which the process grew in it at most (None where
    that is not known)."""

    seconds: float
    peak_bytes: int | None


def interleaved(functions: Mapping[str, Callable[[], object]], budget: float) -> dict[str, Timing]:
    """Call the functions in turn, round after round, so that a slow moment of the machine meets
    them all.

    Each is first called once to warm up and once more to measure its memory. budget: seconds after
    which no further round begins, once there are three.
    """
    peaks: dict[str, int | None] = {}
    for name, function in functions.items():
        function()
        peaks[name] = peak_growth(function)
    times: dict[str, list[float]] = {name: [] for name in functions}
    begun = time.perf_counter()
    for done in range(ENOUGH):
        if done >= LEAST and time.perf_counter() - begun > budget:
            break
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return {name: Timing(statistics.median(taken), peaks[name]) for name, taken in times.items()}


def peak_growth(function: Callable[[], object]) -> int | None:
    """Bytes of memory that a call takes at its peak beyond what the process held before; Linux
    alone can tell."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(
            0
        )  # what the allocator only keeps for later would hide what the call takes
    try:
        reset.write_text("5")  # the peak starts anew from what is held now
        before = _resident(status, "VmHWM")
    except (OSError, ValueError):
        function()
        return None
    function()
    return max(0, _resident(status, "VmHWM") - before)


def _resident(status: Path, name: str) -> int:
    (line,) = [line for line in status.read_text().splitlines() if line.startswith(name + ":")]
    return int(line.split()[1]) * 1024
