"""How a binary autoencoder learns whose bits are found by descent.

Sparse coding, as Olshausen and Field (1996) have it, with bits: the bits of a batch are searched
under the dictionary as it is, which then takes a gradient step at these bits.
"""

import math

import torch
from torch import Tensor

from bitlens import processes
from bitlens.autoencoders.base import Autoencoder
from bitlens.autoencoders.beginning import Beginning
from bitlens.autoencoders.binary import BinaryAutoencoder
from bitlens.autoencoders.learner import LARGE_SAMPLE, SMALL_SAMPLE, Learner, Sampler, diverged
from bitlens.autoencoders.objective import Losses, Price
from bitlens.autoencoders.settings import Settings
from bitlens.bits.descent import GRAM_BYTES, descend, gram
from bitlens.bits.packed import PackedBits
from bitlens.bits.statistics import firing_rates, sums
from bitlens.errors import BitlensError
from bitlens.seeding import generator

FLIPS = 200  # a row in training
# Processes, and width of a row, from which on rows of W W^T are computed apart: of two each would
# have as much to do as one alone, which computes half of it, and short rows are sent more slowly.
GRAM_SHARED_FROM, GRAM_SHARED_WIDTH = 4, 512
GRAM_UP_TO = 8  # latents a row of the batch; W W^T of more costs more than to search without it
RESTART_LENGTH = 0.7  # of a residual: a latent that explains all of one is on in that row alone
COMMON = 0.06  # firing rate above which a latent's price rises, in proportion
HIGHEST_PRICE = 4.0  # that it rises to, in prices
MEMORY = 0.99  # of the count of rows in which a latent was on, a step
ANNEALED = 0.5  # of the steps are done when the price is the final one
ENCODER_FROM = 0.5  # of the steps are done when the encoder begins: before, bits change too much


