"""The binary autoencoder (arXiv 2509.20997): every latent is one bit."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from bitlens.autoencoders.base import Autoencoder
from bitlens.bits.packed import PackedBits
from bitlens.errors import BitlensError

NEGLIGIBLE = 1e-4  # a latent on (or off) in a smaller share of rows counts as constant


class BinaryAutoencoder(Autoencoder):
    """`x_hat = step(x W_enc + b_enc) W_dec + b_dec`, in model space. Codes are 0.0 or 1.0."""

    architecture = "bae"
    binary = True

    def code(self, z: Tensor) -> Tensor:
        return (z > 0).to(z.dtype)

    def encode_bits(self, x: Tensor) -> PackedBits:
        return PackedBits.step(self.pre_activations(self.standardise(x)))

    @torch.no_grad()
    def canonical(self, rates: Tensor) -> BinaryAutoencoder:
        """The same function with every latent's rare state as 1, and without constant latents.

        rates: firing rate of each latent `[n_latents]`, measured on the data. A latent above 1/2 is flipped (encoder
        negated, decoder row negated, its constant folded into b_dec); one whose rarer state has a rate below 1e-4 is
        removed. So "on" is always the informative state, and reconstructions are unchanged.
        """
        if rates.shape != (self.n_latents,):
            raise BitlensError(f"canonical() needs {self.n_latents} firing rates, not {list(rates.shape)}.")
        rates = rates.to(self.W_enc.device)
        flip = rates > 0.5
        keep = torch.minimum(rates, 1 - rates) >= NEGLIGIBLE
        if not keep.any():
            raise BitlensError("Every latent is constant on these rows: the autoencoder has collapsed; lower lam.")
        sign = torch.where(flip, -1.0, 1.0)
        constant = (self.W_dec.double() * flip[:, None]).sum(0)
        W_enc, b_enc, W_dec = self.W_enc * sign, self.b_enc * sign, self.W_dec * sign[:, None]
        return type(self).like(self, W_enc[:, keep], b_enc[keep], W_dec[keep], self.b_dec + constant)

    @torch.no_grad()
    def cut(self, n_latents: int, rates: Tensor) -> BinaryAutoencoder:
        """The code of the first latents alone, for one whose first latents matter most (matryoshka). rates: of all
        latents; those that are cut count as always at their mean."""
        if not 1 <= n_latents <= self.n_latents:
            raise BitlensError(f"A code of {self.n_latents} latents can be cut after 1 to that many, not {n_latents}.")
        rest = rates[n_latents:].to(self.W_dec) @ self.W_dec[n_latents:]
        kept = self.W_enc[:, :n_latents], self.b_enc[:n_latents], self.W_dec[:n_latents]
        return type(self).like(self, *kept, self.b_dec + rest)

    @classmethod
    @torch.no_grad()
    def like(cls, other: Autoencoder, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor) -> Self:
        """With these parameters, and the standardisation and metadata of another autoencoder."""
        out = cls(other.d_in, W_enc.shape[1]).to(other.mean.device)
        values = {
            "W_enc": W_enc,
            "b_enc": b_enc,
            "W_dec": W_dec,
            "b_dec": b_dec,
            "mean": other.mean,
            "scale": other.scale,
        }
        for name, value in values.items():
            getattr(out, name).copy_(value)
        out.metadata = dict(other.metadata)
        return out


class RandomAutoencoder(BinaryAutoencoder):
    """A BAE with random directions and fitted firing rates and decoder: what bits show that nobody has trained."""

    architecture = "random"
