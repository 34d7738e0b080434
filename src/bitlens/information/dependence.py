"""What a code and a label (a layer, a class, a position) tell about one another."""

import math

import torch
from torch import Tensor

from bitlens.bits.packed import PackedBits
from bitlens.bits.statistics import binary_entropy
from bitlens.errors import BitlensError


def label_entropy(labels: Tensor) -> float:
    """Entropy of a discrete variable in bits, integer labels `[rows]`, with Miller and Madow's correction."""
    counts = labels.unique(return_counts=True)[1].double()
    p = counts / counts.sum()
    return float(-torch.special.xlogy(p, p).sum()) / math.log(2) + (len(counts) - 1) / (2 * len(labels) * math.log(2))


def conditional_bits(bits: PackedBits, labels: Tensor) -> Tensor:
    """H(latent | label) of every latent, in bits, corrected for the size of the sample -> float64 `[n_latents]`

    labels: integers `[rows]`. The correction adds 1 / (2 n ln 2) for every label under which the latent is not constant
    (Miller 1955, in each group of rows).
    """
    if len(labels) != len(bits):
        raise BitlensError(f"There are {len(bits)} rows of bits and {len(labels)} labels; each row needs one.")
    if len(bits) == 0:
        raise BitlensError("There are no rows, so there is no entropy.")
    total = torch.zeros(bits.n_latents, dtype=torch.float64)
    for label in labels.unique():
        rows = (labels == label).nonzero()[:, 0]
        p = bits[rows].column_counts().double() / len(rows)
        varies = ((p > 0) & (p < 1)).double()
        total += len(rows) / len(bits) * binary_entropy(p) + varies / (2 * len(bits) * math.log(2))
    return total


def mutual_information(bits: PackedBits, labels: Tensor) -> Tensor:
    """I(latent; label) of every latent, in bits, corrected for the size of the sample -> float64 `[n_latents]`

    The plug-in estimate is high by about (labels - 1) / (2 n ln 2) where the two are independent; the corrected one
    scatters about zero there, so it may be slightly negative.
    """
    everything = torch.zeros(len(bits), dtype=torch.int64)
    return conditional_bits(bits, everything) - conditional_bits(bits, labels)
