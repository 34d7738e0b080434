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
    """I(latent; label) of every latent, in bits, less what remains on average when the labels are
    permuted: rare bits under many labels seem informative in any sample.

    labels: integers `[rows]`; without documents they are permuted over rows. documents: of every
    row `[rows]`, consecutive rows of one document together: then a document gets the labels of
    another, from a random place in it on and over again. Permuted over rows, labels of whole
    documents and latents that come in bursts would seem to inform each other.
    """
    for name, column in (("labels", labels), ("documents", documents)):
        if column is not None and column.shape != (len(bits),):
            shape = list(column.shape)
            raise BitlensError(f"{len(bits)} rows of bits need one of {name} each, not {shape}.")
    if len(bits) == 0:
        raise BitlensError("There are no rows, so there is no entropy.")
    sizes = torch.ones_like(labels)
    if documents is not None:
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
    """H(latent | label) of every latent, in bits, as counted -> float64 `[n_latents]`"""
    total = torch.zeros(bits.n_latents, dtype=torch.float64)
    for label in labels.unique():
        rows = (labels == label).nonzero()[:, 0]
        total += len(rows) / len(bits) * binary_entropy(firing_rates(bits[rows]))
    return total


def _permutation(sizes: Tensor, random: torch.Generator) -> Tensor:
    """For every row the row whose label it gets: documents of these sizes `[documents]` change
    places, and each is read from a random row on, over again where it is shorter than its place."""
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
