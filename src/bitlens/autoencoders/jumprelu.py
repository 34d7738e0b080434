"""JumpReLU autoencoders (Rajamanoharan et al. 2024, arXiv 2407.14435)."""

from typing import Any

import torch
from torch import Tensor, nn

from bitlens.autoencoders.sparse import Penalty, PenaltyLearner, SparseAutoencoder


class JumpReLUAutoencoder(SparseAutoencoder):
    """`z` where it exceeds a threshold per latent, which is trained."""

    architecture = "jumprelu"
    FIRST_THRESHOLD = 0.1

    def __init__(self, d_in: int, n_latents: int, **settings: Any) -> None:
        super().__init__(d_in, n_latents, **settings)
        self.threshold = nn.Parameter(torch.full((n_latents,), self.FIRST_THRESHOLD))

    def code(self, z: Tensor) -> Tensor:
        """`z * (z > threshold)`."""
        return z * (z > self.threshold)


class _Jump(torch.autograd.Function):
    """`value * (z > threshold)`, value z or 1, with the kernel estimate of the threshold's
    gradient."""

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


class JumpReLULearner(PenaltyLearner[JumpReLUAutoencoder]):
    """Pays the number of latents that are on, whose gradient in the thresholds is estimated with a
    rectangular kernel (eq. 11 and 12). Adam keeps its momentum, as for gated autoencoders.

    The thresholds themselves are trained, not their logarithms, and the kernel is wide (0.5; in the
    paper 0.001 of rows of unit norm): in runs of thousands of steps they would hardly move.
    """

    BANDWIDTH = 0.5

    def penalised(self, x: Tensor) -> Penalty:
        """The number of latents that are on."""
        z, threshold = self.model.pre_activations(x), self.model.threshold
        codes: Tensor = _Jump.apply(z, threshold, self.BANDWIDTH, False)  # pyright: ignore[reportAssignmentType]
        on: Tensor = _Jump.apply(z, threshold, self.BANDWIDTH, True)  # pyright: ignore[reportAssignmentType]
        return Penalty(codes, self.model.reconstruct(codes), on.sum(1).mean(), x.new_zeros(()))

    def after_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """No threshold falls below zero."""
        super().after_step(step, optimizer)
        self.model.threshold.data.clamp_(min=0)
