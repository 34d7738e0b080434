"""Hidden states whose entropy is known: planted bits that depend on at most one other each."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bitlens.bits.entropies import binary_entropy
from bitlens.errors import BitlensError
from bitlens.seeding import generator
from bitlens.studies.options import refuse_unknown
from bitlens.studies.synthetic.config import FAMILIES, NESTED

COPY = 0.5  # chance that a bit copies its parent rather than being drawn anew


@dataclass(frozen=True)
class PlantedBits:
    """Bits, each of which may depend on an earlier one, its parent."""

    parents: Tensor
    """int64 `[rank]`, -1 for none"""
    given: Tensor
    """chance to be on with the parent off and on (the same without one), float64 `[rank, 2]`"""

    @classmethod
    def of(cls, family: str, rank: int, p: float, seed: int) -> PlantedBits:
        """The bits of a family, each on with chance p.

        Half of the time copy: in pairs every other bit the one before, in a chain every bit, in a
        tree every bit a random earlier one. nested: thermometers of four bits, all five levels
        equally likely whatever p. No bit depends on another in all other families.
        """
        if not (rank >= 1 and 0 < p < 1):
            raise BitlensError(f"Ranks are at least 1 and rates between 0 and 1, not {rank}, {p}.")
        refuse_unknown("family", [family], FAMILIES)
        index, none = torch.arange(rank), torch.full((rank,), -1)
        level = index % NESTED
        parents = {
            "pairs": torch.where(index % 2 == 1, index - 1, -1),
            "chain": index - 1,
            "tree": torch.where(
                index > 0, (torch.rand(rank, generator=generator(seed, "tree")) * index).long(), -1
            ),
            "nested": torch.where(level > 0, index - 1, -1),
        }.get(family, none)
        if family == "nested":
            on = (NESTED - level) / (NESTED + 1 - level)  # where the bit below is on
            return cls(parents, torch.stack([torch.where(level > 0, 0.0, on), on], 1).double())
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
        for j in range(len(self.parents)):
            bits[:, j] = drawn[:, j] < self.given[j][self._parent_states(bits, j)]
        return bits

    def empirical_entropy(self, bits: Tensor) -> float:
        """Entropy of the very rows that were drawn, bool `[n, rank]`, given who depends on whom."""
        total = 0.0
        for j in range(len(self.parents)):
            states = self._parent_states(bits, j)
            for state in (0, 1):
                rows = bits[states == state, j]
                if len(rows):
                    total += len(rows) / len(bits) * float(binary_entropy(rows.double().mean()))
        return total

    def _parent_states(self, bits: Tensor, j: int) -> Tensor:
        """State of the parent of bit j, int64 `[n]`; 0 without a parent."""
        parent = int(self.parents[j])
        return bits[:, parent].long() if parent >= 0 else torch.zeros(len(bits), dtype=torch.long)


def hidden_states(
    bits: Tensor, directions: Tensor, family: str, strength: float, random: torch.Generator
) -> Tensor:
    """Rows `[n, d]`: the sum of the orthonormal `directions [rank, d]` of the bits that are on.

    magnitudes: the lengths of bits are log-normal, `strength` the spread of their logarithm. noise:
    Gaussian in all d dimensions, `strength` of the variance of the rows.
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
    """Shannon's lower bound on the bits a row that any code needs at this `fvu`, for independent
    planted bits in noise.

    `R(D) >= h(x) - d/2 log2(2 pi e D / d)` with differential entropy h and squared error D (Shannon
    1959); `h(x)` is that of the noise plus `I(bit; bit + noise)` for each bit. rates `[rank]`;
    share: of the noise in the variance. Negative, and no bound, where the error is far above it.
    """
    p = rates.double()
    noise = float((p * (1 - p)).sum()) * share / (1 - share) / d
    sigma = math.sqrt(noise)
    y = torch.linspace(-10 * sigma, 1 + 10 * sigma, 200_001, dtype=torch.float64)
    off, on = (-(y**2) / (2 * noise)).exp(), (-((y - 1) ** 2) / (2 * noise)).exp()
    step = float(y[1] - y[0])
    values, places = p.unique(return_inverse=True)
    informative = []
    for rate in values.tolist():
        density = ((1 - rate) * off + rate * on) / math.sqrt(2 * math.pi * noise)
        h = -float(torch.special.xlogy(density, density).sum()) * step / math.log(2)
        informative.append(h - 0.5 * math.log2(2 * math.pi * math.e * noise))
    told = float(torch.tensor(informative, dtype=torch.float64)[places].sum())
    return told + d / 2 * math.log2(share / fvu)
