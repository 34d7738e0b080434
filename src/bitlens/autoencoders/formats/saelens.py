"""SAELens: `cfg.json` and `sae_weights.safetensors`, of version 6 and the flat settings of before.

What is computed is what SAELens 6.54 computes, and for `tanh-relu` and a finetuned scale, which it
no longer knows, what version 4 did.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from bitlens.autoencoders.formats.foreign import (
    Config,
    Foreign,
    described,
    fold_decoder_norms,
    given_scale,
    jumps,
    read_weights,
    renamed,
)
from bitlens.errors import BitlensError

TOOL, VERSION = "sae-lens", 6
BOTH = {name: name for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
GATED = {**BOTH, "b_enc": "b_gate", "r_mag": "r_mag", "b_mag": "b_mag"}
JUMP, SKIP = {**BOTH, "threshold": "threshold"}, {"W_skip": "W_skip.T"}
# By SAELens' names: the architecture here, and its tensors.
ARCHITECTURES: dict[str, tuple[str, dict[str, str]]] = {
    "standard": ("relu", BOTH),
    "tanh-relu": ("tanh_relu", BOTH),
    "gated": ("gated", GATED),
    "topk": ("topk", BOTH),
    "jumprelu": ("jumprelu", JUMP),
    "transcoder": ("relu_transcoder", BOTH),
    "skip_transcoder": ("relu_skip_transcoder", BOTH | SKIP),
    "jumprelu_transcoder": ("jumprelu_transcoder", JUMP),
    "jumprelu_skip_transcoder": ("jumprelu_skip_transcoder", JUMP | SKIP),
}
FINETUNED = ("scaling_factor", "finetuning_scaling_factor")
KNOWN = {"d_in", "d_sae", "d_out", "k", "dtype", "device", "architecture", "metadata"}
KNOWN |= {"apply_b_dec_to_input", "normalize_activations", "reshape_activations"}
KNOWN |= {"rescale_acts_by_decoder_norm", "norm_scaling_factor"}
KNOWN |= {"bitlens"}  # what `bitlens export saelens` made it of
# Of the training alone: they say nothing about what the tensors compute.
KNOWN |= {"decoder_init_norm", "l1_coefficient", "l1_warm_up_steps", "lp_norm", "l0_coefficient"}
KNOWN |= {"l0_warm_up_steps", "pre_act_loss_coefficient", "jumprelu_init_threshold"}
KNOWN |= {"jumprelu_bandwidth", "jumprelu_sparsity_loss_mode", "jumprelu_tanh_scale"}
KNOWN |= {"use_sparse_activations", "aux_loss_coefficient", "topk_threshold_lr"}


def read(folder: Path) -> Foreign:
    """An autoencoder or transcoder of SAELens."""
    path, file = folder / "cfg.json", folder / "sae_weights.safetensors"
    config, about = _settings(Config.read(path))
    name = _architecture(config)
    architecture, names = ARCHITECTURES[name]
    transcodes = "transcoder" in name
    d_in, d_sae = (config.wanted(key, int) for key in ("d_in", "d_sae"))
    found = read_weights(file)
    scales = {key: found.pop(key) for key in FINETUNED if key in found}
    tensors = renamed(found, names, file)
    config.require_widths(tensors, d_in=d_in, n_latents=d_sae, d_out=config.get("d_out"))
    _finetune(tensors, scales, config, file)
    if "threshold" in tensors:
        tensors = jumps(tensors)
    if name == "topk" and config.get("rescale_acts_by_decoder_norm"):
        fold_decoder_norms(tensors)
    settings = {"k": config.wanted("k", int)} if name == "topk" else {}
    if transcodes:
        config.honour(apply_b_dec_to_input=(False,))
    scale = _scale(config, about)
    applied = bool(config.get("apply_b_dec_to_input", True)) and not transcodes
    metadata = _metadata(about, transcodes)
    return Foreign(TOOL, file, architecture, tensors, metadata, settings, applied, scale, scale)


def _settings(config: Config) -> tuple[Config, Config]:
    """The settings as version 6 has them, and what they are about."""
    if not isinstance(config.get("metadata"), dict):
        config["hook_name"] = config.get("hook_name", config.get("hook_point"))
        return config, config
    about = config.part("metadata")
    version = str(about.get("sae_lens_version") or VERSION).partition(".")[0]
    if version.isdigit() and int(version) > VERSION:
        raise BitlensError(
            f"{config.path} was written by SAELens {version}, and this bitlens reads those up to "
            f"{VERSION}; upgrade bitlens."
        )
    config.refuse_unknown(KNOWN)
    return config, about


def _architecture(config: Config) -> str:
    """SAELens' name of it; of flat settings, an activation function is a part of that."""
    name = str(config.get("architecture") or "standard")
    function = config.get("activation_fn", config.get("activation_fn_str")) or "relu"
    config["activation_fn"] = function
    config.honour(activation_fn=("relu", "tanh-relu", "topk"), hook_head_index=(None,))
    more = config.part("activation_fn_kwargs")
    more.refuse_unknown(("k",))
    if function == "topk" and name in ("standard", "topk"):
        config["k"] = more.get("k", config.get("k"))
        name = "topk"
    elif function != "relu":
        name = function if name == "standard" else f"{name} with {function}"
    if name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise BitlensError(f"{config.path} has the architecture {name!r}, not one of: {known}.")
    return name


def _finetune(
    tensors: dict[str, Tensor], scales: Mapping[str, Tensor], config: Mapping[str, Any], file: Path
) -> None:
    """Codes are read off as they were, and scaled before they are decoded."""
    for name, scale in scales.items():
        if bool((scale == 1).all()):
            continue
        if scale.shape != tensors["b_enc"].shape:
            raise BitlensError(f"{file} has a '{name}' that is not one number for each latent.")
        if not config.get("finetuning_scaling_factor", name != "scaling_factor"):
            raise BitlensError(f"{file} has a '{name}', but its settings say that it is not used.")
        tensors["W_dec"] = tensors["W_dec"] * scale.float()[:, None]


def _scale(config: Config, about: Config) -> float:
    """What hidden states are divided by."""
    how = config.get("normalize_activations") or "none"
    config["normalize_activations"] = "expected_average_only_in" if how is True else how
    config.honour(normalize_activations=("none", "expected_average_only_in"))
    scale = 1.0 if how == "none" else given_scale(config, about)
    if scale is None:
        raise BitlensError(
            f"{config.path} asks for normalize_activations 'expected_average_only_in' without "
            "saying how long hidden states are: add a 'norm_scaling_factor', the root of the width "
            "over their mean norm."
        )
    return scale


def _metadata(about: Config, transcodes: bool) -> dict[str, Any]:
    if about.part("model_from_pretrained_kwargs").get("center_writing_weights"):
        raise BitlensError(
            f"{about.path} is of a model whose weights TransformerLens had centred "
            "(center_writing_weights), so it reads other hidden states than the model's own."
        )
    out = about.get("hook_name_out") or about.get("hf_hook_name_out")
    return described(
        about.get("model_name"),
        about.get("hook_name") or about.get("hf_hook_name"),
        out if transcodes else None,
        about.get("context_size"),
        about.get("prepend_bos"),
    )
