"""Autoencoders in the form of SAELens: standardisation folded into the weights, its names for
architectures, tensors and hook points. Nothing of SAELens is imported here.

A binary autoencoder whose bits one step gives is exactly a gated SAE: the gate is the encoder, and
the magnitude, `relu(exp(r_mag) x W_enc + b_mag)` with `r_mag` -10,000 and `b_mag` 1, is always 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bitlens.autoencoders.base import CONFIG, WEIGHTS, Autoencoder
from bitlens.autoencoders.binary import BinaryAutoencoder
from bitlens.errors import BitlensError
from bitlens.files import read_json, replacing_folder, write_json, write_tensors
from bitlens.version import __version__

VERSION = "6.54.12"  # of SAELens, whose layout this is
NO_MAGNITUDE = -1e4  # exp of it is 0 in every float type
SAME_LENGTH = 1e-3  # relative, of decoder rows that TopK may be rescaled by
STOCK = {
    "relu": "standard",
    "gated": "gated",
    "topk": "topk",
    "batch_topk": "jumprelu",
    "jumprelu": "jumprelu",
    "relu_transcoder": "transcoder",
    "relu_skip_transcoder": "skip_transcoder",
    "jumprelu_transcoder": "jumprelu_transcoder",
    "jumprelu_skip_transcoder": "jumprelu_skip_transcoder",
}
OWN = {"transcoder": "topk_transcoder", "skip_transcoder": "topk_skip_transcoder"}
REASONS = {
    "pca": "the components of a PCA may be negative, and every SAE of SAELens rectifies",
    "transcoder": "its Transcoder is a ReLU and would silently compute another function than TopK",
    "skip_transcoder": "its SkipTranscoder is a ReLU, and what it runs in a model never adds the "
    "skip",
}
NO_PURSUIT = "SAELens knows no pursuit: `coded(None)` gives the codes of the encoder back."
NO_TANH = "SAELens knows no tanh since its version 5, so this autoencoder has no form there."


class Form(NamedTuple):
    """What SAELens makes an SAE of: its `cfg.json` and its tensors, float32."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]


def fold(tensors: Mapping[str, Tensor], subtracts_b_dec: bool) -> dict[str, Tensor]:
    """The tensors of an autoencoder with its standardisation folded in, in float64, into float32:
    the same codes and reconstructions of raw hidden states without `mean` and `scale`.

    Thresholds are in units of pre-activations, which stay; a price is a squared error, which does
    not. `W_skip` comes out as `[d_out, d_in]`. subtracts_b_dec: from the input, before encoding.
    """
    folded = {name: tensor.detach().cpu().double() for name, tensor in tensors.items()}
    mean, scale = folded.pop("mean"), folded.pop("scale")
    mean_out, scale_out = folded.pop("mean_out", mean), folded.pop("scale_out", scale)
    folded["W_enc"] = folded["W_enc"] / scale
    folded["W_dec"] = folded["W_dec"] * scale_out
    folded["b_dec"] = folded["b_dec"] * scale_out + mean_out
    if not subtracts_b_dec:
        shift = mean @ folded["W_enc"]
        folded["b_enc"] = folded["b_enc"] - shift
        if "b_mag" in folded:
            folded["b_mag"] = folded["b_mag"] - shift * folded["r_mag"].exp()
    if "price" in folded:
        folded["price"] = folded["price"] * scale_out**2
    if "W_skip" in folded:
        skip = folded["W_skip"] * scale_out / scale
        folded["W_skip"], folded["b_dec"] = skip.T, folded["b_dec"] - mean @ skip
    return {name: tensor.float().contiguous() for name, tensor in folded.items()}


def metadata(about: Mapping[str, Any], model: str | None = None) -> dict[str, Any]:
    """What SAELens knows of where an SAE belongs, from the metadata of a run. Hook points have
    TransformerLens' name where there is one, else their module's.

    model: what SAELens shall load, where that is not the name that the run has.
    """

    def name(key: str) -> str | None:
        hook = about.get(key) or {}
        return hook.get("transformer_lens") or hook.get("module")

    texts = (about.get("documents_of") or {}).get("texts") or []
    known = {
        "sae_lens_version": VERSION,
        "model_name": model or about.get("model"),
        "model_class_name": "HookedTransformer",
        "hook_name": name("hook"),
        "hook_head_index": None,
        "context_size": about.get("context_length"),
        "prepend_bos": about.get("prepend_bos"),
        "dataset_path": " ".join(texts),
        "exclude_special_tokens": True,
        "bitlens_version": __version__,
    }
    target = name("target_hook")
    return known if target is None else {**known, "hook_name_out": target}


