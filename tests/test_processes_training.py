"""Processes that train together give what one process gives, and end together."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from bitlens import processes
from bitlens.autoencoders import Autoencoder, descent
from bitlens.errors import BitlensError
from bitlens.hidden import ActivationStore, PairedStore
from bitlens.hidden.arrays import import_arrays
from bitlens.hidden.paired import OF_ONE_HARVEST
from bitlens.training import TrainConfig, train
from bitlens.training.checkpoint import STATE
from bitlens.training.trainer import Run
from command import Command, together
from test_resume import logged_steps, rows, same

STEPS = 30
COVARIANCE = {"preset": "step", "gamma": 0.5}
SHARED_GRAM = "features, with rows of W W^T from each"
CONFIGS = {
    "features": {},
    "features in bf16": {"precision": "bf16"},
    SHARED_GRAM: {},
    "measure": {"preset": "measure", "gamma": 0.5},
    "paper": {"preset": "paper"},
    "step in bf16": {**COVARIANCE, "precision": "bf16"},
    "step by autograd": {**COVARIANCE, "reference": True},
    "step, another surrogate": {**COVARIANCE, "surrogate": "ste"},
    "topk": {"architecture": "topk"},
    "batch_topk": {"architecture": "batch_topk"},
    "relu": {"architecture": "relu"},
    "gated": {"architecture": "gated"},
    "jumprelu": {"architecture": "jumprelu"},
    "skip_transcoder": {"architecture": "skip_transcoder"},
    "random": {"architecture": "random"},
    "pca": {"architecture": "pca", "k": 4},
}


def settings(**changes) -> TrainConfig:
    base = {"n_latents": 40, "k": 4, "steps": STEPS, "batch_size": 63, "log_every": 1}
    return TrainConfig(**{**base, "prune_rows": 500, "device": "cpu", **changes})


FEW = [SHARED_GRAM, "measure", "batch_topk"]
LONGER = settings(steps=40, checkpoint_every=5)


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> Path:
    """Folder of two stores of the same tokens, `inputs` and `targets`, in two shards each."""
    folder = tmp_path_factory.mktemp("stores")
    for name, width in (("inputs", 12), ("targets", 8)):
        files = [folder / f"{index}.npy" for index in range(2)]
        for index, file in enumerate(files):
            np.save(file, rows(450, seed=index).numpy()[:, :width])
        import_arrays(files, folder / name)
    inputs, targets = (folder / name / "manifest.json" for name in ("inputs", "targets"))
    of_one_harvest = {key: json.loads(inputs.read_text()).get(key) for key in OF_ONE_HARVEST}
    targets.write_text(json.dumps(json.loads(targets.read_text()) | of_one_harvest))
    return folder


def train_all(stores: Path, out: Path, names: list[str], run: Path, until: int) -> None:
    """In each of many processes: `NAME.json` with every step's record, `NAME-RANK`, and in
    `sent-RANK.json` the bytes that went through each collective. Then `run` goes on to a step."""
    sent = {}
    for name in names:
        if name == SHARED_GRAM:
            descent.GRAM_SHARED_FROM = descent.GRAM_SHARED_WIDTH = 2
        paired = name == "skip_transcoder"
        inputs, targets = stores / "inputs", stores / "targets"
        source = PairedStore(inputs, targets) if paired else ActivationStore(inputs)
        log: list[dict] = []
        processes.sent.clear()
        model = train(source, settings(**CONFIGS[name]), report=log.append)
        sent[name] = dict(processes.sent)
        if processes.is_first():
            (out / f"{name}.json").write_text(json.dumps(log))
        model.save(out / f"{name}-{processes.rank()}")
    (out / f"sent-{processes.rank()}.json").write_text(json.dumps(sent))

    def stop(record: dict) -> None:
        if record["step"] == until:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(BitlensError):
        train(ActivationStore(stores / "inputs"), LONGER, run, resume=True, report=stop)


def trained(n: int, stores: Path, folder: Path, names: list[str], run: Path, until: int) -> Path:
    commands = together(n, partial(train_all, stores, folder, names, run, until), folder)
    assert [command.wait() for command in commands] == [0] * n, [c.output for c in commands]
    return folder


@pytest.fixture(scope="module")
def alone(stores, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    return trained(1, stores, folder, list(CONFIGS), folder / "run", 8)


@pytest.fixture(scope="module")
def pair(alone, stores, tmp_path_factory) -> Path:
    return trained(2, stores, tmp_path_factory.mktemp("pair"), list(CONFIGS), alone / "run", 18)


@pytest.fixture(scope="module")
def four(alone, pair, stores, tmp_path_factory) -> Path:
    return trained(4, stores, tmp_path_factory.mktemp("four"), FEW, alone / "run", 28)


def curve(folder: Path, name: str) -> torch.Tensor:
    log = json.loads((folder / f"{name}.json").read_text())
    kept = [[v for k, v in record.items() if k != "rows_per_second"] for record in log]
    return torch.tensor(kept, dtype=torch.float64)


def close(one: Path, many: Path, n: int, name: str) -> None:
    torch.testing.assert_close(curve(many, name), curve(one, name), rtol=2e-5, atol=1e-6)
    models = [Autoencoder.from_pretrained(many / f"{name}-{rank}") for rank in range(n)]
    assert all(same(models[0], other) for other in models[1:])
    expected = Autoencoder.from_pretrained(one / f"{name}-0").state_dict()
    assert expected.keys() == models[0].state_dict().keys()
    for key, value in models[0].state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=1e-3, atol=1e-4, msg=key)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_two_processes_train_as_one_does(alone, pair, name):
    close(alone, pair, 2, name)


@pytest.mark.slow
def test_four_processes_train_as_one_does(alone, four):
    for name in FEW:
        close(alone, four, 4, name)


@pytest.mark.slow
def test_any_number_of_processes_goes_on_with_a_run(alone, pair, four, stores, tmp_path):
    """Begun by one process, gone on with by two, by four, and again by one."""
    source, run = ActivationStore(stores / "inputs"), alone / "run"
    assert logged_steps(run)[-1] in (28, 29)
    train(source, LONGER, run, resume=True)
    train(source, LONGER, tmp_path)
    assert logged_steps(run) == list(range(1, 41))
    one, many = (
        [json.loads(line)["total"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (tmp_path, run)
    )
    assert many == pytest.approx(one, rel=2e-5)


@pytest.mark.slow
def test_one_process_is_as_without_torchrun_to_the_last_bit(alone, stores):
    for name in ("features", "measure", "jumprelu"):
        log: list[dict] = []
        model = train(
            ActivationStore(stores / "inputs"), settings(**CONFIGS[name]), report=log.append
        )
        assert same(model, Autoencoder.from_pretrained(alone / f"{name}-0"))
        assert [r["total"] for r in log] == [
            r["total"] for r in json.loads((alone / f"{name}.json").read_text())
        ]


@pytest.mark.slow
def test_bits_travel_packed(pair):
    """One process's rows of a batch are 32 here; 40 latents are a word of 8 bytes, or 40 floats."""
    sent = json.loads((pair / "sent-1.json").read_text())
    tags = 3 * 32  # bytes, that say that both have the same settings
    assert sent["step, another surrogate"]["gather"] - tags <= STEPS * 32 * 8
    assert sent["features"]["gather"] < 2 * STEPS * 32 * 8 + 9 * 512 * 8, "only of samples"
    gradients = 4 * (2 * 12 * 40 + 40 + 12)
    assert sent["topk"]["sum"] >= STEPS * gradients
    assert sent["topk"]["sum"] <= STEPS * (gradients + 4 * 40 + 5 * 8)


