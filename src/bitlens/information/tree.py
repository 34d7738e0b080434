"""The Chow-Liu tree of a code: which single other latent tells most about each (Chow & Liu 1968).

Among all distributions in which every latent depends on one other, the maximum spanning tree over the pairwise mutual
informations is the likeliest. Its entropy is an upper bound on the joint entropy, never above the sum of the marginals.
"""

from dataclasses import dataclass

import numba
import numpy as np
import torch
from torch import Tensor

from bitlens.bits.words import torch_threads

# pyright: reportCallIssue=false, reportArgumentType=false


@dataclass(frozen=True)
class Tree:
    """parents `[n_latents]`: each latent's parent, -1 for the root. order `[n_latents]`: parents before children."""

    parents: Tensor
    order: Tensor


@numba.njit(cache=True, boundscheck=False)
def _k_log_k(k):
    return k * np.log2(k) if k > 0 else 0.0


@numba.njit(parallel=True, cache=True, boundscheck=False)
def _offer(new, pairs, own, rows, best, parents, taken):
    """Offer latent `new` as a parent to every latent that has none yet: those that gain information change to it."""
    ons = pairs[new, new]
    for j in numba.prange(len(best)):
        if not taken[j]:
            both, other = pairs[new, j], pairs[j, j]
            joint = _k_log_k(both) + _k_log_k(ons - both) + _k_log_k(other - both) + _k_log_k(rows - ons - other + both)
            gain = joint - own[new] - own[j] + _k_log_k(rows)  # mutual information times rows
            if gain > best[j]:
                best[j], parents[j] = gain, new


@numba.njit(cache=True, boundscheck=False)
def _spanning_tree(pairs, rows):
    n = len(pairs)
    own = np.empty(n)
    for j in range(n):
        own[j] = _k_log_k(pairs[j, j]) + _k_log_k(rows - pairs[j, j])
    best, parents = np.full(n, -np.inf), np.full(n, -1)
    taken, order = np.zeros(n, np.bool_), np.empty(n, np.int64)
    new = 0
    for step in range(n):
        taken[new], order[step] = True, new
        _offer(new, pairs, own, rows, best, parents, taken)
        top = -np.inf
        for j in range(n):
            if not taken[j] and (best[j] > top or top == -np.inf):
                top, new = best[j], j
    return parents, order


def chow_liu(co_occurrence: Tensor, rows: int) -> Tree:
    """The maximum spanning tree by Prim's algorithm; no matrix of mutual informations is made.

    co_occurrence: `H^T H`, int64 `[n_latents, n_latents]`, of so many rows.
    """
    with torch_threads():
        parents, order = _spanning_tree(co_occurrence.numpy(), rows)
    return Tree(torch.from_numpy(parents), torch.from_numpy(order))
