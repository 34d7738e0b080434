"""Which few latents of another dictionary together explain a dense one."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from bitlens import terminal
from bitlens.bits.entropies import binary_entropy, conditional_entropy_from_counts
from bitlens.bits.packed import PackedBits
from bitlens.bits.statistics import DENSE, co_occurrence, firing_rates
from bitlens.results import brief


class Explained(NamedTuple):
    """A latent of A in terms of latents of B."""

    __repr__ = brief

    latent: int
    rate: float
    entropy: float
    """bits a row, Miller and Madow's correction included"""
    by: list[int]
    """latents of B, the most informative first, each given those before it"""
    shares: list[float]
    """share of the entropy that the first one, the first two, ... explain"""


def explain(a: PackedBits, latent: int, b: PackedBits, most: int = 5) -> Explained:
    """Up to `most` latents of B, chosen one by one, that leave least of H(a), counted over their
    joint states.

    One more latent has to save more bits than it costs to name it and its parameters, `log2 m +
    2^k / 2 log2 rows` for the (k + 1)-th (Rissanen 1978): among many some always seem to tell.
    """
    n = len(a)
    on = a.column(latent)
    rate = on.double().mean()
    entropy = float(binary_entropy(rate)) + (0 < float(rate) < 1) / (2 * n * math.log(2))
    left, by, shares = entropy, list[int](), list[float]()
    state = torch.zeros_like(on)  # of the k latents chosen so far, read as a number of k bits
    for k in range(most):
        states = torch.arange(2 ** (k + 1), device=on.device)
        cells = PackedBits.pack((2 * state + on)[:, None] == states)  # of state and a
        with_b = co_occurrence(cells, b).cpu()
        counts = torch.stack([cells.column_counts()[:, None] - with_b, with_b], 1)
        by_state = counts.view(2**k, 2, 2, -1).transpose(1, 2).flatten(0, 1)  # [state and b, a, m]
        after = conditional_entropy_from_counts(by_state, (0, 1), 1)
        best = int(after.argmin())
        if n * (left - float(after[best])) <= math.log2(b.n_latents) + 2**k / 2 * math.log2(n):
            break
        left = float(after[best])
        by.append(best)
        shares.append(1 - left / entropy)
        state = 2 * state + b.column(best)
    return Explained(latent, float(rate), entropy, by, shares)


@terminal.shown("dense latents")
def explain_dense(a: PackedBits, b: PackedBits, most: int = 5) -> list[Explained]:
    """Every dense latent of A that is not always on, in terms of B."""
    rates = firing_rates(a)
    latents = ((rates > DENSE) & (rates < 1)).nonzero()[:, 0]
    return [explain(a, latent, b, most) for latent in latents.tolist()]
