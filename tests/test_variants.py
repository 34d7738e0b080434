"""Binary autoencoders of other shapes against their definitions, and how they learn."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from bitlens.autoencoders import Autoencoder, BinaryAutoencoder, LevelsAutoencoder, ResidualAutoencoder
from bitlens.bits.statistics import binary_entropy
from bitlens.errors import BitlensError
from bitlens.files import read_tensors
from bitlens.hidden import TensorSource
from bitlens.seeding import generator
from bitlens.training import train
from bitlens.training.checkpoint import STATE
from bitlens.training.learners import build, make_learner
from test_resume import PowerCut, cut_at, rows, same, settings

D = 12
VARIANTS = {
    "levels_bae": {"lam": 0.01}, "ternary_bae": {}, "residual_bae": {"stages": 3}, "matryoshka_bae": {}, "random": {},
    "one level": {"architecture": "levels_bae", "thresholds": 1},
    "residual on the entropy's price": {"architecture": "residual_bae", "preset": "measure", "gamma": 0.5},
    "stochastic": {"architecture": "bae", "surrogate": "stochastic"},
    "stochastic matryoshka": {"architecture": "matryoshka_bae", "surrogate": "stochastic"},
}  # fmt: skip


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def filled(model: Any) -> Any:
    """The same model with random parameters everywhere."""
    model.initialise(generator(5, "weights"))
    with torch.no_grad():
        for seed, parameter in enumerate(model.parameters()):
            parameter.add_(0.3 * random(*parameter.shape, seed=seed))
    model.mean.copy_(random(D, seed=10))
    model.scale.fill_(2.5)
    return model


def states(n: int = 400) -> Tensor:
    return 2.5 * random(n, D, seed=11) + random(D, seed=10)


def learner_of(**changes: Any) -> Any:
    """The learner of a model as initialised, on the standardised rows of `rows`."""
    config = settings(**changes).resolved(D, "cpu")
    model = build(config, D, D)
    model.initialise(generator(config.seed, "weights"))
    source = TensorSource(rows())
    learner = make_learner(model, config, lambda n, seed: (source.sample(n, seed) - source.mean) / source.scale)
    learner.start()
    return learner


def batch() -> Tensor:
    x = rows(200, seed=1)
    return (x - x.mean(0)) / x.std()


@torch.no_grad()
def fvu(model: Autoencoder, x: Tensor) -> float:
    return float((x - model(x)).square().sum() / (x - x.mean(0)).square().sum())


# --- levels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signs", [(1, 1, 1), (1, -1), (1,)], ids=str)
def test_levels_are_signed_thresholds_on_shared_directions(signs):
    model, x, m = filled(LevelsAutoencoder(D, 6 * len(signs), signs)), states(), len(signs)
    P = {name: p.detach().double() for name, p in model.named_parameters()}
    z = (x.double() - model.mean) / 2.5 @ P["W_enc"] + P["b_enc"]
    codes, expected = torch.zeros(len(x), 6 * m), P["b_dec"].expand(len(x), D).clone()
    for direction in range(6):
        for i, sign in enumerate(signs):
            bit = direction * m + i
            on = sign * z[:, direction] + P["offsets"][bit] > 0
            codes[:, bit] = on.float()
            expected += on[:, None] * sign * P["magnitudes"][bit] * P["W_dec"][direction]
    assert torch.equal(model.encode(x), codes)
    torch.testing.assert_close(model(x).double(), expected * 2.5 + model.mean, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("signs", [(1, 1, 1), (1, -1), (1,)], ids=str)
def test_levels_are_a_plain_binary_autoencoder_in_canonical_form(signs):
    model, x = filled(LevelsAutoencoder(D, 6 * len(signs), signs)), states(4000)
    rates = model.encode(x).double().mean(0)
    plain = model.canonical(rates)
    assert type(plain) is BinaryAutoencoder
    torch.testing.assert_close(plain(x), model(x), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(plain.encode(x).double().mean(0), torch.minimum(rates, 1 - rates), atol=1e-3, rtol=0)


def test_a_higher_threshold_is_passed_only_with_the_lower_ones():
    model = filled(LevelsAutoencoder(D, 18, (1, 1, 1)))
    with torch.no_grad():
        model.offsets.copy_(model.offsets.view(6, 3).sort(1, descending=True).values.flatten())
    bits = model.encode(states()).view(-1, 6, 3)
    assert (bits[..., 1:] <= bits[..., :-1]).all()
    assert len(bits.sum(-1).unique()) == 4


def test_thresholds_of_a_direction_start_at_halving_rates():
    learner = learner_of(architecture="levels_bae", n_latents=80, initial_rates=(0.2, 0.4))
    x = learner.sample(10_000, generator(0))
    rates = (learner.model.pre_activations(x) > 0).float().mean(0).view(20, 4)
    assert 0.19 < rates[:, 0].min() < rates[:, 0].max() < 0.41
    torch.testing.assert_close(rates, rates[:, :1] * 0.5 ** torch.arange(4.0), atol=2 / 700, rtol=0)


def test_bits_that_do_not_divide_are_refused():
    for architecture, bits in (("levels_bae", 4), ("ternary_bae", 2)):
        with pytest.raises(BitlensError, match=f"{bits} bits a direction do not divide 41 latents evenly"):
            train(TensorSource(rows()), settings(architecture=architecture, n_latents=41))


# --- stages ---------------------------------------------------------------------------------------------------------


def by_stages(model: ResidualAutoencoder, x: Tensor) -> tuple[Tensor, Tensor]:
    """Every stage by itself, float64, on raw rows -> (codes, reconstruction in raw space)"""
    left, found = (x.double() - model.mean) / model.scale, []
    for stage in model.parts:
        h = (left @ stage.W_enc.double() + stage.b_enc > 0).double()
        left = left - h @ stage.W_dec.double() - stage.b_dec
        found.append(h)
    return torch.cat(found, 1), x.double() - left * model.scale


def test_stages_encode_what_is_left():
    model, x = filled(ResidualAutoencoder(D, 18, [8, 6, 4])), states()
    codes, expected = by_stages(model, x)
    assert torch.equal(model.encode(x).double(), codes)
    torch.testing.assert_close(model(x).double(), expected.detach(), atol=1e-4, rtol=1e-5)


def test_a_code_cut_after_a_stage_is_that_of_the_stages_before():
    model, x = filled(ResidualAutoencoder(D, 18, [8, 6, 4])), states()
    first = model.parts[0]
    standardised = (x - model.mean) / model.scale
    assert torch.equal(model.encode(x)[:, :8], first.encode(standardised))
    two = ResidualAutoencoder(D, 14, [8, 6])
    two.load_state_dict({name: value for name, value in model.state_dict().items() if not name.startswith("stages.2")})
    assert torch.equal(model.encode(x)[:, :14], two.encode(x))


@pytest.mark.parametrize("constant", [(), (1,), (2,), (1, 2)], ids=str)
def test_canonical_stages_are_the_same_function(constant):
    model, x = filled(ResidualAutoencoder(D, 18, [8, 6, 4])), states(4000)
    with torch.no_grad():
        model.parts[0].b_enc[0] = 1e3
        for stage in constant:
            model.parts[stage].b_enc.copy_(torch.tensor([1e3, -1e3] * 3)[: model.parts[stage].n_latents])
    canonical = model.canonical(model.encode(x).double().mean(0))
    assert len(canonical.parts) == 3 - len(constant)
    torch.testing.assert_close(canonical(x), model(x), atol=1e-4, rtol=1e-5)
    assert canonical.encode(x).mean(0).max() <= 0.5 + 1e-3


def test_stages_have_to_sum_to_the_latents():
    with pytest.raises(BitlensError, match=r"Stages of \[8, 6\] latents do not sum to 18"):
        ResidualAutoencoder(D, 18, [8, 6])


# --- nested prefixes ------------------------------------------------------------------------------------------------


def test_matryoshka_is_the_mean_over_its_prefixes():
    learner, x = learner_of(architecture="matryoshka_bae", preset="measure", lam=0.3, n_latents=32), batch()
    losses, h = learner.losses(x)
    losses.total.backward()
    h, W, b = (
        h.detach().double(),
        *(p.detach().double().requires_grad_() for p in (learner.model.W_dec, learner.model.b_dec)),
    )
    p, expected = h.mean(0), torch.zeros(())
    for n in (2, 4, 8, 16, 32):
        x_hat = b + h[:, :n] @ W[:n] + p[n:] @ W[n:]
        price = 0.3 / D * sum(float(binary_entropy(q)) for q in p[:n])
        expected = expected + ((x_hat - x).square().mean() + price) / 5
    expected.backward()
    torch.testing.assert_close(losses.total.double(), expected)
    torch.testing.assert_close(learner.model.W_dec.grad.double(), W.grad, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(learner.model.b_dec.grad.double(), b.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("change", ["propose_and_prune", "regrow"])
def test_pruning_by_groups_leaves_b_dec_at_the_best_place(change):
    learner = learner_of(architecture="matryoshka_bae", prune_rows=700)
    with torch.no_grad():
        getattr(learner, change)(3, 0.1)
        x = learner.sample(10_000, generator(0))
        error = x - learner.model.reconstruct(learner.model.code(learner.model.pre_activations(x)))
    assert error.mean(0).abs().max() < 1e-4


def test_a_cut_code_has_its_tail_at_the_mean():
    model, x = filled(BinaryAutoencoder(D, 20)), states()
    h, rates = model.encode(x), model.encode(x).double().mean(0)
    for n in (1, 7, 20):
        short = model.cut(n, rates)
        held = torch.cat([h[:, :n], rates[n:].float().expand(len(x), -1)], 1)
        assert torch.equal(short.encode(x), h[:, :n])
        torch.testing.assert_close(short(x), model.decode(held), atol=1e-4, rtol=1e-5)
    for n in (0, 21):
        with pytest.raises(BitlensError, match=f"cut after 1 to that many, not {n}"):
            model.cut(n, rates)


def test_longer_prefixes_of_a_matryoshka_code_explain_more():
    x = rows()
    model = train(TensorSource(x), settings(architecture="matryoshka_bae", steps=150))
    assert isinstance(model, BinaryAutoencoder)
    rates = model.encode(x).mean(0)
    found = [fvu(model.cut(n, rates), x) for n in (1, 2, 4, 8, model.n_latents)]
    assert found == sorted(found, reverse=True)
    assert found[0] < 1
    assert found[-1] == pytest.approx(fvu(model, x), rel=1e-4)
    plain = train(TensorSource(x), settings(steps=150))
    assert isinstance(plain, BinaryAutoencoder)
    assert found[2] < fvu(plain.cut(4, plain.encode(x).mean(0)), x)


# --- random directions ----------------------------------------------------------------------------------------------


def test_random_directions_fire_at_log_uniform_rates():
    config = settings(architecture="random", n_latents=300, initial_rates=(0.02, 0.4))
    rates = train(TensorSource(rows()), config).encode(rows()).double().mean(0).sort().values
    assert 0.015 < rates[0] < rates[-1] < 0.41
    uniform = (rates / 0.02).log() / math.log(20)
    assert (uniform - torch.linspace(0, 1, 300)).abs().max() < 0.1  # Kolmogorov-Smirnov: 1.63 / sqrt(300) at 1 %


@pytest.mark.parametrize("n_latents", [None, 90])
def test_random_directions_fire_at_the_rates_of_another_run(tmp_path, n_latents):
    other = train(TensorSource(rows()), settings(architecture="relu", n_latents=30, k=3), tmp_path / "other")
    rates = (other.encode(rows()) > 0).double().mean(0)
    rates = rates[rates > 0]
    config = settings(architecture="random", n_latents=n_latents or len(rates), match=str(tmp_path / "other"))
    found = train(TensorSource(rows()), config).encode(rows()).double().mean(0)
    rates = torch.minimum(rates, 1 - rates)
    if n_latents:
        assert (found[:, None] - rates).abs().min(1).values.max() < 3 / 700
    else:
        torch.testing.assert_close(found, rates, atol=3 / 700, rtol=0)


def test_random_directions_have_the_decoder_of_least_squares():
    model = train(TensorSource(rows()), settings(architecture="random", initial_rates=(0.05, 0.3)))
    h = torch.cat([model.encode(rows()), torch.ones(700, 1)], 1).double()
    target = (rows().double() - model.mean) / model.scale
    best = torch.linalg.lstsq(h, target).solution
    torch.testing.assert_close(torch.cat([model.W_dec, model.b_dec[None]]).double(), best, atol=2e-3, rtol=2e-3)
    error, least = (target - h @ best).square().mean(), ((rows() - model(rows())) / model.scale).square().mean()
    assert float(least) == pytest.approx(float(error), rel=1e-5)


# --- the stochastic step --------------------------------------------------------------------------------------------


def noisy_bits(step: int, seed: int = 0) -> Tensor:
    learner = learner_of(surrogate="stochastic", seed=seed, n_latents=16)
    learner.model.initialise(generator(0, "weights"))
    learner.step = step
    return learner.bits(batch())


def test_noise_is_that_of_its_step_and_seed():
    first = noisy_bits(3)
    assert torch.equal(noisy_bits(3), first)
    assert 0 < (noisy_bits(4) != first).float().mean() < 0.5
    assert 0 < (noisy_bits(3, seed=1) != first).float().mean() < 0.5


def test_a_bit_is_on_with_the_chance_of_the_sigmoid():
    learner, x = learner_of(surrogate="stochastic", n_latents=16), batch()
    z = learner.model.pre_activations(x).detach()
    on = torch.zeros(200, 16)
    for step in range(400):
        learner.step = step
        on += learner.bits(x).detach() / 400
    chance = torch.sigmoid(z / (learner.config.width * z.std(0)))
    open_ = (chance > 0.05) & (chance < 0.95)
    assert open_.sum() > 500
    deviations = ((on - chance) / (chance * (1 - chance) / 400).sqrt())[open_]
    assert deviations.square().mean() == pytest.approx(1, abs=0.15)
    assert on[chance < 1e-3].max() < 0.02


# --- training -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_training_is_finite_repeatable_and_resumes_bit_exactly(tmp_path, name):
    source, config = TensorSource(rows()), settings(**{"architecture": name, **VARIANTS[name]})
    for step in (9, 26, 40) if config.architecture != "random" else ():
        with pytest.raises(PowerCut):
            train(source, config, tmp_path / "run", resume=True, report=cut_at(step))
    resumed = train(source, config, tmp_path / "run", resume=True)
    assert all(torch.isfinite(tensor).all() for tensor in resumed.state_dict().values())
    assert same(resumed, train(source, config))
    assert same(resumed, Autoencoder.from_pretrained(tmp_path / "run"))
    assert resumed.encode(rows()).mean(0).max() <= 0.5 + 1e-6
    assert fvu(resumed, rows()) < 1


def test_noisy_stages_resume_bit_exactly(tmp_path):
    source, config = TensorSource(rows()), settings(architecture="residual_bae", surrogate="stochastic")
    with pytest.raises(PowerCut):
        train(source, config, tmp_path, report=cut_at(23))
    assert same(train(source, config, tmp_path, resume=True), train(source, config))


def test_a_checkpoint_holds_the_spreads_of_every_stage(tmp_path):
    with pytest.raises(PowerCut):
        train(TensorSource(rows()), settings(architecture="residual_bae"), tmp_path, report=cut_at(23))
    state = read_tensors(tmp_path / STATE)
    for stage in (0, 1):
        assert (state[f"learner.{stage}.spread"] > 0).all()


@pytest.mark.parametrize(
    "architecture",
    ["ternary_bae", "residual_bae", "matryoshka_bae", "levels_bae"],
)
def test_each_learns(architecture):
    records: list[dict[str, Any]] = []
    model = train(TensorSource(rows()), settings(architecture=architecture, steps=200), report=records.append)
    assert fvu(model, rows()) < 0.35
    assert records[-1]["total"] < 0.5 * records[0]["total"]
