"""Rate-distortion pruning and regrowing: which latents are worth their price, in closed form.

Gradient descent alone cannot remove duplicates: the slope of the entropy is zero at p = 1/2, so
copies of a fair bit are a stationary point of the loss.
"""

import math
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from bitlens.autoencoders.base import Autoencoder
from bitlens.autoencoders.objective import Price
from bitlens.bits.packed import PackedBits
from bitlens.bits.statistics import co_occurrence, firing_rates

OFF = -1e3  # the encoder bias of a latent that is switched off
FEWEST = 4  # rows in which a restarted latent is on, and off
BLOCK = 4096


class Parameters(NamedTuple):
    """W_enc `[d_in, n_latents]`, b_enc, W_dec `[n_latents, d_in]`, b_dec, in model space."""

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor

    @classmethod
    def of(cls, model: Autoencoder) -> Self:
        """The parameters themselves, not copies."""
        return cls(model.W_enc, model.b_enc, model.W_dec, model.b_dec)

    def copy_to(self, model: Autoencoder) -> None:
        """Set the model's parameters, in place."""
        for old, new in zip(Parameters.of(model), self, strict=True):
            old.copy_(new)


def code_rows(rows: Tensor, P: Parameters) -> PackedBits:
    """Packed codes of standardised rows, in blocks."""
    words = [PackedBits.step(block @ P.W_enc + P.b_enc).words for block in rows.split(BLOCK)]
    return PackedBits(torch.cat(words), P.W_enc.shape[1])


def latent_sums(bits: PackedBits, rows: Tensor) -> Tensor:
    """`H^T rows`, the sum of the rows in which each latent is on -> float64 `[n_latents, d]`."""
    total = torch.zeros(bits.n_latents, rows.shape[1], dtype=torch.float64, device=rows.device)
    for start in range(0, len(rows), BLOCK):
        total += bits[start : start + BLOCK].unpack().T @ rows[start : start + BLOCK]
    return total


