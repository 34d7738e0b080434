"""How a binary autoencoder learns whose bits are those of one linear map and a step."""

import torch
from torch import Tensor

from bitlens.autoencoders.base import Autoencoder
from bitlens.autoencoders.binarize import binarize
from bitlens.autoencoders.binary import BinaryAutoencoder
from bitlens.autoencoders.learner import LARGE_SAMPLE, SMALL_SAMPLE, Learner, Sampler
from bitlens.autoencoders.objective import (
    Losses,
    Price,
    binary_losses,
    covariance_penalty,
    dense_covariance_penalty,
    weights,
)
from bitlens.autoencoders.pruning import Parameters, code_rows, propose, prune, regrow
from bitlens.autoencoders.settings import Settings
from bitlens.bits.statistics import firing_rates
from bitlens.seeding import generator

SPREAD_RATE = 0.05  # of the moving average of each latent's standard deviation of z


def log_uniform(range_: tuple[float, ...], n: int, seed: torch.Generator) -> Tensor:
    """n firing rates between the two of the range."""
    low, high = range_
    return low * (high / low) ** torch.rand(n, generator=seed)


def biases(z: Tensor, rates: Tensor) -> Tensor:
    """Encoder biases `[m]` that give these firing rates. z: pre-activations without bias `[n, m]`.

    A threshold lies between two values, so that no row lies on it.
    """
    z = z.T.contiguous().sort(1).values
    rank = ((1 - rates.to(z.device)) * (z.shape[1] - 1)).long()
    below = z.gather(1, rank[:, None])
    same = 1e-5 * (z[:, -1:] - z[:, :1])
    above = z.gather(1, torch.searchsorted(z, below + same, right=True).clamp_max(z.shape[1] - 1))
    return -(below + torch.maximum(above, below + same))[:, 0] / 2


@torch.no_grad()
def canonical_by_step(learner: Learner) -> Autoencoder:
    """The learner's model in canonical form, by the firing rates on a large sample of its rows."""
    rows = learner.sample(LARGE_SAMPLE, generator(learner.settings.seed, "canonical"))
    rates = firing_rates(code_rows(rows, Parameters.of(learner.model)))
    return learner.model.canonical(rates.to(rows.device))


class StepLearner(Learner[BinaryAutoencoder]):
    """A surrogate gradient through the step, pruning, regrowing."""

    def __init__(self, model: BinaryAutoencoder, settings: Settings, sample: Sampler) -> None:
        super().__init__(model, settings, sample)
        self.price = Price(settings.price, settings.p0)
        self.state = {"spread": torch.zeros(model.n_latents, device=model.W_enc.device)}
        self.prune_steps = {int(f * settings.steps) for f in settings.prune_at}
        self.regrow_steps = {int(f * settings.steps) for f in settings.regrow_at}

    @torch.no_grad()
    def start(self) -> None:
        """Give a share of the latents a first firing rate, log-uniform in `initial_rates`, by
        setting their biases."""
        model, settings = self.model, self.settings
        if not settings.initial_rates:
            return
        seed = generator(settings.seed, "initial rates")
        z = self.sample(SMALL_SAMPLE, seed) @ model.W_enc
        rates = log_uniform(settings.initial_rates, model.n_latents, seed)
        share = int(settings.initial_share * model.n_latents)
        model.b_enc[:share] = biases(z, rates)[:share]

    def losses(self, x: Tensor) -> tuple[Losses, Tensor]:
        """x: standardised `[n, d_in]` -> (terms of the loss, codes `[n, n_latents]`)."""
        model, settings = self.model, self.settings
        z = model.pre_activations(x)
        h = binarize(z, self._window(z.detach().std(0)), settings.surrogate)
        penalty = dense_covariance_penalty if settings.reference else covariance_penalty
        factors = settings.lam, settings.gamma, settings.weighting
        return binary_losses(x, model.reconstruct(h), h, self.price, *factors, penalty), h

    def backward(self, x: Tensor) -> tuple[Losses, Tensor]:
        """As any learner's; on a CPU by packed bits where the surrogate is `clipped`."""
        model, settings = self.model, self.settings
        if settings.reference or settings.surrogate != "clipped" or x.device.type != "cpu":
            return super().backward(x)
        from bitlens.autoencoders.bit_step import bit_step  # compiled when first used

        factors = settings.lam, settings.gamma, settings.weighting
        per_price, per_pair = weights(model.d_in, model.n_latents, *factors)
        bf16 = settings.precision == "bf16"
        return bit_step(model, x, self._window, self.price, per_price, per_pair, bf16)

    def _window(self, spread: Tensor) -> Tensor:
        """The surrogate's window `[n_latents]`, after a batch whose pre-activations have this
        standard deviation."""
        average = self.state["spread"]
        average.copy_(torch.where(average == 0, spread, average.lerp(spread, SPREAD_RATE)))
        return self.settings.width * average.clamp_min(1e-4)

    @torch.no_grad()
    def after_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Prune and regrow at the appointed steps; Adam's momentum of a restarted latent is 0."""
        restarted = []
        if step in self.prune_steps:
            restarted.append(self._prune(step))
        if step in self.regrow_steps:
            restarted.append(self._regrow(step))
        model = self.model
        for latents in restarted:
            for parameter, axis in ((model.W_enc, 1), (model.b_enc, 0), (model.W_dec, 0)):
                optimizer.state[parameter]["exp_avg"].index_fill_(axis, latents, 0)

    def _prune(self, step: int) -> Tensor:
        """Offer candidates for dead latents and switch off what is not worth its price.

        -> the candidates
        """
        lam, seed = self.settings.lam, generator(self.settings.seed, "prune", step)
        rows = self.sample(self.settings.prune_rows, seed)
        before = Parameters.of(self.model)
        offered, candidates = propose(rows[:SMALL_SAMPLE], before, self.price, lam, seed)
        prune(rows, offered, self.price, lam)[0].copy_to(self.model)
        return candidates

    def _regrow(self, step: int) -> Tensor:
        """Restart dead latents along the residual -> these latents."""
        lam, seed = self.settings.lam, generator(self.settings.seed, "regrow", step)
        rows = self.sample(SMALL_SAMPLE, seed)
        grown, dead = regrow(rows, Parameters.of(self.model), self.price, lam, seed)
        grown.copy_to(self.model)
        return dead

    def finish(self) -> Autoencoder:
        """In canonical form."""
        return canonical_by_step(self)
