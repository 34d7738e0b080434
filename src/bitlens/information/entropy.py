"""Entropy of codes, in bits."""

from torch import Tensor

from bitlens.bits.statistics import binary_entropy


def marginal_bits(rates: Tensor) -> float:
    """Sum of the latents' own entropies, from firing rates `[n_latents]`.

    An upper bound on the joint entropy, reached where the latents are independent; as a plug-in estimate from n rows it
    is low by about 1 / (2 n ln 2) bits a latent (Miller 1955).
    """
    return float(binary_entropy(rates).sum())
