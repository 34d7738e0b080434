"""sparsify (EleutherAI): a folder a hook point, with `cfg.json` and `sae.safetensors`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bitlens.autoencoders.formats.foreign import Config, Foreign, described, read_weights, renamed

NAMES = {"W_enc": "encoder.weight.T", "b_enc": "encoder.bias", "W_dec": "W_dec", "b_dec": "b_dec"}
KNOWN = {"d_in", "num_latents", "expansion_factor", "k", "transcode", "skip_connection"}
KNOWN |= {"activation", "signed"}
KNOWN |= {"normalize_decoder", "multi_topk"}  # of the training alone


def read(folder: Path) -> Foreign:
    """TopK, as an autoencoder, a transcoder or with a skip. The folder's name is the hook point."""
    path, file = folder / "cfg.json", folder / "sae.safetensors"
    config = Config.read(path)
    config.refuse_unknown(KNOWN)
    config.honour(activation=("topk",), signed=(False, None))
    transcodes, skips = (bool(config.get(key)) for key in ("transcode", "skip_connection"))
    names = NAMES | ({"W_skip": "W_skip.T"} if skips else {})
    tensors = renamed(read_weights(file), names, file)
    d_in = config.wanted("d_in", int)
    n_latents = config.get("num_latents") or d_in * config.wanted("expansion_factor", int)
    config.require_widths(tensors, d_in=d_in, n_latents=n_latents, d_out=d_in)
    settings = {"k": config.wanted("k", int)}
    architecture = "skip_transcoder" if skips else "transcoder" if transcodes else "topk"
    metadata = _metadata(folder, transcodes, transcodes or skips)
    return Foreign("sparsify", file, architecture, tensors, metadata, settings, not transcodes)


def _metadata(folder: Path, transcodes: bool, has_target: bool) -> dict[str, Any]:
    """The hook point by the folder's name, the rest by the training's `config.json` above it."""
    place, above = folder.resolve().name, folder.resolve().parent / "config.json"
    run = Config.read(above) if above.is_file() else {}
    known = place if "." in place or place == "embed_tokens" else None
    hook = f"{known}.input" if known and transcodes else known
    target = known if has_target else None
    return described(run.get("model"), hook, target, run.get("ctx_len"))
