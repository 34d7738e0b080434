"""Sparse autoencoders with real-valued latents: the baselines, each after its paper. Decoder rows have unit norm."""

from __future__ import annotations

import copy
from typing import Any, Self

import torch
from torch import Tensor, nn

from bitlens.autoencoders.base import Autoencoder
from bitlens.autoencoders.pursuit import pursue
from bitlens.errors import BitlensError


class SparseAutoencoder(Autoencoder):
    """What the sparse ones share: unit decoder rows, an encoder that starts small along them (Gao et al. 2024; the scale is
    SAELens'), and `b_dec` subtracted before encoding (Bricken et al. 2023, "Towards Monosemanticity")."""

    subtracts_b_dec = True
    ENCODER_SCALE = 0.1
    pursued: int | None = None

    def coded(self, k: int | None) -> Self:
        """The same autoencoder, sharing its weights, with its codes searched on the decoder by orthogonal matching pursuit, k
        latents a row: inference-time optimisation. None: by its encoder."""
        if k is not None and (not 1 <= k <= self.n_latents or self.transcodes):
            raise BitlensError(
                f"A pursuit takes 1 to {self.n_latents} latents of an autoencoder, not k = {k}."
            )
        other = copy.copy(self)
        other.pursued = k
        return other

    def encode(self, x: Tensor) -> Tensor:
        if self.pursued is None:
            return super().encode(x)
        rows = self.standardise(x).reshape(-1, self.d_in)
        codes = pursue(rows, self.W_dec.detach().float(), self.b_dec.detach().float(), self.pursued)
        return codes.view(*x.shape[:-1], self.n_latents)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        self.W_dec.copy_(torch.randn(self.W_dec.shape, generator=generator))
        self.normalise_decoder()
        self.W_enc.copy_(self.ENCODER_SCALE * self.W_dec.T)
        self.b_enc.zero_()
        self.b_dec.zero_()

    @torch.no_grad()
    def normalise_decoder(self) -> None:
        """Scale every decoder row to unit norm."""
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-12))

    def pre_activations(self, x: Tensor) -> Tensor:
        return super().pre_activations(x - self.b_dec)


class ReLUAutoencoder(SparseAutoencoder):
    """ReLU, trained with an L1 penalty (Bricken et al. 2023; Cunningham et al. 2023, arXiv 2309.08600)."""

    architecture = "relu"

    def code(self, z: Tensor) -> Tensor:
        return z.relu()


class GatedAutoencoder(SparseAutoencoder):
    """Which latents are on, and how much, by two affine maps with tied directions (Rajamanoharan et al. 2024, arXiv
    2404.16014): `(z > 0) * relu(exp(r_mag) (z - b_enc) + b_mag)`, where z, with the bias b_enc, is the gate."""

    architecture = "gated"

    def __init__(self, d_in: int, n_latents: int) -> None:
        super().__init__(d_in, n_latents)
        self.r_mag = nn.Parameter(torch.zeros(n_latents))
        self.b_mag = nn.Parameter(torch.zeros(n_latents))

    def code(self, z: Tensor) -> Tensor:
        return (z > 0) * ((z - self.b_enc) * self.r_mag.exp() + self.b_mag).relu()


class JumpReLUAutoencoder(SparseAutoencoder):
    """`z` where it exceeds a threshold per latent, which is trained (Rajamanoharan et al. 2024, arXiv 2407.14435)."""

    architecture = "jumprelu"
    FIRST_THRESHOLD = 0.1

    def __init__(self, d_in: int, n_latents: int) -> None:
        super().__init__(d_in, n_latents)
        self.threshold = nn.Parameter(torch.full((n_latents,), self.FIRST_THRESHOLD))

    def code(self, z: Tensor) -> Tensor:
        return z * (z > self.threshold)


class TopKAutoencoder(SparseAutoencoder):
    """The k largest pre-activations, rectified; the rest are zero (Gao et al. 2024, arXiv 2406.04093)."""

    architecture = "topk"

    def __init__(self, d_in: int, n_latents: int, k: int, **settings: Any) -> None:
        if not 1 <= k <= n_latents:
            raise BitlensError(
                f"{self.architecture} needs 1 <= k <= {n_latents} latents, not k = {k}."
            )
        super().__init__(d_in, n_latents, k=k, **settings)
        self.k = k

    @classmethod
    def setting_names(cls) -> tuple[str, ...]:
        return ("k",)

    def code(self, z: Tensor) -> Tensor:
        top = z.topk(self.k, dim=-1)
        return torch.zeros_like(z).scatter(-1, top.indices, top.values.relu())