def test_every_row_is_of_one_process(monkeypatch):
    for size in range(1, 9):
        monkeypatch.setenv("WORLD_SIZE", str(size))
        for n in (0, 1, 7, 8, 63, 512):
            shares = [list(range(n))[processes.part(n, rank)] for rank in range(size)]
            assert [row for share in shares for row in share] == list(range(n))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("seconds", ["soon", "0", "-1", "inf", "nan"])
def test_a_time_out_is_a_number_of_seconds(monkeypatch, seconds):
    monkeypatch.setenv(processes.TIMEOUT, seconds)
    with pytest.raises(BitlensError, match=f"BITLENS_PROCESS_TIMEOUT is '{seconds}'; give it"):
        processes.timeout()


# --- runs that are stopped ------------------------------------------------------------------------

LONG = 100_000  # steps, of which only a few are ever done


def train_command(stores: Path, out: Path, steps: int = LONG, every: int = 7) -> list[str]:
    flags = {"out": out, "n-latents": 40, "steps": steps, "batch-size": 64, "log-every": 2}
    flags |= {"checkpoint-every": every, "device": "cpu"}
    named = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    return ["train", str(stores / "inputs"), *named]


def sentences(commands: list[Command]) -> list[str]:
    """What they said beside progress, which has a colon after the name of the command."""
    said = "".join(command.output for command in commands).splitlines()
    return [line for line in said if not line.startswith(("train", "["))]


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_is_named_by_the_other_and_the_run_goes_on(stores, tmp_path, killed):
    out, whole = tmp_path / "run", tmp_path / "whole"
    commands = together(2, train_command(stores, out, 300), tmp_path)
    commands[0].wait_until(lambda: len(logged_steps(out)) > 9)
    assert commands[killed].kill() == -signal.SIGKILL
    left = commands[1 - killed]
    assert left.wait() == 2
    assert sentences([left])[-1] == (
        f"Process {killed} of 2 ended; what was saved is whole: start again with --resume."
    )
    if killed:
        return
    for arguments in (
        [*train_command(stores, out, 300), "--resume"],
        train_command(stores, whole, 300),
    ):
        commands = together(2, arguments, tmp_path)
        assert [command.wait() for command in commands] == [0, 0], commands[0].output
    assert logged_steps(out) == logged_steps(whole)
    assert same(*(Autoencoder.from_pretrained(folder) for folder in (out, whole)))


