"""The objective and its gradients against plain float64 formulas."""

import math

import numpy as np
import pytest
import torch

from bitlens.autoencoders.objective import (
    Price,
    batch_price,
    binary_losses,
    covariance_penalty,
    dense_covariance_penalty,
)

ENTROPY, ONBIT = Price("entropy", 0.02), Price("onbit", 0.02)
N, D, LATENTS = 40, 6, 9


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def codes(n: int = N, n_latents: int = LATENTS, rate: float = 0.3, seed: int = 0) -> torch.Tensor:
    return (random(n, n_latents, seed=seed) < rate).float()


def plain_price(p: float, kind: str) -> float:
    if kind == "onbit":
        return min(p, 1 - p) * math.log2(0.98 / 0.02)
    return -sum(q * math.log2(q) for q in (p, 1 - p) if q > 0)


@pytest.mark.parametrize("price", [ENTROPY, ONBIT], ids=lambda p: p.kind)
def test_price_is_the_formula_and_ignores_polarity(price):
    p = torch.tensor([0.0, 0.001, 0.02, 0.3, 0.5, 0.8, 1.0], dtype=torch.float64)
    assert price(p).tolist() == pytest.approx(
        [plain_price(q, price.kind) for q in p.tolist()], rel=1e-12
    )
    assert price(1 - p).tolist() == pytest.approx(price(p).tolist(), rel=1e-12)


