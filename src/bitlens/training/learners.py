"""The autoencoder and the learner that a resolved configuration names."""

from dataclasses import asdict

from bitlens.autoencoders.base import Autoencoder
from bitlens.autoencoders.learner import Learner, Sampler
from bitlens.autoencoders.registry import find
from bitlens.training.config import TrainConfig


def build(config: TrainConfig, d_in: int, d_out: int) -> Autoencoder:
    """An autoencoder of the architecture that the config names, not yet initialised."""
    return find(config.architecture).load_model().build(d_in, d_out, asdict(config))


def make_learner(model: Autoencoder, config: TrainConfig, sample: Sampler) -> Learner:
    """sample: `(n, generator) -> standardised rows [n, d_in]`, drawn from the training rows."""
    learner = find(config.architecture, config.coding or "descent").load_learner()
    return learner(model, config.settings(), sample)
