"""Which autoencoder an architecture's name stands for, and how it learns."""

from __future__ import annotations

from bitlens.autoencoders import (
    Autoencoder,
    BatchTopKAutoencoder,
    BinaryAutoencoder,
    GatedAutoencoder,
    JumpReLUAutoencoder,
    PCAAutoencoder,
    RandomAutoencoder,
    ReLUAutoencoder,
    SkipTranscoder,
    TopKAutoencoder,
    Transcoder,
)
from bitlens.errors import BitlensError
from bitlens.training.config import TrainConfig
from bitlens.training.descent_learner import DescentLearner
from bitlens.training.learner import Learner, Sampler
from bitlens.training.random_learner import RandomLearner
from bitlens.training.sparse_learners import (
    BatchTopKLearner,
    GatedLearner,
    JumpReLULearner,
    PCALearner,
    ReLULearner,
    TopKLearner,
    TranscoderLearner,
)
from bitlens.training.step_learner import StepLearner

LEARNERS: dict[str, type[Learner]] = {
    "bae": DescentLearner, "random": RandomLearner, "relu": ReLULearner, "gated": GatedLearner, "topk": TopKLearner,
    "batch_topk": BatchTopKLearner, "jumprelu": JumpReLULearner, "transcoder": TranscoderLearner,
    "skip_transcoder": TranscoderLearner, "pca": PCALearner,
}  # fmt: skip


def build(config: TrainConfig, d_in: int, d_out: int) -> Autoencoder:
    """An autoencoder of the architecture that the config names, not yet initialised."""
    n = config.n_latents or 0
    match config.architecture:
        case "random":
            return RandomAutoencoder(d_in, n)
        case "topk":
            return TopKAutoencoder(d_in, n, config.k)
        case "batch_topk":
            return BatchTopKAutoencoder(d_in, n, config.k)
        case "relu":
            return ReLUAutoencoder(d_in, n)
        case "gated":
            return GatedAutoencoder(d_in, n)
        case "jumprelu":
            return JumpReLUAutoencoder(d_in, n)
        case "transcoder":
            return Transcoder(d_in, n, config.k, d_out)
        case "skip_transcoder":
            return SkipTranscoder(d_in, n, config.k, d_out)
        case "pca":
            return PCAAutoencoder(d_in, config.k)
        case "bae":
            return BinaryAutoencoder(d_in, n, config.coding or "step")
    raise BitlensError(
        f"There is no architecture '{config.architecture}'; choose one of: {', '.join(LEARNERS)}."
    )


def make_learner(model: Autoencoder, config: TrainConfig, sample: Sampler) -> Learner:
    """sample: `(n, generator) -> standardised rows [n, d_in]`, drawn from the training rows."""
    if (
        isinstance(model, BinaryAutoencoder)
        and config.architecture == "bae"
        and config.coding == "step"
    ):
        return StepLearner(model, config, sample)
    return LEARNERS[config.architecture](model, config, sample)
