"""The autoencoder and the learner that a run's settings name."""

from bitlens.autoencoders.base import Autoencoder
from bitlens.autoencoders.learner import Learner, Sampler
from bitlens.autoencoders.registry import find
from bitlens.autoencoders.settings import Settings


def build(settings: Settings, d_in: int, d_out: int) -> Autoencoder:
    """A new autoencoder, not yet initialised."""
    return find(settings.architecture).load_model().build(d_in, d_out, settings)


def make_learner(model: Autoencoder, settings: Settings, sample: Sampler) -> Learner:
    """sample: `(n, generator) -> standardised rows [n, d_in]`, drawn from the training rows."""
    learner = find(settings.architecture, settings.coding).load_learner()
    return learner(model, settings, sample)
