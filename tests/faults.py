"""What faults are tried on: jobs, what they read, and when two results are the same.

A job is a line here. `test_faults.py` tries every fault on every job.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.csv
import pyarrow.parquet
import safetensors.torch
import torch
from transformers import AutoTokenizer

from bitlens.bits import Codes, PackedBits
from bitlens.hidden import Corpus
from bitlens.hidden.named import bundled_folder
from bitlens.options import BUNDLED
from command import Command, Moment

# What tells how long something took, or when it was.
TIMED = {"rows_per_second", "seconds"}
SPEED = re.compile(rb'<figure>\s*<figcaption><b class="is">rows_per_second<.*?</figure>', re.S)


@dataclass(frozen=True)
class Job:
    """A command and what it writes.

    line: the command; {out} is what it writes, {x} what the fixture `world` holds. again: how it
    goes on after it was stopped. constants: as for `Command`, so that little work has many parts.
    """

    name: str
    line: str
    again: str
    constants: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name

    @property
    def reads(self) -> list[str]:
        """What it takes of the fixture `world`."""
        return [word[1:-1] for word in self.line.split() if re.fullmatch("{(?!out).*}", word)]

    @property
    def checked(self) -> list[str]:
        """Of these, what is damaged here: bitlens wrote it."""
        return [name for name in self.reads if name in ("store", "run", "codes", "bits")]

    def arguments(self, world: dict[str, Any], out: Path) -> list[str]:
        """For the command line."""
        places = {name: str(path) for name, path in world.items()} | {"out": str(out)}
        return [word.format(**places) for word in self.line.split()]


TRAIN = "--n-latents 24 --batch-size 64 --steps 30 --prune-rows 200 --log-every 2 --device cpu"
STUDY = "--families independent --variants measure --ranks 4 --rates 0.5 --other-rates 0.5"
STUDY += " --seeds 0 1 --d-in 8 --n-latents 16 --rows 256 --measured-rows 256 --steps 10"
WINDOWS = {"bitlens.hidden.store.WINDOW_BYTES": 100_000}  # several an epoch
PAGE = 4096  # that a disk in memory counts in
EVERY = "bitlens.causal.unfinished"
JOBS = (
    Job(
        "harvest",
        "harvest {model} --text {text} --context 8 --batch-size 4 --device cpu --max-rows 900 "
        "--hook layers.0 layers.2 --out {out}",
        "--resume",
        {"bitlens.hidden.harvest.SHARD_BYTES": 1},
    ),
    Job(
        "train", f"train {{store}} --out {{out}} --checkpoint-every 4 {TRAIN}", "--resume", WINDOWS
    ),
    Job(
        "train topk",
        f"train {{store}} --out {{out}} --checkpoint-every 4 --architecture topk --k 4 {TRAIN}",
        "--resume",
        WINDOWS,
    ),
    Job(
        "encode",
        "encode {run} {store} --out {out} --device cpu",
        "--overwrite",
        {"bitlens.encode.PART_ROWS": 2000},
    ),
    Job("compress", "compress {run} {store} --out {out} --device cpu", "--overwrite"),
    Job(
        "decompress",
        "decompress {bits} {run} --out {out}",
        "--overwrite",
        {"bitlens.compression.plan.SHARD_BYTES": 50_000},
    ),
    Job("interpret", "interpret {codes} --out {out} --sample 20", ""),
    Job(
        "interpret with a model",
        "interpret {codes} --out {out} --judge openai --model rule --base-url {server}",
        "",
    ),
    Job(
        "effects",
        "effects {run} {store} --out {out}.jsonl --latents 1 2 3 4 5 6 --contexts 6 --rows 4 "
        "--part all --device cpu",
        "--resume",
        {f"{EVERY}.SAVE_SECONDS": 0, f"{EVERY}.SHARE": 0},
    ),
    Job("study", f"study synthetic --out {{out}} {STUDY}", "--resume"),
)


class Whole(NamedTuple):
    """A job that nothing happened to."""

    contents: dict[str, Any]
    seconds: float
    events: list[str]
    """its changes of files and folders, in their order"""
    pages: int
    """of a disk, that what it wrote takes"""
    largest: int
    """file, in bytes"""

    @property
    def changes(self) -> int:
        """How many there are."""
        return len(self.events)


@dataclass
class Trial:
    """A job in a folder of its own, where it may be disturbed."""

    job: Job
    world: dict[str, Any]
    place: Path
    """holds all that it writes"""
    start: Callable[..., Command]
    """the fixture `bitlens_command`"""

    @property
    def events(self) -> Path:
        """Where changes are noted."""
        return self.place.with_name(f"{self.place.name}.events")

    def run(
        self, again: bool = False, number: int = 0, deadly: int = 0, file_limit: int | None = None
    ) -> Command:
        """Start it, or go on; at its change of that number it sends itself the signal."""
        more = self.job.again.split() if again else []
        arguments = [*self.job.arguments(self.world, self.place / "out"), *more]
        moment = Moment(self.place, number, deadly, self.events)
        return self.start(
            *arguments, constants=self.job.constants, moment=moment, file_limit=file_limit
        )

    def process(self, **environment: str) -> subprocess.Popen[str]:
        """Go on with it in a process that imports all for itself."""
        arguments = [*self.job.arguments(self.world, self.place / "out"), *self.job.again.split()]
        return subprocess.Popen(
            [sys.executable, "-m", "bitlens", *arguments],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # a suite that runs in the background of a shell has interrupts ignored
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def whole(self) -> Whole:
        """Undisturbed."""
        begun = time.monotonic()
        done = self.finished()
        seconds = time.monotonic() - begun
        events = self.events.read_text().splitlines()
        sizes = [path.stat().st_size for path in files(self.place)]
        pages = sum(-(-size // PAGE) for size in sizes)
        return Whole(done, seconds, events, pages, max(sizes))

    def disturbed(self, draw: random.Random, whole: Whole, deadly: int, again: bool) -> Command:
        """It gets the signal at a random moment: of its time, or just before a change."""
        if draw.random() < 0.5:
            return self.run(again, draw.randint(1, whole.changes), deadly)
        command = self.run(again)
        command.wait_until(command.log.exists)
        time.sleep(draw.uniform(0, whole.seconds))
        with contextlib.suppress(ProcessLookupError):
            command.send(deadly)
        return command

    def finished(self, again: bool = False) -> dict[str, Any]:
        """Let it end -> what it wrote"""
        command = self.run(again)
        assert command.wait() == 0, command.output
        assert [p.name for p in self.place.rglob(".*.tmp")] == []
        return contents(self.place)


def children(pid: int) -> list[int]:
    """Processes that this one has started."""
    try:
        return [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    except OSError:  # it has ended
        return []


def alive(pid: int) -> bool:
    """Whether there is such a process; one that nobody has waited for yet is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def told(command: Command) -> str:
    """The sentence that a command ended with."""
    lines = command.output.strip().splitlines()
    assert "Traceback" not in command.output, command.output
    assert lines, "not a word"
    assert lines[-1].endswith("."), command.output
    return lines[-1]


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[Callable[[str], None]]:
    """A disk of its own in this folder -> changes its options"""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
    try:
        yield (
            lambda changed: (
                subprocess.run(["mount", "-o", f"remount,{changed}", folder], check=True) and None
            )
        )
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def plant_codes(folder: Path) -> None:
    """Codes of the bundled model: a latent for each of some letters that a token begins with."""
    tokenizer = AutoTokenizer.from_pretrained(bundled_folder())
    texts = [text for _, text in itertools.islice(Corpus((BUNDLED,)).documents(), 120)]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"][:40] for text in texts]
    token = torch.tensor([i for document in ids for i in document])
    first = [tokenizer.decode([i]).strip()[:1].lower() for i in token.tolist()]
    bits = torch.tensor([[letter == one for letter in "taws"] for one in first])
    columns = {
        "token": token.int(),
        "document": torch.arange(len(ids)).repeat_interleave(torch.tensor([*map(len, ids)])),
        "position": torch.zeros(len(token)).int(),
    }
    about = {"model": BUNDLED, "revision": None}
    Codes.write(folder, [(PackedBits.pack(bits), columns)], bits.shape[1], about)


