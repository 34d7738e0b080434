"""The architectures, by name: where each is and what it can be told. A new one is one line here.

Nothing heavy is imported before one is used, and only modules of this package ever are.
"""

import importlib
from typing import Any, NamedTuple

from bitlens.errors import BitlensError

SPARSE = {"lr": 6e-3, "decay": 0.3}  # defaults of sparse autoencoders
PENALTY = ("k", "sparsity", "init")
TOPK = ("k", "init")
RANDOM = ("preset", "initial_rates", "match")
BINARY = ("preset", "coding", "lam", "price", "p0", "regrow_at", "init")
DESCENT = (*BINARY, "scale", "anneal")
STEP = (*BINARY, "gamma", "surrogate", "width", "weighting", "prune_at", "prune_rows", "reference")
STEP += ("initial_rates", "initial_share")


class Entry(NamedTuple):
    """A module of this package, two classes in it, the fields of `TrainConfig` that not all
    architectures read and this one does, and its defaults where they are not the preset's."""

    module: str
    model: str
    learner: str = ""
    settings: tuple[str, ...] = ()
    defaults: dict[str, float] = {}  # noqa: RUF012

    def load_model(self) -> Any:
        """The subclass of `Autoencoder`."""
        return getattr(importlib.import_module(f"bitlens.autoencoders.{self.module}"), self.model)

    def load(self) -> tuple[Any, Any]:
        """The subclasses of `Autoencoder` and of `Learner`."""
        module = importlib.import_module(f"bitlens.autoencoders.{self.module}")
        return self.load_model(), getattr(module, self.learner)


ARCHITECTURES = {
    "bae": Entry("descent", "BinaryAutoencoder", "DescentLearner", DESCENT),
    "random": Entry("random", "RandomAutoencoder", "RandomLearner", RANDOM),
    "relu": Entry("relu", "ReLUAutoencoder", "ReLULearner", PENALTY, SPARSE),
    "gated": Entry("gated", "GatedAutoencoder", "GatedLearner", PENALTY, SPARSE),
    "topk": Entry("topk", "TopKAutoencoder", "TopKLearner", TOPK, SPARSE),
    "batch_topk": Entry("batch_topk", "BatchTopKAutoencoder", "BatchTopKLearner", TOPK, SPARSE),
    "jumprelu": Entry("jumprelu", "JumpReLUAutoencoder", "JumpReLULearner", PENALTY, SPARSE),
    "transcoder": Entry("transcoder", "Transcoder", "TranscoderLearner", ("k",), SPARSE),
    "skip_transcoder": Entry(
        "transcoder", "SkipTranscoder", "SkipTranscoderLearner", ("k",), SPARSE
    ),
    "pca": Entry("pca", "PCAAutoencoder", "PCALearner", ("k",)),
}
# What is only read, from the files of other libraries, and is not trained here.
READ = {
    "tanh_relu": Entry("relu", "TanhReLUAutoencoder"),
    "relu_transcoder": Entry("transcoder", "ReLUTranscoder"),
    "relu_skip_transcoder": Entry("transcoder", "ReLUSkipTranscoder"),
    "jumprelu_transcoder": Entry("transcoder", "JumpReLUTranscoder"),
    "jumprelu_skip_transcoder": Entry("transcoder", "JumpReLUSkipTranscoder"),
}
BAE_BY_STEP = Entry("step", "BinaryAutoencoder", "StepLearner", STEP)
# A bae whose latents are spread over processes; only descent can search them so.
SHARDED = Entry("sharded", "BinaryAutoencoder", "ShardedDescentLearner", DESCENT)
KNOWN = ARCHITECTURES | READ


def find(name: str, coding: str = "descent") -> Entry:
    """The architecture of this name; a binary autoencoder learns in another way for each coding."""
    if name not in ARCHITECTURES:
        names = ", ".join(ARCHITECTURES)
        raise BitlensError(f"There is no architecture '{name}'; choose one of: {names}.")
    return BAE_BY_STEP if (name, coding) == ("bae", "step") else ARCHITECTURES[name]
