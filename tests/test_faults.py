"""Faults that happen to long jobs, for real: processes are killed, disks are full, files damaged.

`make faults` tries twenty of each (`--faults 20`), and a usual run of the tests one.
"""

from __future__ import annotations

import dataclasses
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from command import PATIENCE, Command
from faults import (
    DAMAGES,
    JOBS,
    PAGE,
    Job,
    Trial,
    Whole,
    alive,
    children,
    contents,
    copy,
    files,
    mounted,
    plant_codes,
    told,
)
from language_model_server import LanguageModelServer
from test_cli import run
from test_interpret import by_first_letter

pytestmark = pytest.mark.slow
AT_LENGTH = [  # in which a clock could matter; as a process of its own has them
    dataclasses.replace(job, name=f"{job.name} as it is", constants={})
    for job in JOBS
    if job.name in ("train", "interpret with a model", "study")
]
LONG = {"harvest", "train", "encode", "compress", "interpret", "study"}
each_job = pytest.mark.parametrize("job", JOBS, ids=str)
MOUNTS = os.getuid() == 0 and shutil.which("mount")
needs_a_disk = pytest.mark.skipif(not MOUNTS, reason="only root may mount a disk")


@pytest.fixture(scope="module")
def world(tmp_path_factory: Any, tiny_llama: Path, text_folder: Path) -> Any:
    """What jobs read."""
    monkeypatch = pytest.MonkeyPatch()
    home = tmp_path_factory.mktemp("world")
    made = {name: home / name for name in ("store", "run", "codes", "bits")}
    small = ["--n-latents", 16, "--steps", 20, "--batch-size", 64]
    model, text = [tiny_llama, "--device", "cpu", "--hook", "layers.1"], ["--text", text_folder]
    monkeypatch.setattr("bitlens.hidden.harvest.SHARD_BYTES", 50_000)
    for arguments in (
        ["harvest", *model, *text, "--context", 32, "--batch-size", 4, "--out", made["store"]],
        ["train", made["store"], "--out", made["run"], *small],
        ["compress", made["run"], made["store"], "--out", made["bits"]],
    ):
        assert run(*arguments) == 0
    monkeypatch.undo()
    plant_codes(made["codes"])
    (made["run"] / "training.json").unlink()  # only a training that goes on reads it
    before = contents(home)
    with LanguageModelServer(by_first_letter) as server:
        yield made | {"model": tiny_llama, "text": text_folder, "server": server.url}
    assert contents(home) == before, "what is read is never changed"


@pytest.fixture
def trial(job: Job, world: dict[str, Any], tmp_path: Path, bitlens_command: Any) -> Trial:
    """The job in an empty folder."""
    (tmp_path / "place").mkdir()
    return Trial(job, world, tmp_path / "place", bitlens_command)


DONE: dict[str, Whole] = {}


@pytest.fixture
def whole(job: Job, world: dict[str, Any], tmp_path: Path, bitlens_command: Any) -> Whole:
    """The same job, undisturbed; once a job."""
    if job.name not in DONE:
        place = tmp_path / "whole"
        place.mkdir()
        DONE[job.name] = Trial(job, world, place, bitlens_command).whole()
    return DONE[job.name]


# --- processes that are stopped


@each_job
def test_killed_and_gone_on_with_it_is_the_same_bit_for_bit(
    trial: Trial, whole: Whole, seed: int
) -> None:
    draw = random.Random(f"{trial.job} {seed}")
    for again in range(draw.randint(1, 3)):
        trial.disturbed(draw, whole, signal.SIGKILL, bool(again)).wait()
    assert trial.finished(again=True) == whole.contents


@each_job
def test_killed_before_it_removes_what_is_temporary_it_goes_on_and_leaves_none(
    trial: Trial, whole: Whole, seed: int
) -> None:
    """Its file is whole by then, and not written again."""
    left = [n for n, event in enumerate(whole.events, 1) if re.search(r"rmdir .*\.tmp$", event)]
    trial.run(number=left[-1 - seed % len(left)], deadly=signal.SIGKILL).wait()
    assert trial.finished(again=True) == whole.contents


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
@each_job
def test_a_signal_is_answered_in_a_sentence_and_the_work_goes_on(
    trial: Trial, whole: Whole, seed: int, number: signal.Signals
) -> None:
    draw = random.Random(f"{trial.job} {number.name} {seed}")
    command = trial.disturbed(draw, whole, number, again=False)
    status = command.wait()
    if status in (0, -number):  # it had ended, or was at its very end
        assert contents(trial.place) == whole.contents
    else:
        assert status in (1, 128 + number), command.output
        assert told(command).startswith("Stopped")
        assert ("continue" in told(command)) == (status == 1)
    assert trial.finished(again=True) == whole.contents


