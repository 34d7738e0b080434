"""Binary autoencoders of other shapes: several thresholds on one direction, and stages that encode what is left."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bitlens.autoencoders.base import Autoencoder
from bitlens.autoencoders.binary import NEGLIGIBLE, BinaryAutoencoder
from bitlens.errors import BitlensError


class LevelsAutoencoder(Autoencoder):
    """Several bits share one direction, each with its own threshold and magnitude: a latent of a few levels.

    signs: one for each bit of a direction. (1, 1, 1) counts how many of three thresholds are passed (a code of two bits
    has four levels); (1, -1) is ternary: one bit above, one below; (1,) is a BAE whose magnitude is a parameter of its
    own. `n_latents` counts bits. Bits of one direction are neighbours. `canonical` gives a plain BAE with the same codes.
    """

    architecture = "levels_bae"
    binary = True

    def __init__(self, d_in: int, n_latents: int, signs: Sequence[int]) -> None:
        if not signs or n_latents % len(signs):
            raise BitlensError(f"{len(signs)} bits a direction do not divide {n_latents} latents evenly.")
        super().__init__(d_in, n_latents // len(signs), signs=list(signs))
        self.n_latents = n_latents
        self.offsets = nn.Parameter(torch.zeros(n_latents))
        self.magnitudes = nn.Parameter(torch.full((n_latents,), 1 / len(signs)))

    @classmethod
    def setting_names(cls) -> tuple[str, ...]:
        return ("signs",)

    @property
    def signs(self) -> Tensor:
        """+1 or -1 of each bit, `[n_latents]`"""
        signs = self.W_enc.new_tensor(self.settings["signs"])
        return signs.repeat(self.n_latents // len(signs))

    def _bits(self, of_directions: Tensor, dim: int = -1) -> Tensor:
        """One entry for each direction -> one for each bit"""
        return of_directions.repeat_interleave(len(self.settings["signs"]), dim)

    def pre_activations(self, x: Tensor) -> Tensor:
        return self._bits(super().pre_activations(x)) * self.signs + self.offsets.float()

    def code(self, z: Tensor) -> Tensor:
        return (z > 0).to(z.dtype)

    def reconstruct(self, codes: Tensor) -> Tensor:
        levels = codes * (self.magnitudes * self.signs).to(codes.dtype)
        return super().reconstruct(levels.unflatten(-1, (-1, len(self.settings["signs"]))).sum(-1))

    @torch.no_grad()
    def canonical(self, rates: Tensor) -> BinaryAutoencoder:
        """The BAE with these codes, in canonical form."""
        W_enc, b_enc = self._bits(self.W_enc) * self.signs, self._bits(self.b_enc) * self.signs + self.offsets
        W_dec = self._bits(self.W_dec, 0) * (self.magnitudes * self.signs)[:, None]
        return BinaryAutoencoder.like(self, W_enc, b_enc, W_dec, self.b_dec).canonical(rates)


class ResidualAutoencoder(Autoencoder):
    """Binary autoencoders one after the other, each of what those before it left; their codes side by side.

    stages: latents of each; n_latents is their sum. A code cut after a stage is a code, too: of the stages before.
    """

    architecture = "residual_bae"
    binary = True

    def __init__(self, d_in: int, n_latents: int, stages: Sequence[int]) -> None:
        nn.Module.__init__(self)
        if sum(stages) != n_latents:
            raise BitlensError(f"Stages of {list(stages)} latents do not sum to {n_latents}.")
        self.d_in = self.d_out = d_in
        self.n_latents, self.settings, self.metadata = n_latents, {"stages": list(stages)}, {}
        self.stages = nn.ModuleList(BinaryAutoencoder(d_in, n) for n in stages)
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.zeros(d_in))
        self.register_buffer("scale", torch.ones(()))

    @classmethod
    def setting_names(cls) -> tuple[str, ...]:
        return ("stages",)

    def initialise(self, generator: torch.Generator) -> None:
        for stage in self.parts:
            stage.initialise(generator)

    @property
    def parts(self) -> list[BinaryAutoencoder]:
        """The stages, in order; they live in model space and do not standardise."""
        return [stage for stage in self.stages if isinstance(stage, BinaryAutoencoder)]

    @property
    def W_enc(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        return torch.cat([stage.W_enc for stage in self.parts], 1)

    @property
    def b_enc(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        return torch.cat([stage.b_enc for stage in self.parts])

    @property
    def W_dec(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        return torch.cat([stage.W_dec for stage in self.parts])

    @property
    def b_dec(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        return torch.stack([stage.b_dec for stage in self.parts]).sum(0)

    def pre_activations(self, x: Tensor) -> Tensor:
        found = []
        with torch.autocast(x.device.type, enabled=False):  # a residual in bf16 flips bits
            for stage in self.parts:
                found.append(stage.pre_activations(x))
                x = x - stage.reconstruct(stage.code(found[-1]))
        return torch.cat(found, -1)

    def code(self, z: Tensor) -> Tensor:
        return (z > 0).to(z.dtype)

    @torch.no_grad()
    def canonical(self, rates: Tensor) -> ResidualAutoencoder:
        """Every stage in canonical form. A stage that has become constant goes, and its constant to the one before it."""
        parts: list[BinaryAutoencoder] = []
        for stage, p in zip(self.parts, rates.to(self.mean.device).split(self.settings["stages"]), strict=True):
            if parts and not (torch.minimum(p, 1 - p) >= NEGLIGIBLE).any():
                parts[-1].b_dec.add_(stage.b_dec + stage.W_dec[p > 0.5].sum(0))
            else:
                parts.append(stage.canonical(p))
        widths = [stage.n_latents for stage in parts]
        out = ResidualAutoencoder(self.d_in, sum(widths), widths).to(self.mean.device)
        for new, stage in zip(out.parts, parts, strict=True):
            new.load_state_dict(stage.state_dict())
        out.mean.copy_(self.mean)
        out.scale.copy_(self.scale)
        out.metadata = dict(self.metadata)
        return out
