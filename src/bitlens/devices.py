"""Which device a name means, and whether it is there. Imports nothing heavy before it is asked."""

from __future__ import annotations

from bitlens.errors import BitlensError


def pick_device(name: str) -> str:
    """`auto` is the GPU if there is one. BitlensError for a device that is not there."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda"):
        number = name.removeprefix("cuda").removeprefix(":") or "0"
        if name == "cuda:" or not number.isdecimal() or int(number) >= torch.cuda.device_count():
            raise BitlensError(f"There is no device '{name}' here; use `device=cpu`.")
    return name
