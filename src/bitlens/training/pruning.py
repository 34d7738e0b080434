"""Rate-distortion pruning and regrowing: which latents are worth their price, decided in closed form.

Both are pure functions of (standardised rows, parameters). Gradient descent alone cannot remove duplicates: the slope
of the entropy is zero at p = 1/2, so copies of a fair bit are a stationary point of the loss.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bitlens.bits.packed import PackedBits
from bitlens.bits.statistics import co_occurrence, firing_rates
from bitlens.training.objective import Price

OFF = -1e3  # the encoder bias of a latent that is switched off
RATES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
BLOCK = 4096


class Parameters(NamedTuple):
    """W_enc `[d_in, n_latents]`, b_enc, W_dec `[n_latents, d_in]`, b_dec, in model space."""

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor


def code_rows(rows: Tensor, P: Parameters) -> PackedBits:
    """Packed codes of standardised rows, in blocks."""
    words = [PackedBits.step(block @ P.W_enc + P.b_enc).words for block in rows.split(BLOCK)]
    return PackedBits(torch.cat(words), P.W_enc.shape[1])


def latent_sums(bits: PackedBits, rows: Tensor) -> Tensor:
    """`H^T rows`: for each latent the sum of the rows in which it is on -> float64 `[n_latents, d]`"""
    total = torch.zeros(bits.n_latents, rows.shape[1], dtype=torch.float64, device=rows.device)
    for start in range(0, len(rows), BLOCK):
        total += bits[start : start + BLOCK].unpack().T @ rows[start : start + BLOCK]
    return total


@torch.no_grad()
def prune(rows: Tensor, P: Parameters, price: Price, lam: float, ridge: float = 1e-5) -> tuple[Parameters, Tensor]:
    """Switch off, greedily, latents whose price exceeds the least-squares rise in mse of dropping them.

    rows: standardised `[n, d_in]`. The rise is exact: with G the latents' covariance and W the least-squares decoder,
    dropping latent j raises the error by `|W_j|^2 / (G^-1)_jj` and changes W and G^-1 by a rank-one update. A decoder
    row fitted on n rows also buys `2 mse / n` by chance, which a latent must exceed. Latents go in blocks of nearly
    uncorrelated ones, at most one in 128 at once: about the survivors of one at a time at a fraction of the cost.

    -> (parameters with the decoder refitted in closed form, indices of the survivors)
    """
    n, d = rows.shape
    bits = code_rows(rows, P)
    rates = firing_rates(bits).to(rows.device)
    live = ((rates > 0) & (rates < 1)).nonzero()[:, 0]
    p = rates[live]
    mean = rows.mean(0)
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
    """Indices of up to `limit` latents with the highest positive gain, nearly uncorrelated in pairs."""
    top = gain.topk(min(2 * limit if limit > 8 else limit, len(gain)))
    candidates = top.indices[top.values > 0]
    block = inverse[candidates][:, candidates].cpu().numpy()
    scale = np.sqrt(np.maximum(block.diagonal(), 1e-12))
    close = np.abs(block) >= 0.05 * scale[:, None] * scale
    chosen: list[int] = []
    for i in range(len(candidates)):
        if len(chosen) < limit and not close[i, chosen].any():
            chosen.append(i)
    return candidates[chosen]


@torch.no_grad()
def regrow(
    rows: Tensor, P: Parameters, price: Price, lam: float, generator: torch.Generator
) -> tuple[Parameters, Tensor]:
    """Restart switched-off latents along the residuals of random rows, each at the firing rate that gains most.

    rows: standardised `[n, d_in]`. Nothing is restarted once less than 1 % of the variance is unexplained.

    -> (parameters, indices of the restarted latents, whose optimiser state is to be cleared)
    """
    n, d = rows.shape
    bits = code_rows(rows, P)
    rates = firing_rates(bits).to(rows.device)
    residual = torch.cat(
        [
            block - bits[i * BLOCK : (i + 1) * BLOCK].unpack() @ P.W_dec - P.b_dec
            for i, block in enumerate(rows.split(BLOCK))
        ]
    )
    idle = ((rates < 1e-3) | (rates > 1 - 1e-3)).nonzero()[:, 0]
    if len(idle) == 0 or residual.var(0).sum() < 0.01 * rows.var(0).sum():
        return P, idle[:0]
    W_enc, b_enc, W_dec, b_dec = (tensor.clone() for tensor in P)
    b_dec += W_dec[idle[rates[idle] > 0.5]].sum(0)
    seeds = residual[torch.randint(0, n, (len(idle),), generator=generator).to(rows.device)]
    norms = W_enc.norm(dim=0)
    size = norms[norms > 0].median() if (norms > 0).any() else norms.new_tensor(d**-0.5)
    directions = (seeds / seeds.norm(dim=1, keepdim=True).clamp_min(1e-12)).T * size
    shrink = 0.3 / max(1, math.sqrt(len(idle)) / 8)  # many latents start on the same residual
    for part in range(0, len(idle), 1024):
        where, V = idle[part : part + 1024], directions[:, part : part + 1024]
        bias, decoder = _best_rate(rows, residual, V, price, lam)
        W_enc[:, where], b_enc[where], W_dec[where] = V, bias, shrink * decoder
    return Parameters(W_enc, b_enc, W_dec, b_dec), idle


def _best_rate(rows: Tensor, residual: Tensor, V: Tensor, price: Price, lam: float) -> tuple[Tensor, Tensor]:
    """For directions V `[d, m]` the bias, of those giving RATES, with the best net gain, and its decoder row."""
    n, d = rows.shape
    z = rows @ V
    ordered = z.sort(0).values
    best = torch.full((V.shape[1],), -math.inf, dtype=torch.double, device=rows.device)
    bias, decoder = torch.zeros_like(best, dtype=torch.float32), torch.zeros_like(V.T)
    for rate in RATES:
        threshold = -ordered[int((1 - rate) * (n - 1))]
        h = (z + threshold > 0).float()
        q = h.mean(0)
        variance = (q * (1 - q)).clamp_min(1e-4)
        c = (h - q).T @ residual / n
        net = c.square().sum(1).double() / variance / d - lam * price(q) / d
        better = net > best
        best = torch.where(better, net, best)
        bias = torch.where(better, threshold, bias)
        decoder = torch.where(better[:, None], c / variance[:, None], decoder)
    return bias, decoder
