"""What a command of bitlens spends, as a process of its own."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

from bitlens.cli import main
from bitlens.memory import own_memory

EVERY = 0.003  # seconds between looks at the process


@dataclass(frozen=True)
class Spent:
    """By one run of one command."""

    cpu_seconds: float
    peak_bytes: int
    """memory of its own, without files that are mapped"""
    resident_bytes: int
    """with those, which the system takes back when it needs their pages"""
    wall_seconds: float


def spend(*arguments: str | Path) -> Spent:
    """Run a command of bitlens with one thread."""
    command = [sys.executable, "-m", "bitlens", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    peak, ended = 0, threading.Event()
    begun = os.times().elapsed
    with tempfile.TemporaryFile() as said:
        with subprocess.Popen(command, stdout=said, stderr=said, env=environment) as process:

            def watch() -> None:
                nonlocal peak
                while not ended.wait(EVERY):
                    peak = max(peak, own_memory(process.pid))

            watching = threading.Thread(target=watch)
            watching.start()
            _, status, usage = os.wait4(process.pid, 0)
            ended.set()
            watching.join()
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            sys.exit(f"`{' '.join(command[1:])}` failed: {said.read().decode()[-2000:]}")
    seconds = usage.ru_utime + usage.ru_stime
    wall = os.times().elapsed - begun
    return Spent(seconds, peak, usage.ru_maxrss << 10, wall)


def planned(*arguments: str | Path) -> int:
    """Bytes that the command says it will take at its peak."""
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
        path = Path(name) / "plan.json"
        main([*map(str, arguments), "--plan", "--json", str(path)])
        return json.loads(path.read_text())["total"]
