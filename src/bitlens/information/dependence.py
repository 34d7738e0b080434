"""What a code and a label (a layer, a class, a position) tell about one another."""

from typing import NamedTuple

import torch
from torch import Tensor

from bitlens.bits.entropies import binary_entropy, entropy_from_counts
from bitlens.bits.packed import PackedBits
from bitlens.bits.statistics import firing_rates
from bitlens.errors import BitlensError
from bitlens.seeding import generator


def label_entropy(labels: Tensor) -> float:
    """Entropy of integer labels `[rows]` in bits, with Miller and Madow's correction."""
    if len(labels) == 0:
        raise BitlensError("There are no rows, so there is no entropy.")
    return float(entropy_from_counts(labels.unique(return_counts=True)[1]))


class Information(NamedTuple):
    """What each latent and a label tell of one another, float64 `[n_latents]` each."""

    bits: Tensor
    """I(latent; label), less what chance alone would show"""
    p_value: Tensor
    """share of permutations, the true order among them, that tell as much"""


def information(
    bits: PackedBits,
    labels: Tensor,
    documents: Tensor | None = None,
    permutations: int = 20,
    seed: int = 0,
) -> Information:
    """I(latent; label) of every latent, in bits, less what chance alone would show.

    As counted, information is high: rare bits under many labels seem informative in any sample.
    What remains on average when the labels are permuted is therefore subtracted; where the two are
    independent the result scatters about zero, so it may be slightly negative.

    labels: integers `[rows]`; without documents they are permuted over rows. documents: of every
    row `[rows]`, consecutive rows of one document together: then a document gets the labels of
    another, from a random place in it on and over again, so that what is alike within documents
    stays alike; permuted over rows, labels of whole documents and latents that come in bursts would
    seem to inform each other.
    """
    if labels.ndim != 1 or len(labels) != len(bits):
        raise BitlensError(
            f"There are {len(bits)} rows of bits and {list(labels.shape)} labels; each row needs "
            "one."
        )
    if documents is not None and documents.shape != labels.shape:
        raise BitlensError(
            f"There are {list(labels.shape)} labels and {list(documents.shape)} documents; each "
            "row has one."
        )
    if len(bits) == 0:
        raise BitlensError("There are no rows, so there is no entropy.")
    if documents is None:
        sizes = torch.ones_like(labels)
    else:
        sizes = documents.unique_consecutive(return_counts=True)[1]
    random = generator(seed, "permuted labels")
    own = _conditional_entropy(bits, labels)
    chance, at_least = torch.zeros_like(own), torch.ones_like(own)
    for _ in range(permutations):
        permuted = _conditional_entropy(bits, labels[_permutation(sizes.cpu(), random)])
        chance += permuted / permutations
        at_least += permuted <= own + 1e-12
    return Information(chance - own, at_least / (permutations + 1))


def _conditional_entropy(bits: PackedBits, labels: Tensor) -> Tensor:
    """H(latent | label) of every latent, in bits, as counted -> float64 `[n_latents]`

    Low where a label has few rows: by about 1 / (2 n ln 2) for every label under which the latent
    is not truly constant.
    """
    total = torch.zeros(bits.n_latents, dtype=torch.float64)
    for label in labels.unique():
        rows = (labels == label).nonzero()[:, 0]
        total += len(rows) / len(bits) * binary_entropy(firing_rates(bits[rows]))
    return total


def _permutation(sizes: Tensor, random: torch.Generator) -> Tensor:
    """For every row the row whose label it gets.

    Documents of these sizes `[documents]` change places, and each is read from a random row on,
    over again where it is shorter than its place.
    """
    order = torch.randperm(len(sizes), generator=random)
    if len(sizes) == int(sizes.sum()):
        return order
    first = sizes.cumsum(0) - sizes
    row_in_place = torch.arange(int(sizes.sum())) - first.repeat_interleave(sizes)
    begin = (torch.rand(len(sizes), generator=random, dtype=torch.float64) * sizes[order]).long()
    source, offset, length = (
        column.repeat_interleave(sizes) for column in (first[order], begin, sizes[order])
    )
    return source + (offset + row_in_place) % length
