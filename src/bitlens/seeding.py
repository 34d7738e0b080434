"""Randomness that can be restarted anywhere: every draw has a name, and the name is its seed."""

import hashlib

import torch


def generator(*name: int | str) -> torch.Generator:
    """A generator seeded by `name`, for example `(seed, "prune", step)`: the same name, the same stream, in any process."""
    digest = hashlib.sha256(repr(name).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") & (2**63 - 1))
