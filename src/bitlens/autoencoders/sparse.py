"""Sparse autoencoders with real-valued latents: the baselines."""

from __future__ import annotations

import torch
from torch import Tensor

from bitlens.autoencoders.base import Autoencoder
from bitlens.errors import BitlensError


class TopKAutoencoder(Autoencoder):
    """TopK (Gao et al. 2024, arXiv 2406.04093): the k largest pre-activations, rectified; the rest are zero.

    Decoder rows have unit norm; the encoder starts as the decoder's transpose; `b_dec` is subtracted before encoding.
    """

    architecture = "topk"
    subtracts_b_dec = True

    def __init__(self, d_in: int, n_latents: int, k: int) -> None:
        if not 1 <= k <= n_latents:
            raise BitlensError(f"TopK needs 1 <= k <= {n_latents} latents, not k = {k}.")
        super().__init__(d_in, n_latents, k=k)
        self.k = k

    @classmethod
    def setting_names(cls) -> tuple[str, ...]:
        return ("k",)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        self.W_dec.copy_(torch.randn(self.W_dec.shape, generator=generator))
        self.normalise_decoder()
        self.W_enc.copy_(self.W_dec.T)
        self.b_enc.zero_()
        self.b_dec.zero_()

    @torch.no_grad()
    def normalise_decoder(self) -> None:
        """Scale every decoder row to unit norm."""
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-12))

    def pre_activations(self, x: Tensor) -> Tensor:
        return super().pre_activations(x - self.b_dec)

    def code(self, z: Tensor) -> Tensor:
        top = z.topk(self.k, dim=-1)
        return torch.zeros_like(z).scatter(-1, top.indices, top.values.relu())
