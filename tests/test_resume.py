"""A run that is stopped or killed and resumed gives the weights of one that never stopped."""

import json
import random
import signal

import numpy as np
import pytest
import torch

from bitlens.autoencoders import Autoencoder
from bitlens.errors import BitlensError
from bitlens.files import read_tensors
from bitlens.hidden import TensorSource
from bitlens.hidden.arrays import import_arrays
from bitlens.training import TrainConfig, train
from bitlens.training.checkpoint import STATE

CHANGES = {
    "features": {},
    "measure": {"preset": "measure", "gamma": 0.5},
    "paper": {"preset": "paper"},
    "step": {"preset": "step"},
    "bf16": {"preset": "step", "precision": "bf16", "gamma": 0.5},
    "topk": {"architecture": "topk", "k": 4},
}


def rows(n: int = 700, d: int = 12, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    bits = (torch.rand(n, 10, generator=g) < 0.3).float()
    return bits @ torch.randn(10, d, generator=g) + 0.2 * torch.randn(n, d, generator=g)


def settings(**changes) -> TrainConfig:
    base = {
        "n_latents": 40,
        "steps": 40,
        "batch_size": 64,
        "log_every": 1,
        "checkpoint_every": 5,
        "prune_rows": 500,
    }
    return TrainConfig(**{**base, "device": "cpu", **changes})


def same(one: Autoencoder, other: Autoencoder) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class PowerCut(Exception):
    pass


def cut_at(step: int):
    """A report that stops the training with an error once `step` steps are done."""

    def report(record):
        if record["step"] == step:
            raise PowerCut

    return report


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_stopped_and_resumed_equals_uninterrupted(tmp_path, changes):
    source, config = TensorSource(rows()), settings(**changes)
    for step in (
        3,
        9,
        17,
        26,
        40,
    ):  # before the first checkpoint, around pruning and regrowing, after the last step
        with pytest.raises(PowerCut):
            train(source, config, tmp_path / "run", resume=True, report=cut_at(step))
    resumed = train(source, config, tmp_path / "run", resume=True)
    assert same(resumed, train(source, config, tmp_path / "whole"))
    assert same(resumed, train(source, config)), "without a folder the result must be the same"
    assert same(resumed, Autoencoder.from_pretrained(tmp_path / "run"))
    assert not (tmp_path / "run" / STATE).exists()


def test_a_resumed_run_starts_at_its_checkpoint_and_logs_every_step_once(tmp_path):
    source, config = TensorSource(rows()), settings()
    with pytest.raises(PowerCut):
        train(source, config, tmp_path, report=cut_at(23))
    seen = []
    train(source, config, tmp_path, resume=True, report=lambda record: seen.append(record["step"]))
    assert seen == list(range(21, 41))
    assert logged_steps(tmp_path) == list(range(1, 41))


def test_a_finished_run_is_returned_as_it_is(tmp_path):
    source, config = TensorSource(rows()), settings()
    first = train(source, config, tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    seen = []
    assert same(first, train(source, config, tmp_path, resume=True, report=seen.append))
    assert not seen
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_how_often_to_log_and_save_may_change_on_resume(tmp_path):
    source = TensorSource(rows())
    with pytest.raises(PowerCut):
        train(source, settings(), tmp_path, report=cut_at(23))
    resumed = train(source, settings(log_every=10, checkpoint_every=3), tmp_path, resume=True)
    assert same(resumed, train(source, settings()))


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    "changes", [{"seed": 1}, {"lam": 0.3}, {"steps": 50}, {"prune_at": (0.1,)}], ids=str
)
def test_other_settings_are_refused_and_named(tmp_path, finished, changes):
    source, (name,) = TensorSource(rows()), changes
    with pytest.raises(PowerCut):
        train(source, settings(), tmp_path, report=cut_at(23))
    if finished:
        train(source, settings(), tmp_path, resume=True)
    with pytest.raises(BitlensError, match=f"other settings .*{name} was .* and is "):
        train(source, settings(**changes), tmp_path, resume=True)


def test_another_origin_of_the_rows_is_refused(tmp_path):
    with pytest.raises(PowerCut):
        train(TensorSource(rows(), {"corpus": "one"}), settings(), tmp_path, report=cut_at(23))
    with pytest.raises(BitlensError, match="corpus was 'one' and is 'other'"):
        train(TensorSource(rows(), {"corpus": "other"}), settings(), tmp_path, resume=True)


def test_a_damaged_checkpoint_is_named(tmp_path):
    with pytest.raises(PowerCut):
        train(TensorSource(rows()), settings(), tmp_path, report=cut_at(23))
    state = tmp_path / STATE
    state.write_bytes(state.read_bytes()[:200])
    with pytest.raises(BitlensError, match=r"state\.safetensors is damaged"):
        train(TensorSource(rows()), settings(), tmp_path, resume=True)


# --- processes that are really killed -------------------------------------------------------------

STEPS, LOG, SAVE = 160, 2, 7
WINDOWS = {"bitlens.hidden.store.WINDOW_BYTES": 40_000}  # several windows an epoch


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store of three shards, made without a language model."""
    folder = tmp_path_factory.mktemp("imported")
    files = []
    for index, n in enumerate((300, 450, 200)):
        files.append(folder / f"{index}.npy")
        np.save(files[-1], rows(n, seed=index).numpy())
    return import_arrays(files, folder / "store")


def command_line(store, out, architecture: str, steps: int = STEPS) -> list[object]:
    flags = {
        "architecture": architecture,
        "n-latents": 40,
        "k": 4,
        "steps": steps,
        "batch-size": 64,
        "prune-rows": 500,
        "log-every": LOG,
        "checkpoint-every": SAVE,
        "device": "cpu",
        "out": out,
    }
    return [
        "train",
        store.path,
        *(part for name, value in flags.items() for part in (f"--{name}", value)),
    ]


def logged_steps(run) -> list[int]:
    lines = (
        (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").exists() else []
    )
    return [json.loads(line)["step"] for line in lines if line.endswith("}")]


def lines(run) -> int:
    return (
        (run / "metrics.jsonl").read_bytes().count(b"\n") if (run / "metrics.jsonl").exists() else 0
    )


@pytest.mark.parametrize("architecture", [pytest.param("bae", marks=pytest.mark.slow), "topk"])
def test_killed_at_random_moments_and_resumed_equals_uninterrupted(
    bitlens_command, store, tmp_path, architecture
):
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert bitlens_command(*command_line(store, whole, architecture), constants=WINDOWS).wait() == 0
    draw = random.Random(architecture)
    early, late = (
        draw.randrange(5, STEPS // LOG // 2),
        draw.randrange(STEPS // LOG // 2, STEPS // LOG - 5),
    )
    moments = [
        lambda: (run / "training.json").exists(),
        lambda: lines(run) > early,
        lambda: (run / f".{STATE}.tmp").exists(),
        lambda: lines(run) > late,
        lambda: (
            (run / ".sae_weights.safetensors.tmp").exists()
            or (run / "sae_weights.safetensors").exists()
        ),
    ]
    kills = 0
    for moment in moments:
        command = bitlens_command(
            *command_line(store, run, architecture), "--resume", constants=WINDOWS
        )
        command.wait_until(moment)
        kills += command.kill() == -signal.SIGKILL
    assert kills >= 3
    last = bitlens_command(*command_line(store, run, architecture), "--resume", constants=WINDOWS)
    assert last.wait() == 0, last.output

    assert (run / "cfg.json").read_text() == (whole / "cfg.json").read_text()
    a, b = (read_tensors(folder / "sae_weights.safetensors") for folder in (run, whole))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert logged_steps(run) == logged_steps(whole) == list(range(LOG, STEPS + 1, LOG))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda s: s.name)
def test_a_polite_signal_saves_and_says_so(bitlens_command, store, tmp_path, number):
    out = tmp_path / "run"
    arguments = command_line(store, out, "bae", steps=50_000)
    arguments[arguments.index("--checkpoint-every") + 1] = 1_000_000
    command = bitlens_command(*arguments)
    command.wait_until(lambda: lines(out) > 3)
    command.send(number)
    assert command.wait() == 1
    sentence = command.output.splitlines()[-1]  # on a slow machine it says before what it does
    assert sentence.startswith(f"Stopped by {number.name} after step ")
    assert sentence.endswith(f"of 50000: saved in {out}; continue it with --resume.")
    step = int(sentence.split()[5])
    assert logged_steps(out)[-1] in (step, step - 1)

    again = bitlens_command(*arguments, "--resume")
    again.wait_until(lambda: lines(out) > step // LOG + 3)
    again.send(number)
    assert again.wait() == 1
    reached = int(again.output.splitlines()[-1].split()[5])
    assert reached > step, "it began again instead of going on"
    assert logged_steps(out) == list(range(LOG, reached + 1, LOG))


def test_a_run_from_before_a_setting_existed_goes_on_with_its_default(tmp_path):
    source, config = TensorSource(rows()), settings(steps=4)
    first = train(source, config, tmp_path / "run")
    path = tmp_path / "run" / "training.json"
    run = json.loads(path.read_text())
    del run["config"]["reference"]
    path.write_text(json.dumps(run))
    assert same(train(source, config, tmp_path / "run", resume=True), first)


def test_a_run_goes_on_when_its_model_was_moved_and_not_with_another(tmp_path):
    about = {"model": "/here", "model_digest": "1"}
    with pytest.raises(PowerCut):
        train(TensorSource(rows(), about), settings(), tmp_path, report=cut_at(23))
    with pytest.raises(BitlensError, match="model_digest was '1' and is '2'"):
        train(
            TensorSource(rows(), {"model": "/there", "model_digest": "2"}),
            settings(),
            tmp_path,
            resume=True,
        )
    resumed = train(
        TensorSource(rows(), about | {"model": "/there"}), settings(), tmp_path, resume=True
    )
    assert same(resumed, train(TensorSource(rows()), settings()))
