"""How a binary autoencoder learns whose bits are those of one linear map and a step.

The derivative of the step is zero almost everywhere, so the backward pass uses a surrogate: with
`g` the gradient of the loss in the bit and `w` a width per latent,

| name      | dz                                        |                                        |
| --------- | ----------------------------------------- | -------------------------------------- |
| `clipped` | `g * (abs(z) < w)`                        | straight-through inside a window       |
| `sigmoid` | `g * s (1 - s) / w`, `s = sigmoid(z / w)` | the derivative of a sigmoid of width w |
| `ste`     | `g`                                       | plain straight-through                 |
| `paper`   | `g (1 - g)`                               | as in the code of arXiv 2509.20997     |
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bitlens import processes
from bitlens.autoencoders.base import Autoencoder
from bitlens.autoencoders.beginning import Beginning
from bitlens.autoencoders.binary import BinaryAutoencoder
from bitlens.autoencoders.learner import LARGE_SAMPLE, SMALL_SAMPLE, Learner, Sampler
from bitlens.autoencoders.objective import (
    Losses,
    Price,
    batch_price,
    binary_losses,
    covariance_penalty,
    dense_covariance_penalty,
    weights,
)
from bitlens.autoencoders.pruning import Parameters, code_rows, propose, prune, regrow
from bitlens.autoencoders.settings import Settings
from bitlens.bits import products
from bitlens.bits.packed import PackedBits
from bitlens.bits.statistics import covariance, firing_rates, sums
from bitlens.options import Surrogate
from bitlens.seeding import generator

SPREAD_RATE = 0.05  # of the moving average of each latent's standard deviation of z
# share of pairs (row, latent) on or in the window from which on whole products are faster
WHOLE_PRODUCTS_FROM = 0.4


class _Binarize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, width: Tensor, surrogate: Surrogate) -> Tensor:
        ctx.surrogate = surrogate
        if surrogate == "clipped":
            ctx.save_for_backward(z.abs() < width)
        elif surrogate == "sigmoid":
            ctx.save_for_backward(z, width)
        return (z > 0).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (g,) = gradients
        if ctx.surrogate == "clipped":
            (inside,) = ctx.saved_tensors
            g = g * inside
        elif ctx.surrogate == "sigmoid":
            z, width = ctx.saved_tensors
            s = torch.sigmoid(z / width)
            g = g * s * (1 - s) / width
        elif ctx.surrogate == "paper":
            g = g * (1 - g)
        return g, None, None


def binarize(z: Tensor, width: Tensor | float = 1.0, surrogate: Surrogate = "clipped") -> Tensor:
    """Step to 0 or 1 with a surrogate gradient.

    z `[..., n_latents]`; width `[n_latents]` or a number, in units of z.
    """
    return _Binarize.apply(z, torch.as_tensor(width, dtype=z.dtype, device=z.device), surrogate)  # pyright: ignore[reportReturnType]


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
        self.factors = settings.lam, settings.gamma, settings.weighting
        self.state = {"spread": torch.zeros(model.n_latents, device=model.W_enc.device)}
        self.prune_steps = {int(f * settings.steps) for f in settings.prune_at}
        self.regrow_steps = {int(f * settings.steps) for f in settings.regrow_at}
        self.turns = self.prune_steps | self.regrow_steps

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

    @torch.no_grad()
    def begin_at(self, given: Beginning) -> None:
        """At this dictionary, the encoder along it, and each bit on as often as its latent was."""
        super().begin_at(given)
        model, seed = self.model, generator(self.settings.seed, "initial rates")
        on = (given.rates > 0).nonzero()[:, 0]
        W = given.W[on]
        model.W_enc[:, on] = (W / W.norm(dim=1, keepdim=True).clamp_min(1e-12)).T
        z = self.sample(SMALL_SAMPLE, seed) @ model.W_enc[:, on]
        model.b_enc[on] = biases(z, given.rates[on])

    def losses(self, x: Tensor) -> tuple[Losses, Tensor]:
        """x: standardised `[n, d_in]` -> (terms of the loss, codes `[n, n_latents]`)."""
        model, settings, n = self.model, self.settings, self.batch_rows(x)
        z = model.pre_activations(x)
        window = self._window(self._spread(z.detach(), lambda z: z.std(0)))
        h = binarize(z, window, settings.surrogate)
        penalty = dense_covariance_penalty if settings.reference else covariance_penalty
        return binary_losses(x, model.reconstruct(h), h, self.price, *self.factors, penalty, n), h

    def backward(self, x: Tensor) -> tuple[Losses, Tensor]:
        """As any learner's; on a CPU by packed bits where the surrogate is `clipped`."""
        settings = self.settings
        if settings.reference or settings.surrogate != "clipped" or x.device.type != "cpu":
            return super().backward(x)
        return self._backward_packed(x)

    @torch.no_grad()
    def _backward_packed(self, x: Tensor) -> tuple[Losses, Tensor]:
        """The same gradients from packed bits, into buffers that are kept from step to step.

        Only the encoder needs a whole product: the reconstruction sums the decoder rows of the bits
        that are on, and the gradient passes where a pre-activation lies in the window, a few
        percent of all. A batch with many bits on takes whole products instead, of which bf16 rounds
        the factors, not the sums.
        """
        model, bf16 = self.model, self.settings.precision == "bf16"
        per_price, per_pair = weights(model.d_in, model.n_latents, *self.factors)
        x, n = x.contiguous(), self.batch_rows(x)
        z = _product(x, model.W_enc, bf16).add_(model.b_enc)
        width = self._window(self._spread(z, _column_std))
        on, inside = PackedBits.step(z), PackedBits.window(z, width)
        counts = on.column_counts()
        processes.add(counts)
        p = counts / n
        passing = int(on.row_counts().sum() + inside.row_counts().sum())
        sparse = passing < WHOLE_PRODUCTS_FROM * z.numel()

        x_hat = sums(on, model.W_dec) if sparse else _product(on.unpack(), model.W_dec, bf16)
        error = x_hat.add_(model.b_dec).sub_(x)
        mse = error.square().mean()
        error *= 2 / (n * model.d_in)
        cost, slope = _price_and_slope(p, n, self.price, per_price)
        penalty, pull = mse.new_zeros(()), None
        if per_pair:
            penalty, pull = covariance(PackedBits(processes.gather(on.words, n), on.n_latents))
            penalty, pull = per_pair * penalty, pull[processes.part(n)].mul_(per_pair)

        gradients = [_gradient(parameter) for parameter in (model.W_enc, model.b_enc, model.W_dec)]
        if sparse:
            products.backward(
                x.numpy(),
                error.numpy(),
                on.transpose().numpy(),
                inside.transpose().numpy(),
                model.W_dec.numpy(),
                slope.numpy(),
                None if pull is None else pull.numpy(),
                [gradient.numpy() for gradient in gradients],
            )
        else:
            dz = _product(error, model.W_dec.T, bf16).add_(slope)
            dz = (dz if pull is None else dz.add_(pull)).mul_(inside.unpack())
            whole = _product(x.T, dz, bf16), dz.sum(0), _product(on.unpack().T, error, bf16)
            for gradient, value in zip(gradients, whole, strict=True):
                gradient.copy_(value)
        _gradient(model.b_dec).copy_(error.sum(0))
        self.add_up()
        return Losses(mse + cost + penalty, mse, cost, penalty), p

    def _spread(self, z: Tensor, std: Callable[[Tensor], Tensor]) -> Tensor:
        """Standard deviation of each latent's pre-activations over the batch, of which z are those
        of this process. std: that of rows which are all here."""
        if processes.world_size() == 1:
            return std(z)
        n, z = self.batch_rows(z), z.double()
        first, second = z.sum(0), z.square().sum(0)
        processes.add(first, second)
        return ((second - first.square() / n).clamp_min_(0) / (n - 1)).sqrt().float()

    def _window(self, spread: Tensor) -> Tensor:
        """The surrogate's window `[n_latents]`, after a batch whose pre-activations have this
        standard deviation."""
        average = self.state["spread"]
        average.copy_(torch.where(average == 0, spread, average.lerp(spread, SPREAD_RATE)))
        return self.settings.width * average.clamp_min(1e-4)

    @torch.no_grad()
    def after_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Prune, offering candidates for dead latents, and restart dead latents along the residual,
        at the appointed steps; Adam's momentum of a restarted latent is 0."""
        model, settings, restarted = self.model, self.settings, []
        if step in self.prune_steps:
            seed = generator(settings.seed, "prune", step)
            rows, before = self.sample(settings.prune_rows, seed), Parameters.of(model)
            offered, candidates = propose(
                rows[:SMALL_SAMPLE], before, self.price, settings.lam, seed
            )
            prune(rows, offered, self.price, settings.lam)[0].copy_to(model)
            restarted.append(candidates)
        if step in self.regrow_steps:
            seed = generator(settings.seed, "regrow", step)
            rows, before = self.sample(SMALL_SAMPLE, seed), Parameters.of(model)
            grown, dead = regrow(rows, before, self.price, settings.lam, seed)
            grown.copy_to(model)
            restarted.append(dead)
        for latents in restarted:
            for parameter, axis in ((model.W_enc, 1), (model.b_enc, 0), (model.W_dec, 0)):
                optimizer.state[parameter]["exp_avg"].index_fill_(axis, latents, 0)

    def finish(self) -> Autoencoder:
        """In canonical form."""
        return canonical_by_step(self)


def _product(a: Tensor, b: Tensor, bf16: bool) -> Tensor:
    """float32 product; with bf16 its factors may be rounded, where the processor has units for that
    (AMX)."""
    if not bf16:
        return a @ b
    former = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        return a @ b
    finally:
        torch.set_float32_matmul_precision(former)


def _column_std(z: Tensor) -> Tensor:
    return torch.from_numpy(products.column_std(z.numpy()))


def _gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.empty_like(parameter)
    return parameter.grad


def _price_and_slope(p: Tensor, n: int, price: Price, weight: float) -> tuple[Tensor, Tensor]:
    """The weighted price of the firing rates p `[n_latents]`, and its slope in any one bit of each
    latent, float32 `[n_latents]`."""
    with torch.enable_grad():
        rates = p.clone().requires_grad_()
        cost = weight * batch_price(rates, n, price)
        (slope,) = torch.autograd.grad(cost, rates)
    return cost.detach(), slope / n
