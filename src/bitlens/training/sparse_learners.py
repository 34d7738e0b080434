"""How the sparse baselines learn, each by its paper's loss, in units of squared error per row over d_in.

`relu`, `gated` and `jumprelu` have a sparsity weight. Unless it is given, it is moved until `k` latents are on in the
mean, so that all architectures can be compared at one l0.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from bitlens.autoencoders import (
    Autoencoder,
    BatchTopKAutoencoder,
    GatedAutoencoder,
    JumpReLUAutoencoder,
    PCAAutoencoder,
    ReLUAutoencoder,
    SparseAutoencoder,
    TopKAutoencoder,
    Transcoder,
)
from bitlens.seeding import generator
from bitlens.training.config import TrainConfig
from bitlens.training.learner import Learner, Sampler
from bitlens.training.objective import Losses

WARM_UP = 0.05  # share of the steps in which the sparsity weight rises from zero, as the learning rate does
ADAPTATION = 0.01  # of the weight's logarithm, a step, for an l0 that is off by a factor of e
FINAL_ROWS = 65536
Sparse = TypeVar("Sparse", bound=SparseAutoencoder)
TopK = TypeVar("TopK", bound=TopKAutoencoder)


class RealLearner(Learner[Sparse]):
    """Decoder rows stay at unit norm, and gradients along them are removed before Adam sees them (Bricken et al. 2023; Gao
    et al. 2024, appendix A.4)."""

    unit_rows: ClassVar[bool] = True

    def backward(self, x: Tensor) -> tuple[Losses, Tensor]:
        result = super().backward(x)
        W, gradient = self.model.W_dec.detach(), self.model.W_dec.grad
        if self.unit_rows and gradient is not None:
            gradient -= (gradient * W).sum(1, keepdim=True) * W
        return result

    def after_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        if self.unit_rows:
            self.model.normalise_decoder()


class SparseLearner(RealLearner[Sparse]):
    """Squared error plus a weighted penalty."""

    FIRST_WEIGHT = 0.3

    def __init__(self, model: Sparse, config: TrainConfig, sample: Sampler) -> None:
        super().__init__(model, config, sample)
        self.state = {
            "log_sparsity": torch.tensor(
                math.log(config.sparsity or self.FIRST_WEIGHT), dtype=torch.float64
            )
        }

    def penalised(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x -> (codes, reconstruction, penalty a row, auxiliary loss)"""
        raise NotImplementedError

    def losses(self, x: Tensor) -> tuple[Losses, Tensor]:
        codes, x_hat, penalty, auxiliary = self.penalised(x)
        mse = torch.mean((x_hat.float() - x) ** 2)
        risen = min(1.0, (self.step + 1) / (WARM_UP * self.config.steps))
        price = risen * math.exp(float(self.state["log_sparsity"])) / x.shape[1] * penalty
        if self.config.sparsity is None and risen == 1:
            on = float((codes.detach() > 0).sum() / len(x))
            off_by = math.log(max(on, 0.01 * self.config.k) / self.config.k)
            self.state["log_sparsity"] += ADAPTATION * max(-1.0, min(1.0, off_by))
        return Losses(mse + price + auxiliary, mse, price, mse.new_zeros(()), auxiliary), codes


