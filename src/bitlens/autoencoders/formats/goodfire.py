"""Goodfire: one PyTorch file, named after the model and the layer."""

from __future__ import annotations

import re
from pathlib import Path

from bitlens.autoencoders.formats.foreign import Foreign, described, read_weights, renamed
from bitlens.errors import BitlensError

NAMES = {"W_enc": "encoder_linear.weight.T", "b_enc": "encoder_linear.bias"}
NAMES |= {"W_dec": "decoder_linear.weight.T", "b_dec": "decoder_linear.bias"}


def read(folder: Path) -> Foreign:
    """ReLU; nothing is subtracted from the input."""
    files = sorted(file for file in folder.iterdir() if file.suffix in (".pt", ".pth"))
    if len(files) > 1:
        names = ", ".join(file.name for file in files[:4])
        raise BitlensError(f"{folder} holds {names}; keep one of them in a folder of its own.")
    tensors = renamed(read_weights(files[0]), NAMES, files[0])
    named = re.fullmatch(r"(.+)-SAE-l(\d+)", files[0].stem)
    known = (f"meta-llama/{named[1]}", f"blocks.{named[2]}.hook_resid_post") if named else ()
    return Foreign("Goodfire", files[0], "relu", tensors, described(*known))
