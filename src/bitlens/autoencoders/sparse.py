"""What sparse autoencoders with real-valued latents share: the model, its unit decoder rows,
inference-time optimisation, and the controller that brings those with a penalty to a given l0."""

import copy
import math
from typing import ClassVar, NamedTuple, Self, TypeVar

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from bitlens import processes
from bitlens.autoencoders.base import Autoencoder
from bitlens.autoencoders.beginning import Beginning
from bitlens.autoencoders.learner import Learner, Sampler
from bitlens.autoencoders.objective import Losses
from bitlens.autoencoders.settings import Settings
from bitlens.errors import BitlensError

FIRST_WEIGHT = 0.3  # of the penalty, unless it is given
WARM_UP = 0.05  # share of the steps in which it rises from zero, as the learning rate does
ADAPTATION = 0.01  # of its logarithm, a step, for an l0 that is off by a factor of e
BLOCK_BYTES = 64 << 20  # of the correlations of a block of rows in a pursuit
RIDGE = 1e-6


class SparseAutoencoder(Autoencoder):
    """Unit decoder rows; an encoder that starts small along them (Gao et al. 2024, arXiv
    2406.04093; the scale is SAELens'); `b_dec` subtracted before encoding (Bricken et al. 2023,
    "Towards Monosemanticity"), unless an imported one does not."""

    subtracts_b_dec = True
    ENCODER_SCALE = 0.1
    pursued: int | None = None

    def coded(self, k: int | None) -> Self:
        """The same autoencoder, sharing its weights, with inference-time optimisation: k latents a
        row by orthogonal matching pursuit on the decoder. None: by its encoder."""
        if k is not None and (not 1 <= k <= self.n_latents or self.transcodes):
            raise BitlensError(f"A pursuit takes 1 to {self.n_latents} latents, not k = {k}.")
        other = copy.copy(self)
        other.pursued = k
        return other

    def encode(self, x: Tensor) -> Tensor:
        """Raw hidden states `[..., d_in]` -> codes `[..., n_latents]`, float32."""
        if self.pursued is None:
            return super().encode(x)
        targets = self.standardise(x).reshape(-1, self.d_in) - self.b_dec.detach().float()
        W, block = self.W_dec.detach().float(), max(16, BLOCK_BYTES // (4 * self.n_latents))
        norms = W.norm(dim=1).clamp_min(1e-12)  # of imported ones, any
        codes = [pursue(rows, W / norms[:, None], self.pursued) for rows in targets.split(block)]
        return torch.cat(codes).view(*x.shape[:-1], self.n_latents) / norms

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Random decoder rows of unit norm; the encoder a tenth of them; biases zero."""
        self.W_dec.copy_(torch.randn(self.W_dec.shape, generator=generator))
        self.normalise_decoder()
        self.W_enc.copy_(self.ENCODER_SCALE * self.W_dec.T)
        self.b_enc.zero_()
        self.b_dec.zero_()

    @torch.no_grad()
    def normalise_decoder(self) -> None:
        """Scale every decoder row to unit norm."""
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-12))


Sparse = TypeVar("Sparse", bound=SparseAutoencoder)


class SparseLearner(Learner[Sparse]):
    """Decoder rows stay at unit norm, and gradients along them are removed before Adam sees them
    (Bricken et al. 2023; Gao et al. 2024, appendix A.4).

    Each batch's gradient is scaled to norm 1 (as dictionary_learning's is, whose limit of 1 is
    below what a batch has): Adam does not mind, but a single row of large norm, of which one batch
    in hundreds has one, would undo a hundred steps otherwise."""

    unit_rows: ClassVar[bool] = True

    def backward(self, x: Tensor) -> tuple[Losses, Tensor]:
        """As any learner's, with the decoder's gradient across its rows only, and all of norm 1."""
        result = super().backward(x)
        W, gradient = self.model.W_dec.detach(), self.model.W_dec.grad
        if self.unit_rows and gradient is not None:
            gradient -= (gradient * W).sum(1, keepdim=True) * W
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = get_total_norm(gradients).clamp_min(1e-12)
        for gradient in gradients:
            gradient /= norm
        return result

    @torch.no_grad()
    def begin_at(self, given: Beginning) -> None:
        """At the directions of this dictionary, and the encoder small along them."""
        super().begin_at(given)
        self.model.normalise_decoder()
        self.model.W_enc.copy_(self.model.ENCODER_SCALE * self.model.W_dec.T)

    def after_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Scale the decoder rows back."""
        if self.unit_rows:
            self.model.normalise_decoder()