def killed_within(arguments: list[str], rank: int, number: int) -> None:
    """The command; process `rank` kills itself while its collective of that number is under way."""
    from torch import distributed

    from bitlens.cli import main

    count = itertools.count(1)

    def until_then(collective):
        def call(*args):
            if processes.rank() == rank and next(count) == number:
                collective(*args, async_op=True)
                os.kill(os.getpid(), signal.SIGKILL)
            return collective(*args)

        return call

    for name in ("all_reduce", "all_gather", "broadcast"):
        setattr(distributed, name, until_then(getattr(distributed, name)))
    main(arguments)


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True])
def test_a_process_killed_within_a_collective_is_named_and_the_run_goes_on(
    stores, tmp_path, seed, sharded
):
    """Also where the processes begin, save a checkpoint and end."""
    draw, out, whole = random.Random(f"{seed} {sharded}"), tmp_path / "run", tmp_path / "whole"
    more = ["--shard-latents"] if sharded else []
    undisturbed = partial(killed_within, [*train_command(stores, whole, 12, 3), *more], -1, 0)
    assert [one.wait() for one in together(2, undisturbed, tmp_path)] == [0, 0]
    arguments = [*train_command(stores, out, 12, 3), *more]
    rank, number = draw.randrange(2), round(2 ** draw.uniform(0, 9))
    commands = together(2, partial(killed_within, arguments, rank, number), tmp_path)
    status = [command.wait() for command in commands]
    if status[rank] == -signal.SIGKILL:
        assert status[1 - rank] == 2, commands[1 - rank].output
        assert sentences([commands[1 - rank]])[-1] == (
            f"Process {rank} of 2 ended; what was saved is whole: start again with --resume."
        )
    else:
        assert status == [0, 0]  # there were fewer collectives
    commands = together(2, [*arguments, "--resume"], tmp_path)
    assert [command.wait() for command in commands] == [0, 0], commands[0].output
    assert logged_steps(out) == logged_steps(whole)
    assert same(*(Autoencoder.from_pretrained(folder) for folder in (out, whole)))


@pytest.mark.slow
def test_a_process_that_hangs_is_named_after_the_time_out(stores, tmp_path):
    commands = together(
        2, train_command(stores, tmp_path / "run"), tmp_path, **{processes.TIMEOUT: "4"}
    )
    commands[0].wait_until(lambda: len(logged_steps(tmp_path / "run")) > 3)
    commands[1].send(signal.SIGSTOP)
    assert commands[0].wait() == 2
    assert sentences(commands)[-1] == (
        "Process 1 of 2 did not come within 4 s (BITLENS_PROCESS_TIMEOUT); what was saved is "
        "whole: start again with --resume."
    )
    commands[1].kill()


@pytest.mark.slow
def test_a_signal_to_one_stops_all_at_one_step_that_is_saved(stores, tmp_path):
    out = tmp_path / "run"
    arguments = train_command(stores, out, every=LONG)
    commands = together(2, arguments, tmp_path)
    commands[0].wait_until(lambda: len(logged_steps(out)) > 3)
    commands[1].send(signal.SIGTERM)
    commands[1].send(signal.SIGTERM)  # torchrun may repeat it
    assert [command.wait() for command in commands] == [1, 1]
    (sentence,) = [line for line in sentences(commands) if "Stopped" in line]
    assert sentence.startswith("Stopped by SIGTERM after step ")
    step = int(sentence.split()[5])
    assert (out / STATE).exists()
    assert logged_steps(out)[-1] in (step, step - 1)


def told_to_stop(stores: Path, out: Path, ending: bool) -> None:
    """The command; the second process is sent SIGTERM before the first step or after the last."""
    from bitlens.cli import main

    at, name = (Run, "finish") if ending else (ActivationStore, "sample")
    method = getattr(at, name)

    def told(*args):
        if not processes.is_first():
            os.kill(os.getpid(), signal.SIGTERM)
        return method(*args)

    setattr(at, name, told)
    main(train_command(stores, out, 10))


