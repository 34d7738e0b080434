"""Inference-time optimisation for sparse autoencoders: codes searched on the decoder, as a BAE's are by descent."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK_BYTES = 64 << 20  # of the correlations of a block of rows
RIDGE = 1e-6


@torch.no_grad()
def pursue(x: Tensor, W: Tensor, b: Tensor, k: int) -> Tensor:
    """Orthogonal matching pursuit (Pati, Rezaiifar and Krishnaprasad 1993): k times, take the latent that explains most of
    what is left, in its positive direction, and fit all magnitudes anew by least squares.

    x `[n, d]`, W `[m, d]` with rows of unit norm, b `[d]` -> codes `[n, m]` of at most k values that are not zero
    """
    block = max(16, BLOCK_BYTES // (4 * len(W)))
    return (
        torch.cat([_pursue(rows, W, b, k) for rows in x.split(block)])
        if len(x)
        else x.new_zeros(0, len(W))
    )


def _pursue(x: Tensor, W: Tensor, b: Tensor, k: int) -> Tensor:
    target = x - b
    n, every = len(x), torch.arange(len(x), device=x.device)
    left, chosen = target, torch.empty(n, 0, dtype=torch.long, device=x.device)
    values, taken = x.new_zeros(n, 0), torch.zeros(n, len(W), dtype=torch.bool, device=x.device)
    for _ in range(k):
        best = (left @ W.T).masked_fill_(taken, -torch.inf).max(1)
        taken[every, best.indices] = True
        chosen = torch.cat([chosen, best.indices[:, None]], 1)
        rows = W[chosen]  # [n, latents so far, d]
        products = rows @ rows.transpose(1, 2)
        products.diagonal(dim1=1, dim2=2).add_(RIDGE)
        values = torch.linalg.solve(products, (rows @ target[:, :, None]))[:, :, 0]
        left = target - (values[:, None, :] @ rows)[:, 0]
    return x.new_zeros(n, len(W)).scatter_(1, chosen, values)
