"""Autoencoders behind one interface: the binary autoencoder and the baselines it is compared with."""

from bitlens.autoencoders.base import Autoencoder
from bitlens.autoencoders.binary import BinaryAutoencoder
from bitlens.autoencoders.sparse import TopKAutoencoder

__all__ = ["Autoencoder", "BinaryAutoencoder", "TopKAutoencoder"]