# --- disks


@each_job
def test_a_file_that_grows_too_large_is_told_in_a_sentence(
    trial: Trial, whole: Whole, seed: int
) -> None:
    """As on a full disk, where no disk can be mounted."""
    limit = random.Random(f"{trial.job} {seed}").randrange(whole.largest)
    command = trial.run(file_limit=limit)
    assert command.wait() == 2, command.output
    assert "disk" in told(command)
    assert trial.finished(again=True) == whole.contents


@needs_a_disk
@each_job
def test_a_full_disk_is_told_in_a_sentence_and_the_work_goes_on(
    trial: Trial, whole: Whole, seed: int
) -> None:
    """At the middle of what is written, at its beginning, its end, and anywhere."""
    parts = {0: 0.5, 1: 0.0, 2: 1.0}
    part = parts.get(seed, random.Random(f"{trial.job} {seed}").random())
    pages = 1 + int(part * (whole.pages - 2))
    with mounted(trial.place, f"size={pages * PAGE}") as remount:
        command = trial.run()
        assert command.wait() == 2, command.output
        assert "full" in told(command)
        remount("size=64m")
        assert trial.finished(again=True) == whole.contents


@needs_a_disk
@each_job
def test_a_disk_that_becomes_read_only_is_told_in_a_sentence(
    trial: Trial, whole: Whole, seed: int
) -> None:
    draw = random.Random(f"{trial.job} {seed}")
    with mounted(trial.place, "size=64m") as remount:
        if seed:
            trial.run(number=draw.randint(1, whole.changes), deadly=signal.SIGKILL).wait()
        remount("ro")
        before = {path: path.read_bytes() for path in files(trial.place)}
        command = trial.run(again=True)
        assert command.wait() == 2, command.output
        assert "Read-only file system" in told(command) or "cannot be written" in told(command)
        assert {path: path.read_bytes() for path in files(trial.place)} == before
        remount("rw")
        assert trial.finished(again=True) == whole.contents


@needs_a_disk
@each_job
def test_what_lies_on_a_read_only_disk_can_be_read(
    trial: Trial, whole: Whole, tmp_path: Path
) -> None:
    with mounted(tmp_path / "disk", "size=64m") as remount:
        for name in trial.job.reads:
            if isinstance(trial.world[name], Path):
                copied = copy(trial.world[name], tmp_path / "disk" / name)
                trial.world = trial.world | {name: copied}
        remount("ro")
        assert trial.finished().keys() == whole.contents.keys()


# --- files


