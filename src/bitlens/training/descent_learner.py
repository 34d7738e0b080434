"""How a binary autoencoder learns whose bits are found by descent.

Sparse coding, as Olshausen and Field (1996) have it, with bits: the bits of a batch are searched under the dictionary as
it is, and the dictionary then takes a gradient step at these bits. No gradient passes a step function. What is
minimised is the same as ever, the squared error and the price of the bits that are on.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bitlens.autoencoders import Autoencoder, BinaryAutoencoder
from bitlens.bits.descent import descend, gram
from bitlens.bits.packed import PackedBits
from bitlens.bits.statistics import firing_rates
from bitlens.errors import BitlensError
from bitlens.seeding import generator
from bitlens.training.config import TrainConfig
from bitlens.training.learner import Learner, Sampler
from bitlens.training.objective import Losses, Price
from bitlens.training.step_learner import CANONICAL_ROWS, SMALL_SAMPLE

FLIPS = 200  # a row in training
WIDE = 8  # latents a row of the batch from which on G, of so many rows, costs more than to search without it
RESTART = 0.7  # of what is left of a row: a latent that explains all of it is on in that row alone
COMMON, MOST = (
    0.06,
    4.0,
)  # rate above which a latent's price rises, and the most it rises to, in times
MEMORY = 0.99  # of the count of rows in which a latent was on, a step
ANNEALED = 0.5  # of the steps are done when the price is the final one
ENCODER_FROM = 0.5  # of the steps are done when the encoder begins to learn: before, the bits still change too much


class DescentLearner(Learner[BinaryAutoencoder]):
    """Descent for the bits, Adam for the dictionary, and an encoder that learns to predict the bits (predictive sparse
    decomposition, Kavukcuoglu, Ranzato and LeCun 2010)."""

    def __init__(self, model: BinaryAutoencoder, config: TrainConfig, sample: Sampler) -> None:
        super().__init__(model, config, sample)
        on = torch.zeros(
            model.n_latents, device=model.W_enc.device
        )  # rows in which each latent was on, fading
        self.state = {"on": on}
        self.final_price = (config.lam or 0.0) * Price("onbit", config.p0).per_on_bit
        self.restart_steps = {int(f * config.steps) for f in config.regrow_at or ()}

    @torch.no_grad()
    def start(self) -> None:
        """Decoder rows start at differences of two rows, of `scale` of a row's length; nothing else is known."""
        model, seed = self.model, generator(self.config.seed, "dictionary")
        rows = self.sample(2 * model.n_latents, seed)
        W = rows[torch.randint(len(rows), (model.n_latents,), generator=seed)]
        W = W - rows[torch.randint(len(rows), (model.n_latents,), generator=seed)]
        length = (self.config.scale or 0.0) * math.sqrt(model.d_in)
        model.W_dec.copy_(W / W.norm(dim=1, keepdim=True).clamp_min(1e-12) * length)
        model.b_dec.zero_()
        assert model.price is not None
        model.price.fill_(self.final_price)
        model.W_enc.copy_(model.W_dec.T)
        model.b_enc.copy_(
            -(model.W_dec.square().sum(1) + model.price) / 2
        )  # on where switching it on would gain
        if not self._bits(rows[:SMALL_SAMPLE]).words.any():
            raise BitlensError(
                f"No latent is worth its price in any row: lam {self.config.lam} switches everything off; lower `lam`."
            )

    def _price(self) -> float:
        """Of a bit that is on, at this step: from `anneal` times the final price it falls, linearly, over the first half. Few
        bits a row, at first, make latents that each stand for much; more bits come when these are there."""
        done = min(1.0, self.step / self.config.steps / ANNEALED)
        start = self.config.anneal or 1.0
        return self.final_price * (start + (1 - start) * done)

    def _set_prices(self, price: float) -> None:
        """The price of every latent: dearer for one that is on in more than a share `COMMON` of the rows, in proportion."""
        assert self.model.price is not None
        rates = self.state["on"] * (1 - MEMORY) / self.config.batch_size
        torch.mul(rates.div(COMMON).clamp_(1, MOST), price, out=self.model.price)

    def _bits(self, x: Tensor) -> PackedBits:
        W, b = self.model.W_dec.detach(), self.model.b_dec.detach()
        assert self.model.price is not None
        G = gram(W) if len(W) <= WIDE * len(x) else None
        return descend(x, W, b, self.model.price, G=G, flips=FLIPS, exchanges=False)

    @torch.no_grad()
    def backward(self, x: Tensor) -> tuple[Losses, Tensor]:
        model = self.model
        assert model.price is not None
        self._set_prices(self._price())
        bits = self._bits(x)
        error = _sums(bits, model.W_dec).add_(model.b_dec).sub_(x)
        mse = error.square().mean()
        error *= 2 / error.numel()
        model.W_dec.grad, counts = _sums_by_latent(bits, error)
        self.state["on"].mul_(MEMORY).add_(counts)
        model.b_dec.grad = error.sum(0)
        if self.step >= ENCODER_FROM * self.config.steps:
            self._leave_encoder_gradients(x, bits)
        rates, zero = counts.double() / len(x), mse.new_zeros(())
        price = (rates * model.price).sum().float() / model.d_in
        return Losses(mse + price, mse, price, zero, zero), rates

    def _leave_encoder_gradients(self, x: Tensor, bits: PackedBits) -> None:
        """Those of the bits' cross-entropy under the encoder, a mean over rows"""
        wrong = self.model.pre_activations(x).sigmoid_().sub_(bits.unpack()).div_(len(x))
        self.model.W_enc.grad = x.T @ wrong
        self.model.b_enc.grad = wrong.sum(0)

    @torch.no_grad()
    def after_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Latents that are never on start again along what is left of some rows, the rather of those explained badly."""
        idle = (self.state["on"] < 1).nonzero()[:, 0]
        if step not in self.restart_steps or not len(idle):
            return
        model, seed = self.model, generator(self.config.seed, "restart", step)
        rows = self.sample(max(len(idle), SMALL_SAMPLE), seed)
        left = rows - _sums(self._bits(rows), model.W_dec) - model.b_dec
        badly = left.square().sum(1).cpu().clamp_min(1e-12)  # drawn as k-means++ draws its centres
        some = torch.multinomial(badly, len(idle), len(left) < len(idle), generator=seed)
        model.W_dec[idle] = RESTART * left[some.to(left.device)]
        state = optimizer.state[model.W_dec]
        state["exp_avg"][idle] = 0
        state["exp_avg_sq"][idle] = state["exp_avg_sq"].mean()

    @torch.no_grad()
    def finish(self) -> Autoencoder:
        """Without the latents that are never on, by a large sample of the training rows."""
        self._set_prices(self.final_price)
        rows = self.sample(CANONICAL_ROWS, generator(self.config.seed, "canonical"))
        return self.model.canonical(firing_rates(self._bits(rows)).to(rows.device))


def _sums(bits: PackedBits, matrix: Tensor) -> Tensor:
    """`H @ matrix`, float32 `[rows, d]`"""
    if matrix.device.type != "cpu":
        return bits.unpack() @ matrix.detach()
    from bitlens.bits.products import gather_sums  # compiled when first used

    return torch.from_numpy(gather_sums(bits.numpy(), matrix.detach().numpy()))


def _sums_by_latent(bits: PackedBits, rows: Tensor) -> tuple[Tensor, Tensor]:
    """-> `H^T rows`, float32 `[n_latents, d]`, and in how many rows each latent is on"""
    if rows.device.type != "cpu":
        h = bits.unpack()
        return h.T @ rows, h.sum(0)
    return _sums(bits.transpose(), rows), bits.column_counts()
