"""What is minimised: reconstruction plus a price on the minibatch's bits.

    loss = mse(x_hat, x) + (lam / d_in) * sum_j price(p_j)
           + (gamma / n_latents^2) * sum_{i != j} |cov(h)_ij|

for standardised rows `x [n, d_in]`, codes `h [n, n_latents]` and firing rates `p = mean(h)`; `lam`
reads as "fvu paid for a bit per dimension". `weighting="paper"` instead takes the plain sums of
arXiv 2509.20997, eq. 4-6.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from bitlens import processes
from bitlens.bits import statistics
from bitlens.bits.entropies import binary_entropy
from bitlens.bits.packed import PackedBits
from bitlens.options import PriceKind, Weighting


class Price(NamedTuple):
    """What a latent costs at firing rate p, in bits; symmetric in p and 1 - p.

    `entropy`: the binary entropy H2(p). `onbit`: `q log2((1 - p0) / p0)` with `q = min(p, 1 - p)`:
    every on-bit costs the same, as under a code with the fixed sparse prior p0.
    """

    kind: PriceKind
    p0: float

    @property
    def per_on_bit(self) -> float:
        """The price of a bit that is on, of kind `onbit`."""
        return math.log2((1 - self.p0) / self.p0)

    def __call__(self, p: Tensor) -> Tensor:
        """Firing rates -> the price of each latent, float64."""
        if self.kind == "entropy":
            return binary_entropy(p)
        return torch.minimum(p, 1 - p).double() * self.per_on_bit


NOTHING = torch.zeros(())


class Losses(NamedTuple):
    """The terms of the objective for one minibatch, weighted; `total` is their sum."""

    total: Tensor
    mse: Tensor
    price: Tensor = NOTHING
    covariance: Tensor = NOTHING
    auxiliary: Tensor = NOTHING


def batch_price(p: Tensor, n: int, price: Price) -> Tensor:
    """Sum over latents of the price of the firing rates p `[n_latents]` of a minibatch of n rows.

    A rate of 0 or 1 has no finite entropy gradient: the slope is taken at half a row instead.
    """
    inner = price(p + (p.clamp(0.5 / n, 1 - 0.5 / n) - p).detach())
    return (price(p.detach()) + (inner - inner.detach())).sum()


def covariance_penalty(h: Tensor) -> Tensor:
    """`sum_{i != j} |cov(h)_ij|` (unbiased) and its gradient from bits; h `[n, n_latents]`."""
    penalty, gradient = statistics.covariance(PackedBits.pack(h))
    return penalty + ((h - h.detach()) * gradient).sum()  # adds nothing but the gradient


def dense_covariance_penalty(h: Tensor) -> Tensor:
    """The same by plain products and autograd, in float64 so that a covariance of 0 is 0."""
    h, n = h.double(), len(h)
    counts = h.sum(0)
    products = n * h.T @ h - counts[:, None] * counts
    return (products.abs().sum() - products.diagonal().abs().sum()) / (n * (n - 1))


def batch_rates(h: Tensor, n: int) -> Tensor:
    """Firing rates `[n_latents]` of a batch of n rows, of which h are those of this process. Their
    gradient is that of the mean over these."""
    own = h.mean(0, dtype=torch.float32)
    if processes.world_size() == 1:
        return own
    counts = h.detach().sum(0, dtype=torch.float32)
    processes.add(counts)
    return counts / n + (own - own.detach())


def whole_batch(h: Tensor, n: int) -> Tensor:
    """Bits of all n rows of a batch, of which h are those of this process, and alone carry a
    gradient; those of the others have travelled packed."""
    if processes.world_size() == 1:
        return h
    packed, own = PackedBits.pack(h.detach()), processes.part(n)
    bits = PackedBits(processes.gather(packed.words, n), packed.n_latents).unpack(h.dtype)
    return torch.cat([bits[: own.start], h, bits[own.stop :]])


def weights(
    d_in: int, n_latents: int, lam: float, gamma: float, weighting: Weighting
) -> tuple[float, float]:
    """What one latent's price and one pair's covariance are multiplied by."""
    return (lam, gamma) if weighting == "paper" else (lam / d_in, gamma / n_latents**2)


def binary_losses(
    x: Tensor,
    x_hat: Tensor,
    h: Tensor,
    price: Price,
    lam: float,
    gamma: float,
    weighting: Weighting,
    penalty: Callable[[Tensor], Tensor] = covariance_penalty,
    n: int | None = None,
) -> Losses:
    """The objective above for one minibatch. x, x_hat `[n, d_in]`; h `[n, n_latents]`.

    n: rows of the batch, where x are only those of this process. The price and the covariance are
    then the batch's, with the gradient of the mean over these rows."""
    n = len(h) if n is None else n
    per_price, per_pair = weights(x.shape[1], h.shape[1], lam, gamma, weighting)
    mse = torch.mean((x_hat.float() - x) ** 2)
    zero = mse.new_zeros(())
    cost = per_price * batch_price(batch_rates(h, n), n, price) if lam else zero
    with torch.autocast(h.device.type, enabled=False):
        covariance = per_pair * penalty(whole_batch(h, n)) if gamma else zero
    if len(h) < n:
        covariance = covariance.detach() + (covariance - covariance.detach()) * (n / len(h))
    return Losses(mse + cost + covariance, mse, cost, covariance)
