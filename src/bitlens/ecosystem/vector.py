"""Decoder rows as a control vector of llama.cpp: a GGUF file with the tensor `direction.N`.

llama.cpp adds `direction.N` to what its layer N gives, counted from 0, at every token
(`llama_adapter_cvec`: layer 0 gets none; the loader refuses `direction.0`). So N is the layer whose
output the autoencoder reads, in the numbering of `layers.N`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitlens.autoencoders import Autoencoder
from bitlens.causal.intervene import steering_vector
from bitlens.errors import BitlensError
from bitlens.files import refuse_unwritable, replacing
from bitlens.hidden.loading import load_config
from bitlens.hidden.named import recorded_model

WRITER = "controlvector"


def control_vector(
    autoencoder: Autoencoder, latents: Sequence[int], strengths: Sequence[float] = (1.0,)
) -> Tensor:
    """What these latents add when their codes rise by these strengths, `[d_out]`, in the model's
    own units. strengths: one for all, or one for each."""
    if not latents:
        raise BitlensError("Name a latent at least.")
    if len(strengths) not in (1, len(latents)):
        raise BitlensError(
            f"{len(strengths)} strengths do not fit {len(latents)} latents: name one for all, or "
            "one for each."
        )
    each = list(strengths) * (len(latents) if len(strengths) == 1 else 1)
    rows = [steering_vector(autoencoder, latent) for latent in latents]
    return (torch.tensor(each).to(rows[0]) @ torch.stack(rows)).cpu()


def layer_of(autoencoder: Autoencoder) -> int:
    """The layer, counted from 0, whose output in the residual stream the decoder writes to."""
    hook = autoencoder.metadata.get("target_hook" if autoencoder.transcodes else "hook") or {}
    module, lens, state = (
        hook.get(key) or "" for key in ("module", "transformer_lens", "transformers")
    )
    if match := re.fullmatch(r"blocks\.(\d+)\.(hook_resid_post|hook_mlp_out)", lens):
        layer = int(match[1])
    elif match := re.fullmatch(r"blocks\.(\d+)\.hook_resid_pre", lens):
        layer = int(match[1]) - 1
    elif match := re.fullmatch(r"(?:\w+\.)*(?:layers|h|blocks)\.(\d+)", module):
        layer = int(match[1])
    elif (match := re.fullmatch(r"hidden_states\[(\d+)\]", state)) and module.endswith(":input"):
        layer = int(match[1]) - 1
    else:
        raise BitlensError(
            "llama.cpp adds to what a layer gives, and this autoencoder writes to "
            f"{module or 'an unknown place'}."
        )
    if layer < 1:
        raise BitlensError(
            "llama.cpp adds to what layers 1 and later give, counted from 0, and this autoencoder "
            f"writes to {module}."
        )
    return layer


def write_gguf(
    path: Path | str,
    autoencoder: Autoencoder,
    latents: Sequence[int],
    strengths: Sequence[float] = (1.0,),
    hint: str | None = None,
    overwrite: bool = False,
) -> int:
    """Write the control vector of these latents, whole or not at all -> its layer.

    hint: llama.cpp's name of the model's architecture, by default by the model's configuration.
    """
    try:
        import gguf
    except ImportError:
        raise BitlensError(
            "Writing a .gguf file needs bitlens' extra [gguf]: pip install gguf."
        ) from None
    path, layer = Path(path), layer_of(autoencoder)
    vector = control_vector(autoencoder, latents, strengths)
    known = gguf.MODEL_ARCH_NAMES.values()
    hint = hint or _hint(autoencoder.metadata, list(known))
    if path.is_file() and not overwrite:  # a language model, perhaps
        raise BitlensError(f"{path} is there already; pass `overwrite=True` to replace it.")
    refuse_unwritable(path)
    _refuse_another(path)
    with replacing(path) as temporary:
        writer = gguf.GGUFWriter(temporary, WRITER)
        writer.add_string(f"{WRITER}.model_hint", hint)
        writer.add_uint32(f"{WRITER}.layer_count", 1)
        writer.add_tensor(f"direction.{layer}", vector.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return layer


def _refuse_another(path: Path) -> None:
    """BitlensError for a file that holds something else, such as the model."""
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as file:
            if WRITER.encode() not in file.read(256):
                raise BitlensError(f"{path} is no control vector, and stays; name another file.")


def _hint(metadata: dict[str, Any], known: list[str]) -> str:
    """llama.cpp's name of the architecture, as far as transformers' name says it."""
    try:
        config = load_config(*recorded_model(metadata, "the autoencoder"))
    except BitlensError as error:
        raise BitlensError(f"{error} Or name the model's architecture with `hint`.") from error
    kind = config.get_text_config().model_type.removesuffix("_text")
    plain = kind.replace("_", "").replace("-", "")
    return next((name for name in known if name.replace("-", "") == plain), kind)
