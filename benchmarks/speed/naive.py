"""The same work as anybody would write it in plain torch: what bitlens is compared with."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

Step = Callable[[], None]


def covariance_step(h: Tensor) -> Step:
    """The covariance penalty of 0/1 codes `[n, n_latents]` by `torch.cov`, forward and backward."""
    leaf = h.clone().requires_grad_()

    def step() -> None:
        covariance = torch.cov(leaf.T)
        (covariance.abs().sum() - covariance.diagonal().abs().sum()).backward()
        leaf.grad = None

    return step


def paper_step(x: Tensor, n_latents: int) -> Step:
    """A training step of a BAE with the objective of arXiv 2509.20997, eq.

    4-6, every term dense, and torch's Adam.
    """
    W_enc, b_enc, W_dec, b_dec = parameters = _parameters(x.shape[1], n_latents)
    optimizer = torch.optim.Adam(parameters, lr=1e-3)

    def step() -> None:
        z = x @ W_enc + b_enc
        h = (z > 0).float() + z - z.detach()
        p = h.mean(0).clamp(1e-6, 1 - 1e-6)
        entropy = -(p * p.log() + (1 - p) * (1 - p).log()).sum() / math.log(2)
        covariance = torch.cov(h.T)
        pairs = covariance.abs().sum() - covariance.diagonal().abs().sum()
        loss = (h @ W_dec + b_dec - x).square().mean() + 1e-7 * entropy + 1e-7 * pairs
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def relu_step(x: Tensor, n_latents: int) -> Step:
    """A training step of a plain ReLU autoencoder with L1: five float32 products and torch's fused
    Adam."""
    W_enc, b_enc, W_dec, b_dec = parameters = _parameters(x.shape[1], n_latents)
    optimizer = torch.optim.Adam(parameters, lr=1e-3, fused=True)

    def step() -> None:
        h = torch.relu(x @ W_enc + b_enc)
        loss = (h @ W_dec + b_dec - x).square().mean() + 1e-3 * h.sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def descend(x: Tensor, W: Tensor, b: Tensor, price: Tensor) -> Tensor:
    """Codes by descent with nothing kept: before each flip of all rows, all gains from the
    residual, by a whole product."""
    h, length = x.new_zeros(len(x), len(W)), W.square().sum(1)
    rows = torch.arange(len(x))
    while True:
        correlations = (x - h @ W - b) @ W.T
        best = ((1 - 2 * h) * (2 * correlations - price) - length).max(1)
        flip = best.values > 1e-4
        if not flip.any():
            return h
        h[rows[flip], best.indices[flip]] = 1 - h[rows[flip], best.indices[flip]]


def co_occurrence(h: Tensor) -> Tensor:
    """`H^T H` of 0/1 codes in float32 -> `[n_latents, n_latents]`; exact up to 2^24 rows."""
    return h.T @ h


def _parameters(d_in: int, n_latents: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(shape, generator=generator) * scale).requires_grad_()
        for shape, scale in (
            ((d_in, n_latents), d_in**-0.5),
            ((n_latents,), 0.1),
            ((n_latents, d_in), n_latents**-0.5),
            ((d_in,), 0.0),
        )
    ]
