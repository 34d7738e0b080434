"""Autoencoders behind one interface: the binary autoencoder, its variants, and the baselines it is compared with."""

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
from bitlens.autoencoders.variants import LevelsAutoencoder, ResidualAutoencoder

__all__ = [
    "Autoencoder",
    "BatchTopKAutoencoder",
    "BinaryAutoencoder",
    "GatedAutoencoder",
    "JumpReLUAutoencoder",
    "LevelsAutoencoder",
    "PCAAutoencoder",
    "RandomAutoencoder",
    "ReLUAutoencoder",
    "ResidualAutoencoder",
    "SkipTranscoder",
    "SparseAutoencoder",
    "TopKAutoencoder",
    "Transcoder",
]
