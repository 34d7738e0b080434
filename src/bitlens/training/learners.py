"""How each architecture learns: its loss on a batch, and what happens to it between steps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bitlens.autoencoders import Autoencoder, BinaryAutoencoder, TopKAutoencoder
from bitlens.autoencoders.binarize import binarize
from bitlens.seeding import generator
from bitlens.training.config import TrainConfig
from bitlens.training.objective import (
    Losses,
    Price,
    binary_losses,
    covariance_penalty,
    dense_covariance_penalty,
    weights,
)
from bitlens.training.pruning import Parameters, propose, prune, regrow

Sampler = Callable[[int, torch.Generator], Tensor]
SPREAD_RATE = 0.05  # of the exponential average of each latent's pre-activation spread
SMALL_SAMPLE = 8192  # rows that set the first firing rates and that regrowing looks at


class Learner:
    """The moving parts of training one architecture. `state` is saved in checkpoints with the weights."""

    def __init__(self, model: Autoencoder, config: TrainConfig, sample: Sampler) -> None:
        """sample: `(n, generator) -> standardised rows [n, d_in]`, drawn from the training rows."""
        self.model, self.config, self.sample = model, config, sample
        self.state: dict[str, Tensor] = {}

    def start(self) -> None:
        """Once, before the first step."""

    def losses(self, x: Tensor) -> tuple[Losses, Tensor]:
        """x: standardised `[n, d_in]` -> (terms of the loss, codes `[n, n_latents]`)"""
        raise NotImplementedError

    def backward(self, x: Tensor) -> tuple[Losses, Tensor]:
        """Leave the loss's gradients in the parameters -> (terms of the loss, firing rates `[n_latents]`)"""
        self.model.zero_grad(set_to_none=True)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            losses, codes = self.losses(x)
        losses.total.backward()
        return losses, (codes.detach() != 0).float().mean(0)

    def after_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """After each optimiser step."""


class BinaryLearner(Learner):
    """The recipe of the presets: clipped straight-through, pruning, regrowing."""

    model: BinaryAutoencoder

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
        low, high = self.config.initial_rates
        seed = generator(self.config.seed, "initial rates")
        z = (self.sample(SMALL_SAMPLE, seed) @ self.model.W_enc).T.contiguous().sort(1).values
        rates = low * (high / low) ** torch.rand(self.model.n_latents, generator=seed)
        rank = ((1 - rates) * (z.shape[1] - 1)).long().to(z.device)
        below = z.gather(1, rank[:, None])
        same = 1e-5 * (z[:, -1:] - z[:, :1])  # the threshold lies between values, so that no row lies on it
        above = z.gather(1, torch.searchsorted(z, below + same, right=True).clamp_max(z.shape[1] - 1))
        sparse = int((self.config.initial_share or 0.0) * self.model.n_latents)
        self.model.b_enc[:sparse] = -(below + torch.maximum(above, below + same))[:sparse, 0] / 2

    def losses(self, x: Tensor) -> tuple[Losses, Tensor]:
        c = self.config
        z = self.model.pre_activations(x)
        h = binarize(z, self._window(z.detach().std(0)), c.surrogate or "clipped")
        x_hat = self.model.reconstruct(h)
        penalty = dense_covariance_penalty if c.reference else covariance_penalty
        return binary_losses(x, x_hat, h, self.price, c.lam or 0.0, c.gamma or 0.0, c.weighting or "scaled", penalty), h

    def backward(self, x: Tensor) -> tuple[Losses, Tensor]:
        if self.config.reference or self.config.surrogate != "clipped" or x.device.type != "cpu":
            return super().backward(x)
        from bitlens.training.bit_step import bit_step  # compiled when first used

        c = self.config
        weighting = weights(
            self.model.d_in, self.model.n_latents, c.lam or 0.0, c.gamma or 0.0, c.weighting or "scaled"
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
            seed = generator(self.config.seed, "prune", step)
            rows = self.sample(self.config.prune_rows, seed)
            parameters, candidates = propose(rows[:SMALL_SAMPLE], self._parameters(), self.price, lam, seed)
            self._set(prune(rows, parameters, self.price, lam)[0])
            restarted.append(candidates)
        if step in self.regrow_steps:
            seed = generator(self.config.seed, "regrow", step)
            parameters, idle = regrow(self.sample(SMALL_SAMPLE, seed), self._parameters(), self.price, lam, seed)
            self._set(parameters)
            restarted.append(idle)
        for latents in restarted:
            for parameter, axis in ((self.model.W_enc, 1), (self.model.b_enc, 0), (self.model.W_dec, 0)):
                optimizer.state[parameter]["exp_avg"].index_fill_(axis, latents, 0)

    def _parameters(self) -> Parameters:
        return Parameters(self.model.W_enc, self.model.b_enc, self.model.W_dec, self.model.b_dec)

    def _set(self, parameters: Parameters) -> None:
        for old, new in zip(self._parameters(), parameters, strict=True):
            old.copy_(new)


class TopKLearner(Learner):
    """TopK with the auxiliary loss for dead latents of Gao et al. 2024 (arXiv 2406.04093, appendix A.2)."""

    model: TopKAutoencoder
    AUXILIARY = 1 / 32

    def __init__(self, model: TopKAutoencoder, config: TrainConfig, sample: Sampler) -> None:
        super().__init__(model, config, sample)
        self.state = {"silent": torch.zeros(model.n_latents, device=model.W_enc.device)}  # batches since last on
        self.patience = max(20, config.steps // 20)

    def losses(self, x: Tensor) -> tuple[Losses, Tensor]:
        z = self.model.pre_activations(x)
        codes = self.model.code(z)
        x_hat = self.model.reconstruct(codes).float()
        mse = torch.mean((x_hat - x) ** 2)
        on = (codes.detach() > 0).any(0)
        self.state["silent"] = torch.where(on, 0.0, self.state["silent"] + 1)
        auxiliary = mse.new_zeros(())
        dead = self.state["silent"] > self.patience
        if dead.any():
            k = min(self.model.d_in // 2, int(dead.sum()))
            top = z.masked_fill(~dead, -torch.inf).topk(max(k, 1), dim=-1)
            residual = (x - x_hat).detach()
            guess = torch.zeros_like(z).scatter(-1, top.indices, top.values.relu()) @ self.model.W_dec
            share = (guess.float() - residual).square().mean() / residual.square().mean().clamp_min(1e-12)
            auxiliary = self.AUXILIARY * share * mse.detach()
        zero = mse.new_zeros(())
        return Losses(mse + auxiliary, mse, zero, zero, auxiliary), codes

    def after_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        self.model.normalise_decoder()


def make_learner(model: Autoencoder, config: TrainConfig, sample: Sampler) -> Learner:
    if isinstance(model, BinaryAutoencoder):
        return BinaryLearner(model, config, sample)
    if isinstance(model, TopKAutoencoder):
        return TopKLearner(model, config, sample)
    raise TypeError(f"{type(model).__name__} has no learner")