# --- damage: of a file, or of one in a folder -> whether there was something that it can happen to


def _cut(path: Path, draw: random.Random) -> bool:
    return _change(path, draw, lambda whole: whole[: draw.randrange(len(whole) - 2)])


def _alter(path: Path, draw: random.Random) -> bool:
    """A byte of what has a checksum."""

    def turned(whole: bytes) -> bytes:
        i = draw.randrange(len(whole))
        return whole[:i] + bytes([whole[i] ^ 1 << draw.randrange(8)]) + whole[i + 1 :]

    return _change(path, draw, turned, CHECKED)


def _delete(path: Path, draw: random.Random) -> bool:
    chosen = _chosen(path, draw)
    if chosen is not None:
        chosen.unlink()
    return chosen is not None


def _swap(path: Path, draw: random.Random) -> bool:
    """A shard with one of the same form and other numbers, as of another store."""

    def other(whole: bytes) -> bytes:
        tensors = safetensors.torch.load(whole)
        name = draw.choice([name for name in ("hidden", "bits", "token") if name in tensors])
        words = tensors[name].view(torch.uint8)
        return safetensors.torch.save(tensors | {name: words.flip(0).view(tensors[name].dtype)})

    return _change(path, draw, other, {"shard", "codes"}, ".safetensors")


