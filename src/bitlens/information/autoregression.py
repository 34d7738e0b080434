"""A logistic autoregression over the latents: every one predicted from all those before it.

    log-odds of latent j = bias_j + sum_{i before j} weight_ij (h_i - p_i)

It begins as the Chow-Liu tree, of which it is a generalisation, with the latents in the tree's
order. What held-out rows cost under it is an upper bound on their entropy that no bias of a sample
makes smaller, and far tighter than any that looks at latents alone or in pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bitlens.bits.packed import PackedBits
from bitlens.bits.shards import AnyBits
from bitlens.bits.statistics import co_occurrence, sums
from bitlens.bits.words import words_for
from bitlens.information.tree import Blocks, Tree, TreeCounts, chow_liu
from bitlens.seeding import generator

BLOCK = 512  # latents whose weights form one matrix, of all rows up to their own
BATCH = 2048
RATE = 1e-2


EPOCHS = 4  # at least
NEWTON = 30  # steps, of at most 1, in which a bias is fitted


class Schedule(NamedTuple):
    """A small sample is seen in more epochs, up to so many steps and epochs."""

    steps: int
    epochs: int


USUAL = Schedule(steps=1000, epochs=40)
# few latents cost little, and exclusions (never both on) need large weights
FEW_LATENTS, PATIENT = 128, Schedule(steps=3000, epochs=120)


@dataclass
class Autoregression:
    """Log-odds of every latent from those before it.

    order `[n_latents]`: the latents as they are predicted. rates, biases: in that order. weights:
    for each block of latents `[latents up to its last, latents in it]`, zero where a latent would
    see itself or a later one.
    """

    order: Tensor
    rates: Tensor
    biases: Tensor
    weights: list[Tensor]

    @classmethod
    def fit(
        cls,
        bits: AnyBits,
        documents: Tensor | None = None,
        seed: int = 0,
        *,
        tree: Tree | None = None,
        device: torch.device | str = "cpu",
    ) -> Autoregression:
        """Adam on minibatches of rows, from the Chow-Liu tree on.

        documents: of every row `[rows]`; a twentieth of them, at least one where there are two,
        decides when to stop. tree: of these rows, if it is at hand. device: where the weights are;
        a GPU is faster by far.
        """
        tree = tree or chow_liu(co_occurrence(bits), len(bits))
        counts = TreeCounts.of(bits, Blocks.whole(len(bits)), tree)
        bounds = Blocks.of(len(bits), documents).bounds
        model = cls._from_tree(tree, counts).to(device)
        held_out = _validation_rows(bounds, seed)
        check, rows = bits.where(held_out), (~held_out).nonzero()[:, 0]

        batch = min(BATCH, max(1, len(rows) // 16))
        schedule = PATIENT if bits.n_latents <= FEW_LATENTS else USUAL
        epochs = max(EPOCHS, min(schedule.epochs, schedule.steps * batch // len(rows)))
        fused = model.biases.device.type in ("cpu", "cuda")
        optimizer = torch.optim.Adam([model.biases, *model.weights], lr=RATE, fused=fused)
        steps, step = epochs * (len(rows) // batch), 0
        best, chosen = model._mean_length(check), model._copy()
        for epoch in range(epochs):
            random = generator(seed, "autoregression", epoch)
            shuffled = rows[torch.randperm(len(rows), generator=random)]
            for minibatch in shuffled[: len(rows) // batch * batch].split(batch):
                optimizer.param_groups[0]["lr"] = RATE * (1 - step / steps)
                model._set_gradients(model._ordered(bits[minibatch]))
                optimizer.step()
                step += 1
            length = model._mean_length(check)
            if length < best:
                best, chosen = length, model._copy()
        return chosen

    def refitted(self, bits: PackedBits) -> Autoregression:
        """The same weights, with every latent's bias fitted to these rows by Newton's method.

        What a code that many rows have in common costs for some of them: which latents go together
        is learned from all, how often each is on from their own. As in Krichevsky's and Trofimov's
        estimate, half a row is added in which a latent is on, and half a row in which it is off.
        """
        biases = self.biases.clone()
        for first, logits, h in self._blocks(self._ordered(bits)):
            part = slice(first, first + logits.shape[1])
            offsets, ons = (logits - biases[part]).double(), h.sum(0, dtype=torch.float64)
            own = biases[part].double()
            for _ in range(NEWTON):
                rates = torch.sigmoid(offsets + own)
                prior = torch.sigmoid(own)
                gradient = ons - rates.sum(0) + 0.5 - prior
                curvature = (rates * (1 - rates)).sum(0) + prior * (1 - prior)
                own += (gradient / curvature.clamp_min(1e-9)).clamp(-1, 1)
            biases[part] = own.float()
        return Autoregression(self.order, self.rates, biases, self.weights)

    @classmethod
    def _from_tree(cls, tree: Tree, counts: TreeCounts) -> Autoregression:
        order, n_latents = tree.order, len(tree.order)
        place = torch.empty_like(order)
        place[order] = torch.arange(n_latents)
        rows, ons, both = (count[0].double() for count in (counts.rows, counts.ons, counts.both))
        parents = tree.parents.clamp_min(0)
        rates = (ons + 0.5) / (rows + 1)
        given_on = torch.logit((both + 0.5) / (ons[parents] + 1))
        given_off = torch.logit((ons - both + 0.5) / (rows - ons[parents] + 1))
        root = tree.parents < 0
        slopes = torch.where(root, 0.0, given_on - given_off)
        biases = torch.where(root, torch.logit(rates), given_off + slopes * rates[parents])
        weights = []
        for start in range(0, n_latents, BLOCK):
            latents = order[start : start + BLOCK]
            block = torch.zeros(start + len(latents), len(latents))
            block[place[parents[latents]], torch.arange(len(latents))] = slopes[latents].float()
            weights.append(block)
        return cls(order, rates[order].float(), biases[order].float(), weights)

    def code_lengths(self, bits: AnyBits) -> Tensor:
        """Bits that each row costs -> float64 `[rows]`"""
        lengths = torch.zeros(len(bits), dtype=torch.float64)
        for start in range(0, len(bits), BATCH):
            part = self._ordered(bits[start : start + BATCH])
            for _, logits, h in self._blocks(part):
                cost = torch.nn.functional.binary_cross_entropy_with_logits(
                    logits, h, reduction="none"
                )
                nats = cost.sum(1, dtype=torch.float64).cpu()
                lengths[start : start + len(part)] += nats / math.log(2)
        return lengths

    def _mean_length(self, bits: AnyBits) -> float:
        # without rows to choose by it is always 0, so that the tree stays
        return float(self.code_lengths(bits).mean()) if len(bits) else 0.0

    def _blocks(self, ordered: PackedBits) -> Iterator[tuple[int, Tensor, Tensor]]:
        """For each block of latents: its first, log-odds and bits, `[rows, latents in it]`"""
        h = ordered.unpack()
        for first, weights in zip(range(0, ordered.n_latents, BLOCK), self.weights, strict=True):
            end = len(weights)
            logits = sums(PackedBits(ordered.words[:, : words_for(end)], end), weights)
            logits += self.biases[first:end] - self.rates[:end] @ weights
            yield first, logits, h[:, first:end]

    def _set_gradients(self, ordered: PackedBits) -> None:
        """Set the gradients of the mean code length, in nats."""
        by_latent = _by_latent(ordered)
        self.biases.grad = torch.empty_like(self.biases)
        for (first, logits, h), weights in zip(self._blocks(ordered), self.weights, strict=True):
            end = len(weights)
            error = torch.sigmoid(logits).sub_(h).div_(len(ordered))
            total = error.sum(0)
            gradient = by_latent(end, error)
            gradient -= self.rates[:end, None] * total
            gradient[first:end].triu_(1)
            weights.grad = gradient
            self.biases.grad[first:end] = total

    def _ordered(self, bits: PackedBits) -> PackedBits:
        place = torch.empty_like(self.order)
        place[self.order] = torch.arange(len(place))
        words = bits.permuted(place).words
        return PackedBits(words.to(self.biases.device), bits.n_latents)

    def to(self, device: torch.device | str) -> Autoregression:
        """The same with all but the order on this device."""
        weights = [block.to(device) for block in self.weights]
        return Autoregression(self.order, self.rates.to(device), self.biases.to(device), weights)

    def _copy(self) -> Autoregression:
        weights = [block.detach().clone() for block in self.weights]
        return Autoregression(self.order, self.rates, self.biases.detach().clone(), weights)


def _by_latent(bits: PackedBits) -> Callable[[int, Tensor], Tensor]:
    """-> a function of n and `error [rows, d]`: its sums over the rows in which each of the first n
    latents is on, `[n, d]`"""
    if bits.words.device.type == "cpu":
        columns = bits.transpose()
        return lambda n, error: sums(columns[:n], error)
    h = bits.unpack()  # only a CPU transposes packed bits
    return lambda n, error: h[:, :n].T @ error


def _validation_rows(bounds: np.ndarray, seed: int) -> Tensor:
    """Rows of a random twentieth of the blocks, bool"""
    held_out = torch.zeros(int(bounds[-1]), dtype=torch.bool)
    blocks = torch.randperm(len(bounds) - 1, generator=generator(seed, "validation"))
    for block in blocks[: -(-(len(bounds) - 2) // 20)].tolist():
        held_out[int(bounds[block]) : int(bounds[block + 1])] = True
    return held_out
