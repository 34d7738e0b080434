"""Inference-time optimisation for sparse autoencoders: codes searched on the decoder."""

import torch
from torch import Tensor

BLOCK_BYTES = 64 << 20  # of the correlations of a block of rows
RIDGE = 1e-6


@torch.no_grad()
def pursue(x: Tensor, W: Tensor, b: Tensor, k: int) -> Tensor:
    """Orthogonal matching pursuit (Pati, Rezaiifar and Krishnaprasad 1993): k times, choose the
    latent that explains most of the residual, in its positive direction, and fit all magnitudes
    anew by least squares.

    x `[n, d]`, W `[m, d]` with rows of unit norm, b `[d]` -> codes `[n, m]`, at most k not zero
    """
    if not len(x):
        return x.new_zeros(0, len(W))
    block = max(16, BLOCK_BYTES // (4 * len(W)))
    return torch.cat([_pursue(rows, W, b, k) for rows in x.split(block)])


def _pursue(x: Tensor, W: Tensor, b: Tensor, k: int) -> Tensor:
    target = x - b
    n, rows = len(x), torch.arange(len(x), device=x.device)
    residual, chosen = target, torch.empty(n, 0, dtype=torch.long, device=x.device)
    values, is_chosen = x.new_zeros(n, 0), torch.zeros(n, len(W), dtype=torch.bool, device=x.device)
    for _ in range(k):
        best = (residual @ W.T).masked_fill_(is_chosen, -torch.inf).max(1).indices
        is_chosen[rows, best] = True
        chosen = torch.cat([chosen, best[:, None]], 1)
        directions = W[chosen]  # [n, latents so far, d]
        products = directions @ directions.transpose(1, 2)
        products.diagonal(dim1=1, dim2=2).add_(RIDGE)
        values = torch.linalg.solve(products, (directions @ target[:, :, None]))[:, :, 0]
        residual = target - (values[:, None, :] @ directions)[:, 0]
    return x.new_zeros(n, len(W)).scatter_(1, chosen, values)
