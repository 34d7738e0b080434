"""The null: what bits show that nobody has trained."""

from __future__ import annotations

import torch
from torch import Tensor

from bitlens.autoencoders import Autoencoder
from bitlens.errors import BitlensError
from bitlens.seeding import generator
from bitlens.training.pruning import least_squares
from bitlens.training.step_learner import (
    CANONICAL_ROWS,
    SMALL_SAMPLE,
    StepLearner,
    biases,
    log_uniform,
)


class RandomLearner(StepLearner):
    """Random directions; firing rates of another autoencoder, or log-uniform ones; the decoder by least squares."""

    descends = False

    @torch.no_grad()
    def start(self) -> None:
        seed = generator(self.config.seed, "initial rates")
        rows = self.sample(CANONICAL_ROWS, seed)
        rates = self._matched(rows, seed) if self.config.match else log_uniform(
            self.config.initial_rates or (0.01, 0.2), self.model.n_latents, seed
        )  # fmt: skip
        self.model.b_enc.copy_(biases(rows[:SMALL_SAMPLE] @ self.model.W_enc, rates.float()))
        self._set(least_squares(rows, self._parameters()))

    def _matched(self, rows: Tensor, seed: torch.Generator) -> Tensor:
        """Firing rates of the run `match` on these rows, of its live latents; drawn from where the numbers differ."""
        other = Autoencoder.from_pretrained(self.config.match, str(rows.device))
        raw = rows * self.model.scale + self.model.mean
        rates = torch.stack(
            [other.encode_bits(block).column_counts() for block in raw.split(4096)]
        ).sum(0) / len(rows)
        rates = rates[(rates > 0) & (rates < 1)].cpu()
        if not len(rates):
            raise BitlensError(
                f"No latent of {self.config.match} is on in some rows and off in others; match another run."
            )
        return rates if len(rates) == self.model.n_latents else rates[
            torch.randint(len(rates), (self.model.n_latents,), generator=seed)
        ]  # fmt: skip
