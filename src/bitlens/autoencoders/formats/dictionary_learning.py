"""dictionary_learning: `config.json` and `ae.pt` (or the same tensors as `ae.safetensors`).

What is computed is what `dictionary_learning.utils.load_dictionary` gives: it scales decoder rows
of an `AutoEncoder` to unit norm, and takes the threshold of a BatchTopK, not its batches.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from bitlens.autoencoders.formats.foreign import (
    Config,
    Foreign,
    described,
    fold_decoder_norms,
    jumps,
    read_weights,
    renamed,
)
from bitlens.errors import BitlensError

LINEAR = {"W_enc": "encoder.weight.T", "b_enc": "encoder.bias", "W_dec": "decoder.weight.T"}
PLAIN = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
GATED = {**LINEAR, "b_enc": "gate_bias", "b_dec": "decoder_bias"}
GATED |= {"b_mag": "mag_bias", "r_mag": "r_mag"}
JUMP = {"threshold": "threshold"}
# By the library's names: the architecture here, its tensors, and whether b_dec is subtracted.
CLASSES: dict[str, tuple[str, dict[str, str], bool]] = {
    "AutoEncoder": ("relu", {**LINEAR, "b_dec": "bias"}, True),
    "AutoEncoderNew": ("relu", {**LINEAR, "b_dec": "decoder.bias"}, False),
    "GatedAutoEncoder": ("gated", GATED, True),
    "JumpReluAutoEncoder": ("jumprelu", PLAIN | JUMP, False),
    "AutoEncoderTopK": ("topk", {**LINEAR, "b_dec": "b_dec"}, True),
    "BatchTopKSAE": ("batch_topk", {**LINEAR, "b_dec": "b_dec"} | JUMP, True),
    "MatryoshkaBatchTopKSAE": ("batch_topk", PLAIN | JUMP, True),
}
UNUSED = ("k", "threshold", "group_sizes")
PLACES = {"resid_post": "hook_resid_post", "attention_out": "hook_attn_out"}
PLACES |= {"mlp_out": "hook_mlp_out"}


def read(folder: Path) -> Foreign:
    """A dictionary of one of the library's classes."""
    path = folder / "config.json"
    file = folder / ("ae.pt" if (folder / "ae.pt").exists() else "ae.safetensors")
    config = Config.read(path)
    trainer = Config(config.wanted("trainer", dict), path)
    trainer.honour(dict_class=(trainer.get("dict_class", ""), *CLASSES)[1:])
    architecture, names, applied = CLASSES[trainer.wanted("dict_class", str)]
    found = read_weights(file)
    unused = [name for name in UNUSED if architecture in ("topk", "batch_topk")]
    tensors = renamed(found, names, file, unused)
    widths = {"d_in": "activation_dim", "n_latents": "dict_size"}
    trainer.require_widths(tensors, **{own: trainer.get(name) for own, name in widths.items()})
    settings = {}
    if architecture in ("topk", "batch_topk"):
        stored = {"k": found["k"].tolist()} if "k" in found else {}
        settings["k"] = Config({**stored, **trainer}, path).wanted("k", int)
        if stored.get("k", settings["k"]) != settings["k"]:
            raise BitlensError(
                f"{path} says k {settings['k']}, but its tensors have {stored['k']}; restore them "
                "or fetch them again."
            )
    if architecture == "jumprelu":
        tensors = jumps(tensors)
    norms = tensors["W_dec"].norm(dim=1)
    if trainer["dict_class"] == "AutoEncoder" and not torch.allclose(norms, torch.ones(())):
        fold_decoder_norms(tensors)
    metadata = _metadata(config, trainer)
    return Foreign("dictionary_learning", file, architecture, tensors, metadata, settings, applied)


def _metadata(config: Config, trainer: Config) -> dict[str, Any]:
    """The residual stream after a layer, unless a submodule is named."""
    layer, module = trainer.get("layer"), trainer.get("submodule_name")
    place = re.sub(r"(?:_layer)?_?\d*$", "", module) if isinstance(module, str) else "resid_post"
    place = PLACES.get(place.replace("attention_output", "attention_out"))
    known = isinstance(layer, int) and place is not None
    hook = f"blocks.{layer}.{place}" if known else None
    return described(trainer.get("lm_name"), hook, context=config.part("buffer").get("ctx_len"))
