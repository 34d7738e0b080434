"""sparsify (EleutherAI): a folder a hook point, with `cfg.json` and `sae.safetensors`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bitlens.autoencoders.formats.foreign import (
    Foreign,
    described,
    honour,
    read_config,
    read_weights,
    refuse_unknown,
    renamed,
    require_widths,
    wanted,
)

NAMES = {"W_enc": "encoder.weight.T", "b_enc": "encoder.bias", "W_dec": "W_dec", "b_dec": "b_dec"}
KNOWN = {"d_in", "num_latents", "expansion_factor", "k", "transcode", "skip_connection"}
KNOWN |= {"activation", "signed"}
KNOWN |= {"normalize_decoder", "multi_topk"}  # of the training alone


def read(folder: Path) -> Foreign:
    """TopK, as an autoencoder, a transcoder or with a skip. The folder's name is the hook point."""
    path, file = folder / "cfg.json", folder / "sae.safetensors"
    config = read_config(path)
    refuse_unknown(config, KNOWN, path)
    honour(config, path, activation=("topk",), signed=(False, None))
    transcodes, skips = (bool(config.get(key)) for key in ("transcode", "skip_connection"))
    names = NAMES | ({"W_skip": "W_skip.T"} if skips else {})
    tensors = renamed(read_weights(file), names, file)
    d_in = wanted(config, "d_in", int, path)
    n_latents = config.get("num_latents") or d_in * wanted(config, "expansion_factor", int, path)
    require_widths(tensors, path, d_in=d_in, n_latents=n_latents, d_out=d_in)
    settings: dict[str, Any] = {"k": wanted(config, "k", int, path)}
    if transcodes or skips:
        settings["d_out"] = d_in
    architecture = "skip_transcoder" if skips else "transcoder" if transcodes else "topk"
    metadata = _metadata(folder, transcodes, "d_out" in settings)
    return Foreign("sparsify", file, architecture, tensors, metadata, settings, not transcodes)


def _metadata(folder: Path, transcodes: bool, has_target: bool) -> dict[str, Any]:
    """The hook point by the folder's name, the rest by the training's `config.json` above it."""
    place, above = folder.resolve().name, folder.resolve().parent / "config.json"
    run = read_config(above) if above.is_file() else {}
    known = place if "." in place or place == "embed_tokens" else None
    hook = f"{known}.input" if known and transcodes else known
    target = known if has_target else None
    return described(run.get("model"), hook, target, run.get("ctx_len"))
