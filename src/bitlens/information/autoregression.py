"""A logistic autoregression over the latents: every one predicted from those before it, the most uncertain first.

    log-odds of latent j = bias_j + sum_{i < j} weight_ij (h_i - p_i)

What held-out rows cost under it is an upper bound on their entropy that no bias of a sample makes smaller, and far
tighter than any that looks at latents alone or in pairs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bitlens.bits.packed import PackedBits
from bitlens.bits.products import gather_sums
from bitlens.bits.statistics import firing_rates
from bitlens.seeding import generator

BLOCK = 512  # latents whose weights form one matrix, of all rows up to their own
BATCH = 2048
RATE = 3e-3


@dataclass
class Autoregression:
    """order `[n_latents]`: the latents as they are predicted. rates, biases: in that order. weights: for each block of
    latents `[latents up to its last, latents in it]`, zero where a latent would see itself or a later one."""

    order: Tensor
    rates: Tensor
    biases: Tensor
    weights: list[Tensor]

    @classmethod
    def fit(cls, bits: PackedBits, bounds: np.ndarray, epochs: int = 4, seed: int = 0) -> Autoregression:
        """Adam on minibatches of rows. bounds: edges of the blocks of rows that belong together (documents); a twentieth
        of them decides after which epoch to stop, so that the result is no worse there than the marginals alone."""
        n = len(bits)
        p = (firing_rates(bits) * n + 0.5) / (n + 1)
        order = (p - 0.5).abs().argsort(stable=True)
        ends = [min(start + BLOCK, bits.n_latents) for start in range(0, bits.n_latents, BLOCK)]
        starts = range(0, bits.n_latents, BLOCK)
        model = cls(
            order, p[order].float(), torch.logit(p[order]).float(),
            [torch.zeros(end, end - start) for start, end in zip(starts, ends, strict=True)],
        )  # fmt: skip
        ordered = model._ordered(bits)
        blocks = torch.randperm(len(bounds) - 1, generator=generator(seed, "validation"))[: (len(bounds) - 1) // 20]
        kept = torch.ones(n, dtype=torch.bool)
        for block in blocks.tolist():
            kept[int(bounds[block]) : int(bounds[block + 1])] = False
        check, rows = ordered[~kept], kept.nonzero()[:, 0]

        batch = min(BATCH, max(1, len(rows) // 8))
        optimizer = torch.optim.Adam([model.biases, *model.weights], lr=RATE, fused=True)
        steps, step = epochs * (len(rows) // batch), 0
        best, state = model._mean_length(check), model._copy()
        for epoch in range(epochs):
            shuffled = rows[torch.randperm(len(rows), generator=generator(seed, "autoregression", epoch))]
            for some in shuffled[: len(rows) // batch * batch].split(batch):
                optimizer.param_groups[0]["lr"] = RATE * (1 - step / steps)
                model._gradients(ordered[some])
                optimizer.step()
                step += 1
            length = model._mean_length(check)
            if length < best or len(check) == 0:
                best, state = length, model._copy()
        return state

    def code_lengths(self, bits: PackedBits) -> Tensor:
        """Bits that each row costs -> float64 `[rows]`"""
        return self._lengths(self._ordered(bits))

    def _lengths(self, ordered: PackedBits) -> Tensor:
        lengths = torch.zeros(len(ordered), dtype=torch.float64)
        for start in range(0, len(ordered), BATCH):
            part = ordered[start : start + BATCH]
            for first, logits, h in self._blocks(part):
                del first
                cost = torch.nn.functional.binary_cross_entropy_with_logits(logits, h, reduction="none")
                lengths[start : start + len(part)] += cost.sum(1, dtype=torch.float64) / math.log(2)
        return lengths

    def _mean_length(self, ordered: PackedBits) -> float:
        return float(self._lengths(ordered).mean()) if len(ordered) else math.inf

    def _blocks(self, ordered: PackedBits) -> Iterator[tuple[int, Tensor, Tensor]]:
        """For each block of latents: its first, log-odds and bits, `[rows, latents in it]`"""
        h = ordered.unpack()
        words = ordered.numpy()
        for first, weights in zip(range(0, ordered.n_latents, BLOCK), self.weights, strict=True):
            end = len(weights)
            logits = torch.from_numpy(gather_sums(np.ascontiguousarray(words[:, : -(-end // 64)]), weights.numpy()))
            logits += self.biases[first:end] - self.rates[:end] @ weights
            yield first, logits, h[:, first:end]

    def _gradients(self, ordered: PackedBits) -> None:
        """Leave the gradients of the mean code length, in nats, in the parameters."""
        columns = ordered.transpose().numpy()
        self.biases.grad = torch.empty_like(self.biases)
        for (first, logits, h), weights in zip(self._blocks(ordered), self.weights, strict=True):
            end = len(weights)
            error = torch.sigmoid(logits).sub_(h).div_(len(ordered))
            total = error.sum(0)
            gradient = torch.from_numpy(gather_sums(columns[:end], error.numpy()))
            gradient -= self.rates[:end, None] * total
            gradient[first:end].triu_(1)
            weights.grad = gradient
            self.biases.grad[first:end] = total

    def _ordered(self, bits: PackedBits) -> PackedBits:
        parts = [
            PackedBits.pack(bits[start : start + 8192].unpack(torch.uint8)[:, self.order]).words
            for start in range(0, len(bits), 8192)
        ]
        return PackedBits(torch.cat(parts) if parts else bits.words, bits.n_latents)

    def _copy(self) -> Autoregression:
        return Autoregression(
            self.order, self.rates, self.biases.detach().clone(), [weights.detach().clone() for weights in self.weights]
        )
