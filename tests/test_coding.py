"""Coding as a property of a binary autoencoder, kept in its files, the same for all that encode."""

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from bitlens.autoencoders import Autoencoder, BinaryAutoencoder, TopKAutoencoder
from bitlens.autoencoders.descent import FLIPS
from bitlens.autoencoders.learner import make_learner
from bitlens.bits.descent import descend
from bitlens.cli import main
from bitlens.encode import encode_store
from bitlens.errors import BitlensError
from bitlens.evaluation import evaluate
from bitlens.hidden import ActivationStore, TensorSource
from bitlens.hidden.arrays import import_arrays
from bitlens.training import TrainConfig, train

D = 12


def rows(n: int = 1200, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    bits = (torch.rand(n, 10, generator=g) < 0.2).float()
    return 3 * bits @ torch.randn(10, D, generator=g) + 0.3 * torch.randn(n, D, generator=g) + 5


def settings(**changes) -> TrainConfig:
    base = {"n_latents": 40, "steps": 200, "batch_size": 64, "device": "cpu", "lam": 0.02}
    return TrainConfig(**{**base, **changes})


@pytest.fixture(scope="module")
def bae() -> BinaryAutoencoder:
    model = train(TensorSource(rows()), settings())
    assert isinstance(model, BinaryAutoencoder)
    return model


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> ActivationStore:
    import numpy as np

    folder = tmp_path_factory.mktemp("coding")
    np.save(folder / "rows.npy", rows().numpy())
    return import_arrays([folder / "rows.npy"], folder / "store")


def energy(model: BinaryAutoencoder, x: Tensor, h: Tensor) -> Tensor:
    """Of each row, in model space, float64"""
    assert model.price is not None
    left = (model.standardise(x) - model.reconstruct(h)).double().square().sum(-1)
    return left + h.double() @ model.price.double()


@pytest.mark.slow
def test_features_are_found_by_descent_by_default(bae):
    assert bae.coding == "descent"
    assert bae.metadata["training"]["coding"] == "descent"
    assert 0 < bae.n_latents <= 40
    assert bae.price is not None
    assert (
        float(bae.price.min()) >= 0.02 * 5.6147 - 1e-5
    )  # lam times log2((1 - p0) / p0), more for common latents
    assert float(bae.price.max()) <= 4 * 0.02 * 5.6147 + 1e-5


def test_common_latents_cost_more(bae):
    rates = bae.encode(rows()).mean(0)
    assert bae.price is not None
    order = rates.argsort()
    assert bae.price[order[-3:]].mean() > bae.price[order[:3]].mean()


def test_no_flip_lowers_what_the_autoencoder_minimises(bae):
    x = rows(300, seed=1)
    h = bae.encode(x)
    reached = energy(bae, x, h)
    for j in range(bae.n_latents):
        other = h.clone()
        other[:, j] = 1 - other[:, j]
        assert (energy(bae, x, other) >= reached - 1e-3).all()


def test_codes_are_the_same_however_they_are_asked_for(bae, store, tmp_path):
    x = rows()
    h = bae.encode(x)
    assert torch.equal(bae.encode_bits(x).unpack(), h)
    assert torch.equal(bae.encode(x.view(4, 300, D)), h.view(4, 300, -1))
    assert torch.equal(bae(x), bae.decode(h))
    codes = encode_store(bae, store, tmp_path / "codes")
    assert torch.equal(codes.bits.unpack(), h)
    numbers = evaluate(bae, store, part="all", joint=False)
    assert numbers.fvu == pytest.approx(
        float((x - bae(x)).square().sum() / (x - x.mean(0)).square().sum()), rel=1e-4
    )
    assert numbers.l0 == pytest.approx(float(h.sum(1).mean()), rel=1e-6)


def test_fewer_than_one_row_is_refused(bae, store, tmp_path):
    for rows_ in (0, -5):
        with pytest.raises(BitlensError, match="`rows` must be at least 1"):
            encode_store(bae, store, tmp_path / "codes", rows=rows_)
    assert not (tmp_path / "codes").exists()


def test_wide_codes_are_cut_into_shards_by_their_bytes(bae, store, tmp_path, monkeypatch):
    one = encode_store(bae, store, tmp_path / "one")
    monkeypatch.setattr("bitlens.encode.PART_BYTES", 8 * 500)  # a word a row
    monkeypatch.setattr("bitlens.encode.BLOCK_ROWS", 100)
    some = encode_store(bae, store, tmp_path / "some")
    assert [shard["rows"] for shard in some.manifest["shards"]] == [500, 500, 200]
    assert torch.equal(some.bits.unpack(), one.bits.unpack())


def test_codes_replace_no_store_and_a_store_no_codes(bae, tmp_path):
    def files(name: str) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}

    np.save(tmp_path / "x.npy", rows(200).numpy())
    store = import_arrays([tmp_path / "x.npy"], tmp_path / "store")
    before = files("store")
    with pytest.raises(BitlensError, match="store was not written by this command"):
        encode_store(bae, store, tmp_path / "store", overwrite=True)
    assert files("store") == before
    encode_store(bae, store, tmp_path / "codes")
    before = files("codes")
    with pytest.raises(BitlensError, match=r"no manifest\.json of the kind bitlens\.store"):
        import_arrays([tmp_path / "x.npy"], tmp_path / "codes", overwrite=True)
    assert files("codes") == before
    encode_store(bae, store, tmp_path / "codes", overwrite=True)


