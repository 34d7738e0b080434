"""The classes by which SAELens opens autoencoders of bitlens: see `bitlens.saelens`."""

# pyright: reportMissingImports=false
# SAELens is optional; the project's own environment need not have it.

from __future__ import annotations

from dataclasses import make_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bitlens.autoencoders import Autoencoder
from bitlens.bits.descent import descend, gram
from bitlens.bits.packed import PackedBits
from bitlens.ecosystem.saelens import fold, form, metadata
from bitlens.errors import BitlensError

try:
    from sae_lens import (
        SAE,
        JumpReLUSAE,
        JumpReLUSAEConfig,
        SkipTranscoder,
        SkipTranscoderConfig,
        StandardSAE,
        StandardSAEConfig,
        Transcoder,
        TranscoderConfig,
        register_sae_class,
    )
    from sae_lens.registry import SAE_CLASS_REGISTRY
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.saes.topk_sae import TopK
except ImportError as error:
    raise BitlensError(
        f"SAELens is not here ({error}); it comes with the extra [ecosystem]: pip install sae-lens."
    ) from error


def converter(
    path: str | Path, device: str = "cpu", cfg_overrides: dict[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `SAE.load_from_disk(run, converter=...)` calls -> the configuration and the tensors of
    whatever `Autoencoder.from_pretrained` opens."""
    config, tensors = form(Autoencoder.from_pretrained(path))
    config = {**config, "device": device, **(cfg_overrides or {})}
    return config, {name: tensor.to(device) for name, tensor in tensors.items()}


def opened(autoencoder: Autoencoder, unit_rows: bool = False, device: str = "cpu") -> Any:
    """An autoencoder as SAELens has it, without files on the way. unit_rows: see `form`."""
    config, tensors = form(autoencoder, unit_rows=unit_rows)
    made = {**config, "device": device}, {k: v.to(device) for k, v in tensors.items()}
    return SAE.load_from_disk("", converter=lambda *_, **__: made)


class _Run:
    """Of a run as it is on disk: when it is loaded, its standardisation is folded in, and its
    metadata translated."""

    cfg: Any

    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        if "mean" in state_dict:
            folded = fold(state_dict, self.cfg.apply_b_dec_to_input)
            state_dict.clear()
            state_dict.update(folded)
            self.cfg.metadata = SAEMetadata(**metadata(self.cfg.metadata.to_dict()))


class BinarySAE(_Run, StandardSAE):
    """Bits, found by descent or by one step (`coding` and `flips` of its configuration, as for
    `BinaryAutoencoder.coded`), each times `gain [d_sae]`: 1 until `fold_W_dec_norm`. `price
    [d_sae]` is in the model's own units, squared."""

    price: Tensor
    gain: Tensor
    _gram: tuple[float, Tensor | None] | None = None

    def initialize_weights(self) -> None:
        """As `StandardSAE`, with prices of 0 and gains of 1."""
        super().initialize_weights()
        of_latents = {"dtype": self.dtype, "device": self.device}
        self.register_buffer("price", torch.zeros(self.cfg.d_sae, **of_latents))
        self.register_buffer("gain", torch.ones(self.cfg.d_sae, **of_latents))

    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        """Fold, and add the gains that a run has not."""
        super().process_state_dict_for_loading(state_dict)
        like = state_dict["b_enc"]
        state_dict.setdefault("price", torch.zeros_like(like))
        state_dict.setdefault("gain", torch.ones_like(like))

    def encode(self, x: Tensor) -> Tensor:
        """Hidden states `[..., d_in]` -> bits times gains `[..., d_sae]`. No gradient passes."""
        sae_in = self.process_sae_in(x)
        start = None
        if self.cfg.coding == "step" or self.cfg.flips is not None:
            pre = self.hook_sae_acts_pre(sae_in @ self.W_enc + self.b_enc)
            start = PackedBits.step(pre.reshape(-1, self.cfg.d_sae))
        on: Any = start if self.cfg.coding == "step" else self._search(sae_in, start)
        bits = on.unpack().view(*sae_in.shape[:-1], self.cfg.d_sae)
        return self.hook_sae_acts_post(bits.to(self.dtype) * self.gain)

    def _search(self, sae_in: Tensor, start: PackedBits | None) -> PackedBits:
        rows = sae_in.detach().float().reshape(-1, self.cfg.d_in)
        W = self.W_dec.detach().float() * self.gain.float()[:, None]
        version = float(W.double().sum())  # `.data`, which SAELens writes to, counts no changes
        if self._gram is None or self._gram[0] != version:
            self._gram = version, gram(W)
        price, b_dec, G = self.price.float(), self.b_dec.detach().float(), self._gram[1]
        return descend(rows, W, b_dec, price, G=G, start=start, flips=self.cfg.flips)

    @torch.no_grad()
    def fold_W_dec_norm(self) -> None:
        """Decoder rows of length 1; the gains are their lengths."""
        length = self.get_W_dec_norm()
        self.W_dec.data.div_(length[:, None])
        self.gain.mul_(length)


class RandomSAE(BinarySAE):
    """Bits that nobody has trained."""


class ReLUSAE(_Run, StandardSAE):
    """SAELens calls it `standard`."""


class PCASAE(_Run, StandardSAE):
    """Codes of either sign."""

    def get_activation_fn(self) -> nn.Module:
        """None."""
        return nn.Identity()


class BatchTopKSAE(_Run, JumpReLUSAE):
    """BatchTopK as it is used: with one threshold."""

    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        """Fold, with the threshold once for every latent."""
        super().process_state_dict_for_loading(state_dict)
        threshold = state_dict["threshold"].expand(self.cfg.d_sae).contiguous()
        state_dict["threshold"] = threshold


class _TopK:
    cfg: Any

    def get_activation_fn(self) -> nn.Module:
        """The k largest, rectified."""
        return TopK(self.cfg.k)


class TopKTranscoder(_TopK, Transcoder):
    """A transcoder with TopK, where SAELens' own `transcoder` is a ReLU."""


class TopKSkipTranscoder(_TopK, SkipTranscoder):
    """A skip transcoder with TopK. Called, it adds the skip; `decode` alone, and what SAELens runs
    in a model, do not."""


def _register(name: str, kind: Any, config: Any, **settings: Any) -> None:
    """A class, by the architecture's name in `cfg.json`, with a configuration like SAELens' own and
    these further settings."""
    about = {"__module__": __name__, "architecture": classmethod(lambda cls: name)}
    fields = [(setting, Any, default) for setting, default in settings.items()]
    own = make_dataclass(f"{kind.__name__}Config", fields, bases=(config,), namespace=about)
    if name not in SAE_CLASS_REGISTRY:  # a module that is loaded again
        register_sae_class(name, kind, own)


_register("bae", BinarySAE, StandardSAEConfig, coding="step", flips=None)
_register("random", RandomSAE, StandardSAEConfig, coding="step", flips=None)
_register("relu", ReLUSAE, StandardSAEConfig)
_register("pca", PCASAE, StandardSAEConfig)
_register("batch_topk", BatchTopKSAE, JumpReLUSAEConfig)
_register("topk_transcoder", TopKTranscoder, TranscoderConfig, k=32)
_register("topk_skip_transcoder", TopKSkipTranscoder, SkipTranscoderConfig, k=32)
