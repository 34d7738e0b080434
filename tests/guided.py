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
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src"
SEEDS = 24  # spoilt files, beside a whole one, that it begins with
LARGEST = 1 << 16
PATIENCE = 60  # seconds until an input counts as hanging
STATUS = re.compile(r"^#(\d+)\s+(\w+)\s+cov: (\d+)", re.MULTILINE)


def kernels() -> list[str]:
    """Modules of functions that numba compiles, which what atheris adds to them would hinder."""
    files = [file for file in SOURCE.rglob("*.py") if "\n@kernel" in file.read_text("utf-8")]
    return [".".join(file.relative_to(SOURCE).with_suffix("").parts) for file in files]


def guide(name: str, seconds: int, out: Path) -> None:
    """Try files of one format, in this process, until time is over or one ends it."""
    import atheris  # pyright: ignore[reportMissingImports]

    with atheris.instrument_imports(include=["bitlens", "gguf"], exclude=kernels()):
        import torch

        from bitlens.compression.range_coder import Quantised
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

        atheris.instrument_func(Quantised.from_bytes)
        torch.set_num_threads(1)
        kind, found, room = FORMATS[name], set[str](), Path(os.environ["TMPDIR"])
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
        flags |= {"rss_limit_mb": 0, "close_fd_mask": 3, "artifact_prefix": f"{out}/{name} "}
        given = [f"-{key}={value}" for key, value in flags.items()]
        atheris.Setup(["guided", *given, str(corpus), str(seeds)], one, custom_mutator=change)
        atheris.Fuzz()


def campaign(names: list[str], minutes: float, out: Path) -> int:
    """Each format in processes of its own -> whether anything happened that must not."""
    out.mkdir(parents=True, exist_ok=True)
    print(f"{'':22}{'tried':>10}{'covered at first':>18}{'at last':>9}{'ended':>7}", flush=True)
    for name in names:
        until, runs = time.monotonic() + 60 * minutes / len(names), list[list[tuple[str, ...]]]()
        while (left := int(until - time.monotonic())) > 0:
            with tempfile.TemporaryDirectory() as folder, (out / "log").open("w+") as log:
                command = [sys.executable, __file__, "--one", name, "--seconds", str(left)]
                command += ["--out", str(out.resolve())]
                subprocess.run(command, env={**os.environ, "TMPDIR": folder}, stderr=log)
                log.seek(0)
                runs.append(STATUS.findall(log.read()))
            if not runs[-1]:
                raise RuntimeError((out / "log").read_text(errors="replace"))
        tried, first = sum(int(run[-1][0]) for run in runs), int(runs[0][0][2])
        last = max(int(run[-1][2]) for run in runs)
        print(f"{name:22}{tried:10,}{first:18,}{last:9,}{len(runs) - 1:7}", flush=True)
    found = sorted(path.name for path in out.iterdir() if path.is_file() and path.name != "log")
    print("\n".join(found))
    return 1 if found else 0


def main() -> int:
    """-> exit status"""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=40.0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--formats", nargs="+", help="by default all")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        guide(options.one, options.seconds, options.out)
    from malformed import FORMATS

    return campaign(options.formats or list(FORMATS), options.minutes, options.out)


if __name__ == "__main__":
    sys.exit(main())
