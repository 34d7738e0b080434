"""Gemma Scope: `params.npz`, what it is told by its path; Gemma Scope 2: `config.json` and
`params.safetensors`. JumpReLU from the model's own hidden states, as autoencoders and transcoders
(arXiv 2408.05147)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from bitlens.autoencoders.formats.foreign import (
    Config,
    Foreign,
    described,
    jumps,
    read_weights,
    renamed,
)
from bitlens.errors import BitlensError

NAMES = {"W_enc": "w_enc", "b_enc": "b_enc", "W_dec": "w_dec", "b_dec": "b_dec"}
NAMES |= {"threshold": "threshold"}
SKIP = "affine_skip_connection"
CONTEXT = 1024
KNOWN = {"architecture", "model_name", "hf_hook_point_in", "hf_hook_point_out", "width", "type"}
KNOWN |= {"affine_connection", "l0", "layer", "dtype"}
# Of Gemma Scope, by the repository: where it reads, and for a transcoder where it writes.
PLACES = {
    "res": ("blocks.{}.hook_resid_post", None),
    "mlp": ("blocks.{}.hook_mlp_out", None),
    "att": ("blocks.{}.attn.hook_z", None),
    "transcoders": ("blocks.{}.ln2.hook_normalized", "blocks.{}.hook_mlp_out"),
}


def read(folder: Path) -> Foreign:
    """An autoencoder, or a transcoder with or without a skip."""
    second = (folder / "params.safetensors").exists()
    file = folder / ("params.safetensors" if second else "params.npz")
    found = read_weights(file)
    if (found["w_dec"].dim() if "w_dec" in found else 0) > 2:
        raise BitlensError(f"{file} is a cross-layer transcoder, which bitlens does not read.")
    found = {("w" + k[1:] if k.startswith("W_") else k): v for k, v in found.items()}
    metadata, skips = _of_second(folder) if second else (_of_first(folder), False)
    names = NAMES | ({"W_skip": SKIP} if skips or SKIP in found else {})
    tensors = jumps(renamed(found, names, file))
    architecture = "jumprelu"
    if "target_hook" in metadata or "W_skip" in tensors:
        architecture = f"jumprelu_{'skip_' * ('W_skip' in tensors)}transcoder"
    tool = "Gemma Scope 2" if second else "Gemma Scope"
    return Foreign(tool, file, architecture, tensors, metadata)


def _of_second(folder: Path) -> tuple[dict[str, Any], bool]:
    """-> (metadata, whether there is a skip); an autoencoder writes where it reads."""
    path = folder / "config.json"
    config = Config.read(path) if path.exists() else Config({}, path)
    config.refuse_unknown(KNOWN)
    config.honour(architecture=("jump_relu",), type=("sae", "transcoder"))
    read_at, written_to = (config.get(f"hf_hook_point_{side}") for side in ("in", "out"))
    target = None if written_to == read_at else written_to
    metadata = described(config.get("model_name"), read_at, target, CONTEXT, True)
    return metadata, bool(config.get("affine_connection"))


def _of_first(folder: Path) -> dict[str, Any]:
    """By the path: `gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82`."""
    path = folder.resolve().as_posix()
    named = re.search(r".*gemma-scope-(\w+)-(pt|it)-(res|mlp|att|transcoders)\b", path)
    within = path[named.end() :] if named else path
    if "embedding" in within.split("/"):
        raise BitlensError(f"{folder} is of scaled embeddings, which bitlens does not read.")
    if not named:
        return described(context=CONTEXT, bos=True)
    layer = re.search(r"/layer_(\d+)", within)
    size, kind, where = named.groups()
    hook, target = (layer and place and place.format(layer[1]) for place in PLACES[where])
    model = f"google/gemma-2-{size}" + "-it" * (kind == "it")
    return described(model, hook, target, CONTEXT, True)
