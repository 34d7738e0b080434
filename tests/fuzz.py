"""Malformed files by the thousand: `python tests/fuzz.py --minutes 8`, or `make fuzz`.

Each is read in another process, whose memory and time are bounded. Allowed is that it is read, or
refused in a sentence. Every input has a number, from which it can be made again:
`--formats npz --first 123 --inputs 1`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bitlens.errors import BitlensError
from malformed import FORMATS, Format
from spoilt import BYTES, MARK

MEMORY = 3 << 30  # of addresses, above what the process has when it begins
GROWTH = 400 << 20  # bytes that one small file may come to
SECONDS = 20.0  # of computing, on one input
PATIENCE = 120.0  # seconds until it counts as hanging
LONGEST = 1500  # letters of a sentence


class Outcome(NamedTuple):
    """What came of an input: "read", "refused", or what must not be."""

    format: str
    seed: int
    kind: str
    said: str = ""

    @property
    def allowed(self) -> bool:
        """Whether it is one of the two that may be."""
        return self.kind in ("read", "refused")


def spoil(name: str, seed: int, folder: Path) -> None:
    """Make the input of this number, in a folder with a whole one; -1 is that one."""
    if seed < 0:
        return
    kind, draw = FORMATS[name], random.Random(f"{name} {seed}")
    path = folder / kind.file
    content = path.read_bytes()
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        change = draw.choice([*BYTES, *kind.changes * 4])
        try:
            content = change(content, draw)
        except Exception:  # what was spoilt before is not to be read for another change
            content = draw.choice(BYTES)(content, draw)
    path.write_bytes(content)


def attempt(name: str, seed: int, whole: Path, room: Path, content: bytes | None = None) -> Outcome:
    """Read this input in a folder of its own below `room`. content: of the file, whatever seed."""
    kind = FORMATS[name]
    shutil.rmtree(room, ignore_errors=True)
    shutil.copytree(whole, room / "in")
    (room / "out").mkdir()
    (room / "secret").write_bytes(b"not of this folder" * 40)
    os.chdir(room / "in")  # what leads out of it is then found
    if content is None:
        spoil(name, seed, room / "in")
    else:
        (room / "in" / kind.file).write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found, said = _read(kind, room)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    if (room / MARK).exists() or {path.name for path in room.iterdir()} != {"in", "out", "secret"}:
        found = "escaped"
    elif grown > GROWTH:
        found, said = "memory", f"{grown >> 20} MiB: {said}"
    return Outcome(name, seed, found, said)


def _read(kind: Format, room: Path) -> tuple[str, str]:
    try:
        kind.read(room / "in", room / "out")
    except BitlensError as error:
        said = str(error)
        whole = said.isprintable() and said.endswith(".") and len(said) < LONGEST
        return "refused" if whole else "no sentence", said
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        place = "; ".join(f"{Path(f.filename).name}:{f.lineno}" for f in frames[-6:])
        return "traceback", f"{type(error).__name__}: {str(error)[:200]} ({place})"
    return "read", ""


def _work(inputs: list[tuple[str, int]], place: Path, pipe: int) -> None:
    """In a process of its own: one input after another, each announced before and after."""
    torch.set_num_threads(1)
    quiet = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(quiet, stream)
    here = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (here + MEMORY, here + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for name, seed in inputs:
        whole = place / "whole" / name
        if not whole.exists():
            FORMATS[name].make(_made(place / "making" / name))
            whole.parent.mkdir(exist_ok=True)
            (place / "making" / name).rename(whole)
        os.write(pipe, b"+\n")
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        found = attempt(name, seed, whole, place / "room")
        signal.setitimer(signal.ITIMER_PROF, 0)
        os.write(pipe, json.dumps(found).encode() + b"\n")


def _made(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def trials(inputs: list[tuple[str, int]], place: Path, until: float = 1e18) -> Iterator[Outcome]:
    """The outcome of each; a process that ends by one of them is followed by another."""
    done = 0
    while done < len(inputs) and time.monotonic() < until:
        reading, writing = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                _work(inputs[done:], place, writing)
            except BaseException:
                os.write(writing, f"? {traceback.format_exc()!r}\n".encode())
            finally:
                os._exit(0)
        os.close(writing)
        status, begun, line = None, False, ""
        with os.fdopen(reading) as lines, _ending(pid):
            while time.monotonic() < until or begun:
                if not select.select([lines], [], [], PATIENCE)[0]:
                    os.kill(pid, signal.SIGKILL)  # the line is then its end
                    status = "hangs"
                line = lines.readline()
                if line.startswith("?"):
                    raise RuntimeError(line)
                if not line:
                    break
                begun = line == "+\n"
                if not begun:
                    yield Outcome(*json.loads(line))
                    done += 1
            if begun and not line:
                ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                yield Outcome(*inputs[done], status or "crash", signal.Signals(-ended).name)
                done += 1


@contextlib.contextmanager
def _ending(pid: int) -> Iterator[None]:
    """No process outlives whoever waits for it."""
    try:
        yield
    finally:
        with contextlib.suppress(ChildProcessError, ProcessLookupError):  # it was waited for
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def campaign(options: argparse.Namespace) -> int:
    """Round after round of all formats -> whether anything happened that must not."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in options.formats}
    wrong: dict[str, list[Outcome]] = {}
    numbers = range(options.first, options.first + options.inputs)
    inputs = [(name, seed) for seed in numbers for name in options.formats]
    until = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory() as folder:
        for outcome in trials(inputs, Path(folder), until):
            counts[outcome.format][outcome.kind] += 1
            if not outcome.allowed:
                key = f"{outcome.format} {outcome.kind} {outcome.said.rpartition('(')[2]}"
                if key not in wrong:
                    print(f"{outcome.format} {outcome.seed}: {outcome.kind}: {outcome.said!r}")
                wrong.setdefault(key, []).append(outcome)
            elif options.inputs == 1:
                print(outcome)
    kinds = sorted(set().union(*counts.values()))
    print(f"{'':22}", *(f"{kind:>12}" for kind in ["all", *kinds]))
    for name, found in [*counts.items(), ("all", sum(counts.values(), Counter()))]:
        cells = [found.total(), *(found[kind] for kind in kinds)]
        print(f"{name:22}", *(f"{n:12,}" for n in cells))
    return 1 if wrong else 0


def main(arguments: Any = None) -> int:
    """-> exit status"""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--inputs", type=int, default=100_000, help="of each format at most")
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    return campaign(parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
