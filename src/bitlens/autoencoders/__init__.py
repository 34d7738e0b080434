"""Autoencoders behind one interface: the binary autoencoder, and the baselines beside it.

One file for each architecture: the model, and how it learns. Classes are imported when first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from bitlens.autoencoders.registry import KNOWN

if TYPE_CHECKING:  # what the package itself uses; the others are looked up alike
    from bitlens.autoencoders.base import Autoencoder as Autoencoder
    from bitlens.autoencoders.binary import BinaryAutoencoder as BinaryAutoencoder
    from bitlens.autoencoders.sparse import SparseAutoencoder as SparseAutoencoder
    from bitlens.autoencoders.topk import TopKAutoencoder as TopKAutoencoder

_MODULES = {"Autoencoder": "base", "SparseAutoencoder": "sparse"}
_MODULES |= {architecture.model: architecture.module for architecture in KNOWN.values()}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'bitlens.autoencoders' has no attribute '{name}'")
    return getattr(importlib.import_module(f"bitlens.autoencoders.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_MODULES)
