"""Hidden states whose entropy is known: planted bits, each of which depends on at most one other."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bitlens.bits.statistics import binary_entropy
from bitlens.errors import BitlensError
from bitlens.seeding import generator
from bitlens.studies.configs import FAMILIES, NESTED

COPY = 0.5  # chance that a bit copies its parent rather than being drawn anew


@dataclass(frozen=True)
class PlantedBits:
    """A distribution of bits: bit j is on with chance `given[j, s]` where its parent, an earlier bit, is in state s.

    parents: int64 `[rank]`, -1 for none. given: float64 `[rank, 2]`, both chances the same where there is no parent.
    """

    parents: Tensor
    given: Tensor

    @classmethod
    def of(cls, family: str, rank: int, p: float, seed: int) -> PlantedBits:
        """The bits of a family, each on with chance p.

        pairs: every other bit copies the one before half of the time; chain: every bit does; tree: every bit copies a random
        earlier one half of the time; nested: thermometers of four bits, all five levels equally likely whatever p.
        """
        if not (rank >= 1 and 0 < p < 1):
            raise BitlensError(
                f"Planted bits need a rank of at least 1 and a rate between 0 and 1, not {rank} and {p}."
            )
        index = torch.arange(rank)
        parents = torch.full((rank,), -1)
        if family == "pairs":
            parents = torch.where(index % 2 == 1, index - 1, -1)
        elif family == "chain":
            parents = index - 1
        elif family == "tree":
            chance = torch.rand(rank, generator=generator(seed, "tree"))
            parents = torch.where(index > 0, (chance * index).long(), -1)
        elif family == "nested":
            level = index % NESTED
            on = (NESTED - level) / (NESTED + 1 - level)  # where the bit below is on
            return cls(
                torch.where(level > 0, index - 1, -1),
                torch.stack([torch.where(level > 0, 0.0, on), on], 1).double(),
            )
        elif family not in FAMILIES:
            raise BitlensError(
                f"There is no family '{family}'; choose from: {', '.join(FAMILIES)}."
            )
        apart = torch.tensor([p, p], dtype=torch.float64)
        copied = (1 - COPY) * apart + COPY * torch.tensor([0.0, 1.0], dtype=torch.float64)
        return cls(parents, torch.where((parents >= 0)[:, None], copied, apart))

    def rates(self) -> Tensor:
        """Chance of every bit to be on, float64 `[rank]`"""
        rates = torch.zeros(len(self.parents), dtype=torch.float64)
        for j, parent in enumerate(self.parents.tolist()):
            q = rates[parent] if parent >= 0 else 0.0
            rates[j] = (1 - q) * self.given[j, 0] + q * self.given[j, 1]
        return rates

    def entropy(self) -> float:
        """Joint entropy in bits, exact."""
        q = torch.where(self.parents >= 0, self.rates()[self.parents], 0.0)
        off, on = binary_entropy(self.given).unbind(1)
        return float(((1 - q) * off + q * on).sum())

    def sample(self, n: int, random: torch.Generator) -> Tensor:
        """bool `[n, rank]`"""
        drawn = torch.rand(n, len(self.parents), generator=random, dtype=torch.float64)
        bits = torch.zeros(n, len(self.parents), dtype=torch.bool)
        for j, parent in enumerate(self.parents.tolist()):
            chance = self.given[j][bits[:, parent].long()] if parent >= 0 else self.given[j, 0]
            bits[:, j] = drawn[:, j] < chance
        return bits

    def empirical_entropy(self, bits: Tensor) -> float:
        """Entropy of the very rows that were drawn, bool `[n, rank]`, given who depends on whom."""
        total = 0.0
        for j, parent in enumerate(self.parents.tolist()):
            states = bits[:, parent] if parent >= 0 else torch.zeros(len(bits), dtype=torch.bool)
            for state in (False, True):
                rows = bits[states == state, j]
                if len(rows):
                    total += len(rows) / len(bits) * float(binary_entropy(rows.double().mean()))
        return total


def hidden_states(
    bits: Tensor, directions: Tensor, family: str, strength: float, random: torch.Generator
) -> Tensor:
    """Rows `[n, d]`: the sum of the orthonormal `directions [rank, d]` of the bits that are on.

    magnitudes: each bit that is on has a length of its own, log-normal with `strength` as the spread of its logarithm.
    noise: Gaussian in all d dimensions, `strength` of the variance of the rows.
    """
    codes = bits.float()
    if family == "magnitudes":
        codes = codes * torch.exp(strength * torch.randn(codes.shape, generator=random))
    rows = codes @ directions
    if family == "noise":
        variance = float(codes.var(0).sum()) * strength / (1 - strength) / rows.shape[1]
        rows = rows + math.sqrt(variance) * torch.randn(rows.shape, generator=random)
    return rows


def shannon_bits(rates: Tensor, d: int, share: float, fvu: float) -> float:
    """Shannon's lower bound on the bits a row that any code needs at this `fvu`, for independent planted bits in noise.

    With differential entropy h and squared error D, `R(D) >= h(x) - d/2 log2(2 pi e D / d)` (Shannon 1959). Along its
    direction each bit is seen through noise, and `h(x)` is that of the noise plus `I(bit; bit + noise)` for each.
    rates `[rank]`; share: of the noise in the variance. Negative where the error is far above the noise: no bound then.
    """
    p = rates.double()
    noise = float((p * (1 - p)).sum()) * share / (1 - share) / d
    sigma = math.sqrt(noise)
    y = torch.linspace(-10 * sigma, 1 + 10 * sigma, 200_001, dtype=torch.float64)
    step = float(y[1] - y[0])
    values, places = p.unique(return_inverse=True)
    informative = []
    for rate in values.tolist():
        density = (
            (1 - rate) * (-(y**2) / (2 * noise)).exp()
            + rate * (-((y - 1) ** 2) / (2 * noise)).exp()
        ) / math.sqrt(2 * math.pi * noise)
        h = -float(torch.special.xlogy(density, density).sum()) * step / math.log(2)
        informative.append(h - 0.5 * math.log2(2 * math.pi * math.e * noise))
    return float(torch.tensor(informative, dtype=torch.float64)[places].sum()) + d / 2 * math.log2(
        share / fvu
    )
