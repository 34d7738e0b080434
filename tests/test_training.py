"""The training loop: what it learns, what it writes and what it refuses."""

import json
import math

import numpy as np
import pytest
import torch

from bitlens.autoencoders import Autoencoder, BinaryAutoencoder, TopKAutoencoder
from bitlens.autoencoders.learner import build, make_learner
from bitlens.autoencoders.topk import TopKLearner
from bitlens.errors import BitlensError
from bitlens.hidden import TensorSource
from bitlens.hidden.arrays import import_arrays
from bitlens.hidden.source import HiddenSource
from bitlens.training import PRESETS, TrainConfig, train
from bitlens.training.trainer import prefetched

LOGGED = {
    "step",
    "total",
    "mse",
    "price",
    "covariance",
    "auxiliary",
    "l0",
    "bits_batch",
    "rows_per_second",
}


def rows(n: int = 900, d: int = 12, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    bits = (torch.rand(n, 10, generator=g) < 0.3).float()
    return bits @ torch.randn(10, d, generator=g) + 0.2 * torch.randn(n, d, generator=g) + 5


def settings(**changes) -> TrainConfig:
    base = {
        "n_latents": 40,
        "steps": 100,
        "batch_size": 64,
        "log_every": 10,
        "prune_rows": 900,
        "device": "cpu",
    }
    return TrainConfig(**{**base, **changes})


def fvu(model: Autoencoder, x: torch.Tensor) -> float:
    with torch.no_grad():
        return float((x - model(x)).square().sum() / (x - x.mean(0)).square().sum())


def weights(model: Autoencoder) -> list[torch.Tensor]:
    return list(model.state_dict().values())


# --- what it learns -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{"lam": 0.005}, {"preset": "step"}, {"preset": "measure"}, {"architecture": "topk", "k": 5}],
    ids=str,
)
def test_training_explains_the_rows_and_the_loss_falls(changes):
    records = []
    model = train(TensorSource(rows()), settings(steps=300, **changes), report=records.append)
    assert fvu(model, rows()) < 0.3
    assert records[-1]["total"] < 0.5 * records[0]["total"]
    assert not model.training


@pytest.mark.slow
def test_the_paper_preset_trains():
    records = []
    model = train(TensorSource(rows()), settings(steps=300, preset="paper"), report=records.append)
    assert isinstance(model, BinaryAutoencoder)
    assert records[-1]["total"] < 0.5 * records[0]["total"]
    assert records[-1]["price"] < 1e-4


def test_a_binary_autoencoder_comes_back_canonical():
    model = train(TensorSource(rows()), settings(preset="measure"))
    rates = model.encode(rows()).mean(0)
    assert (rates <= 0.5).all()
    assert (rates > 0).all()
    assert model.n_latents < model.metadata["n_latents_trained"] == 40


def test_topk_keeps_k_latents_and_unit_decoder_rows():
    model = train(TensorSource(rows()), settings(architecture="topk", k=5))
    assert isinstance(model, TopKAutoencoder)
    assert torch.allclose(model.W_dec.norm(dim=1), torch.ones(40), atol=1e-5)
    on = (model.encode(rows()) != 0).sum(1)
    assert on.max() <= 5
    assert on.float().mean() > 4


def test_only_the_auxiliary_loss_moves_dead_latents_of_topk(monkeypatch):
    config = settings(architecture="topk", k=2, n_latents=40).resolved(12, "cpu")
    moved = []
    for auxiliary in (TopKLearner.AUXILIARY, 0.0):
        monkeypatch.setattr(TopKLearner, "AUXILIARY", auxiliary)
        model = build(config, 12, 12)
        model.b_enc.data[20:] = 1.0  # the others are always larger
        learner = make_learner(model, config, lambda n, seed: rows()[:n])
        learner.state["silent"][:20] = config.steps
        learner.backward(rows()[:64])
        gradient = model.W_enc.grad
        assert gradient is not None
        moved.append(gradient[:, :20].norm(dim=0) > 0)
    assert moved[0].sum() >= 6  # those of the largest pre-activations
    assert not moved[1].any()