def refused(command: Command, name: Path | str) -> None:
    """In a sentence that names the file, or its folder."""
    assert command.wait() == 2, command.output
    assert str(name) in command.output.replace("\n", " ")
    told(command)


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("job", [job for job in JOBS if job.checked], ids=str)
def test_what_is_damaged_is_named_and_nothing_is_made_of_it(
    trial: Trial, seed: int, damage: Callable[..., bool], tmp_path: Path
) -> None:
    draw = random.Random(f"{trial.job} {seed}")
    names = draw.sample(trial.job.checked, len(trial.job.checked))
    copies = {name: copy(trial.world[name], tmp_path / f"damaged-{name}") for name in names}
    name = next((name for name in names if damage(copies[name], draw)), None)
    if name is None:
        pytest.skip(f"this cannot happen to {', '.join(names)}")
    trial.world = trial.world | {name: copies[name]}
    refused(trial.run(), copies[name])
    made = contents(trial.place)
    assert not any(isinstance(file, dict) and file.get("complete") for file in made.values())
    assert not {"out", "out/cfg.json", "out.jsonl", "out/scores.jsonl"} & set(made)


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("job", [job for job in JOBS if job.again == "--resume"], ids=str)
def test_what_is_damaged_while_it_lies_is_refused_or_made_again(
    trial: Trial, whole: Whole, seed: int, damage: Callable[..., bool]
) -> None:
    """A job that was killed, then damaged, is never continued to another result."""
    draw = random.Random(f"{trial.job} {seed}")
    # before it is complete: what is complete is looked at when it is read
    at = draw.randint(whole.changes // 2, whole.changes * 3 // 4)
    trial.run(number=at, deadly=signal.SIGKILL).wait()
    if not damage(trial.place, draw):
        pytest.skip("there is nothing that this could happen to")
    command = trial.run(again=True)
    if command.wait() == 0:
        assert contents(trial.place) == whole.contents
    else:
        refused(command, trial.place)


# --- clocks, other processes, and the first second


CLOCKS = ("-1h", "+365d", "@1980-01-01 00:00:00")


@pytest.mark.parametrize("job", AT_LENGTH, ids=str)
def test_a_clock_that_jumps_changes_nothing(
    trial: Trial, whole: Whole, tmp_path: Path, seed: int
) -> None:
    """Killed, gone on with under the other clock, which jumps while it is at work."""
    jump = CLOCKS[(seed + AT_LENGTH.index(trial.job)) % len(CLOCKS)]
    faketime = pytest.importorskip("libfaketime")
    library = next(Path(faketime.__file__).parent.rglob("libfaketime.so.1"))
    draw = random.Random(f"{trial.job} {jump} {seed}")
    trial.run(number=draw.randint(1, whole.changes), deadly=signal.SIGKILL).wait()
    clock = tmp_path / "clock"
    clock.write_text("+0")
    process = trial.process(
        LD_PRELOAD=str(library),
        FAKETIME_TIMESTAMP_FILE=str(clock),
        FAKETIME_NO_CACHE="1",
        FAKETIME_DONT_FAKE_MONOTONIC="1",
    )
    seen = len(files(trial.place))
    while process.poll() is None and len(files(trial.place)) == seen:
        time.sleep(0.005)
    clock.write_text(jump)
    assert process.communicate(timeout=PATIENCE)[0].count("Traceback") == 0
    assert process.returncode == 0
    assert contents(trial.place) == whole.contents


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
@pytest.mark.parametrize("job", [job for job in JOBS if job.name in LONG], ids=str)
def test_a_signal_while_it_starts_is_a_word(
    trial: Trial, seed: int, number: signal.Signals
) -> None:
    """Within 1.5 seconds after a process of its own has begun to load torch, the longest of its
    imports."""
    seconds = 1.5 * random.Random(f"{trial.job} {number.name} {seed}").random()
    process = trial.process()
    while b"torch" not in Path(f"/proc/{process.pid}/maps").read_bytes():
        assert process.poll() is None
        time.sleep(0.001)
    time.sleep(seconds)
    process.send_signal(number)
    said = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode in (0, 1, 128 + number), said
    assert "Traceback" not in said
    assert process.returncode == 0 or said.splitlines()[-1].startswith("Stopped")


def workers_of(command: Command) -> list[int]:
    """Processes that a study measures in, once two are ready to: they are deaf to Ctrl-C then."""
    found: list[int] = []

    def two() -> bool:
        found[:] = [
            child
            for child in children(command.pid)
            if b"resource_tracker" not in Path(f"/proc/{child}/cmdline").read_bytes()
        ]
        return len(found) == 2 and all(map(deaf, found))

    def deaf(child: int) -> bool:
        ignored = re.search(r"SigIgn:\s*(\w+)", Path(f"/proc/{child}/status").read_text())
        return bool(ignored and int(ignored[1], 16) >> (signal.SIGINT - 1) & 1)

    command.wait_until(two)
    return found


@pytest.mark.parametrize("who", ["a worker", "the study"])
@pytest.mark.parametrize("job", [job for job in JOBS if job.name == "study"], ids=str)
def test_of_several_processes_one_is_killed(trial: Trial, whole: Whole, who: str) -> None:
    """A worker: it is said. The study: no worker stays behind. It goes on, either way."""
    alone = trial.job
    trial.job = dataclasses.replace(alone, line=f"{alone.line} --workers 2")
    command = trial.run()
    workers = workers_of(command)
    assert len(workers) == 2, command.output
    if who == "a worker":
        os.kill(workers[0], signal.SIGKILL)
        assert command.wait() == 2, command.output
        assert told(command).startswith("A worker was killed")
    else:
        command.kill()
    until = time.monotonic() + PATIENCE
    while any(map(alive, workers)):
        assert time.monotonic() < until, "a worker has stayed"
        time.sleep(0.05)
    trial.job = alone
    assert trial.finished(again=True) == whole.contents