@torch.no_grad()
def pursue(target: Tensor, W: Tensor, k: int) -> Tensor:
    """Orthogonal matching pursuit (Pati, Rezaiifar and Krishnaprasad 1993): k times, choose the
    latent that explains most of the residual, in its positive direction, and fit all magnitudes
    anew by least squares.

    target `[n, d]`, W `[m, d]` with rows of unit norm -> codes `[n, m]`, at most k not zero
    """
    n, rows = len(target), torch.arange(len(target), device=target.device)
    residual, chosen = target, rows.new_empty(n, 0)
    values = target.new_zeros(n, 0)
    is_chosen = torch.zeros(n, len(W), dtype=torch.bool, device=target.device)
    for _ in range(k if n else 0):
        best = (residual @ W.T).masked_fill_(is_chosen, -torch.inf).max(1).indices
        is_chosen[rows, best] = True
        chosen = torch.cat([chosen, best[:, None]], 1)
        directions = W[chosen]  # [n, latents so far, d]
        products = directions @ directions.transpose(1, 2)
        products.diagonal(dim1=1, dim2=2).add_(RIDGE)
        values = torch.linalg.solve(products, (directions @ target[:, :, None]))[:, :, 0]
        residual = target - (values[:, None, :] @ directions)[:, 0]
    return target.new_zeros(n, len(W)).scatter_(1, chosen, values)


class Penalty(NamedTuple):
    """What an architecture makes of a batch."""

    codes: Tensor  # [n, n_latents]
    x_hat: Tensor  # [n, d_in]
    penalty: Tensor  # a row, in the mean
    auxiliary: Tensor


def rise(l0: Tensor, k: int) -> Tensor:
    """What is added to the logarithm of a penalty's weight, float64, on the device of `l0`."""
    return ADAPTATION * (l0.double().clamp_min(0.01 * k) / k).log().clamp(-1, 1)


class PenaltyLearner(SparseLearner[Sparse]):
    """Squared error plus a weighted penalty, in units of squared error per row over d_in.

    A weight that is not given is found by a sparsity controller: it moves until k latents are on in
    the mean, so that all architectures can be compared at one l0.
    """

    def __init__(self, model: Sparse, settings: Settings, sample: Sampler) -> None:
        super().__init__(model, settings, sample)
        first = math.log(settings.sparsity or FIRST_WEIGHT)
        device = model.W_enc.device
        self.state = {"log_sparsity": torch.full((), first, dtype=torch.float64, device=device)}
        self.rising_steps = WARM_UP * settings.steps

    def penalised(self, x: Tensor) -> Penalty:
        """What the architecture defines. x: standardised `[n, d_in]`."""
        raise NotImplementedError

    def losses(self, x: Tensor) -> tuple[Losses, Tensor]:
        """The squared error, the penalty at its present weight, and any auxiliary loss."""
        codes, x_hat, penalty, auxiliary = self.penalised(x)
        mse = torch.mean((x_hat.float() - x) ** 2)
        risen = (self.step + 1) / self.rising_steps
        price = min(1.0, risen) * self._weight() / x.shape[1] * penalty
        if self.settings.sparsity is None and risen >= 1:
            on = (codes.detach() > 0).sum()
            processes.add(on)
            self._control(on / self.batch_rows(x))
        return Losses(mse + price + auxiliary, mse, price, auxiliary=auxiliary), codes

    def _weight(self) -> float | Tensor:
        log_weight = self.state["log_sparsity"]
        if log_weight.device.type == "cpu":
            return math.exp(float(log_weight))
        return log_weight.exp().float()  # which nothing waits for

    def _control(self, l0: Tensor) -> None:
        """Up where more than k are on."""
        log_weight, k = self.state["log_sparsity"], self.settings.k
        if log_weight.device.type == "cpu":
            log_weight += ADAPTATION * max(-1.0, min(1.0, math.log(max(float(l0), 0.01 * k) / k)))
        else:
            log_weight += rise(l0, k)
