"""Autoencoders behind one interface: the binary autoencoder, and the baselines beside it.

One file for each architecture: the model, and how it learns. Classes are imported when first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from bitlens.autoencoders.registry import ARCHITECTURES

if TYPE_CHECKING:
    from bitlens.autoencoders.base import Autoencoder as Autoencoder
    from bitlens.autoencoders.batch_topk import BatchTopKAutoencoder as BatchTopKAutoencoder
    from bitlens.autoencoders.binary import BinaryAutoencoder as BinaryAutoencoder
    from bitlens.autoencoders.gated import GatedAutoencoder as GatedAutoencoder
    from bitlens.autoencoders.jumprelu import JumpReLUAutoencoder as JumpReLUAutoencoder
    from bitlens.autoencoders.pca import PCAAutoencoder as PCAAutoencoder
    from bitlens.autoencoders.random import RandomAutoencoder as RandomAutoencoder
    from bitlens.autoencoders.relu import ReLUAutoencoder as ReLUAutoencoder
    from bitlens.autoencoders.sparse import SparseAutoencoder as SparseAutoencoder
    from bitlens.autoencoders.topk import TopKAutoencoder as TopKAutoencoder
    from bitlens.autoencoders.transcoder import SkipTranscoder as SkipTranscoder
    from bitlens.autoencoders.transcoder import Transcoder as Transcoder

_MODULES = {"Autoencoder": "base", "SparseAutoencoder": "sparse"}
_MODULES |= {architecture.model: architecture.module for architecture in ARCHITECTURES.values()}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'bitlens.autoencoders' has no attribute '{name}'")
    return getattr(importlib.import_module(f"bitlens.autoencoders.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_MODULES)
