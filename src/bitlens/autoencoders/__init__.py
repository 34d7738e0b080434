"""Autoencoders behind one interface: the binary autoencoder, and the baselines it is compared with."""

from bitlens.autoencoders.base import Autoencoder
from bitlens.autoencoders.binary import BinaryAutoencoder, RandomAutoencoder
from bitlens.autoencoders.sparse import (
    BatchTopKAutoencoder,
    GatedAutoencoder,
    JumpReLUAutoencoder,
    PCAAutoencoder,
    ReLUAutoencoder,
    SkipTranscoder,
    SparseAutoencoder,
    TopKAutoencoder,
    Transcoder,
)

__all__ = [
    "Autoencoder",
    "BatchTopKAutoencoder",
    "BinaryAutoencoder",
    "GatedAutoencoder",
    "JumpReLUAutoencoder",
    "PCAAutoencoder",
    "RandomAutoencoder",
    "ReLUAutoencoder",
    "SkipTranscoder",
    "SparseAutoencoder",
    "TopKAutoencoder",
    "Transcoder",
]
