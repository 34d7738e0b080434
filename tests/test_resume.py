"""A run that is stopped or killed and resumed gives the weights of one that never stopped."""

import json

import pytest
import torch

from bitlens.autoencoders import Autoencoder
from bitlens.errors import BitlensError
from bitlens.hidden import TensorSource
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("line", [b"{}", b"3", b"null", b"[" * 10**5, b"\xff\xfe", b'{"step": 1'])
def test_lines_of_the_log_that_are_no_records_are_dropped(tmp_path, line):
    source = TensorSource(rows())
    whole = train(source, settings(), tmp_path / "whole")
    with pytest.raises(PowerCut):
        train(source, settings(), tmp_path / "run", report=cut_at(23))
    log = tmp_path / "run" / "metrics.jsonl"
    first, rest = log.read_bytes().split(b"\n", 1)
    log.write_bytes(first + b"\n" + line + b"\n" + rest)
    assert same(train(source, settings(), tmp_path / "run", resume=True), whole)
    assert logged_steps(tmp_path / "run") == logged_steps(tmp_path / "whole")


def logged_steps(run) -> list[int]:
    lines = (
        (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").exists() else []
    )
    return [json.loads(line)["step"] for line in lines if line.endswith("}")]


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
