"""What a code and a label (a layer, a class, a position) tell about one another."""

import torch
from torch import Tensor

from bitlens.bits.packed import PackedBits
from bitlens.bits.statistics import binary_entropy, counted_entropy, firing_rates
from bitlens.errors import BitlensError
from bitlens.seeding import generator


def label_entropy(labels: Tensor) -> float:
    """Entropy of a discrete variable in bits, integer labels `[rows]`, with Miller and Madow's correction."""
    if len(labels) == 0:
        raise BitlensError("There are no rows, so there is no entropy.")
    return float(counted_entropy(labels.unique(return_counts=True)[1]))


def conditional_bits(bits: PackedBits, labels: Tensor) -> Tensor:
    """H(latent | label) of every latent, in bits, as counted -> float64 `[n_latents]`

    labels: integers `[rows]`. Low where a label has few rows: by about 1 / (2 n ln 2) for every label under which the
    latent is not truly constant.
    """
    if labels.ndim != 1 or len(labels) != len(bits):
        raise BitlensError(f"There are {len(bits)} rows of bits and {list(labels.shape)} labels; each row needs one.")
    if len(bits) == 0:
        raise BitlensError("There are no rows, so there is no entropy.")
    total = torch.zeros(bits.n_latents, dtype=torch.float64)
    for label in labels.unique():
        rows = (labels == label).nonzero()[:, 0]
        total += len(rows) / len(bits) * binary_entropy(firing_rates(bits[rows]))
    return total


def mutual_information(bits: PackedBits, labels: Tensor, permutations: int = 20, seed: int = 0) -> Tensor:
    """I(latent; label) of every latent, in bits, less what chance alone would show -> float64 `[n_latents]`

    As counted, information is high: rare bits under many labels seem informative in any sample. What remains on average
    when the labels are permuted over the rows is therefore subtracted; where the two are independent the result scatters
    about zero, so it may be slightly negative.
    """
    chance = torch.zeros(bits.n_latents, dtype=torch.float64)
    random = generator(seed, "permuted labels")
    own = conditional_bits(bits, labels)
    for _ in range(permutations):
        chance += conditional_bits(bits, labels[torch.randperm(len(labels), generator=random)]) / permutations
    return chance - own
