"""The null: what bits show that nobody has trained."""

import torch
from torch import Tensor

from bitlens.autoencoders.base import Autoencoder
from bitlens.autoencoders.binary import BinaryAutoencoder
from bitlens.autoencoders.learner import LARGE_SAMPLE, SMALL_SAMPLE, Learner
from bitlens.autoencoders.pruning import Parameters, least_squares
from bitlens.autoencoders.step import biases, canonical_by_step, log_uniform
from bitlens.errors import BitlensError
from bitlens.seeding import generator

RATES = (0.01, 0.2)  # where neither the preset nor another run gives any


class RandomAutoencoder(BinaryAutoencoder):
    """Random directions with fitted firing rates and decoder."""

    architecture = "random"


class RandomLearner(Learner[RandomAutoencoder]):
    """Firing rates of another autoencoder, or log-uniform ones; the decoder by least squares."""

    closed_form = True

    @torch.no_grad()
    def start(self) -> None:
        """Set the thresholds and fit the decoder."""
        model, settings = self.model, self.settings
        seed = generator(settings.seed, "initial rates")
        rows = self.sample(LARGE_SAMPLE, seed)
        if settings.match:
            rates = self._matched(rows, seed)
        else:
            rates = log_uniform(settings.initial_rates or RATES, model.n_latents, seed)
        model.b_enc.copy_(biases(rows[:SMALL_SAMPLE] @ model.W_enc, rates.float()))
        least_squares(rows, Parameters.of(model)).copy_to(model)

    def _matched(self, rows: Tensor, seed: torch.Generator) -> Tensor:
        """Firing rates of the live latents of the run `match` on these rows; drawn from where the
        numbers differ."""
        settings = self.settings
        other = Autoencoder.from_pretrained(settings.match, str(rows.device))
        raw = rows * self.model.scale + self.model.mean
        counts = [other.encode_bits(block).column_counts() for block in raw.split(4096)]
        rates = torch.stack(counts).sum(0) / len(rows)
        rates = rates[(rates > 0) & (rates < 1)].cpu()
        if not len(rates):
            raise BitlensError(f"Every latent of {settings.match} is constant; match another run.")
        if len(rates) == self.model.n_latents:
            return rates
        return rates[torch.randint(len(rates), (self.model.n_latents,), generator=seed)]

    def finish(self) -> Autoencoder:
        """In canonical form."""
        return canonical_by_step(self)
