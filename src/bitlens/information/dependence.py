"""What a code and a label (a layer, a class, a position) tell about one another."""

from typing import NamedTuple

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
        raise BitlensError(
            f"There are {len(bits)} rows of bits and {list(labels.shape)} labels; each row needs one."
        )
    if len(bits) == 0:
        raise BitlensError("There are no rows, so there is no entropy.")
    total = torch.zeros(bits.n_latents, dtype=torch.float64)
    for label in labels.unique():
        rows = (labels == label).nonzero()[:, 0]
        total += len(rows) / len(bits) * binary_entropy(firing_rates(bits[rows]))
    return total


class Information(NamedTuple):
    """What each latent and a label tell of one another, float64 `[n_latents]` each."""

    bits: Tensor
    """I(latent; label), less what chance alone would show"""
    p_value: Tensor
    """share of permutations, the true order among them, that tell as much"""


def mutual_information(
    bits: PackedBits,
    labels: Tensor,
    documents: Tensor | None = None,
    permutations: int = 20,
    seed: int = 0,
) -> Tensor:
    """`information(...).bits`"""
    return information(bits, labels, documents, permutations, seed).bits


def information(
    bits: PackedBits,
    labels: Tensor,
    documents: Tensor | None = None,
    permutations: int = 20,
    seed: int = 0,
) -> Information:
    """I(latent; label) of every latent, in bits, less what chance alone would show, and whether it is more than that.

    As counted, information is high: rare bits under many labels seem informative in any sample. What remains on average
    when the labels are permuted is therefore subtracted; where the two are independent the result scatters about zero, so
    it may be slightly negative. Without documents labels are permuted over rows. documents: of every row `[rows]`,
    consecutive rows of one document together: then a document gets the labels of another, from a random place in it on and
    over again, so that what is alike within documents stays alike; permuted over rows, labels of whole documents and
    latents that come in bursts would seem to inform each other.
    """
    if documents is not None and documents.shape != labels.shape:
        raise BitlensError(
            f"There are {list(labels.shape)} labels and {list(documents.shape)} documents; each row has one."
        )
    random = generator(seed, "permuted labels")
    own = conditional_bits(bits, labels)
    chance, at_least = torch.zeros_like(own), torch.ones_like(own)
    sizes = (
        torch.ones_like(labels)
        if documents is None
        else documents.unique_consecutive(return_counts=True)[1]
    )
    for _ in range(permutations):
        permuted = labels[_permutation(sizes.cpu(), random)]
        given = conditional_bits(bits, permuted)
        chance += given / permutations
        at_least += given <= own + 1e-12
    return Information(chance - own, at_least / (permutations + 1))


def _permutation(sizes: Tensor, random: torch.Generator) -> Tensor:
    """For every row the row whose label it gets: documents of these sizes `[documents]` change places, and each is read from
    a random row on, over again where it is shorter than its place."""
    order = torch.randperm(len(sizes), generator=random)
    if len(sizes) == int(sizes.sum()):
        return order
    first = sizes.cumsum(0) - sizes
    inside = torch.arange(int(sizes.sum())) - first.repeat_interleave(sizes)
    begin = (torch.rand(len(sizes), generator=random, dtype=torch.float64) * sizes[order]).long()
    wide = [x.repeat_interleave(sizes) for x in (first[order], begin, sizes[order])]
    return wide[0] + (wide[1] + inside) % wide[2]