def test_a_row_has_the_same_code_alone_and_among_others(bae):
    """A row's code depends on the row alone, but for rounding in products of other shapes."""
    x = rows(64, seed=2)
    together, alone = bae.encode(x), torch.cat([bae.encode(row[None]) for row in x])
    assert (together == alone).all(1).float().mean() > 0.98


def test_files_keep_the_coding_and_the_prices(bae, tmp_path):
    bae.save(tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    assert config["coding"] == "descent"
    again = Autoencoder.from_pretrained(tmp_path)
    assert isinstance(again, BinaryAutoencoder)
    assert torch.equal(again.price, bae.price)
    assert torch.equal(again.encode(rows()), bae.encode(rows()))


@pytest.mark.slow
def test_a_file_from_before_there_was_a_choice_is_coded_by_step(tmp_path):
    model = train(TensorSource(rows()), settings(preset="step"))
    model.save(tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    del config["coding"]
    (tmp_path / "cfg.json").write_text(json.dumps({**config, "schema": 1}))
    again = Autoencoder.from_pretrained(tmp_path)
    assert isinstance(again, BinaryAutoencoder)
    assert again.coding == "step"
    assert torch.equal(again.encode(rows()), model.encode(rows()))


def test_a_budget_of_flips_begins_at_the_encoders_bits(bae):
    x = rows(400, seed=3)
    by_step = bae.coded("step").encode(x)
    assert torch.equal(by_step, (bae.pre_activations(bae.standardise(x)) > 0).float())
    assert torch.equal(bae.coded(flips=0).encode(x), by_step)
    former = energy(bae, x, by_step)
    for flips in (1, 2, 4, 8, 100):
        h = bae.coded(flips=flips).encode(x)
        assert ((h != by_step).sum(1) <= flips).all()
        now = energy(bae, x, h)
        assert (now <= former + 1e-3).all()
        former = now
    assert bae.coding == "descent"
    assert bae.flips is None


def test_the_encoder_predicts_the_bits(bae):
    """Better than chance by far: the encoder was trained on what descent found."""
    x = rows(1000, seed=4)
    found, predicted = bae.encode(x), bae.coded("step").encode(x)
    hits = float((found * predicted).sum())
    rate = float(found.mean())
    assert hits / float(predicted.sum()) > max(0.5, 3 * rate)  # precision
    assert hits / float(found.sum()) > 2 * rate  # recall


def test_changed_weights_are_searched_as_they_are(bae):
    """G is kept only while W_dec stands."""
    model = bae.coded()
    x = rows(100, seed=5)
    before = model.encode(x)
    kept = model.W_dec.detach().clone()
    try:
        with torch.no_grad():
            model.W_dec.mul_(0.5)
        other = model.encode(x)
        assert not torch.equal(other, before)
        reached = energy(model, x, other)
        for j in range(0, model.n_latents, 5):
            flipped = other.clone()
            flipped[:, j] = 1 - flipped[:, j]
            assert (energy(model, x, flipped) >= reached - 1e-3).all()
    finally:
        with torch.no_grad():
            model.W_dec.copy_(kept)
    assert torch.equal(model.encode(x), before)


@pytest.mark.slow
def test_one_trained_for_step_can_be_searched_at_a_price():
    model = train(TensorSource(rows()), settings(preset="step"))
    assert isinstance(model, BinaryAutoencoder)
    with pytest.raises(BitlensError, match="has no prices: name one"):
        model.coded("descent")
    x = rows(500, seed=6)
    searched = model.coded("descent", price=0.05)
    assert (x - searched(x)).square().mean() < (x - model(x)).square().mean()


def test_canonical_drops_what_is_never_on(bae):
    rates = torch.full((bae.n_latents,), 0.1)
    rates[3] = 0
    rates[5] = 0.9
    short = bae.canonical(rates)
    assert short.n_latents == bae.n_latents - 1
    assert torch.equal(short.W_dec, torch.cat([bae.W_dec[:3], bae.W_dec[4:]]))
    by_step = bae.coded("step")
    assert by_step.canonical(by_step.encode(rows()).mean(0)).coding == "step"
    with pytest.raises(BitlensError, match="collapsed"):
        bae.canonical(torch.zeros(bae.n_latents))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flips": -1}, "0 or more flips"),
        ({"coding": "step", "flips": 3}, "0 or more flips"),
        ({"coding": "guess"}, "no coding 'guess'"),
    ],
    ids=str,
)
def test_nonsense_is_refused(bae, change, message):
    with pytest.raises(BitlensError, match=message):
        bae.coded(**change)