@pytest.mark.slow
def test_a_higher_price_leaves_fewer_bits():
    l0 = [
        float(
            train(TensorSource(rows()), settings(steps=300, lam=lam)).encode(rows()).mean(0).sum()
        )
        for lam in (0.03, 0.3)
    ]
    assert l0[1] < 0.8 * l0[0]


def test_first_firing_rates_are_log_uniform_in_their_range():
    records = []
    train(
        TensorSource(rows()),
        settings(preset="step", steps=1, log_every=1, initial_rates=(0.05, 0.2)),
        report=records.append,
    )
    expected = 40 * 0.15 / math.log(4)  # the mean of a log-uniform rate, forty times
    assert records[0]["l0"] == pytest.approx(expected, rel=0.25)


@pytest.mark.slow
def test_raw_space_is_the_callers():
    """Shifted and scaled rows give the same bits, and their reconstructions shift and scale."""
    x = rows().double()
    plain, moved = (train(TensorSource(y), settings()) for y in (x, 64 * x + 3))
    assert torch.allclose(moved(64 * x + 3), 64 * plain(x) + 3, atol=0.5)
    assert (moved.encode(64 * x + 3) == plain.encode(x)).float().mean() > 0.999


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    one, again = (train(TensorSource(rows()), settings()) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(weights(one), weights(again), strict=True))
    other = train(TensorSource(rows()), settings(seed=1))
    assert other.W_enc.shape != one.W_enc.shape or not torch.equal(other.W_enc, one.W_enc)


@pytest.mark.slow
def test_half_precision_rows_are_accepted():
    half = rows().half()
    model = train(TensorSource(half), settings(steps=300))
    assert model.W_enc.dtype == torch.float32
    assert fvu(model, half.float()) < 0.3


@pytest.mark.slow
def test_training_under_bf16_keeps_float32_weights():
    model = train(
        TensorSource(rows()), settings(steps=300, preset="step", precision="bf16", gamma=0.1)
    )
    assert all(tensor.dtype == torch.float32 for tensor in weights(model))
    assert fvu(model, rows()) < 0.3


@pytest.mark.slow
def test_a_store_and_a_tensor_of_the_same_rows_agree(tmp_path):
    np.save(tmp_path / "rows.npy", rows().numpy())
    store = import_arrays([tmp_path / "rows.npy"], tmp_path / "store")
    store.test_fraction = 0.0
    from_store, from_tensor = train(store, settings()), train(TensorSource(rows()), settings())
    assert torch.allclose(from_store.mean, from_tensor.mean)
    assert fvu(from_store, rows()) == pytest.approx(fvu(from_tensor, rows()), rel=0.2)


# --- what it writes -------------------------------------------------------------------------------


def test_a_run_leaves_its_weights_its_settings_and_every_metric(tmp_path):
    records = []
    model = train(
        TensorSource(rows(), {"hook": {"module": "layers.3"}}),
        settings(steps=95),
        tmp_path / "run",
        report=records.append,
    )
    assert {file.name for file in (tmp_path / "run").iterdir()} == {
        "cfg.json",
        "sae_weights.safetensors",
        "metrics.jsonl",
        "training.json",
    }
    lines = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert lines == records
    assert [line["step"] for line in lines] == [*range(10, 95, 10), 95]
    for line in lines:
        assert set(line) == LOGGED
        assert all(math.isfinite(value) for value in line.values())
        parts = line["mse"] + line["price"] + line["covariance"] + line["auxiliary"]
        assert line["total"] == pytest.approx(parts, rel=1e-5)
    config = json.loads((tmp_path / "run" / "cfg.json").read_text())
    assert config["metadata"]["hook"] == {"module": "layers.3"}
    assert int(config["metadata"]["sae_lens_version"].split(".")[0]) >= 6
    assert config["metadata"]["training"]["lam"] == PRESETS["features"]["lam"]
    again = Autoencoder.from_pretrained(tmp_path / "run")
    assert all(torch.equal(a, b) for a, b in zip(weights(again), weights(model), strict=True))


