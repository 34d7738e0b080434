"""How a binary autoencoder learns that fits no one device: each process holds some latents.

It has their rows of the decoder, their columns of the encoder, prices, counts and Adam's moments,
and takes every row of a batch, so that its gradients are whole. What the processes exchange is
what the search of the bits does (`bits.descent_sharded`), and what the latents explain together.
"""

from pathlib import Path

import torch
from torch import Tensor

from bitlens import processes, shards
from bitlens.autoencoders.base import CONFIG, WEIGHTS, Autoencoder
from bitlens.autoencoders.binary import BinaryAutoencoder
from bitlens.autoencoders.descent import FLIPS, DescentLearner
from bitlens.autoencoders.learner import LARGE_SAMPLE, Sampler
from bitlens.autoencoders.settings import Settings
from bitlens.bits.descent_sharded import TOGETHER, descend, explained
from bitlens.bits.packed import PackedBits
from bitlens.bits.statistics import firing_rates
from bitlens.errors import BitlensError
from bitlens.files import write_json
from bitlens.seeding import generator

PARTS = {"W_enc": 1, "b_enc": 0, "W_dec": 0, "price": 0, "on": 0}


class ShardedDescentLearner(DescentLearner):
    """As `DescentLearner`, with a model of the latents of this process alone."""

    def __init__(self, model: BinaryAutoencoder, settings: Settings, sample: Sampler) -> None:
        super().__init__(model, settings, sample)
        self.n_latents, self.own = settings.n_latents, processes.part(settings.n_latents)
        self.parts = PARTS

    def part_of_batch(self, n: int) -> slice:
        """All rows."""
        return slice(None)

    def batch_rows(self, x: Tensor) -> int:
        """All that there are."""
        return len(x)

    def add_up(self, *others: Tensor) -> None:
        """Nothing: gradients and counts of latents that are held here are whole."""

    def _bits(self, x: Tensor, n: int) -> PackedBits:
        W, b = self.model.W_dec.detach(), self.model.b_dec.detach()
        return descend(x, W, b, self.model.price, flips=FLIPS, together=TOGETHER)

    def _bits_of_all(self, rows: Tensor) -> PackedBits:
        return self._bits(rows, len(rows))

    def _rows_for(self, n: int, seed: torch.Generator) -> Tensor:
        return self.sample(min(n, LARGE_SAMPLE), seed)  # more might not fit

    def _explained(self, bits: PackedBits) -> Tensor:
        return explained(bits, self.model.W_dec.detach())

    def _before(self, n: int) -> tuple[int, int]:
        counts = processes.of_each(torch.tensor(n))
        return int(counts[: processes.rank()].sum()), int(counts.sum())

    def _share(self, part: Tensor) -> Tensor:
        processes.add(part)
        return part

    def rates_of_all(self, rates: Tensor) -> Tensor:
        """Of all processes' latents, in their order."""
        return processes.gather(rates, self.n_latents)

    @torch.no_grad()
    def finish(self) -> Autoencoder:
        """The latents of this process, `save` leaves out those that are never on."""
        self._set_prices(self.final_price)
        return self.model

    @torch.no_grad()
    def save(self, finished: Autoencoder, folder: Path) -> Autoencoder:
        """Write an ordinary autoencoder, block by block -> that, read again, on the CPU"""
        rows = self.sample(LARGE_SAMPLE, generator(self.settings.seed, "canonical"))
        on = (firing_rates(self._bits(rows, len(rows))) > 0).nonzero()[:, 0]
        _, n = self._before(len(on))
        if not n:
            raise BitlensError("Every latent is constant: the autoencoder collapsed; lower lam.")
        weights = dict(finished.state_dict())
        for name in PARTS.keys() & weights:
            weights[name] = weights[name].index_select(PARTS[name], on.to(weights[name].device))
        shards.write(folder / WEIGHTS, weights, PARTS)
        if processes.is_first():
            write_json(folder / CONFIG, {**finished.config(), "d_sae": n})
        processes.wait_for_all()
        return Autoencoder.from_pretrained(folder)
