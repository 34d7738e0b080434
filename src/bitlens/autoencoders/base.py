"""The interface that all autoencoders share: raw hidden states in, codes, raw hidden states out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from bitlens.bits.packed import PackedBits
from bitlens.errors import BitlensError
from bitlens.files import read_manifest, read_tensors, required, write_json, write_tensors

SCHEMA = 2  # 2: codings of binary autoencoders
CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
PARAMETERS = ("W_enc", "b_enc", "W_dec", "b_dec")


class Autoencoder(nn.Module):
    """Hidden state -> linear -> code -> linear -> reconstruction.

    Parameters `W_enc [d_in, n_latents]`, `b_enc`, `W_dec [n_latents, d_in]`, `b_dec` live in model space; the buffers
    `mean [d_in]` and `scale` (one number) map raw hidden states there and back, so callers only see raw space.
    Every method accepts any leading dimensions. A subclass defines `code`, the nonlinearity of the pre-activations.
    """

    architecture: ClassVar[str]
    subtracts_b_dec: ClassVar[bool] = False  # from the input, before encoding
    binary: ClassVar[bool] = False  # codes are 0 and 1, and there is a canonical form
    transcodes: ClassVar[bool] = False  # predicts another hook point than the one it reads
    formerly: ClassVar[
        dict[str, Any]
    ] = {}  # settings that older files lack, and what these files mean
    _registry: ClassVar[dict[str, type[Autoencoder]]] = {}

    def __init_subclass__(cls) -> None:
        if "architecture" in cls.__dict__:
            Autoencoder._registry[cls.architecture] = cls

    def __init__(self, d_in: int, n_latents: int, **settings: Any) -> None:
        """settings: what else the architecture needs to be built again, kept in `cfg.json`; among it `d_out`, the width of
        the reconstruction where it is another than d_in."""
        super().__init__()
        if d_in < 1 or n_latents < 1:
            raise BitlensError(
                f"An autoencoder needs at least one input and one latent, not {d_in} and {n_latents}."
            )
        self.d_in, self.n_latents, self.settings = d_in, n_latents, settings
        self.d_out: int = settings.get("d_out", d_in)
        self.metadata: dict[str, Any] = {}
        self.W_enc = nn.Parameter(torch.empty(d_in, n_latents))
        self.b_enc = nn.Parameter(torch.empty(n_latents))
        self.W_dec = nn.Parameter(torch.empty(n_latents, self.d_out))
        self.b_dec = nn.Parameter(torch.empty(self.d_out))
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.zeros(d_in))
        self.register_buffer("scale", torch.ones(()))
        self.initialise(torch.Generator().manual_seed(0))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Uniform weights of width 1/sqrt(fan-in), drawn in the order W_enc, b_enc, W_dec; b_dec is zero."""

        def uniform(tensor: Tensor, width: float) -> None:
            tensor.copy_((torch.rand(tensor.shape, generator=generator) * 2 - 1) * width)

        uniform(self.W_enc, self.d_in**-0.5)
        uniform(self.b_enc, self.d_in**-0.5)
        uniform(self.W_dec, self.n_latents**-0.5)
        self.b_dec.zero_()

    # --- model space --------------------------------------------------------------------------------------------

    def pre_activations(self, x: Tensor) -> Tensor:
        """x: standardised `[..., d_in]` -> float32 `[..., n_latents]`, whatever the dtype: a threshold in bf16 flips bits"""
        with torch.autocast(x.device.type, enabled=False):
            return x.float() @ self.W_enc.float() + self.b_enc.float()

    def code(self, z: Tensor) -> Tensor:
        """Pre-activations -> code, both `[..., n_latents]`"""
        raise NotImplementedError

    def reconstruct(self, codes: Tensor) -> Tensor:
        """Codes -> standardised reconstruction `[..., d_in]`"""
        return codes @ self.W_dec.to(codes.dtype) + self.b_dec.to(codes.dtype)

    # --- raw space ----------------------------------------------------------------------------------------------

    def standardise(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.d_in:
            raise BitlensError(
                f"This autoencoder takes hidden states of width {self.d_in}, not {x.shape[-1]}; "
                f"it was trained on {self.metadata.get('hook', {}).get('module', 'another hook point')}."
            )
        return (x.to(self.mean.device).float() - self.mean) / self.scale

    def standardise_rows(self, rows: Tensor) -> Tensor:
        """Raw training rows -> the same in model space; those of a transcoder hold input and target side by side"""
        return self.standardise(rows)

    def pair(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Raw rows of a store -> what is encoded `[..., d_in]`, and what is to be reconstructed `[..., d_out]`"""
        return rows, rows

    def encode(self, x: Tensor) -> Tensor:
        """x: raw hidden states `[..., d_in]` -> codes `[..., n_latents]`, float32"""
        return self.code(self.pre_activations(self.standardise(x)))

    def encode_bits(self, x: Tensor) -> PackedBits:
        """x: raw hidden states `[..., d_in]` -> one packed row per hidden state: which latents are on, that is, not zero"""
        return PackedBits.pack(self.encode(x))

    def on_rates(self, rates: Tensor) -> Tensor:
        """How often each latent is on in the canonical form, given how often it is not zero: the same, but for bits that
        canonical form would flip. Every `l0`, `dense` and firing rate that bitlens reports is of these."""
        return rates

    def decode(self, codes: Tensor, x: Tensor | None = None) -> Tensor:
        """codes `[..., n_latents]` -> raw hidden states `[..., d_out]`. x: what was encoded, which only a skip transcoder needs"""
        return self.reconstruct(codes) * self.scale + self.mean

    def forward(self, x: Tensor) -> Tensor:
        """x: raw hidden states `[..., d_in]` -> their reconstruction, same shape, float32"""
        return self.decode(self.encode(x), x)

    def canonical(self, rates: Tensor) -> Autoencoder:
        """The same function in the form in which "on" is every latent's rare state, given the firing rates
        `[n_latents]`: that of a sparse autoencoder is its own."""
        return self

    def extra_repr(self) -> str:
        """What `repr` says in the brackets."""
        said = {"d_in": self.d_in, "n_latents": self.n_latents, **self.settings}
        if hook := (self.metadata.get("hook") or {}).get("module"):
            said["hook"] = hook
        return ", ".join(f"{name}={value!r}" for name, value in said.items())

    # --- disk ---------------------------------------------------------------------------------------------------

    def config(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "architecture": self.architecture,
            "d_in": self.d_in,
            "d_sae": self.n_latents,
            "dtype": "float32",
            "device": "cpu",
            "apply_b_dec_to_input": self.subtracts_b_dec,
            "normalize_activations": "none",
            **self.settings,
            "metadata": self.metadata,
        }

    def save(self, folder: Path | str) -> None:
        """Write `cfg.json` and `sae_weights.safetensors`, SAELens' layout; weights first, each atomically."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(folder / WEIGHTS, {k: v.float().cpu() for k, v in self.state_dict().items()})
        write_json(folder / CONFIG, self.config())

    @classmethod
    def from_pretrained(cls, folder: Path | str, device: str = "cpu") -> Self:
        """Load a folder written by `save`; from `Autoencoder`, whichever architecture it holds."""
        path = Path(folder) / CONFIG
        config = read_manifest(path, SCHEMA, "an autoencoder")
        architecture = required(config, "architecture", path)
        kind = Autoencoder._registry.get(architecture)
        if kind is None or not issubclass(kind, cls):
            known = ", ".join(
                name for name, k in sorted(Autoencoder._registry.items()) if issubclass(k, cls)
            )
            raise BitlensError(
                f"{path} has architecture '{architecture}'; expected one of: {known}."
            )
        d_in, n_latents = required(config, "d_in", path), required(config, "d_sae", path)
        settings = {**kind.formerly, **config}
        model = kind(
            d_in,
            n_latents,
            **{name: required(settings, name, path) for name in kind.setting_names()},
        )
        weights = read_tensors(Path(folder) / WEIGHTS, list(model.state_dict()))
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise BitlensError(f"{Path(folder) / WEIGHTS} does not fit {path}: {error}") from error
        model.metadata = config.get("metadata", {})
        return model.to(device).eval()

    @classmethod
    def setting_names(cls) -> tuple[str, ...]:
        """Names of the settings that `__init__` takes beside the two widths."""
        return ()
