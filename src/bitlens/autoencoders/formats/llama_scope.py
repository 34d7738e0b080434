"""Llama Scope (arXiv 2410.20526): `hyperparams.json` and `checkpoints/final.safetensors`; of R1
Distill: `config.json` and `sae_weights.safetensors`.

Hidden states are scaled to the root of their width by the mean norm of a dataset. Where decoder
norms weigh sparsity they are folded, as the library itself does before use.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from bitlens.autoencoders.formats.foreign import (
    Config,
    Foreign,
    described,
    fold_decoder_norms,
    given_scale,
    is_number,
    jumps,
    read_weights,
    renamed,
)
from bitlens.errors import BitlensError

NAMES = {"W_enc": "encoder.weight.T", "b_enc": "encoder.bias", "W_dec": "decoder.weight.T"}
NAMES |= {"b_dec": "decoder.bias"}
NORM = "dataset_average_activation_norm"
TOOL = "Llama Scope"


def read(folder: Path) -> Foreign:
    """JumpReLU with one threshold, or of R1 Distill with one for each latent."""
    first = (folder / "hyperparams.json").exists()
    path = folder / ("hyperparams.json" if first else "config.json")
    file = folder / ("checkpoints/final.safetensors" if first else "sae_weights.safetensors")
    config, found = Config.read(path), read_weights(file)
    config.honour(
        act_fn=("jumprelu",),
        use_glu_encoder=(False, None),
        apply_decoder_bias_to_pre_encoder=(False, None),
        norm_activation=("dataset-wise", "inference"),
    )
    config["hook_point_out"] = config.get("hook_point_out") or config.get("hook_point_in")
    places = [config.wanted(f"hook_point_{side}", str) for side in ("in", "out")]
    norms = {key: found.pop(key) for key in list(found) if key.startswith(NORM)}
    threshold = {} if first else {"threshold": "log_jumprelu_threshold"}
    tensors = renamed(found, NAMES | threshold, file)
    d_in = config.wanted("d_model", int)
    config.require_widths(tensors, d_in=d_in, n_latents=config.get("d_sae"))
    scale, scale_out = (
        _scale(config, norms, side, place, d_in)
        for side, place in zip(("in", "out"), places, strict=True)
    )
    if first:  # in the model's own units
        least = config.wanted("jump_relu_threshold", float) / scale
        tensors["threshold"] = torch.full_like(tensors["b_enc"], least)
    else:
        tensors["threshold"] = tensors["threshold"].exp()
    if config.get("sparsity_include_decoder_norm"):
        fold_decoder_norms(tensors)
    target = None if places[0] == places[1] else places[1]
    metadata = described("meta-llama/Llama-3.1-8B", places[0], target)
    architecture = "jumprelu_transcoder" if target else "jumprelu"
    tensors = jumps(tensors)
    return Foreign(TOOL, file, architecture, tensors, metadata, scale=scale, scale_out=scale_out)


def _scale(config: Config, norms: Mapping[str, Tensor], side: str, place: str, width: int) -> float:
    """What hidden states are divided by."""
    if config.get("norm_activation") == "inference":
        return 1.0
    known = config.part(NORM)
    norm = known.get(side, known.get(place, norms.get(f"{NORM}.{place}")))
    given = given_scale(config)
    if norm is None and given is not None:
        return given
    if isinstance(norm, Tensor):
        norm = norm.item() if norm.numel() == 1 else None
    if not is_number(norm) or norm <= 0:
        raise BitlensError(
            f"{config.path} asks for normalised hidden states without their mean norm: add a "
            "'norm_scaling_factor', the root of the width over that norm."
        )
    return float(norm) / math.sqrt(width)