def form(autoencoder: Autoencoder, model: str | None = None, unit_rows: bool = False) -> Form:
    """An autoencoder for SAELens, of a stock architecture where there is one, else of those that
    `import bitlens.saelens` registers.

    model: see `metadata`. unit_rows: with decoder rows of length 1, and codes in the model's own
    units (the gain of a bit); by default codes are those of the autoencoder. BitlensError for codes
    that no class of SAELens gives.
    """
    if getattr(autoencoder, "pursued", None) is not None:
        raise BitlensError(NO_PURSUIT)
    if autoencoder.architecture == "tanh_relu":
        raise BitlensError(NO_TANH)
    kind, settings = stock(autoencoder), {}
    tensors = fold(autoencoder.state_dict(), autoencoder.subtracts_b_dec)
    if isinstance(autoencoder, BinaryAutoencoder):
        if kind is None:
            settings = {"coding": autoencoder.coding, "flips": autoencoder.flips}
            tensors["gain"] = torch.ones(autoencoder.n_latents)
        else:
            tensors.pop("price", None)
            ones = torch.ones(autoencoder.n_latents)
            tensors |= {"b_mag": ones, "r_mag": NO_MAGNITUDE * ones}
    if kind == "gated":
        tensors["b_gate"] = tensors.pop("b_enc")
    if "threshold" in tensors:
        tensors["threshold"] = tensors["threshold"].expand(autoencoder.n_latents).contiguous()
    config = {
        "architecture": kind or OWN.get(autoencoder.architecture, autoencoder.architecture),
        "d_in": autoencoder.d_in,
        "d_sae": autoencoder.n_latents,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": autoencoder.subtracts_b_dec,
        "normalize_activations": "none",
        "reshape_activations": "none",
        **{key: value for key, value in autoencoder.settings.items() if key in ("k", "d_out")},
        **settings,
        "metadata": metadata(autoencoder.metadata, model),
    }
    if kind == "jumprelu":
        config.pop("k", None)
    made = Form(config, tensors)
    return with_unit_rows(made) if unit_rows else made


def stock(autoencoder: Autoencoder) -> str | None:
    """SAELens' own architecture that computes the same; None where there is none."""
    if isinstance(autoencoder, BinaryAutoencoder):
        return "gated" if autoencoder.coding == "step" else None
    return STOCK.get(autoencoder.architecture)


def with_unit_rows(made: Form) -> Form:
    """The same function with decoder rows of length 1, which the codes take over. BitlensError for
    a TopK with rows of different lengths: it would choose others."""
    tensors = dict(made.tensors)
    length = tensors["W_dec"].double().norm(dim=1).clamp_min(1e-8)
    if "topk" in made.config["architecture"]:
        if length.max() > (1 + SAME_LENGTH) * length.min():
            raise BitlensError(
                "The decoder rows of this TopK have different lengths, and scaled to 1 it would "
                "choose other latents: leave out `unit_rows`."
            )
        length = length.mean().expand(len(length))
    tensors["W_dec"] = tensors["W_dec"] / length[:, None]
    if "r_mag" in tensors:  # gates, and bits, stay as they are
        scaled = ["b_mag"]
        tensors["r_mag"] = tensors["r_mag"] + length.log()
    else:
        scaled = ["gain"] if "gain" in tensors else ["W_enc", "b_enc", "threshold"]
    for name in scaled:
        if name in tensors:
            tensors[name] = tensors[name] * length
    return Form(made.config, {name: tensor.float() for name, tensor in tensors.items()})


def export(
    autoencoder: Autoencoder,
    out: Path | str,
    *,
    model: str | None = None,
    unit_rows: bool = False,
    overwrite: bool = False,
) -> Form:
    """Write a folder that `SAE.load_from_disk` of SAELens opens as it is installed -> what it
    holds. BitlensError for what SAELens has no architecture for. model, unit_rows: see `form`."""
    made, out = form(autoencoder, model, unit_rows), Path(out)
    if stock(autoencoder) is None:
        raise BitlensError(_no_form(autoencoder))
    _refuse_run(out)
    with replacing_folder(out, overwrite, CONFIG) as folder:
        write_tensors(folder / WEIGHTS, made.tensors)
        write_json(folder / CONFIG, {**made.config, "bitlens": autoencoder.architecture})
    return made


def _refuse_run(out: Path) -> None:
    """A run has a `cfg.json`, too, and would be lost."""
    try:
        config = read_json(out / CONFIG, "an autoencoder")
    except BitlensError:
        return
    if isinstance(config, dict) and "schema" in config:
        raise BitlensError(
            f"{out} holds a run, which an export does not replace; choose another folder."
        )


def _no_form(autoencoder: Autoencoder) -> str:
    way = "SAE.load_from_disk(RUN, converter=bitlens.saelens.converter) opens the run itself"
    if isinstance(autoencoder, BinaryAutoencoder):
        return (
            "SAELens has no architecture for bits found by descent: pass `coding='step'` to write "
            f"those of the encoder, or {way}."
        )
    reason = REASONS[autoencoder.architecture]
    return f"SAELens has no architecture for this ({reason}): {way}."
