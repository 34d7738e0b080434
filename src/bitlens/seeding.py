"""Randomness that can be restarted anywhere: every draw has a name, and the name is its seed."""

import hashlib

import numpy as np
import torch


def generator(*name: int | str) -> torch.Generator:
    """A generator seeded by `name`, for example `(seed, "prune", step)`, alike in every process."""
    digest = hashlib.sha256(repr(name).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") & (2**63 - 1))


def mixed(x: np.ndarray) -> np.ndarray:
    """uint64 -> uint64: a step of splitmix64 (Steele, Lea & Flood 2014).

    After it inputs that are alike have nothing in common.
    """
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