@pytest.mark.parametrize("price", [ENTROPY, ONBIT], ids=lambda p: p.kind)
def test_batch_price_sums_over_latents_constant_ones_included(price):
    p = codes().double().mean(0)
    p[0], p[1] = 0, 1
    expected = sum(plain_price(q, price.kind) for q in p.tolist())
    assert float(batch_price(p, N, price)) == pytest.approx(expected, rel=1e-12)
    assert float(batch_price(p.float(), N, price)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("price", [ENTROPY, ONBIT], ids=lambda p: p.kind)
def test_slope_of_the_batch_price_inside(price):
    p = codes(n=41).mean(0).requires_grad_()  # an odd number of rows: no rate is 1/2
    batch_price(p, 41, price).backward()
    exact = p.detach().double().requires_grad_()
    price(exact).sum().backward()
    assert p.grad is not None
    assert exact.grad is not None
    assert torch.allclose(p.grad.double(), exact.grad, rtol=1e-5)


def test_slope_of_the_batch_price_at_constant_latents_is_that_at_half_a_row():
    p = torch.tensor([0.0, 1.0], requires_grad=True)
    batch_price(p, N, ENTROPY).backward()
    slope = math.log2((1 - 0.5 / N) / (0.5 / N))
    assert p.grad is not None
    assert torch.allclose(p.grad, torch.tensor([slope, -slope]), rtol=1e-5)


@pytest.mark.parametrize("penalty", [covariance_penalty, dense_covariance_penalty])
def test_covariance_penalty_equals_numpy(penalty):
    h = codes(rate=0.5)
    matrix = np.cov(h.double().numpy().T)
    expected = np.abs(matrix).sum() - np.trace(matrix)
    assert float(penalty(h)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("penalty", [covariance_penalty, dense_covariance_penalty])
@pytest.mark.parametrize("upstream", [1.0, -2.5])
def test_gradient_of_the_covariance_penalty_equals_autograd(upstream, penalty):
    h = codes(n=41, rate=0.4, seed=3).requires_grad_()
    (upstream * penalty(h)).backward()
    exact = h.detach().double().requires_grad_()
    matrix = torch.cov(exact.T)
    (upstream * (matrix.abs().sum() - matrix.diagonal().abs().sum())).backward()
    assert h.grad is not None
    assert exact.grad is not None
    assert torch.allclose(h.grad.double(), exact.grad, atol=1e-6)


def test_pairs_without_covariance_have_no_gradient_whichever_way_it_is_computed():
    """Every pair of these latents has a covariance of exactly zero, where rounding has a sign."""
    h = torch.tensor([[row >> j & 1 for j in range(5)] for row in range(32)]).repeat(3, 1).float()
    for penalty in (covariance_penalty, dense_covariance_penalty):
        leaf = h.clone().requires_grad_()
        value = penalty(leaf)
        value.backward()
        assert value.item() == 0
        assert not leaf.grad.any()


def test_covariance_penalty_is_exact_under_autocast():
    h = codes(n=41, rate=0.4)
    exact = h.clone().requires_grad_()
    covariance_penalty(exact).backward()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = h.clone().requires_grad_()
        penalty = covariance_penalty(mixed)
    penalty.backward()
    assert penalty.item() == covariance_penalty(h).item()
    assert torch.equal(mixed.grad, exact.grad)


@pytest.mark.parametrize("weighting", ["scaled", "paper"])
@pytest.mark.parametrize("price", [ENTROPY, ONBIT], ids=lambda p: p.kind)
def test_every_term_equals_a_plain_computation(weighting, price):
    x, x_hat, h = random(N, D), random(N, D, seed=1), codes()
    losses = binary_losses(x, x_hat, h, price, 0.3, 2.0, weighting)
    X, X_hat, H = (t.double().numpy() for t in (x, x_hat, h))
    mse = np.mean((X - X_hat) ** 2)
    cost = 0.3 * sum(plain_price(p, price.kind) for p in H.mean(0))
    matrix = np.cov(H.T)
    covariance = 2.0 * (np.abs(matrix).sum() - np.trace(matrix))
    if weighting == "scaled":
        cost, covariance = cost / D, covariance / LATENTS**2
    assert [float(term) for term in losses] == pytest.approx(
        [mse + cost + covariance, mse, cost, covariance, 0], rel=1e-5
    )


def test_the_total_has_the_gradient_of_its_terms():
    x = random(N, D)
    x_hat, h = random(N, D, seed=1).requires_grad_(), codes(n=N).requires_grad_()
    binary_losses(x, x_hat, h, ENTROPY, 0.3, 2.0, "scaled").total.backward()
    assert x_hat.grad is not None
    assert h.grad is not None
    assert torch.allclose(x_hat.grad, 2 * (x_hat - x).detach() / (N * D))
    again = h.detach().clone().requires_grad_()
    (
        0.3 / D * batch_price(again.mean(0), N, ENTROPY)
        + 2.0 / LATENTS**2 * covariance_penalty(again)
    ).backward()
    assert again.grad is not None
    assert torch.allclose(h.grad, again.grad, atol=1e-7)


def test_scaled_weights_mean_the_same_at_every_width():
    """The same data side by side twice, with twice the latents: every scaled term stays."""
    x, x_hat, h = random(N, D), random(N, D, seed=1), codes()
    once = binary_losses(x, x_hat, h, ENTROPY, 0.1, 0.0, "scaled")
    twice = binary_losses(
        *(torch.cat([t, t], 1) for t in (x, x_hat, h)), ENTROPY, 0.1, 0.0, "scaled"
    )
    assert [float(t) for t in twice] == pytest.approx([float(t) for t in once], rel=1e-6)
    paper = binary_losses(
        *(torch.cat([t, t], 1) for t in (x, x_hat, h)), ENTROPY, 0.1, 0.0, "paper"
    )
    assert float(paper.price) == pytest.approx(2 * D * float(once.price), rel=1e-6)


def test_the_penalty_a_pair_does_not_depend_on_the_width():
    """All latents equal: every pair has the same covariance; the penalty is (1 - 1/n) of it."""
    bit = codes(n_latents=1)
    for n_latents in (2, 16, 128):
        losses = binary_losses(
            random(N, D), random(N, D), bit.expand(-1, n_latents), ENTROPY, 0.0, 1.0, "scaled"
        )
        assert float(losses.covariance) == pytest.approx(
            float(bit.var()) * (1 - 1 / n_latents), rel=1e-4
        )