@pytest.mark.slow
@pytest.mark.parametrize("ending", [False, True])
def test_a_signal_to_one_before_or_after_the_steps_is_said_once(stores, tmp_path, ending):
    out = tmp_path / "run"
    commands = together(2, partial(told_to_stop, stores, out, ending), tmp_path)
    assert [command.wait() for command in commands] == [1, 128 + signal.SIGTERM]
    assert sentences(commands) == ["Stopped."]
    if ending:
        again = together(2, [*train_command(stores, out, 10), "--resume"], tmp_path)
        assert [command.wait() for command in again] == [0, 0]


# --- what is refused, in one sentence -------------------------------------------------------------


def differing(stores: Path) -> None:
    """The command, with another seed in each process."""
    from bitlens.cli import main

    main([*train_command(stores, stores / "no-run"), "--seed", str(processes.rank())])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (differing, "Process 1 has settings or rows other than process 0; start all processes"),
        (["--batch-size", "3"], "--batch-size must be at least 4, two rows for each of 2 processe"),
        (["--lam", "-1"], "--lam must be at least 0"),
        (["--stream"], "harvest a store first"),
        (["evaluate", "run", "store"], "'bitlens evaluate' runs in one process: start it without"),
        (["no-command"], "There is no 'bitlens no-command'"),
        (["train", "--no-flag"], ""),
    ],
    ids=["seeds", "rows", "price", "stream", "evaluate", "no command", "no flag"],
)
def test_what_is_wrong_is_said_once(stores, tmp_path, arguments, sentence):
    if callable(arguments):
        arguments = partial(arguments, stores)
    elif arguments[0].startswith("--"):
        text = ["--text", "bundled", "--hook", "layers.0"] if "--stream" in arguments else []
        arguments = [*train_command(stores, tmp_path / "run"), *arguments, *text]
    commands = together(2, arguments, tmp_path)
    assert all(command.wait() in (1, 2) for command in commands)
    said = [command.output for command in commands if sentences([command])]
    assert len(said) == 1
    assert sentence in said[0]
    assert "Traceback" not in said[0]
    assert not (tmp_path / "run" / STATE).exists()


@pytest.mark.slow
def test_a_plan_is_said_once(stores, tmp_path):
    plan = tmp_path / "plan.json"
    arguments = [*train_command(stores, tmp_path / "run"), "--plan", "--json", str(plan)]
    commands = together(2, arguments, tmp_path)
    assert [command.wait() for command in commands] == [0, 0]
    assert "".join(command.output for command in commands).count("train takes") == 1
    assert json.loads(plan.read_text())["work"] == "train"
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_full_disk_of_the_first_ends_all_with_its_sentence(stores, tmp_path):
    commands = together(2, partial(on_a_full_disk, stores, tmp_path / "run"), tmp_path)
    assert sorted(command.wait() for command in commands) == [1, 2]
    (sentence,) = sentences(commands)
    assert sentence.startswith("The disk is full: ")


def on_a_full_disk(stores: Path, out: Path) -> None:
    import resource

    from bitlens.cli import main

    if processes.is_first():
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
    main([*train_command(stores, out)])


# --- torchrun itself ------------------------------------------------------------------------------


@pytest.mark.slow
def test_torchrun_stops_none_before_the_first_has_said_what_is_wrong(tmp_path):
    late = tmp_path / "late.py"
    late.write_text(
        "import os, time\n"
        "from bitlens.cli import main\n"
        "time.sleep(2 * (os.environ['RANK'] == '0'))\n"
        "main(['evaluate', 'run', 'store'])\n"
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(late)]
    ended = subprocess.run(launch, stderr=subprocess.PIPE, text=True, timeout=120)
    assert ended.stderr.count("'bitlens evaluate' runs in one process") == 1
    assert "Stopped." not in ended.stderr


@pytest.mark.slow
def test_torchrun_starts_and_stops_all(stores, tmp_path):
    out, log = tmp_path / "run", tmp_path / "log"
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    launch += ["-m", "bitlens", *train_command(stores, out, every=LONG)]
    with log.open("wb") as file:
        running = subprocess.Popen(launch, stdout=file, stderr=file, env=os.environ)
        while running.poll() is None and len(logged_steps(out)) < 5:
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        assert running.wait(60) != 0
    (said,) = [line for line in log.read_text().splitlines() if line.startswith("Stopped")]
    assert said.startswith("Stopped by SIGINT after step ")
    assert said.endswith(f"of {LONG}: saved in {out}; continue it with --resume.")
    assert (out / STATE).exists()
