"""Which device a name means, and whether it is there. Imports nothing heavy before it is asked."""

from __future__ import annotations

import os

from bitlens.errors import BitlensError


def pick_device(name: str) -> str:
    """`auto` is the GPU if there is one, and of several processes on a computer each has its own.
    BitlensError for a device that is not there."""
    import torch

    name = str(name)  # it may be a torch.device
    if name == "auto":
        if not torch.cuda.is_available():
            return "cpu"
        local = os.environ.get("LOCAL_RANK", "")  # of torchrun
        return f"cuda:{int(local) % torch.cuda.device_count()}" if local.isdecimal() else "cuda"
    if name.startswith("cuda"):
        number = name.removeprefix("cuda").removeprefix(":") or "0"
        if name == "cuda:" or not number.isdecimal() or int(number) >= torch.cuda.device_count():
            raise BitlensError(f"There is no device '{name}' here; use `device=cpu`.")
    try:
        torch.device(name)
    except RuntimeError as error:
        raise BitlensError(f"There is no device '{name}'; use `device=cpu`.") from error
    return name
