"""What a training can be told: defaults, presets, refusals, and which settings apply to what."""

import math
import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pytest

from bitlens.autoencoders.base import Autoencoder
from bitlens.autoencoders.learner import Learner, build, make_learner
from bitlens.autoencoders.registry import ARCHITECTURES, find
from bitlens.autoencoders.settings import Settings
from bitlens.cli import main
from bitlens.errors import BitlensError
from bitlens.hidden import TensorSource
from bitlens.training import PRESETS, TrainConfig, train
from bitlens.training.config import settings_that_apply
from bitlens.training.trainer import learning_rate
from test_resume import rows, settings

SENSELESS = {
    "preset": ["nothing"],
    "architecture": ["nothing"],
    "n_latents": [0, 32.0, "many"],
    "steps": [0, 2.5, True],
    "surrogate": ["clip"],
    "price": ["entropyy"],
    "weighting": ["Paper"],
    "precision": ["fp16"],
    "k": [3.5],
    "seed": [None, 1.0],
    "reference": [1],
    "device": [0],
    "batch_size": [1],
    "log_every": [0],
    "checkpoint_every": [0],
    "prune_rows": [0],
    "lr": [0.0, -1.0, math.nan, "fast"],
    "decay": [0.0],
    "lam": [-0.1],
    "gamma": [math.inf],
    "width": [0.0],
    "p0": [0.5, 0.0],
    "sparsity": [0.0],
    "test_fraction": [1.0],
    "initial_share": [1.5],
    "prune_at": [(1.5,), 0.5, ("soon",)],
    "regrow_at": [(-0.1,)],
    "initial_rates": [(0.1,), (0.0, 0.2), (0.2, 0.1)],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in SENSELESS.items() for value in values]
)
def test_senseless_settings_are_refused_by_name(tmp_path, name, value):
    with pytest.raises(BitlensError, match=name) as refusal:
        train(TensorSource(rows()), settings(**{name: value}), tmp_path / "run")
    assert str(value) in str(refusal.value)
    assert not (tmp_path / "run").exists()


def test_numbers_of_numpy_are_as_those_of_python():
    seed, lr, n = np.arange(4)[3], np.float32(0.25), np.int32(8)
    found = settings(seed=seed, lr=lr, n_latents=n, init=Path("x")).resolved(12, "cpu")
    assert found == settings(seed=3, lr=0.25, n_latents=8, init="x").resolved(12, "cpu")
    assert [type(v) for v in (found.seed, found.lr, found.n_latents)] == [int, float, int]


def test_what_has_no_effect_without_a_folder_is_refused(tmp_path):
    source = TensorSource(rows())
    with pytest.raises(BitlensError, match="There is no logger 'tensorbord'"):
        train(source, settings(), tmp_path / "run", loggers=("tensorbord",))
    for idle in ({"resume": True}, {"loggers": ("tensorboard",)}):
        with pytest.raises(BitlensError, match="name it as `out`"):
            train(source, settings(), **idle)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gamma": 1.0}, "`gamma` must be .* 0 with coding descent"),
        ({"price": "entropy"}, "`price` must be onbit with coding descent"),
        ({"scale": 0.0}, "`scale` must be above 0"),
        ({"anneal": 0.5}, "`anneal` must be at least 1"),
        ({"coding": "step"}, "`coding` must be the preset's"),
        ({"preset": "measure", "coding": "descent"}, "descent with `preset='features'`"),
    ],
    ids=str,
)
def test_settings_that_do_not_go_together_are_refused(tmp_path, changes, message):
    with pytest.raises(BitlensError, match=message):
        train(TensorSource(rows()), settings(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_unset_field_takes_the_presets_value():
    config = TrainConfig(preset="measure", lam=0.2).resolved(16, "cpu")
    assert (config.lam, config.width, config.price) == (0.2, 1.0, "entropy")
    assert (config.n_latents, config.lr, config.precision) == (64, 1e-2, "fp32")
    one, other = (TrainConfig(architecture="topk").resolved(16, f"cuda:{gpu}") for gpu in range(2))
    assert one.precision == "bf16"
    assert one == other == TrainConfig(architecture="topk").resolved(16, "cuda")  # as torchrun's
    assert TrainConfig(device="cuda:1").resolved(16, "cuda:1").device == "cuda:1"


def test_a_sparse_autoencoder_has_a_learning_rate_of_its_own():
    config = TrainConfig(architecture="relu").resolved(16, "cpu")
    assert (config.lr, config.decay, config.coding) == (6e-3, 0.3, "step")
    assert TrainConfig(architecture="relu", lr=0.1).resolved(16, "cpu").lr == 0.1


def test_the_learning_rate_warms_up_and_decays():
    config = TrainConfig(steps=1000, lr=0.01, decay=0.3).resolved(12, "cpu")
    rates = [learning_rate(config, step) for step in range(1000)]
    assert rates[0] == pytest.approx(0.01 / 50)
    assert rates[49] == rates[500] == rates[699] == pytest.approx(0.01)
    assert rates[850] == pytest.approx(0.005)
    assert rates[-1] == pytest.approx(0.0002)


# --- architectures --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_name_in_the_registry_is_a_model_and_how_it_learns(name):
    config = TrainConfig(architecture=name, k=3).resolved(6, "cpu")
    model = build(config, 6, 6)
    assert isinstance(model, Autoencoder)
    assert model.architecture == name
    learner = make_learner(model, config, lambda n, seed: rows(n, d=6))
    assert isinstance(learner, Learner)
    assert learner.settings is config


def test_every_setting_applies_to_some_architecture():
    every = set[str]().union(*(settings_that_apply(name) for name in ARCHITECTURES))
    assert every == {field.name for field in fields(TrainConfig)}
    assert {"scale", "surrogate"} <= settings_that_apply("bae")
    assert "surrogate" not in settings_that_apply("bae", "descent")
    assert not {"lam", "preset", "sparsity", "match"} & settings_that_apply("topk")


def test_what_is_recorded_has_the_fields_of_what_can_be_told():
    names = [field.name for field in fields(TrainConfig)]
    assert [field.name for field in fields(Settings)] == names


def test_every_preset_fills_whatever_is_open():
    for preset in PRESETS:
        config = TrainConfig(preset=preset).resolved(8, "cpu")
        open_ = {name for name, value in asdict(config).items() if value is None}
        assert open_ == {"sparsity", "test_fraction"}


def test_an_unknown_architecture_is_named():
    with pytest.raises(BitlensError, match="no architecture 'nope'; choose one of: bae, random"):
        find("nope")


def test_settings_and_their_help_import_nothing_heavy():
    code = "import sys, bitlens.cli.runs; assert not {'torch', 'numba'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("arguments", "shown", "hidden"),
    [
        ([], "--lam --surrogate --preset --steps", "--sparsity --match --k"),
        (["--architecture", "topk"], "--k --steps", "--lam --preset --sparsity --match"),
        (["--architecture=gated"], "--k --sparsity", "--lam --preset --match"),
        (["--architecture", "random"], "--match --preset", "--lam --sparsity --k"),
    ],
    ids=str,
)
def test_help_shows_the_settings_of_the_architecture(capsys, arguments, shown, hidden):
    with pytest.raises(SystemExit, match="0"):
        main(["train", *arguments, "--help"])
    words = set(capsys.readouterr().out.split())
    assert set(shown.split()) <= words
    assert not set(hidden.split()) & words


def test_a_flag_without_effect_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["train", str(tmp_path), "--out", str(tmp_path / "run"), "--k", "3", "--width", "2"])
    assert "Without effect on this run: --width, --k." in capsys.readouterr().err