class DescentLearner(Learner[BinaryAutoencoder]):
    """Descent for the bits, Adam for the dictionary, and an encoder that learns to predict the bits
    (predictive sparse decomposition, Kavukcuoglu, Ranzato and LeCun 2010)."""

    def __init__(self, model: BinaryAutoencoder, settings: Settings, sample: Sampler) -> None:
        super().__init__(model, settings, sample)
        # Rows in which each latent was on, fading.
        self.state = {"on": torch.zeros(model.n_latents, device=model.W_enc.device)}
        self.final_price = settings.lam * Price("onbit", settings.p0).per_on_bit
        self.n_latents, self.own = model.n_latents, slice(None)  # in all, and which are held here
        self.turns = {int(f * settings.steps) for f in settings.regrow_at}

    @torch.no_grad()
    def start(self) -> None:
        """Decoder rows start at differences of two rows, of `scale` of a row's length; the encoder
        switches a latent on where that would gain."""
        model, seed, m = self.model, generator(self.settings.seed, "dictionary"), self.n_latents
        rows = self._rows_for(2 * m, seed)
        W = rows[torch.randint(len(rows), (m,), generator=seed)[self.own]]
        W = W - rows[torch.randint(len(rows), (m,), generator=seed)[self.own]]
        length = self.settings.scale * math.sqrt(model.d_in)
        model.W_dec.copy_(W / W.norm(dim=1, keepdim=True).clamp_min(1e-12) * length)
        model.b_dec.zero_()
        model.price.fill_(self.final_price)
        self._encode_by_gain()
        found = self._bits_of_all(rows[:SMALL_SAMPLE]).words.any().int()
        processes.largest(found)
        if not found:
            lam = self.settings.lam
            raise BitlensError(f"No latent is worth its price in any row: lower `lam` ({lam}).")

    @torch.no_grad()
    def begin_at(self, given: Beginning) -> None:
        """At this dictionary, and the encoder that fits it."""
        super().begin_at(given)
        self._encode_by_gain()

    def _encode_by_gain(self) -> None:
        """The encoder switches a latent on where that alone would gain."""
        model = self.model
        model.W_enc.copy_(model.W_dec.T)
        gain = model.W_dec.square().sum(1) + model.price + 2 * model.W_dec @ model.b_dec
        model.b_enc.copy_(-gain / 2)

    def _set_prices(self, price: float) -> None:
        """Of every latent: dearer for one that is on in more than a share `COMMON` of the rows."""
        rates = self.state["on"] * (1 - MEMORY) / self.settings.batch_size
        torch.mul(rates.div(COMMON).clamp_(1, HIGHEST_PRICE), price, out=self.model.price)

    def _bits(self, x: Tensor, n: int) -> PackedBits:
        """Of some of n rows, which all processes search together."""
        W, b = self.model.W_dec.detach(), self.model.b_dec.detach()
        G = _gram(W) if len(W) <= GRAM_UP_TO * n else None
        # To look for NaN would wait for a GPU; the next record of the training does.
        price, finite = self.model.price, x.device.type != "cpu"
        return descend(x, W, b, price, G=G, flips=FLIPS, exchanges=False, finite=finite)

    def _bits_of_all(self, rows: Tensor) -> PackedBits:
        """Of rows that every process has: each searches a part."""
        bits = self._bits(rows[processes.part(len(rows))], len(rows))
        return PackedBits(processes.gather(bits.words, len(rows)), bits.n_latents)

    # What is said of all latents, where a process may hold some of them alone: see `sharded`.

    def _rows_for(self, n: int, seed: torch.Generator) -> Tensor:
        """Rows from which n vectors of latents are made."""
        return self.sample(n, seed)

    def _explained(self, bits: PackedBits) -> Tensor:
        return sums(bits, self.model.W_dec)

    def _before(self, n: int) -> tuple[int, int]:
        """Of n latents here -> how many such latents are held before, and in all"""
        return 0, n

    def _share(self, part: Tensor) -> Tensor:
        """A sum or a mean over the latents, of which `part` is what those here add"""
        return part

    @torch.no_grad()
    def backward(self, x: Tensor) -> tuple[Losses, Tensor]:
        """Search the bits, then leave the gradients at these bits in the parameters."""
        model, start = self.model, self.settings.anneal
        # Few bits a row, at first, make latents that each stand for much; more come afterwards.
        done = min(1.0, self.step / self.settings.steps / ANNEALED)
        self._set_prices(self.final_price * (start + (1 - start) * done))
        n = self.batch_rows(x)
        bits = self._bits(x, n)
        error = self._explained(bits).add_(model.b_dec).sub_(x)
        mse = error.square().mean()
        error *= 2 / (n * model.d_in)
        model.W_dec.grad, counts = _sums_by_latent(bits, error)
        model.b_dec.grad = error.sum(0)
        if self.step >= ENCODER_FROM * self.settings.steps:
            # Of the bits' cross-entropy under the encoder, a mean over rows.
            prediction_error = model.pre_activations(x).sigmoid_().sub_(bits.unpack()).div_(n)
            model.W_enc.grad, model.b_enc.grad = x.T @ prediction_error, prediction_error.sum(0)
        self.add_up(counts)
        self.state["on"].mul_(MEMORY).add_(counts)
        rates = counts.double() / n
        price = self._share((rates * model.price).sum().float() / model.d_in)
        return Losses(mse + price, mse, price), rates

    @torch.no_grad()
    def after_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Dead latents start again along the residuals of rows, drawn by their squared error as
        k-means++ draws its centres."""
        if step not in self.turns:
            return
        dead = (self.state["on"] < 1).nonzero()[:, 0]
        before, n = self._before(len(dead))
        if not n:
            return
        model, seed = self.model, generator(self.settings.seed, "restart", step)
        rows = self._rows_for(max(n, SMALL_SAMPLE), seed)
        residual = rows - self._explained(self._bits_of_all(rows)) - model.b_dec
        chances = residual.square().sum(1).cpu().clamp_min(1e-12)
        if not bool(chances.isfinite().all()):
            raise diverged(step)
        drawn = torch.multinomial(chances, n, len(rows) < n, generator=seed)
        processes.take_from_first(drawn)
        drawn = drawn[before : before + len(dead)]
        model.W_dec[dead] = RESTART_LENGTH * residual[drawn.to(residual.device)]
        state = optimizer.state[model.W_dec]
        state["exp_avg"][dead] = 0
        share = model.n_latents / self.n_latents
        state["exp_avg_sq"][dead] = self._share(state["exp_avg_sq"].mean() * share)

    @torch.no_grad()
    def finish(self) -> Autoencoder:
        """Without the latents that are never on, by a large sample of the training rows."""
        self._set_prices(self.final_price)
        rows = self.sample(LARGE_SAMPLE, generator(self.settings.seed, "canonical"))
        return self.model.canonical(firing_rates(self._bits_of_all(rows)).to(rows.device))


def _gram(W: Tensor) -> Tensor | None:
    """`gram(W)`; where many processes share the work, each computes some of its rows."""
    few = processes.world_size() < GRAM_SHARED_FROM or W.shape[1] < GRAM_SHARED_WIDTH
    if few or 4 * len(W) ** 2 > GRAM_BYTES:
        return gram(W)
    return processes.gather(W[processes.part(len(W))] @ W.T, len(W))


def _sums_by_latent(bits: PackedBits, rows: Tensor) -> tuple[Tensor, Tensor]:
    """-> `H^T rows` `[n_latents, d]`, and in how many rows each latent is on, both float32"""
    if rows.device.type != "cpu":  # only a CPU transposes packed bits
        h = bits.unpack()
        return h.T @ rows, h.sum(0)
    return sums(bits.transpose(), rows), bits.column_counts().float()
