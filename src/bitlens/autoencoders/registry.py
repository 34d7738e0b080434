"""The architectures, by name: where each is and what it can be told. A new one is one line here.

Nothing heavy is imported before one is used, and only modules of this package ever are.
"""

import importlib
from typing import Any, NamedTuple

from bitlens.autoencoders.settings import (
    DescentSettings,
    PCASettings,
    PenaltySettings,
    RandomSettings,
    Settings,
    StepSettings,
    TopKSettings,
)
from bitlens.errors import BitlensError


class Architecture(NamedTuple):
    """A module of this package, the names of two classes in it, and the settings of the second."""

    module: str
    model: str
    learner: str
    settings: type[Settings]

    def load_model(self) -> Any:
        """The subclass of `Autoencoder`."""
        return self._load(self.model)

    def load_learner(self) -> Any:
        """The subclass of `Learner`."""
        return self._load(self.learner)

    def _load(self, name: str) -> Any:
        return getattr(importlib.import_module(f"bitlens.autoencoders.{self.module}"), name)


ARCHITECTURES = {
    "bae": Architecture("descent", "BinaryAutoencoder", "DescentLearner", DescentSettings),
    "random": Architecture("random", "RandomAutoencoder", "RandomLearner", RandomSettings),
    "relu": Architecture("relu", "ReLUAutoencoder", "ReLULearner", PenaltySettings),
    "gated": Architecture("gated", "GatedAutoencoder", "GatedLearner", PenaltySettings),
    "topk": Architecture("topk", "TopKAutoencoder", "TopKLearner", TopKSettings),
    "batch_topk": Architecture(
        "batch_topk", "BatchTopKAutoencoder", "BatchTopKLearner", TopKSettings
    ),
    "jumprelu": Architecture("jumprelu", "JumpReLUAutoencoder", "JumpReLULearner", PenaltySettings),
    "transcoder": Architecture("transcoder", "Transcoder", "TranscoderLearner", TopKSettings),
    "skip_transcoder": Architecture(
        "transcoder", "SkipTranscoder", "SkipTranscoderLearner", TopKSettings
    ),
    "pca": Architecture("pca", "PCAAutoencoder", "PCALearner", PCASettings),
}
BAE_BY_STEP = Architecture("step", "BinaryAutoencoder", "StepLearner", StepSettings)


def find(name: str, coding: str = "descent") -> Architecture:
    """The architecture of this name; a binary autoencoder learns in another way for each coding."""
    if name not in ARCHITECTURES:
        raise BitlensError(
            f"There is no architecture '{name}'; choose one of: {', '.join(ARCHITECTURES)}."
        )
    return BAE_BY_STEP if (name, coding) == ("bae", "step") else ARCHITECTURES[name]