@torch.no_grad()
def prune(
    rows: Tensor, P: Parameters, price: Price, lam: float, ridge: float = 1e-5
) -> tuple[Parameters, Tensor]:
    """Switch off, greedily, latents whose price exceeds the least-squares rise in mse without them.

    rows: standardised `[n, d_in]`. The rise is exact: with G the latents' covariance and W the
    least-squares decoder, dropping latent j raises the error by `|W_j|^2 / (G^-1)_jj` and changes W
    and G^-1 by a rank-one update. A decoder row fitted on n rows also buys `2 mse / n` by chance,
    which a latent must exceed. Latents go in blocks of nearly uncorrelated ones, at most one in 128
    at once: about the survivors of one at a time at a fraction of the cost.

    -> (parameters with the decoder refitted in closed form, indices of the survivors)
    """
    n, d = rows.shape
    bits = code_rows(rows, P)
    rates = firing_rates(bits).to(rows.device)
    live = ((rates > 0) & (rates < 1)).nonzero()[:, 0]
    p, mean = rates[live], rows.mean(0)
    centred = rows - mean
    G = co_occurrence(bits).double()[live][:, live].div_(n).sub_(p[:, None] * p)
    G.diagonal().mul_(1 + ridge)
    A = latent_sums(bits, centred)[live] / n
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(G))
    del G
    W = inverse @ A
    cost = lam * price(p) / d
    chance = 2 * (centred.square().sum().item() / n - (W * A).sum().item()) / d / n

    alive = torch.ones(len(live), dtype=torch.bool, device=rows.device)
    while alive.any():
        gain = cost + chance - W.square().sum(1) / inverse.diagonal().clamp_min(1e-12) / d
        gain[~alive] = -math.inf
        drop = _uncorrelated(gain, inverse, limit=min(64, max(1, len(live) // 128)))
        if len(drop) == 0:
            break
        columns = inverse[:, drop].clone()
        update = torch.linalg.solve(columns[drop], columns.T)
        W -= update.T @ W[drop]
        inverse.addmm_(columns, update, alpha=-1)
        alive[drop] = False
        W[drop], inverse[drop, :], inverse[:, drop] = 0, 0, 0
        if alive.sum() < len(live) / 2:  # the matrices shrink with what is left
            keep = alive.nonzero()[:, 0]
            live, p, cost, W, alive = live[keep], p[keep], cost[keep], W[keep], alive[keep]
            inverse = inverse[keep][:, keep]

    keep, W, p = live[alive], W[alive], p[alive]
    off = torch.ones(len(rates), dtype=torch.bool, device=rows.device)
    off[keep] = False
    W_enc, b_enc, W_dec = P.W_enc.clone(), P.b_enc.clone(), torch.zeros_like(P.W_dec)
    W_enc[:, off], b_enc[off] = 0, OFF
    W_dec[keep] = W.float()
    return Parameters(W_enc, b_enc, W_dec, (mean - p @ W).float()), keep


def _uncorrelated(gain: Tensor, inverse: Tensor, limit: int) -> Tensor:
    """Up to `limit` latents with the highest positive gain, nearly uncorrelated in pairs."""
    top = gain.topk(min(2 * limit if limit > 8 else limit, len(gain)))
    candidates = top.indices[top.values > 0]
    block = inverse[candidates][:, candidates].cpu().numpy()
    scale = np.sqrt(np.maximum(block.diagonal(), 1e-12))
    close = np.abs(block) >= 0.05 * scale[:, None] * scale
    chosen: list[int] = []
    for i in range(len(candidates)):
        if len(chosen) < limit and not close[i, chosen].any():
            chosen.append(i)
    return candidates[torch.tensor(chosen, dtype=torch.int64)]


@torch.no_grad()
def least_squares(rows: Tensor, P: Parameters, ridge: float = 1e-5) -> Parameters:
    """The same encoder with the decoder that fits it best. rows: standardised `[n, d_in]`."""
    bits = code_rows(rows, P)
    p = firing_rates(bits).to(rows.device)
    mean = rows.mean(0)
    G = co_occurrence(bits).double().to(rows.device).div_(len(rows)).sub_(p[:, None] * p)
    G.diagonal().mul_(1 + ridge).add_(1e-12)  # a constant latent gets a row of zeros
    W = torch.linalg.solve(G, latent_sums(bits, rows - mean) / len(rows))
    return Parameters(P.W_enc, P.b_enc, W.float(), (mean - p @ W).float())


@torch.no_grad()
def propose(
    rows: Tensor, P: Parameters, price: Price, lam: float, generator: torch.Generator
) -> tuple[Parameters, Tensor]:
    """Offer pruning a choice: dead latents become candidates along rows, drawn by their squared
    distance from the mean (as k-means++ draws its centres), with decoder rows of zero.

    They free a code whose latents each stand for several, from which gradient descent alone finds
    no way out. rows: standardised `[n, d_in]`.

    -> (parameters, indices of the candidates); reconstructions are unchanged
    """
    P, dead, _ = _without_dead(rows, P)
    if len(dead):
        centred = rows - rows.mean(0)
        _restart(dead, P, rows, centred, centred.square().sum(1), price, lam, generator)
        P.W_dec[dead] = 0
    return P, dead


@torch.no_grad()
def regrow(
    rows: Tensor, P: Parameters, price: Price, lam: float, generator: torch.Generator
) -> tuple[Parameters, Tensor]:
    """Restart dead latents along the residuals of random rows, each at the threshold that gains
    most; none once less than 1 % of the variance is unexplained. rows: standardised `[n, d_in]`.

    -> (parameters, indices of the restarted latents, whose optimiser state is to be cleared)
    """
    P, dead, bits = _without_dead(rows, P)
    starts = range(0, len(rows), BLOCK)
    parts = [bits[start : start + BLOCK].unpack() @ P.W_dec for start in starts]
    residual = rows - torch.cat(parts) - P.b_dec
    if len(dead) == 0 or residual.var(0).sum() < 0.01 * rows.var(0).sum():
        return P, dead[:0]
    _restart(dead, P, rows, residual, torch.ones(len(rows)), price, lam, generator)
    # Shorter, since many latents start on the same residual.
    P.W_dec[dead] *= 0.3 / max(1, math.sqrt(len(dead)) / 8)
    return P, dead


def _without_dead(rows: Tensor, P: Parameters) -> tuple[Parameters, Tensor, PackedBits]:
    """A copy of the parameters in which dead latents, (almost) always on or off, give nothing;
    these latents; and the codes of the rows."""
    bits = code_rows(rows, P)
    rates = firing_rates(bits).to(rows.device)
    dead = ((rates < 1e-3) | (rates > 1 - 1e-3)).nonzero()[:, 0]
    P = Parameters(*(tensor.clone() for tensor in P))
    P.b_dec.add_(P.W_dec[dead[rates[dead] > 0.5]].sum(0))
    P.W_dec[dead] = 0
    return P, dead, bits


def _restart(
    dead: Tensor,
    P: Parameters,
    rows: Tensor,
    targets: Tensor,
    chances: Tensor,
    price: Price,
    lam: float,
    generator: torch.Generator,
) -> None:
    """Set the dead latents, in place, along targets drawn with these chances, each at the threshold
    on the rows that explains most of the targets, both `[n, d]`."""
    drawn = torch.multinomial(chances.cpu(), len(dead), replacement=True, generator=generator)
    seeds = targets[drawn.to(targets.device)]
    norms = P.W_enc.norm(dim=0)
    live = norms[norms > 0]
    size = live.median() if len(live) else norms.new_tensor(rows.shape[1] ** -0.5)
    directions = (seeds / seeds.norm(dim=1, keepdim=True).clamp_min(1e-12)).T * size
    for start in range(0, len(dead), 512):
        block, V = dead[start : start + 512], directions[:, start : start + 512]
        bias, decoder = _best_threshold(rows, targets, V, price, lam)
        P.W_enc[:, block], P.b_enc[block], P.W_dec[block] = V, bias, decoder


def _best_threshold(
    rows: Tensor, targets: Tensor, V: Tensor, price: Price, lam: float
) -> tuple[Tensor, Tensor]:
    """For directions V `[d, m]` the bias at which one latent gains most, after its price, and its
    decoder row. The gain is the variance of the targets between the on and the off rows, along V
    (Otsu 1979); a threshold lies in the middle between two values, so that no row lies on it.
    """
    n, d = rows.shape
    unsorted = rows @ V
    z, order = unsorted.sort(0)
    along = (targets @ V).gather(0, order).double()
    off = torch.arange(1, n, dtype=torch.double, device=rows.device)[:, None] / n
    covariance = off * along.mean(0) - along.cumsum(0)[:-1] / n
    explained = covariance.square() / (off * (1 - off)) / V.double().square().sum(0) / d
    gain = explained - lam * price(1 - off) / d
    apart = z[1:] - z[:-1] > 1e-5 * (z[-1] - z[0])
    few = (off * n < FEWEST) | ((1 - off) * n < FEWEST)
    best = gain.masked_fill(~apart | few, -math.inf).argmax(0, keepdim=True)
    bias = -(z.gather(0, best) + z.gather(0, best + 1))[0] / 2
    h = (unsorted + bias > 0).float()
    q = h.mean(0)
    decoder = (h - q).T @ targets / n / (q * (1 - q)).clamp_min(1e-4)[:, None]
    return bias, decoder
