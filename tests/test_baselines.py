"""The sparse baselines against their papers: functions, losses, gradients, and how they train."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bitlens.autoencoders import (
    Autoencoder,
    BatchTopKAutoencoder,
    GatedAutoencoder,
    JumpReLUAutoencoder,
    PCAAutoencoder,
    ReLUAutoencoder,
    SparseAutoencoder,
    TopKAutoencoder,
)
from bitlens.autoencoders.jumprelu import JumpReLULearner
from bitlens.autoencoders.learner import make_learner
from bitlens.errors import BitlensError
from bitlens.files import read_tensors
from bitlens.hidden import TensorSource
from bitlens.training import train
from bitlens.training.checkpoint import STATE
from test_resume import PowerCut, cut_at, rows, same, settings

D, LATENTS, K = 6, 14, 3
PENALISED = ("relu", "gated", "jumprelu")  # a controller brings them to k latents
UNIT = (*PENALISED, "topk", "batch_topk")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def build(architecture: str) -> Any:
    """A sparse autoencoder all of whose parameters are random, its decoder rows of unit norm."""
    model = {
        "relu": lambda: ReLUAutoencoder(D, LATENTS),
        "gated": lambda: GatedAutoencoder(D, LATENTS),
        "jumprelu": lambda: JumpReLUAutoencoder(D, LATENTS),
        "topk": lambda: TopKAutoencoder(D, LATENTS, K),
        "batch_topk": lambda: BatchTopKAutoencoder(D, LATENTS, K),
    }[architecture]()
    with torch.no_grad():
        for seed, parameter in enumerate(model.parameters()):
            parameter.add_(0.3 * random(*parameter.shape, seed=seed))
        model.normalise_decoder()
        if architecture == "jumprelu":
            model.threshold.clamp_(min=0.05)
    model.mean.copy_(random(D, seed=10))
    model.scale.fill_(2.5)
    return model


def in_float64(model: Autoencoder) -> Any:
    """The parameters as float64 leaves."""
    return SimpleNamespace(
        **{k: v.detach().double().requires_grad_() for k, v in model.named_parameters()}
    )


def learner_of(model: Autoencoder, **changes: Any) -> Any:
    config = settings(architecture=model.architecture, n_latents=LATENTS, k=K, **changes).resolved(
        D, "cpu"
    )
    learner = make_learner(model, config, lambda n, seed: torch.randn(n, D, generator=seed))
    learner.step = config.steps // 2  # past the warm-up
    return learner


def gradients(model: Autoencoder) -> dict[str, Tensor]:
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in model.named_parameters()
    }


# --- the functions --------------------------------------------------------------------------------


def code_by_hand(model: Autoencoder, P: Any, x: Tensor) -> Tensor:
    """x: standardised, less b_dec"""
    z = x @ P.W_enc + P.b_enc
    match model:
        case GatedAutoencoder():
            magnitude = x @ (P.W_enc * P.r_mag.exp()) + P.b_mag
            return torch.where(z > 0, magnitude.clamp_min(0), 0.0)
        case JumpReLUAutoencoder():
            return torch.where(z > P.threshold, z, 0.0)
        case BatchTopKAutoencoder():
            return torch.where(z > 0.7, z, 0.0)
        case TopKAutoencoder():
            rank = z.argsort(1, descending=True).argsort(1)
            return torch.where(rank < K, z.clamp_min(0), 0.0)
    return z.clamp_min(0)


@pytest.mark.parametrize("architecture", UNIT)
def test_each_is_its_papers_formula(architecture):
    model, x = build(architecture), 2.5 * random(60, D, seed=11) + random(D, seed=10)
    if architecture == "batch_topk":
        model.threshold.fill_(0.7)
    P = in_float64(model)
    codes = code_by_hand(model, P, (x.double() - model.mean) / 2.5 - P.b_dec)
    assert 0.05 < (codes > 0).double().mean() < 0.8
    torch.testing.assert_close(model.encode(x).double(), codes, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        model(x).double(), (codes @ P.W_dec + P.b_dec) * 2.5 + model.mean, atol=1e-4, rtol=1e-5
    )
    assert torch.equal(model.encode_bits(x).unpack(torch.bool), model.encode(x) > 0)


def test_a_batch_keeps_its_k_n_largest_wherever_they_are():
    model, z = build("batch_topk"), random(20, LATENTS, seed=3) + random(20, 1, seed=4)
    smallest = z.flatten().sort(descending=True).values[20 * K - 1]
    codes = model.batch_code(z)
    assert torch.equal(codes, torch.where(z >= smallest, z, 0.0))
    assert len({int(n) for n in (codes > 0).sum(1)}) > 1, "every row kept as many as every other"


# --- the losses -----------------------------------------------------------------------------------


def test_relu_pays_the_l1_norm_of_its_codes():
    model, x = build("relu"), random(40, D, seed=11)
    losses, _ = learner_of(model, sparsity=0.7).losses(x)
    P = in_float64(model)
    codes = ((x.double() - P.b_dec) @ P.W_enc + P.b_enc).clamp_min(0)
    error = (codes @ P.W_dec + P.b_dec - x).square().sum(1).mean()
    torch.testing.assert_close(losses.total.double(), (error + 0.7 * codes.sum(1).mean()) / D)


def test_gated_has_the_loss_and_the_gradients_of_its_paper():
    """arXiv 2404.16014, eq. 8, as its appendix writes it in code, over d_in."""
    model, x = build("gated"), random(40, D, seed=11)
    losses, _ = learner_of(model, sparsity=0.7).losses(x)
    losses.total.backward()

    P = in_float64(model)
    centred = x.double() - P.b_dec
    active = centred @ P.W_enc + P.b_enc > 0
    magnitudes = (centred @ (P.W_enc * P.r_mag.exp()) + P.b_mag).relu()
    expected = (active * magnitudes @ P.W_dec + P.b_dec - x).square().sum(1)
    gate = (centred @ P.W_enc + P.b_enc).relu()
    expected = expected + 0.7 * gate.sum(1)
    expected = expected + (gate @ P.W_dec.detach() + P.b_dec.detach() - x).square().sum(1)
    (expected.mean() / D).backward()
    torch.testing.assert_close(losses.total.double(), expected.mean() / D)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(
            gradient.double(), getattr(P, name).grad, atol=1e-6, rtol=1e-4, msg=name
        )


def test_gated_auxiliary_loss_moves_the_gate_and_not_the_decoder():
    model = build("gated")
    losses, _ = learner_of(model).losses(random(40, D, seed=11))
    by = dict(model.named_parameters())
    moved = dict(
        zip(
            by,
            torch.autograd.grad(losses.auxiliary, list(by.values()), allow_unused=True),
            strict=True,
        )
    )
    assert {name for name, gradient in moved.items() if gradient is not None} == {
        "W_enc",
        "b_enc",
        "b_dec",
    }
    torch.testing.assert_close(
        moved["b_dec"], -model.W_enc @ moved["b_enc"]
    )  # as what is subtracted from the input


def test_jumprelu_thresholds_move_by_the_kernel_estimates():
    """arXiv 2407.14435, eq. 11 (of JumpReLU) and eq. 12 (of the count), summed one by one."""
    model, x, weight = build("jumprelu"), random(40, D, seed=11), 0.7
    losses, _ = learner_of(model, sparsity=weight).losses(x)
    losses.total.backward()

    P, width = in_float64(model), JumpReLULearner.BANDWIDTH
    z = ((x.double() - P.b_dec) @ P.W_enc + P.b_enc).detach()
    codes = torch.where(z > P.threshold, z, 0.0).detach().requires_grad_()
    error = (codes @ P.W_dec + P.b_dec - x).square().mean()
    (g,) = torch.autograd.grad(error, codes)
    torch.testing.assert_close(losses.mse.double(), error)
    torch.testing.assert_close(
        losses.price.double(), weight * (codes > 0).double().sum(1).mean() / D
    )

    threshold, bias = torch.zeros(LATENTS).double(), torch.zeros(LATENTS).double()
    near = 0
    for row in range(len(x)):
        for j in range(LATENTS):
            value, theta = z[row, j].item(), P.threshold[j].item()
            kernel = 1.0 if abs((value - theta) / width) < 0.5 else 0.0
            near += kernel
            threshold[j] += g[row, j] * (-theta / width * kernel)
            threshold[j] += weight / len(x) / D * (-1 / width * kernel)
            bias[j] += g[row, j] * (value > theta)
    assert 20 < near < z.numel() / 2
    torch.testing.assert_close(
        gradients(model)["threshold"].double(), threshold, atol=1e-6, rtol=1e-4
    )
    torch.testing.assert_close(gradients(model)["b_enc"].double(), bias, atol=1e-6, rtol=1e-4)


def test_dead_latents_reconstruct_what_is_left():
    """AuxK of arXiv 2406.04093, appendix A.2: the largest dead latents, all else held still."""
    model, x = build("topk"), random(4, D, seed=11)
    learner = learner_of(model)
    with torch.no_grad():
        model.b_enc[:4] += 5.0  # these are on in every row
    learner.state["silent"] += 1000
    losses, codes = learner.losses(x)
    dead = ~(codes > 0).any(0)
    assert D // 2 < dead.sum() < LATENTS - 3
    P = in_float64(model)
    z = (x.double() - P.b_dec) @ P.W_enc + P.b_enc
    guess = torch.zeros(len(x), D).double()
    for row in range(len(x)):
        for j in sorted(dead.nonzero()[:, 0].tolist(), key=lambda j: -z[row, j].item())[: D // 2]:
            guess[row] = guess[row] + z[row, j].clamp_min(0) * P.W_dec[j]
    residual = x.double() - (codes.double() @ P.W_dec + P.b_dec)
    expected = (guess - residual.detach()).square().mean() / 32
    torch.testing.assert_close(losses.auxiliary.double(), expected)
    torch.testing.assert_close(losses.total, losses.mse + losses.auxiliary)
    losses.auxiliary.backward()
    expected.backward()
    for name in ("W_enc", "b_enc", "W_dec"):
        torch.testing.assert_close(
            gradients(model)[name].double(), getattr(P, name).grad, atol=1e-7, rtol=1e-4
        )
    assert not gradients(model)["W_dec"][~dead].any()


def test_a_latent_is_dead_after_so_many_batches_without_it():
    model = build("topk")
    with torch.no_grad():
        model.b_enc[:4] -= 100.0
    learner, x = learner_of(model), random(200, D, seed=11)
    for batch in range(1, learner.patience + 2):
        losses, codes = learner.losses(x)
        assert torch.equal(learner.state["silent"] == batch, ~(codes > 0).any(0))
        assert (losses.auxiliary > 0) == (batch > learner.patience)


@pytest.mark.parametrize("architecture", UNIT)
def test_gradients_are_of_norm_one_and_decoder_rows_not_pulled_along_themselves(architecture):
    model, x = build(architecture), random(40, D, seed=11)
    learner_of(model).losses(x)[0].total.backward()
    expected = {name: gradient.clone() for name, gradient in gradients(model).items()}
    free, W = expected["W_dec"], model.W_dec.detach()
    assert (free * W).sum(1).abs().max() > 1e-3
    free -= (free * W).sum(1, keepdim=True) * W
    norm = torch.cat([gradient.flatten() for gradient in expected.values()]).norm()
    learner_of(model).backward(x)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name] / norm, msg=name)
    assert (gradients(model)["W_dec"] * W).sum(1).abs().max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("architecture", UNIT)
def test_a_row_of_large_norm_does_not_undo_what_was_learned(architecture):
    """Once in hundreds of batches; with Adam's momentum it pulled for tens of steps."""
    model = build(architecture)
    learner = learner_of(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    sources = random(LATENTS, D, seed=1)

    def batch(seed: int) -> Tensor:
        on = torch.rand(256, LATENTS, generator=torch.Generator().manual_seed(seed)) < K / LATENTS
        return on.float() @ sources

    def step(x: Tensor) -> None:
        learner.backward(x)
        optimizer.step()
        learner.after_step(learner.step, optimizer)

    for seed in range(300):
        step(batch(seed))
    with torch.no_grad():
        before = learner.losses(batch(999))[0].mse
    with_a_large_row = batch(300)
    with_a_large_row[0] *= 40
    step(with_a_large_row)
    for seed in range(301, 311):
        step(batch(seed))
    with torch.no_grad():
        assert learner.losses(batch(999))[0].mse < 1.15 * before


# --- training -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [*UNIT, "pca"])
def test_training_is_finite_repeatable_and_resumes_bit_exactly(tmp_path, architecture):
    source, config = TensorSource(rows()), settings(architecture=architecture, k=4)
    for step in (9, 26, 40) if architecture != "pca" else ():
        with pytest.raises(PowerCut):
            train(source, config, tmp_path / "run", resume=True, report=cut_at(step))
    resumed = train(source, config, tmp_path / "run", resume=True)
    assert resumed.architecture == architecture
    assert all(torch.isfinite(tensor).all() for tensor in resumed.state_dict().values())
    assert same(resumed, train(source, config))
    assert same(resumed, Autoencoder.from_pretrained(tmp_path / "run"))
    if isinstance(resumed, SparseAutoencoder):
        assert not same(resumed, train(source, settings(architecture=architecture, k=4, seed=1)))
        torch.testing.assert_close(resumed.W_dec.norm(dim=1), torch.ones(40))


@pytest.mark.parametrize(
    ("architecture", "name"),
    [*((a, "log_sparsity") for a in PENALISED), ("topk", "silent"), ("batch_topk", "silent")],
)
def test_a_checkpoint_holds_what_the_learner_remembers(tmp_path, architecture, name):
    config = settings(architecture=architecture, k=2, steps=60)
    with pytest.raises(PowerCut):
        train(TensorSource(rows()), config, tmp_path, report=cut_at(50))
    remembered = read_tensors(tmp_path / STATE)[f"learner.{name}"]
    assert (remembered != math.log(0.3)).all() if name == "log_sparsity" else remembered.max() > 3


@pytest.mark.slow
@pytest.mark.parametrize("architecture", PENALISED)
def test_the_controller_reaches_k_latents(architecture):
    source, config = (
        TensorSource(rows()),
        settings(architecture=architecture, k=5, steps=600, log_every=600),
    )
    on = (train(source, config).encode(rows()) > 0).sum(1).double().mean()
    assert 5 / 1.5 < on < 5 * 1.5


@pytest.mark.parametrize("architecture", PENALISED)
def test_the_weight_goes_up_with_more_than_k_and_down_with_fewer_and_stays_where_it_is_given(
    architecture,
):
    x = random(50, D, seed=11)
    for change, direction in (({"k": 1}, 1), ({"k": LATENTS}, -1), ({"k": 1, "sparsity": 0.3}, 0)):
        model = build(architecture)
        config = settings(architecture=architecture, n_latents=LATENTS, **change).resolved(D, "cpu")
        learner = make_learner(model, config, lambda n, seed: torch.randn(n, D, generator=seed))
        weight = learner.state["log_sparsity"]
        assert weight == pytest.approx(math.log(0.3))
        learner.backward(x)
        assert weight == pytest.approx(math.log(0.3)), "it moved while it was rising"
        learner.step = 30
        learner.backward(x)
        assert np.sign(float(weight) - math.log(0.3)).round(9) == direction


@pytest.mark.slow
def test_a_higher_weight_leaves_fewer_latents_on():
    source = TensorSource(rows())
    on = [
        float(
            (
                train(source, settings(architecture="relu", sparsity=s, steps=200)).encode(rows())
                > 0
            ).sum()
        )
        for s in (0.1, 1.0)
    ]
    assert on[1] < 0.7 * on[0]


@pytest.mark.slow
def test_the_threshold_of_use_leaves_k_on_in_the_mean_and_rows_to_themselves():
    model = train(TensorSource(rows()), settings(architecture="batch_topk", k=4, steps=200))
    codes = model.encode(rows())
    on = (codes > 0).sum(1)
    assert on.double().mean() == pytest.approx(4, rel=0.01)
    assert on.max() > on.min()
    torch.testing.assert_close(model.encode(rows()[:3]), codes[:3])


def test_the_threshold_of_use_does_not_depend_on_how_the_sample_splits():
    model = train(TensorSource(rows(4097)), settings(architecture="batch_topk", k=4))
    assert (model.encode(rows(4097)) > 0).sum(1).double().mean() == pytest.approx(4, rel=0.01)


@pytest.mark.parametrize("k", [1, 5, 12])
def test_principal_components_are_those_of_an_svd(k):
    x = rows().double()
    model = train(TensorSource(rows() + 3), settings(architecture="pca", k=k))
    assert isinstance(model, PCAAutoencoder)
    assert model.n_latents == k
    U, S, V = np.linalg.svd((x - x.mean(0)).numpy(), full_matrices=False)
    expected = U[:, :k] * S[:k] @ V[:k] + x.mean(0).numpy() + 3
    np.testing.assert_allclose(model(rows() + 3).numpy(), expected, atol=1e-4)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "nonsense"}, "no architecture 'nonsense'; choose one of: bae, "),
        (
            {"architecture": "topk", "k": 41},
            "`k` must be between 1 and 40, the number of latents, not 41",
        ),
        ({"architecture": "batch_topk", "k": 41}, "`k` must be between 1 and 40"),
        (
            {"architecture": "relu", "k": 0},
            "`k` must be between 1 and 40, the number of latents, not 0",
        ),
        ({"architecture": "pca", "k": 13}, "12 components, not 13"),
        (
            {"architecture": "gated", "sparsity": 0.0},
            "`sparsity` must be above 0 and finite, not 0.0",
        ),
        ({"architecture": "transcoder"}, "needs two stores of one harvest"),
        ({"architecture": "skip_transcoder"}, "needs two stores of one harvest"),
    ],
    ids=str,
)
def test_wrong_settings_are_refused_in_one_sentence(tmp_path, changes, message):
    with pytest.raises(BitlensError, match=message) as error:
        train(TensorSource(rows()), settings(**changes), tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()