def test_what_is_not_finite_is_refused(bae):
    x = rows(5)
    x[2, 3] = float("nan")
    with pytest.raises(BitlensError, match="NaN or infinite"):
        bae.encode(x)


def test_a_price_that_switches_everything_off_is_refused():
    with pytest.raises(BitlensError, match="No latent is worth its price in any row: lower `lam`"):
        train(TensorSource(rows()), settings(lam=1e6))


@pytest.mark.slow
def test_dead_latents_start_again():
    """Of far too many latents some are never on at first; restarts bring most of them back."""
    counts = [
        train(TensorSource(rows()), settings(n_latents=200, steps=150, regrow_at=at)).n_latents
        for at in ((), (0.2, 0.4, 0.6))
    ]
    assert counts[1] > counts[0]


@pytest.mark.slow
def test_fewer_rows_than_latents_can_be_trained_on():
    model = train(TensorSource(rows(50)), settings(n_latents=300, steps=40, batch_size=16))
    assert 0 < model.n_latents <= 300
    assert torch.isfinite(model(rows(50))).all()


@pytest.mark.slow
def test_pursuit_explains_more_than_the_encoder_with_as_many_latents():
    model = train(TensorSource(rows()), settings(architecture="topk", k=3, lam=None))
    assert isinstance(model, TopKAutoencoder)
    x = rows(400, seed=7)
    searched = model.coded(3)
    codes = searched.encode(x)
    assert ((codes != 0).sum(1) <= 3).all()
    assert (x - searched(x)).square().mean() < (x - model(x)).square().mean()
    assert torch.equal(searched.coded(None).encode(x), model.encode(x))
    one = model.coded(1)
    best = (model.standardise(x) - model.b_dec) @ model.W_dec.T
    assert torch.equal(one.encode(x).argmax(1), best.argmax(1))
    with pytest.raises(BitlensError, match="A pursuit takes 1 to 40"):
        model.coded(41)


def test_the_commands_take_another_coding(bae, store, tmp_path):
    """--coding and --flips: between the encoder alone and descent; refused by a sparse one."""
    bae.save(tmp_path / "run")
    fvu = []
    for name, more in (("step", ["--coding", "step"]), ("few", ["--flips", "1"]), ("all", [])):
        path = tmp_path / f"{name}.json"
        main(
            [
                "evaluate",
                str(tmp_path / "run"),
                str(store.path),
                "--part",
                "all",
                "--no-joint",
                "--json",
                str(path),
                *more,
            ]
        )
        fvu.append(json.loads(path.read_text())["fvu"])
    assert fvu[2] < fvu[1] < fvu[0]
    TopKAutoencoder(D, 8, 2).save(tmp_path / "topk")
    with pytest.raises(SystemExit, match="2"):
        main(
            [
                "encode",
                str(tmp_path / "topk"),
                str(store.path),
                "--out",
                str(tmp_path / "codes"),
                "--flips",
                "3",
            ]
        )


def test_a_step_leaves_the_gradients_of_the_objective_at_its_bits():
    """Those of autograd at fixed bits: squared error, and the encoder's cross-entropy."""
    config = settings(steps=10).resolved(D, "cpu")
    x = rows(64)
    model = BinaryAutoencoder(D, 40, "descent")
    learner = make_learner(model, config, lambda n, seed: rows(n))
    learner.start()
    learner.step = 9
    losses, rates = learner.backward(x)
    h = descend(
        x, model.W_dec.detach(), model.b_dec.detach(), model.price, flips=FLIPS, exchanges=False
    ).unpack()
    names = ("W_enc", "b_enc", "W_dec", "b_dec")
    found = {name: getattr(model, name).grad.clone() for name in names}
    model.zero_grad()
    mse = torch.nn.functional.mse_loss(model.reconstruct(h), x)
    z = model.pre_activations(x)
    (
        mse + torch.nn.functional.binary_cross_entropy_with_logits(z, h, reduction="sum") / len(x)
    ).backward()
    for name in names:
        assert torch.allclose(found[name], getattr(model, name).grad, atol=1e-6, rtol=1e-4), name
    assert torch.equal(rates.float(), h.mean(0))
    assert float(losses.mse) == pytest.approx(float(mse.detach()), rel=1e-5)
    assert float(losses.total) == pytest.approx(
        float((mse + (h.mean(0) @ model.price) / D).detach()), rel=1e-5
    )
