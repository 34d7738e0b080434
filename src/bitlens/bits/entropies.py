"""Entropies and mutual information in bits, from rates and from counts: their one place."""

import math

import torch
from torch import Tensor


def binary_entropy(p: Tensor) -> Tensor:
    """H2(p) in bits, elementwise, float64; exactly 0 at 0 and 1."""
    p = p.double()
    return -(torch.special.xlogy(p, p) + torch.special.xlogy(1 - p, 1 - p)) / math.log(2)


def entropy_from_counts(counts: Tensor, dims: tuple[int, ...] = (-1,)) -> Tensor:
    """Entropy in bits of tables of counts over `dims`, float64, with the bias correction of Miller
    (1955) and Madow: half a nat for each state that occurs but one, over the number of rows."""
    counts = counts.double()
    n = counts.sum(dims)
    logs = torch.special.xlogy(counts, counts).sum(dims)
    states = (counts > 0).sum(dims)
    return (n.log() - logs / n) / math.log(2) + (states - 1) / (2 * n * math.log(2))


def conditional_entropy_from_counts(counts: Tensor, dims: tuple[int, ...], variable: int) -> Tensor:
    """H(variable | the rest) in bits, both entropies corrected; `variable` is one of `dims`."""
    given = counts.sum(variable, keepdim=True)
    return entropy_from_counts(counts, dims) - entropy_from_counts(given, dims)


def information_from_counts(both: Tensor, a: Tensor, b: Tensor, rows: Tensor | int) -> Tensor:
    """Mutual information in bits of two binary variables, without correction, float64.

    both, a, b, rows: rows in which both are on, each is on, and all; shapes that broadcast.
    """

    def term(count: Tensor) -> Tensor:
        return torch.special.xlogy(count, count)

    n = torch.as_tensor(rows, device=both.device).double()
    both, a, b = both.double(), a.double(), b.double()
    joint = term(both) + term(a - both) + term(b - both) + term(n - a - b + both)
    return (joint - term(a) - term(n - a) - term(b) - term(n - b) + term(n)) / (n * math.log(2))
