"""The table of numbers against plain float64 numpy."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from bitlens.autoencoders import BinaryAutoencoder, PCAAutoencoder, TopKAutoencoder
from bitlens.bits.packed import PackedBits
from bitlens.causal.splice import Splice
from bitlens.encode import encode_store
from bitlens.errors import BitlensError
from bitlens.evaluation import evaluate
from bitlens.evaluation.numbers import some_rows
from bitlens.hidden import ActivationStore, LanguageModel
from bitlens.hidden.arrays import import_arrays
from bitlens.information.autoregression import Autoregression
from bitlens.information.magnitudes import quantise_magnitudes
from bitlens.information.rate_distortion import gaussian_bits
from bitlens.seeding import generator
from bitlens.studies.measuring import measure_rows

D, LATENTS, ROWS = 6, 16, 4000


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> ActivationStore:
    """Rows far from zero, 10 of a document, in two files."""
    folder = tmp_path_factory.mktemp("evaluate")
    random = np.random.default_rng(0)
    hidden = (random.normal(size=(ROWS, D)) @ random.normal(size=(D, D)) + 30).astype(np.float32)
    files = []
    for part, rows in enumerate(np.split(np.arange(ROWS), 2)):
        files.append(folder / f"{part}.npz")
        np.savez(files[-1], hidden=hidden[rows], document=rows // 10)
    import_arrays(files, folder / "store", documents="document")
    return ActivationStore(folder / "store", test_fraction=0.3)


def build(kind: str, store: ActivationStore):
    model = BinaryAutoencoder(D, LATENTS) if kind == "bae" else TopKAutoencoder(D, LATENTS, k=3)
    model.initialise(generator(1))
    model.mean.copy_(store.mean)
    model.scale.fill_(store.scale)
    with torch.no_grad():
        model.b_enc[0], model.b_enc[1] = -1e3, 1e3
        model.b_enc[2] = 1.2
    return model.eval()


def rows_of(store: ActivationStore, part: str) -> np.ndarray:
    return torch.cat([rows.hidden for rows in store.read(part)]).double().numpy()


def test_some_rows_are_of_documents_from_everywhere(store):
    total = sum(len(split.train) for split in store.splits())
    rows = some_rows(store, "train", 300, total)
    assert 150 < len(rows) < 450
    every = torch.from_numpy(rows_of(store, "train")).float()
    place = torch.cdist(rows, every).argmin(1)
    assert torch.equal(every[place], rows)
    assert place.min() < total / 5
    assert place.max() > 4 * total / 5
    assert torch.equal(some_rows(store, "train", total, total), every)


def with_sinks(store: ActivationStore, folder: Path, every: int = 10) -> ActivationStore:
    """A store of the same rows in which every so many-th is a hundred times as long."""
    hidden = rows_of(store, "all").astype(np.float32)
    hidden[::every] *= 100
    np.savez(folder / "sinks.npz", hidden=hidden, document=np.arange(ROWS) // 10)
    import_arrays([folder / "sinks.npz"], folder / "sinks", documents="document")
    return ActivationStore(folder / "sinks", test_fraction=0.3)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["test", "all"])
@pytest.mark.parametrize("kind", ["bae", "topk"])
def test_every_number_equals_numpy(store, kind, part):
    model = build(kind, store)
    numbers = evaluate(model, store, part=part)
    x = rows_of(store, "usual" if part == "all" else part)
    tensor = torch.from_numpy(x).float()
    with torch.no_grad():
        x_hat, codes = model(tensor).double().numpy(), (model.encode(tensor) != 0).double().numpy()
    p = codes.mean(0)
    rare = np.minimum(p, 1 - p)
    fvu = ((x - x_hat) ** 2).sum() / (x.var(0).sum() * len(x))
    cosine = ((x * x_hat).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(x_hat, axis=1)).mean()
    entropy = sum(-q * math.log2(q) for latent in p for q in (latent, 1 - latent) if q > 0)

    assert numbers.architecture == kind
    assert numbers.rows == len(x)
    assert numbers.fvu == pytest.approx(fvu, rel=1e-5)
    assert numbers.explained_variance == 1 - numbers.fvu
    assert numbers.mse == pytest.approx(((x - x_hat) ** 2).mean(), rel=1e-5)
    assert numbers.cosine == pytest.approx(cosine, rel=1e-6)
    assert numbers.l0 == pytest.approx(rare.sum() if kind == "bae" else p.sum(), rel=1e-9)
    assert numbers.dead == (p < 1e-4).sum() >= 1
    assert numbers.stuck == (p > 1 - 1e-4).sum() >= (kind == "bae")
    assert numbers.live == LATENTS - numbers.dead - numbers.stuck
    assert numbers.dense == ((rare if kind == "bae" else p) > 0.1).sum() > 0
    assert numbers.highest_rate == (rare if kind == "bae" else p).max()
    correction = ((p > 0) & (p < 1)).sum() / (2 * len(x) * math.log(2))
    assert numbers.bits_marginal == pytest.approx(entropy + correction, rel=1e-9)
    assert 0 < numbers.bits_tree <= numbers.bits_marginal
    assert numbers.bits_joint is not None
    assert 0 < numbers.bits_joint < 1.02 * numbers.bits_marginal
    magnitudes = 0.0 if kind == "bae" else quantise_magnitudes(model, tensor).bits
    assert numbers.bits_magnitudes == pytest.approx(magnitudes)
    covariance = torch.from_numpy(np.cov(rows_of(store, "all").T, bias=True))
    assert numbers.bits_gaussian == pytest.approx(gaussian_bits(covariance, fvu), rel=1e-4)
    assert numbers.rows_per_second > 0
    assert numbers.ce_original is numbers.ce_loss_score is None


@pytest.mark.slow
def test_joint_bits_are_the_code_length_under_a_model_of_the_training_documents(store):
    model = build("bae", store)
    fit, test = (list(store.read(part)) for part in ("train", "test"))
    bits = [
        PackedBits(torch.cat([model.encode_bits(r.hidden).words for r in rows]), LATENTS)
        for rows in (fit, test)
    ]
    fitted = Autoregression.fit(bits[0], torch.cat([rows.columns["document"] for rows in fit]))
    expected = float(fitted.code_lengths(bits[1]).mean())
    assert evaluate(model, store).bits_joint == pytest.approx(expected)
    assert evaluate(model, store, joint=False).bits_joint is None


@pytest.mark.slow
def test_held_out_documents_only(store):
    documents = torch.cat([rows.columns["document"] for rows in store.read("test")])
    assert store.is_test(documents).all()
    assert evaluate(build("bae", store), store).rows == len(documents) < ROWS


@pytest.mark.slow
def test_latents_removed_in_training_count_as_dead(store):
    model = build("bae", store)
    before = evaluate(model, store)
    model.metadata = {"n_latents_trained": LATENTS + 5}
    after = evaluate(model, store)
    assert (after.n_latents, after.dead) == (LATENTS + 5, before.dead + 5)
    assert after.live == before.live


@pytest.mark.slow
def test_canonical_form_changes_no_number_but_the_polarity(store):
    model = build("bae", store)
    x = torch.from_numpy(rows_of(store, "test")).float()
    canonical = model.canonical(model.encode(x).double().mean(0))
    canonical.metadata = {"n_latents_trained": LATENTS}
    before, after = evaluate(model, store), evaluate(canonical, store)
    for name in ("fvu", "mse", "cosine", "l0", "bits_marginal", "bits_gaussian", "dense", "live"):
        assert getattr(after, name) == pytest.approx(getattr(before, name), rel=1e-4, abs=1e-6), (
            name
        )
    assert after.stuck == 0
    assert after.dead == before.dead + before.stuck


@pytest.mark.slow
def test_predicting_the_mean_gives_fvu_one_and_no_bits(store):
    model = build("bae", store)
    with torch.no_grad():
        model.b_enc.fill_(-1e3)
        model.b_dec.zero_()
    model.mean.copy_(torch.from_numpy(rows_of(store, "test").mean(0)))
    numbers = evaluate(model, store)
    assert numbers.fvu == pytest.approx(1, abs=1e-6)
    assert (numbers.l0, numbers.bits_marginal, numbers.live) == (0, 0, 0)
    assert numbers.bits_gaussian == pytest.approx(0, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bae", "topk"])
def test_rows_of_outlying_norm_are_left_out_unless_they_are_asked_for(store, tmp_path, kind):
    model, sinks = build(kind, store), with_sinks(store, tmp_path)
    numbers = evaluate(model, sinks, part="all")
    usual = rows_of(sinks, "usual")
    assert len(usual) == ROWS - ROWS // 10
    with torch.no_grad():
        x_hat = model(torch.from_numpy(usual).float()).double().numpy()
    fvu = ((usual - x_hat) ** 2).sum() / (usual.var(0).sum() * len(usual))
    assert (numbers.rows, numbers.outliers) == (len(usual), ROWS // 10)
    assert numbers.fvu == pytest.approx(fvu, rel=1e-5)
    assert numbers.bits_gaussian == pytest.approx(
        gaussian_bits(torch.from_numpy(np.cov(usual.T, bias=True)), fvu)
    )
    test = evaluate(model, sinks)
    held = torch.cat([rows.columns["document"] for rows in sinks.read("all")])
    assert test.rows + test.outliers == int(sinks.is_test(held).sum())
    both = evaluate(model, sinks, part="all", outliers=True)
    assert (both.rows, both.outliers) == (ROWS, 0)
    assert math.isfinite(both.bits_magnitudes)
    covariance = torch.from_numpy(np.cov(rows_of(sinks, "all").T, bias=True))
    assert both.bits_gaussian == pytest.approx(gaussian_bits(covariance, both.fvu)), (
        "of the rows that are measured"
    )
    with pytest.raises(BitlensError, match="can be taken with all"):
        evaluate(model, sinks, outliers=True)


def test_codes_say_which_rows_are_of_outlying_norm(store, tmp_path):
    sinks = with_sinks(store, tmp_path)
    codes = encode_store(build("bae", store), sinks, tmp_path / "codes")
    assert torch.equal(codes.usual, torch.arange(ROWS) % 10 != 0)
    assert torch.equal(codes.usual, sinks.usual())
    assert len(codes) == ROWS


def planted(folder: Path, rows: int, d: int) -> tuple[ActivationStore, torch.Tensor]:
    """A store of a Gaussian with known covariance of a falling spectrum, one document in a hundred
    held out; that covariance"""
    random = np.random.default_rng(3)
    axes = np.linalg.qr(random.normal(size=(d, d)))[0] * np.sqrt(np.logspace(0, -2, d))
    hidden = (random.normal(size=(rows, d)) @ axes.T).astype(np.float32)
    np.savez(folder / "planted.npz", hidden=hidden, document=np.arange(rows) // 10)
    import_arrays([folder / "planted.npz"], folder / "planted", documents="document")
    return ActivationStore(folder / "planted", test_fraction=0.01), torch.from_numpy(axes @ axes.T)


@pytest.mark.slow
def test_the_gaussian_bound_of_few_held_out_rows_is_that_of_their_source(tmp_path):
    d = 32
    store, covariance = planted(tmp_path, 6000, d)
    pca = PCAAutoencoder(d, 8)
    vectors = torch.linalg.eigh(covariance).eigenvectors[:, -8:].float()
    with torch.no_grad():
        pca.W_enc.copy_(vectors)
        pca.W_dec.copy_(vectors.T)
    numbers = evaluate(pca, store, joint=False)
    assert numbers.rows < 4 * d
    assert numbers.bits_gaussian == pytest.approx(gaussian_bits(covariance, numbers.fvu), rel=0.02)
    rows = torch.cat([rows.hidden for rows in store.read("all")])
    few = torch.arange(len(rows)) >= len(rows) - 60
    measured, _ = measure_rows(pca, rows, few)
    assert measured["bits_gaussian"] == pytest.approx(
        gaussian_bits(covariance, measured["fvu"]), rel=0.02
    )


def test_below_four_rows_a_component_there_is_no_gaussian_bound(tmp_path):
    d = 32
    store, _ = planted(tmp_path, 4 * d - 1, d)
    model = PCAAutoencoder(d, 4)
    assert evaluate(model, store, part="all", joint=False).bits_gaussian is None
    rows = torch.cat([rows.hidden for rows in store.read("all")])
    assert measure_rows(model, rows, torch.arange(len(rows)) >= 64)[0]["bits_gaussian"] is None


@pytest.mark.slow
def test_a_code_that_is_never_on_has_no_magnitudes_to_pay_for(store):
    model = build("topk", store)
    with torch.no_grad():
        model.b_enc.fill_(-1e3)
    assert evaluate(model, store).bits_magnitudes == 0


def test_another_width_is_refused(store):
    with pytest.raises(BitlensError, match="of width 6, the autoencoder takes 7"):
        evaluate(BinaryAutoencoder(7, 8), store)


def test_no_held_out_rows_are_refused(store):
    with pytest.raises(BitlensError, match="0 held-out rows"):
        evaluate(build("bae", store), ActivationStore(store.path, test_fraction=0.0))


@pytest.mark.slow
def test_losses_of_the_language_model_are_those_of_the_splice(tiny_llama, tiny_store):
    model = LanguageModel.load(str(tiny_llama), ["layers.1"], device="cpu", causal=True)
    autoencoder = BinaryAutoencoder(32, 64)
    autoencoder.initialise(generator(0))
    autoencoder.mean.copy_(tiny_store.mean)
    autoencoder.scale.fill_(tiny_store.scale)
    numbers = evaluate(autoencoder, tiny_store, language_model=model, max_contexts=3)
    splice = Splice.of_store(model, autoencoder, tiny_store, 3)
    losses = splice.losses(autoencoder)._asdict()
    assert losses.pop("tokens") > 0
    assert losses.items() <= numbers.as_dict().items()
    again = evaluate(autoencoder, tiny_store, splice=splice)
    assert losses.items() <= again.as_dict().items()
    assert all(isinstance(value, str | int | float) for value in numbers.as_dict().values())