def test_a_folder_with_something_in_it_is_refused_and_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    for overwrite, message in (
        (False, "is not empty; pass `resume=True` .* or `overwrite=True`"),
        (True, "was not written by"),
    ):
        with pytest.raises(BitlensError, match=message):
            train(TensorSource(rows()), settings(steps=2), tmp_path, overwrite=overwrite)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_overwrite_replaces_a_run(tmp_path):
    train(TensorSource(rows()), settings(steps=2), tmp_path / "run")
    with pytest.raises(BitlensError, match="is not empty"):
        train(TensorSource(rows()), settings(steps=2), tmp_path / "run")
    train(TensorSource(rows()), settings(steps=2, n_latents=24), tmp_path / "run", overwrite=True)
    assert Autoencoder.from_pretrained(tmp_path / "run").metadata["n_latents_trained"] == 24


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BitlensError, match="is a file; name a folder"):
        train(TensorSource(rows()), settings(steps=2), tmp_path / "file")


def test_tensorboard_gets_the_same_numbers(tmp_path):
    pytest.importorskip("tensorboard")
    train(TensorSource(rows()), settings(steps=20), tmp_path / "run", loggers=("tensorboard",))
    (events,) = (tmp_path / "run" / "tensorboard").iterdir()
    assert b"bits_batch" in events.read_bytes()


# --- what it refuses ------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(BitlensError, match="no device 'cuda'"):
        train(TensorSource(rows()), settings(device="cuda"))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_rows_that_are_not_finite_are_refused_by_number(value):
    x = rows()
    x[17, 3] = value
    with pytest.raises(BitlensError, match="Row 17 has a NaN or infinite value"):
        TensorSource(x)


@pytest.mark.parametrize("value", [0.0, 0.1, 123.456])
def test_rows_that_are_all_equal_are_refused(tmp_path, value):
    constant = torch.full((1000, 7), value)
    np.save(tmp_path / "rows.npy", constant.numpy())
    for source in (
        TensorSource(constant),
        import_arrays([tmp_path / "rows.npy"], tmp_path / "store"),
    ):
        with pytest.raises(BitlensError, match="All hidden states are equal"):
            train(source, settings(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_divergence_is_one_sentence():
    with pytest.raises(
        BitlensError, match="not finite at step 2: training diverged; lower `lr`"
    ) as error:
        train(TensorSource(rows()), settings(lr=1e30, log_every=1, prune_at=(), regrow_at=()))
    assert "\n" not in str(error.value)


def test_a_matrix_without_rows_is_refused():
    for x in (torch.zeros(1, 4), torch.zeros(4)):
        with pytest.raises(BitlensError, match="matrix of at least two rows"):
            TensorSource(x)


# --- batches --------------------------------------------------------------------------------------


class Broken(HiddenSource):
    """Rows that cannot be read after the third batch."""

    d_in, mean, scale = 4, torch.zeros(4), 1.0

    def __init__(self):
        self.about = {}

    def sample(self, n, seed):
        return torch.randn(200, 4, generator=seed)

    def batches(self, size, seed, start=None):
        for _ in range(3):
            yield torch.randn(size, 4), (0, 0, 0)
        raise BitlensError("The shard is gone.")


def test_an_error_while_reading_ahead_reaches_the_caller():
    records = []
    with pytest.raises(BitlensError, match="The shard is gone"):
        train(Broken(), settings(log_every=1), report=records.append)
    assert len(records) == 3


def test_prefetching_keeps_the_order_and_can_be_left_early():
    ahead = prefetched(iter(range(1000)))
    assert [next(ahead) for _ in range(10)] == list(range(10))
    ahead.close()
    assert list(prefetched(iter(range(5)))) == list(range(5))