class ReLULearner(SparseLearner[ReLUAutoencoder]):
    """The L1 norm of the codes (Bricken et al. 2023)."""

    def penalised(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        codes = self.model.code(self.model.pre_activations(x))
        return codes, self.model.reconstruct(codes), codes.sum(1).mean(), x.new_zeros(())


class GatedLearner(SparseLearner[GatedAutoencoder]):
    """The L1 norm of the rectified gate, which must also reconstruct by itself through a decoder that this loss does not
    move (Rajamanoharan et al. 2024, arXiv 2404.16014, eq. 8). Adam keeps its momentum, which the paper's has not: in runs
    of thousands of steps it ends 7 % better."""

    def penalised(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        z = self.model.pre_activations(x)
        codes, gate = self.model.code(z), z.relu()
        x_gate = gate @ self.model.W_dec.detach() + self.model.b_dec.detach()
        return (
            codes,
            self.model.reconstruct(codes),
            gate.sum(1).mean(),
            torch.mean((x_gate - x) ** 2),
        )


class _Jump(torch.autograd.Function):
    """`value * (z > threshold)`, value z or 1, with the kernel estimate of the threshold's gradient."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Tensor, width: float, counts: bool) -> Tensor:
        ctx.save_for_backward(z, threshold)
        ctx.width, ctx.counts = width, counts
        on = (z > threshold).to(z.dtype)
        return on if counts else z * on

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        (g,), (z, threshold) = gradients, ctx.saved_tensors
        near = ((z - threshold).abs() < ctx.width / 2) * g / ctx.width
        jump = 1 if ctx.counts else threshold
        return None if ctx.counts else g * (z > threshold), -(near * jump).sum(0), None, None


class JumpReLULearner(SparseLearner[JumpReLUAutoencoder]):
    """The number of latents that are on, whose gradient in the thresholds is estimated with a rectangular kernel
    (Rajamanoharan et al. 2024, arXiv 2407.14435, eq. 11-12). Adam keeps its momentum, as for `GatedLearner`.

    The thresholds themselves are trained, not their logarithms, and the kernel is wide (0.5 where rows have unit variance
    per component; there 0.001 of rows of unit norm): in runs of thousands of steps they would hardly move otherwise.
    """

    BANDWIDTH = 0.5

    def penalised(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        z, threshold = self.model.pre_activations(x), self.model.threshold
        codes: Tensor = _Jump.apply(z, threshold, self.BANDWIDTH, False)  # pyright: ignore[reportAssignmentType]
        on: Tensor = _Jump.apply(z, threshold, self.BANDWIDTH, True)  # pyright: ignore[reportAssignmentType]
        return codes, self.model.reconstruct(codes), on.sum(1).mean(), x.new_zeros(())

    def after_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        super().after_step(step, optimizer)
        self.model.threshold.data.clamp_(min=0)


class TopKLearner(RealLearner[TopK]):
    """TopK with the auxiliary loss for dead latents of Gao et al. 2024 (arXiv 2406.04093, appendices A.2 and A.4)."""

    AUXILIARY = 1 / 32

    def __init__(self, model: TopK, config: TrainConfig, sample: Sampler) -> None:
        super().__init__(model, config, sample)
        self.state = {
            "silent": torch.zeros(model.n_latents, device=model.W_enc.device)
        }  # batches since last on
        self.patience = max(20, config.steps // 20)

    def code(self, z: Tensor) -> Tensor:
        return self.model.code(z)

    def losses(self, x: Tensor) -> tuple[Losses, Tensor]:
        z = self.model.pre_activations(x)
        codes = self.code(z)
        return self.with_auxiliary(x, z, codes, self.model.reconstruct(codes).float())

    def with_auxiliary(
        self, target: Tensor, z: Tensor, codes: Tensor, x_hat: Tensor
    ) -> tuple[Losses, Tensor]:
        """The squared error, and that of the dead latents' own reconstruction of what is left."""
        mse = torch.mean((x_hat - target) ** 2)
        on = (codes.detach() > 0).any(0)
        self.state["silent"] = torch.where(on, 0.0, self.state["silent"] + 1)
        auxiliary = mse.new_zeros(())
        dead = self.state["silent"] > self.patience
        if dead.any():
            k = min(self.model.d_in // 2, int(dead.sum()))
            top = z.masked_fill(~dead, -torch.inf).topk(max(k, 1), dim=-1)
            residual = (target - x_hat).detach()
            guess = (
                torch.zeros_like(z).scatter(-1, top.indices, top.values.relu()) @ self.model.W_dec
            )
            auxiliary = self.AUXILIARY * (guess.float() - residual).square().mean()
        zero = mse.new_zeros(())
        return Losses(mse + auxiliary, mse, zero, zero, auxiliary), codes


class BatchTopKLearner(TopKLearner[BatchTopKAutoencoder]):
    """TopK over the whole batch (Bussmann et al. 2024, arXiv 2412.06410); the threshold of use is fitted at the end."""

    def code(self, z: Tensor) -> Tensor:
        return self.model.batch_code(z)

    @torch.no_grad()
    def finish(self) -> Autoencoder:
        """Set the threshold above which k latents a row are on, in the mean over a large sample."""
        rows = self.sample(FINAL_ROWS, generator(self.config.seed, "threshold"))
        lowest = []
        for block in rows.tensor_split(-(-len(rows) // 4096)):
            codes = self.model.batch_code(self.model.pre_activations(block))
            lowest += [codes[codes > 0].min()] if (codes > 0).any() else []
        if lowest:
            self.model.threshold.copy_(torch.stack(lowest).mean())
        return self.model


class TranscoderLearner(TopKLearner[Transcoder]):
    """TopK's losses between an input and another target, side by side in the rows; decoder norms are free."""

    unit_rows = False

    def losses(self, x: Tensor) -> tuple[Losses, Tensor]:
        x, target = self.model.pair(x)
        z = self.model.pre_activations(x)
        codes = self.model.code(z)
        x_hat = self.model.reconstruct(codes).float()
        if self.config.architecture == "skip_transcoder":
            x_hat = x_hat + x @ self.model.get_parameter("W_skip")
        return self.with_auxiliary(target, z, codes, x_hat)


class PCALearner(Learner[PCAAutoencoder]):
    """Principal components of a large sample."""

    descends = False

    @torch.no_grad()
    def start(self) -> None:
        rows = self.sample(FINAL_ROWS, generator(self.config.seed, "pca")).double()
        mean = rows.mean(0)
        axes = torch.linalg.eigh((rows - mean).T @ (rows - mean)).eigenvectors.flip(1)[
            :, : self.model.n_latents
        ]
        self.model.W_enc.copy_(axes)
        self.model.W_dec.copy_(axes.T)
        self.model.b_enc.copy_(-(mean @ axes))
        self.model.b_dec.copy_(mean)
