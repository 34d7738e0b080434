"""Faults that happen to long jobs, for real: processes are killed, disks are full, files damaged.

`make faults` tries many of each (`--faults`); without that option there are a few.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from faults import JOBS, Job, Trial, Whole, mounted, plant_codes, told
from language_model_server import LanguageModelServer
from test_cli import run
from test_interpret import by_first_letter

SEEDS = 20
QUICK = {"harvest", "train", "encode", "compress", "interpret"}
each_job = pytest.mark.parametrize(
    "job",
    [pytest.param(j, marks=[] if j.name in QUICK else pytest.mark.slow) for j in JOBS],
    ids=str,
)
MOUNTS = os.getuid() == 0 and shutil.which("mount")
needs_a_disk = pytest.mark.skipif(not MOUNTS, reason="only root may mount a disk")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`seed` is one number, or with --faults many."""
    if "seed" in metafunc.fixturenames:
        many = metafunc.config.getoption("--faults")
        metafunc.parametrize("seed", range(SEEDS if many else 1))


@pytest.fixture(scope="module")
def world(tmp_path_factory: Any, tiny_llama: Path, text_folder: Path, harvested: Path) -> Any:
    """What jobs read."""
    home = tmp_path_factory.mktemp("world")
    made = {name: home / name for name in ("store", "run", "codes", "bits")}
    shutil.copytree(harvested, made["store"])
    small = ["--n-latents", 16, "--steps", 20, "--batch-size", 64]
    for arguments in (
        ["train", made["store"], "--out", made["run"], *small],
        ["compress", made["run"], made["store"], "--out", made["bits"]],
    ):
        assert run(*arguments) == 0
    plant_codes(made["codes"])
    with LanguageModelServer(by_first_letter) as server:
        yield made | {"model": tiny_llama, "text": text_folder, "server": server.url}


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


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
@pytest.mark.parametrize("job", JOBS, ids=str)
def test_a_signal_is_answered_in_a_sentence_and_the_work_goes_on(
    trial: Trial, whole: Whole, seed: int, number: signal.Signals
) -> None:
    draw = random.Random(f"{trial.job} {number.name} {seed}")
    command = trial.disturbed(draw, whole, number, again=False)
    status = command.wait()
    assert status in (0, 1, 128 + number), command.output
    if status:
        assert told(command).startswith("Stopped")
        assert ("continue" in told(command)) == (status == 1)
    assert trial.finished(again=True) == whole.contents
