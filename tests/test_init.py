"""Training that begins at the dictionary of another autoencoder."""

import pytest
import torch

from bitlens.autoencoders import Autoencoder
from bitlens.autoencoders.beginning import beginning
from bitlens.autoencoders.learner import build, make_learner
from bitlens.errors import BitlensError
from bitlens.hidden import TensorSource
from bitlens.seeding import generator
from bitlens.training import train
from bitlens.training.config import settings_that_apply
from test_resume import PowerCut, cut_at, rows, same, settings

KINDS = {
    "descent": {},
    "step": {"preset": "step"},
    "topk": {"architecture": "topk", "k": 4},
    "gated": {"architecture": "gated", "k": 4},
}


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A sparse autoencoder, standardised by other rows, with decoder rows of unit norm."""
    folder = tmp_path_factory.mktemp("init") / "topk"
    config = settings(architecture="topk", k=3, n_latents=30, steps=60)
    train(TensorSource(2 * rows(seed=3) + 1), config, folder)
    return folder


def begun(other, x, **changes):
    """A model and its learner, at the dictionary of the other, before any step."""
    config = settings(init=str(other), **changes).resolved(x.shape[1], "cpu")
    model = build(config, x.shape[1], x.shape[1])
    model.initialise(generator(0, "weights"))
    model.mean.copy_(x.mean(0))
    model.scale.fill_(3.0)
    standard = model.standardise(x)
    learner = make_learner(model, config, lambda n, seed: standard)
    learner.start()
    given = beginning(Autoencoder.from_pretrained(other), model, standard)
    learner.begin_at(given)
    return model, given


def test_a_row_is_as_long_as_what_its_latent_adds_where_it_is_on(other):
    x, theirs = rows(), Autoencoder.from_pretrained(other)
    model, given = begun(other, x)
    codes = theirs.encode(x)
    for latent in range(theirs.n_latents):
        on = codes[:, latent] > 0
        assert float(given.rates[latent]) == pytest.approx(float(on.float().mean()))
        if on.any():
            adds = float(codes[on, latent].detach().mean()) * theirs.W_dec[latent] * theirs.scale
            torch.testing.assert_close(model.W_dec[latent] * 3.0, adds)
    assert float((given.rates > 0).sum()) > 10
    origin = theirs.b_dec * theirs.scale + theirs.mean
    torch.testing.assert_close((model.b_dec * 3.0 + model.mean).detach(), origin.detach())


def test_the_encoder_of_a_descent_switches_on_what_alone_would_gain(other):
    x = rows()
    model, _ = begun(other, x)
    z = model.pre_activations(model.standardise(x))
    left = model.standardise(x) - model.b_dec
    before = left.square().sum(1, keepdim=True)
    after = (left[:, None] - model.W_dec).square().sum(2) + model.price
    assert torch.equal(z > 1e-4, before - after > 2e-4)


def test_bits_of_a_step_are_on_as_often_as_the_latents_were(other):
    x = rows()
    model, given = begun(other, x, preset="step")
    on = given.rates > 0
    rates = model.code(model.pre_activations(model.standardise(x))).mean(0)[: len(on)]
    torch.testing.assert_close(rates[on], given.rates[on], atol=2 / len(x), rtol=0)


def test_sparse_autoencoders_take_the_directions_alone(other):
    model, given = begun(other, rows(), architecture="topk", k=4)
    torch.testing.assert_close(model.W_dec.norm(dim=1), torch.ones(model.n_latents))
    torch.testing.assert_close(model.W_enc, 0.1 * model.W_dec.T)
    on = given.rates > 0
    cosine = torch.cosine_similarity(model.W_dec[: len(on)][on], given.W[on])
    torch.testing.assert_close(cosine, torch.ones(int(on.sum())))


@pytest.mark.slow
@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS)
def test_a_run_that_begins_there_is_resumed_bit_exactly(tmp_path, other, changes):
    source, config = TensorSource(rows()), settings(init=str(other), **changes)
    for step in (3, 17, 40):
        with pytest.raises(PowerCut):
            train(source, config, tmp_path / "run", resume=True, report=cut_at(step))
    resumed = train(source, config, tmp_path / "run", resume=True)
    assert same(resumed, train(source, config))
    assert resumed.metadata["training"]["init"] == str(other)
    assert not same(resumed, train(source, settings(**changes)))


def test_the_number_of_latents_is_the_others_unless_more_are_asked_for(other):
    source = TensorSource(rows())
    model = train(
        source, settings(init=str(other), n_latents=None, steps=1, architecture="topk", k=4)
    )
    assert model.n_latents == 30
    with pytest.raises(BitlensError, match="no fewer latents than it has"):
        train(
            source,
            settings(init=str(other), n_latents=20, k=4, architecture="topk"),
            other.parent / "refused",
        )
    assert not (other.parent / "refused").exists()  # so that the next try needs no `overwrite`


def test_another_hook_point_is_said(other, tmp_path, capsys):
    theirs = Autoencoder.from_pretrained(other)
    theirs.metadata["hook"] = {"module": "layers.1"}
    theirs.save(tmp_path)
    for hook, said in (("layers.2", True), ("layers.1", False)):
        source = TensorSource(rows(), {"hook": {"module": hook}})
        train(source, settings(init=str(tmp_path), steps=1))
        assert ("names an autoencoder of layers.1" in capsys.readouterr().err) is said


def test_another_width_or_silence_is_refused(other):
    with pytest.raises(BitlensError, match="of width 12 with 30 latents, at which one of width 5"):
        train(TensorSource(rows(d=5)), settings(init=str(other)))
    silent = Autoencoder.from_pretrained(other)
    silent.W_enc.data.zero_()
    silent.b_enc.data.fill_(-1)
    silent.save(other.parent / "silent")
    with pytest.raises(BitlensError, match="No latent of the autoencoder that `init` names is on"):
        train(TensorSource(rows()), settings(init=str(other.parent / "silent")))


@pytest.mark.parametrize("changes", [{}, {"architecture": "random"}])
def test_what_training_begins_at_is_not_written_over(other, changes):
    name = "match" if changes else "init"
    with pytest.raises(BitlensError, match=f"`{name}` names .* name another"):
        train(
            TensorSource(rows()), settings(**{name: str(other)}, **changes), other, overwrite=True
        )
    assert Autoencoder.from_pretrained(other).n_latents == 30


def test_only_what_can_begin_there_has_the_setting():
    has = {name: "init" in settings_that_apply(name) for name in ("bae", "gated", "pca", "random")}
    assert has == {"bae": True, "gated": True, "pca": False, "random": False}