class BatchTopKAutoencoder(TopKAutoencoder):
    """In training the k n largest pre-activations of a batch of n rows; in use those above one threshold, so that rows
    do not depend on one another and k are on in the mean (Bussmann et al. 2024, arXiv 2412.06410)."""

    architecture = "batch_topk"

    def __init__(self, d_in: int, n_latents: int, k: int) -> None:
        super().__init__(d_in, n_latents, k)
        self.threshold: Tensor
        self.register_buffer("threshold", torch.zeros(()))

    def code(self, z: Tensor) -> Tensor:
        return z.relu() * (z > self.threshold)

    def batch_code(self, z: Tensor) -> Tensor:
        """z: `[n, n_latents]` -> the same with all but the k n largest at zero"""
        top = z.relu().flatten().topk(self.k * len(z), sorted=False)
        return torch.zeros_like(z).flatten().scatter(0, top.indices, top.values).view_as(z)


class Transcoder(TopKAutoencoder):
    """What an MLP adds, from what it reads (Dunefsky et al. 2024, arXiv 2406.11944), with TopK and a decoder that starts
    at zero (Paulo et al. 2025, arXiv 2501.18823). Rows are pairs of an input `[d_in]` and a target `[d_out]`; `mean_out`
    and `scale_out` are the target's. Decoder norms are free."""

    architecture = "transcoder"
    subtracts_b_dec = False
    transcodes = True

    def __init__(self, d_in: int, n_latents: int, k: int, d_out: int) -> None:
        super().__init__(d_in, n_latents, k, d_out=d_out)
        self.mean_out: Tensor
        self.scale_out: Tensor
        self.register_buffer("mean_out", torch.zeros(d_out))
        self.register_buffer("scale_out", torch.ones(()))

    @classmethod
    def setting_names(cls) -> tuple[str, ...]:
        return ("k", "d_out")

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        directions = torch.randn(self.n_latents, self.d_in, generator=generator)
        self.W_enc.copy_((directions / directions.norm(dim=1, keepdim=True)).T)
        for tensor in (self.b_enc, self.W_dec, self.b_dec):
            tensor.zero_()

    def pre_activations(self, x: Tensor) -> Tensor:
        return Autoencoder.pre_activations(self, x)

    def pair(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return rows[..., : self.d_in], rows[..., self.d_in :]

    def standardise_rows(self, rows: Tensor) -> Tensor:
        x, target = self.pair(rows)
        return torch.cat(
            [self.standardise(x), (target.to(x.device).float() - self.mean_out) / self.scale_out],
            -1,
        )

    def decode(self, codes: Tensor, x: Tensor | None = None) -> Tensor:
        return self.reconstruct(codes) * self.scale_out + self.mean_out


class SkipTranscoder(Transcoder):
    """A transcoder beside an affine map from input to target, which takes what is linear (Paulo et al. 2025)."""

    architecture = "skip_transcoder"

    def __init__(self, d_in: int, n_latents: int, k: int, d_out: int) -> None:
        super().__init__(d_in, n_latents, k, d_out)
        self.W_skip = nn.Parameter(torch.zeros(d_in, d_out))

    def decode(self, codes: Tensor, x: Tensor | None = None) -> Tensor:
        if x is None:
            raise BitlensError(
                "A skip transcoder's output depends on its input, too: call decode(codes, x)."
            )
        return super().decode(codes) + self.standardise(x) @ self.W_skip * self.scale_out


class PCAAutoencoder(Autoencoder):
    """The k largest principal components, as they are: what a linear code of k floats can do."""

    architecture = "pca"

    def __init__(self, d_in: int, n_latents: int) -> None:
        if n_latents > d_in:
            raise BitlensError(
                f"There are {d_in} principal components, not {n_latents}: choose k up to {d_in}."
            )
        super().__init__(d_in, n_latents)

    def code(self, z: Tensor) -> Tensor:
        return z
