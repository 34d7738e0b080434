"""Malformed files, chosen by what they reach: `python tests/guided.py --minutes 40 --out FOLDER`.

libFuzzer keeps what led to lines of bitlens that nothing before it did, and spoils that further:
its bytes, or as `spoilt.py` does, with checksums mended. It needs `pip install atheris`. What may
come of a file is as in `fuzz.py`; those of which anything else came are kept in the folder.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import random
import re
import resource
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

import atheris  # pyright: ignore[reportMissingImports]

SOURCE = Path(__file__).parents[1] / "src"
SEEDS = 24  # spoilt files, beside a whole one, that it begins with
LARGEST = 1 << 16
PATIENCE = 60  # seconds until an input counts as hanging
STATUS = re.compile(r"^#(\d+)\s+\w+\s+cov: (\d+)", re.MULTILINE)


def kernels() -> list[str]:
    """Modules of functions that numba compiles, which what atheris adds to them would hinder."""
    files = [file for file in SOURCE.rglob("*.py") if "\n@kernel" in file.read_text("utf-8")]
    return [".".join(file.relative_to(SOURCE).with_suffix("").parts) for file in files]


def guide(name: str, seconds: int, room: Path, out: Path) -> None:
    """Try files of one format, in this process, until time is over or one ends it."""
    from fuzz import MEMORY, attempt, spoil
    from malformed import FORMATS

    def change(content: bytes, most: int, seed: int) -> bytes:
        draw = random.Random(seed)
        if kind.changes and draw.random() < 0.5:
            with contextlib.suppress(Exception):  # of what is too spoilt for that
                return draw.choice(kind.changes)(content, draw)[:most]
        return atheris.Mutate(content, most)

    def one(content: bytes) -> None:
        outcome = attempt(name, 0, whole, room / "room", content)
        place = outcome.said.rpartition("(")[2]
        if not outcome.allowed and place not in found:
            found.add(place)
            file = f"{name} {hashlib.sha256(content).hexdigest()[:8]}"
            (out / file).write_bytes(content)
            with (out / "found").open("a") as log:
                log.write(f"{file}: {outcome.kind}: {outcome.said!r}\n")

    kind, found, tempfile.tempdir = FORMATS[name], set[str](), str(room)
    whole, seeds, corpus = room / "whole", room / "seeds", out / "corpus" / name
    for folder in (whole, seeds, corpus):
        folder.mkdir(parents=True, exist_ok=True)
    kind.make(whole)
    for number in range(-1, SEEDS):
        shutil.copytree(whole, room / "one")
        spoil(name, number, room / "one")
        shutil.copy(room / "one" / kind.file, seeds / str(number))
        shutil.rmtree(room / "one")
    one((whole / kind.file).read_bytes())  # imports and compiles what is used
    here = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (here + MEMORY, here + MEMORY))
    flags = {"max_total_time": seconds, "timeout": PATIENCE, "max_len": LARGEST}
    flags |= {"report_slow_units": PATIENCE, "rss_limit_mb": 0, "close_fd_mask": 3}
    flags |= {"artifact_prefix": f"{out}/{name} "}
    given = [f"-{key}={value}" for key, value in flags.items()]
    atheris.Setup(["guided", *given, str(corpus), str(seeds)], one, custom_mutator=change)
    atheris.Fuzz()


def run(name: str, seconds: int, out: Path) -> list[tuple[int, int]]:
    """`guide` in a process of its own -> how many were tried, and what they covered, as it went."""
    with tempfile.TemporaryDirectory() as room, (out / "log").open("w+b") as log:
        if not (pid := os.fork()):
            os.dup2(log.fileno(), 2)
            try:
                guide(name, seconds, Path(room), out)
            except BaseException:
                traceback.print_exc()
            os._exit(1)
        os.waitpid(pid, 0)
        log.seek(0)
        said = log.read().decode(errors="replace")
    if not (states := STATUS.findall(said)):
        raise RuntimeError(said)
    return [(int(tried), int(covered)) for tried, covered in states]


def campaign(options: argparse.Namespace) -> int:
    """Each format in turn -> whether anything happened that must not."""
    import torch

    from bitlens.compression.range_coder import Quantised
    from malformed import FORMATS

    atheris.instrument_func(Quantised.from_bytes)  # among kernels
    torch.set_num_threads(1)
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    print(f"{'':22}{'tried':>10}{'covered at first':>18}{'at last':>9}{'ended':>7}", flush=True)
    names = options.formats or list(FORMATS)
    for name in names:
        left, runs = int(60 * options.minutes / len(names)), list[list[tuple[int, int]]]()
        until = time.monotonic() + left
        while left > 0:  # one that ends the process is followed by others
            runs.append(run(name, left, out))
            left = int(until - time.monotonic())
        tried, last = sum(states[-1][0] for states in runs), max(s[-1][1] for s in runs)
        print(f"{name:22}{tried:10,}{runs[0][0][1]:18,}{last:9,}{len(runs) - 1:7}", flush=True)
    found = sorted(path.name for path in out.iterdir() if path.is_file() and path.name != "log")
    print("\n".join(found))
    return 1 if found else 0


def main() -> int:
    """-> exit status"""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=40.0)
    parser.add_argument("--out", type=Path, required=True, help="folder of what is found")
    parser.add_argument("--formats", nargs="+", help="by default all")
    options = parser.parse_args()
    with atheris.instrument_imports(include=["bitlens", "gguf"], exclude=kernels()):
        return campaign(options)


if __name__ == "__main__":
    sys.exit(main())