def _newer(path: Path, draw: random.Random) -> bool:
    """The schema of a later version."""

    def later(whole: bytes) -> bytes:
        return re.sub(rb'"schema": \d+', b'"schema": 99', whole)

    return _change(path, draw, later, {"manifest.json", "training.json", "unfinished.json"})


DAMAGES = {"cut": _cut, "altered": _alter, "deleted": _delete, "swapped": _swap, "newer": _newer}
CHECKED = {"shard", "codes", "bits"}  # what these names begin with has a checksum
LOGS = {"metrics.jsonl", "report.html"}  # nothing is made of them


def _chosen(
    path: Path, draw: random.Random, begins: Collection[str] = ("",), ends: str = ""
) -> Path | None:
    among = [f for f in (files(path) if path.is_dir() else [path]) if f.name.endswith(ends)]
    found = [f for f in among if f.name.startswith(tuple(begins)) and f.name not in LOGS]
    return draw.choice(found) if found else None


def _change(
    path: Path,
    draw: random.Random,
    change: Callable[[bytes], bytes],
    begins: Collection[str] = ("",),
    ends: str = "",
) -> bool:
    chosen = _chosen(path, draw, begins, ends)
    if chosen is not None:
        chosen.write_bytes(change(chosen.read_bytes()))
    return chosen is not None


def copy(path: Path, to: Path) -> Path:
    """Of a file or folder."""
    return shutil.copytree(path, to) if path.is_dir() else Path(shutil.copy(path, to))


def files(folder: Path) -> list[Path]:
    """All below a folder, also while a process writes there."""
    return sorted(Path(where, name) for where, _, names in os.walk(folder) for name in names)


def contents(folder: Path) -> dict[str, Any]:
    """All files below a folder, by name, without what tells the time."""
    return {str(path.relative_to(folder)): _content(path, folder) for path in files(folder)}


def _content(path: Path, folder: Path) -> Any:
    if path.suffix == ".json":
        return _untimed(json.loads(path.read_text()))
    if path.suffix == ".jsonl":
        return [_untimed(json.loads(line)) for line in path.read_text().splitlines()]
    if path.suffix == ".parquet":
        return _untimed(columns_of(pyarrow.parquet.read_table(path)))
    if path.suffix == ".csv":
        return _untimed(columns_of(pyarrow.csv.read_csv(path)))
    if path.suffix == ".sqlite":
        with contextlib.closing(sqlite3.connect(path)) as database:
            what = "run, judge, latent, explanation, text, row, kind, yes, confidence"
            return sorted(database.execute(f"SELECT {what} FROM judgements"))
    content = path.read_bytes().replace(str(folder).encode(), b"")
    return SPEED.sub(b"", content) if path.suffix == ".html" else content


def columns_of(table: Any) -> dict[str, str]:
    """Columns as text, in which NaN equals NaN."""
    return {name: repr(column) for name, column in table.to_pydict().items()}


def _untimed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _untimed(inner) for key, inner in value.items() if key not in TIMED}
    return [_untimed(inner) for inner in value] if isinstance(value, list) else value
