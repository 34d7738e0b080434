"""The binary autoencoder (arXiv 2509.20997): every latent is one bit."""

from __future__ import annotations

import copy
from typing import Any, Self

import torch
from torch import Tensor

from bitlens.autoencoders.base import Autoencoder
from bitlens.bits.descent import descend, gram, refuse_non_finite
from bitlens.bits.packed import PackedBits
from bitlens.errors import BitlensError
from bitlens.options import Coding

NEGLIGIBLE = 1e-4  # a latent on (or off) in a smaller share of rows counts as constant


class BinaryAutoencoder(Autoencoder):
    """`x_hat = h W_dec + b_dec` in model space, with bits h of 0.0 or 1.0.

    coding: how the bits of a row are found. `step`: `h = step(x W_enc + b_enc)`, as in the paper.
    `descent`: searched, so that flipping no bit, and exchanging no two, lowers
    `|x - h W_dec - b_dec|^2 + price . h`, with prices `[n_latents]` in model space; the encoder is
    then trained to predict these bits.
    """

    architecture = "bae"
    setting_names = ("coding",)
    defaults_of_older_files = {"coding": "step"}  # noqa: RUF012
    binary = True

    def __init__(self, d_in: int, n_latents: int, coding: Coding = "step") -> None:
        _refuse_unknown(coding)
        super().__init__(d_in, n_latents, coding=coding)
        self.price: Any  # [n_latents]; None where none was needed
        self.register_buffer("price", torch.zeros(n_latents) if coding == "descent" else None)
        self.flips: int | None = None
        self._gram: tuple[tuple[int, float], Tensor | None] | None = None

    @property
    def coding(self) -> Coding:
        """`descent` or `step`."""
        return self.settings["coding"]

    def coded(
        self, coding: Coding | None = None, flips: int | None = None, price: float | None = None
    ) -> Self:
        """The same autoencoder, sharing its weights, with its bits found in another way.

        flips: the most flips a row of a descent, which then begins at the encoder's bits; 0 leaves
        these. price: of every bit that is on, in model space (squared error of a row), which one
        that was trained for `step` needs.
        """
        _refuse_unknown(coding or self.coding)
        other = copy.copy(self)
        other._buffers = dict(self._buffers)
        other.settings = {**self.settings, "coding": coding or self.coding}
        if flips is not None and (flips < 0 or other.coding == "step"):
            asked = f"{flips} with coding '{other.coding}'"
            raise BitlensError(f"A descent may make 0 or more flips a row, not {asked}.")
        other.flips = flips
        if price is not None:
            other.price = torch.full((self.n_latents,), price).to(self.W_dec)
        if other.coding == "descent" and other.price is None:
            raise BitlensError("Trained for coding 'step', it has no prices: name one for descent.")
        return other

    def code(self, z: Tensor) -> Tensor:
        """1 where a pre-activation is above zero."""
        return (z > 0).to(z.dtype)

    def encode(self, x: Tensor) -> Tensor:
        """Raw hidden states `[..., d_in]` -> bits `[..., n_latents]`, float32."""
        if self.coding == "step":
            refuse_non_finite(x)
            return super().encode(x)
        return self.encode_bits(x).unpack().view(*x.shape[:-1], self.n_latents)

    def encode_bits(self, x: Tensor) -> PackedBits:
        """Raw hidden states `[..., d_in]` -> one packed row each."""
        x = self.standardise(x)
        if self.coding == "step":
            refuse_non_finite(x)
            return PackedBits.step(self.pre_activations(x))
        start = None if self.flips is None else PackedBits.step(self.pre_activations(x))
        return self._search(x.reshape(-1, self.d_in), self.price, start)

    def encode_held(self, x: Tensor, held: Tensor) -> Tensor:
        """Raw hidden states `[n, d_in]` -> bits `[n, n_latents]`, float32, of a descent in which
        some stand.

        held `[n_latents]`: 0 or 1; NaN for a bit that is searched. What bits that are held on add
        is taken from the row, and no held bit has a price at which it would be switched on, so the
        others are searched as any are.
        """
        x = self.standardise(x)
        held = held.to(x.device)
        is_held, on = ~held.isnan(), (held == 1).float()
        start = None
        if self.flips is not None:
            start = PackedBits.pack((self.pre_activations(x) > 0) & ~is_held)
        x = x - on @ self.W_dec.detach().float()
        bits = self._search(x, self.price.masked_fill(is_held, torch.inf), start).unpack()
        return torch.where(is_held, on.to(bits), bits)

    @torch.no_grad()
    def gains(self, x: Tensor, bits: Tensor) -> Tensor:
        """What each bit is worth, `[..., n_latents]`, given raw hidden states `[..., d_in]` and
        their bits; 0 where a bit is off.

        That is by how much `|x - h W_dec - b_dec|^2 + price . h`, in model space, would rise were
        the bit off and the others kept: with `r = x - h W_dec - b_dec` it is
        `2 r . W_j + |W_j|^2 - price_j`. At least 0, up to rounding, for bits that a descent found;
        any number for those of a step. One trained for `step` has no price.
        """
        W, b = self.W_dec.detach().float(), self.b_dec.detach().float()
        residual = self.standardise(x) - bits @ W - b
        worth = W.square().sum(1) - (0 if self.price is None else self.price)
        return (2 * residual @ W.T + worth) * bits

    def _search(self, x: Tensor, price: Tensor, start: PackedBits | None) -> PackedBits:
        """x: standardised rows `[n, d_in]`"""
        W, b = self.W_dec.detach().float(), self.b_dec.detach().float()
        return descend(x, W, b, price, G=self._cached_gram(), start=start, flips=self.flips)

    def on_rates(self, rates: Tensor) -> Tensor:
        """Firing rates in canonical form `[n_latents]`."""
        return rates if self.coding == "descent" else torch.minimum(rates, 1 - rates)

    def _cached_gram(self) -> Tensor | None:
        """`W_dec W_dec^T`, computed once for as long as W_dec stands."""
        W = self.W_dec
        if W.is_inference():  # such tensors count no changes
            sums = W.sum(1, dtype=torch.float64)
            version = float(torch.arange(1, len(W) + 1).to(sums) @ sums)
        else:
            version = W._version
        key = W.data_ptr(), version
        if self._gram is None or self._gram[0] != key:
            self._gram = key, gram(W.detach().float())
        return self._gram[1]

    @torch.no_grad()
    def canonical(self, rates: Tensor) -> BinaryAutoencoder:
        """The same function with every latent's rare state as 1, and without constant latents.

        rates: firing rate of each latent `[n_latents]`, measured on the data. A latent above 1/2 is
        flipped (encoder and decoder row negated, its constant folded into b_dec); one whose rarer
        state has a rate below 1e-4 is removed. A descent makes rare what costs a price: its latents
        are not flipped, and only those that are never on go.
        """
        if rates.shape != (self.n_latents,):
            shape = list(rates.shape)
            raise BitlensError(f"canonical() needs {self.n_latents} firing rates, not {shape}.")
        rates = rates.to(self.W_enc.device)
        searched = self.coding == "descent"
        flip = (rates > 0.5) & (not searched)
        keep = rates > 0 if searched else torch.minimum(rates, 1 - rates) >= NEGLIGIBLE
        if not keep.any():
            raise BitlensError("Every latent is constant: the autoencoder collapsed; lower lam.")
        sign = torch.where(flip, -1.0, 1.0)
        constant = (self.W_dec.double() * flip[:, None]).sum(0)
        values = {
            "W_enc": (self.W_enc * sign)[:, keep],
            "b_enc": (self.b_enc * sign)[keep],
            "W_dec": (self.W_dec * sign[:, None])[keep],
            "b_dec": self.b_dec + constant,
            "mean": self.mean,
            "scale": self.scale,
        }
        if searched:
            values["price"] = self.price[keep]
        out = type(self)(self.d_in, len(values["b_enc"]), self.coding).to(self.mean.device)
        for name, value in values.items():
            getattr(out, name).copy_(value)
        out.metadata = dict(self.metadata)
        return out


def _refuse_unknown(coding: str) -> None:
    if coding not in ("descent", "step"):
        raise BitlensError(f"There is no coding '{coding}'; choose descent or step.")
