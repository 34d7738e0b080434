"""Principal components: what a linear code of k floats can do."""

from typing import Self

import torch
from torch import Tensor

from bitlens.autoencoders.base import Autoencoder
from bitlens.autoencoders.learner import LARGE_SAMPLE, Learner
from bitlens.autoencoders.settings import Settings
from bitlens.errors import BitlensError
from bitlens.seeding import generator


class PCAAutoencoder(Autoencoder):
    """The largest principal components, as they are."""

    architecture = "pca"

    def __init__(self, d_in: int, n_latents: int) -> None:
        if n_latents > d_in:
            raise BitlensError(f"There are {d_in} components, not {n_latents}: lower k to {d_in}.")
        super().__init__(d_in, n_latents)

    @classmethod
    def build(cls, d_in: int, d_out: int, settings: Settings) -> Self:
        """With k components; the number of latents is theirs."""
        return cls(d_in, settings.k)

    def code(self, z: Tensor) -> Tensor:
        """As it is."""
        return z


class PCALearner(Learner[PCAAutoencoder]):
    """Principal components of a large sample."""

    closed_form = True

    @torch.no_grad()
    def start(self) -> None:
        """Find them."""
        rows = self.sample(LARGE_SAMPLE, generator(self.settings.seed, "pca")).double()
        mean = rows.mean(0)
        ascending = torch.linalg.eigh((rows - mean).T @ (rows - mean)).eigenvectors
        axes = ascending.flip(1)[:, : self.model.n_latents]
        self.model.W_enc.copy_(axes)
        self.model.W_dec.copy_(axes.T)
        self.model.b_enc.copy_(-(mean @ axes))
        self.model.b_dec.copy_(mean)
