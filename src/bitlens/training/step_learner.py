"""How a binary autoencoder learns whose bits are those of one linear map and a step."""

from __future__ import annotations

import torch
from torch import Tensor

from bitlens.autoencoders import Autoencoder, BinaryAutoencoder
from bitlens.autoencoders.binarize import binarize
from bitlens.bits.packed import PackedBits
from bitlens.bits.statistics import firing_rates
from bitlens.seeding import generator
from bitlens.training.config import TrainConfig
from bitlens.training.learner import Learner, Sampler
from bitlens.training.objective import (
    Losses,
    Price,
    binary_losses,
    covariance_penalty,
    dense_covariance_penalty,
    weights,
)
from bitlens.training.pruning import Parameters, propose, prune, regrow

SPREAD_RATE = 0.05  # of the exponential average of each latent's pre-activation spread
SMALL_SAMPLE = 8192  # rows that set the first firing rates and that regrowing looks at
CANONICAL_ROWS = 65536


def log_uniform(range_: tuple[float, ...], n: int, seed: torch.Generator) -> Tensor:
    """n firing rates between the two of the range."""
    low, high = range_
    return low * (high / low) ** torch.rand(n, generator=seed)


def biases(z: Tensor, rates: Tensor) -> Tensor:
    """Encoder biases `[m]` that give these firing rates. z: pre-activations without bias `[n, m]`"""
    z = z.T.contiguous().sort(1).values
    rank = ((1 - rates.to(z.device)) * (z.shape[1] - 1)).long()
    below = z.gather(1, rank[:, None])
    same = 1e-5 * (
        z[:, -1:] - z[:, :1]
    )  # the threshold lies between values, so that no row lies on it
    above = z.gather(1, torch.searchsorted(z, below + same, right=True).clamp_max(z.shape[1] - 1))
    return -(below + torch.maximum(above, below + same))[:, 0] / 2


def measured_rates(model: Autoencoder, rows: Tensor) -> Tensor:
    """Firing rates of the latents on standardised rows, float64 `[n_latents]`"""
    with torch.no_grad():
        words = [PackedBits.step(model.pre_activations(block)).words for block in rows.split(4096)]
    return firing_rates(PackedBits(torch.cat(words), model.n_latents)).to(rows.device)


class StepLearner(Learner[BinaryAutoencoder]):
    """One linear map and a threshold: clipped straight-through, pruning, regrowing."""

    def __init__(self, model: BinaryAutoencoder, config: TrainConfig, sample: Sampler) -> None:
        super().__init__(model, config, sample)
        self.price = Price(config.price or "entropy", config.p0)
        self.state = {"spread": torch.zeros(model.n_latents, device=model.W_enc.device)}
        at = lambda fractions: {int(f * config.steps) for f in fractions or ()}  # noqa: E731
        self.prune_steps, self.regrow_steps = at(config.prune_at), at(config.regrow_at)

    @torch.no_grad()
    def start(self) -> None:
        """Give a share of the latents a first firing rate, log-uniform in `initial_rates`, by setting their biases."""
        if not self.config.initial_rates:
            return
        seed = generator(self.config.seed, "initial rates")
        z = self.sample(SMALL_SAMPLE, seed) @ self.model.W_enc
        rates = log_uniform(self.config.initial_rates, self.model.n_latents, seed)
        sparse = int((self.config.initial_share or 0.0) * self.model.n_latents)
        self.model.b_enc[:sparse] = biases(z, rates)[:sparse]

    def losses(self, x: Tensor) -> tuple[Losses, Tensor]:
        c = self.config
        h = self.bits(x)
        x_hat = self.model.reconstruct(h)
        penalty = dense_covariance_penalty if c.reference else covariance_penalty
        return binary_losses(
            x, x_hat, h, self.price, c.lam or 0.0, c.gamma or 0.0, c.weighting or "scaled", penalty
        ), h

    def bits(self, x: Tensor) -> Tensor:
        """Codes of a batch `[n, n_latents]`, with the surrogate's gradient."""
        z, surrogate = self.model.pre_activations(x), self.config.surrogate or "clipped"
        window = self._window(z.detach().std(0))
        return binarize(z, window, surrogate)

    def backward(self, x: Tensor) -> tuple[Losses, Tensor]:
        if self.config.reference or self.config.surrogate != "clipped" or x.device.type != "cpu":
            return super().backward(x)
        from bitlens.training.bit_step import bit_step  # compiled when first used

        c = self.config
        weighting = weights(
            self.model.d_in,
            self.model.n_latents,
            c.lam or 0.0,
            c.gamma or 0.0,
            c.weighting or "scaled",
        )
        return bit_step(self.model, x, self._window, self.price, *weighting, c.precision == "bf16")

    def _window(self, spread: Tensor) -> Tensor:
        """The surrogate's window `[n_latents]`, after a batch whose pre-activations have this standard deviation."""
        average = self.state["spread"]
        average.copy_(torch.where(average == 0, spread, average.lerp(spread, SPREAD_RATE)))
        return (self.config.width or 1.0) * average.clamp_min(1e-4)

    @torch.no_grad()
    def after_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        lam = self.config.lam or 0.0
        restarted = []
        if step in self.prune_steps:
            restarted.append(self.propose_and_prune(step, lam))
        if step in self.regrow_steps:
            restarted.append(self.regrow(step, lam))
        for latents in restarted:
            for parameter, axis in (
                (self.model.W_enc, 1),
                (self.model.b_enc, 0),
                (self.model.W_dec, 0),
            ):
                optimizer.state[parameter]["exp_avg"].index_fill_(axis, latents, 0)

    def propose_and_prune(self, step: int, lam: float) -> Tensor:
        """Offer candidates for idle latents and switch off what is not worth its price -> the candidates"""
        seed = generator(self.config.seed, "prune", step)
        rows = self.sample(self.config.prune_rows, seed)
        parameters, candidates = propose(
            rows[:SMALL_SAMPLE], self._parameters(), self.price, lam, seed
        )
        self._set(prune(rows, parameters, self.price, lam)[0])
        return candidates

    def regrow(self, step: int, lam: float) -> Tensor:
        """Restart idle latents along the residual -> these latents"""
        seed = generator(self.config.seed, "regrow", step)
        parameters, idle = regrow(
            self.sample(SMALL_SAMPLE, seed), self._parameters(), self.price, lam, seed
        )
        self._set(parameters)
        return idle

    def _parameters(self) -> Parameters:
        return Parameters(self.model.W_enc, self.model.b_enc, self.model.W_dec, self.model.b_dec)

    def _set(self, parameters: Parameters) -> None:
        for old, new in zip(self._parameters(), parameters, strict=True):
            old.copy_(new)

    def finish(self) -> Autoencoder:
        """In canonical form, by the firing rates on a large sample of the training rows."""
        rows = self.sample(CANONICAL_ROWS, generator(self.config.seed, "canonical"))
        return self.model.canonical(measured_rates(self.model, rows))
