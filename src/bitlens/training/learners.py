"""Which autoencoder an architecture's name stands for, and how it learns."""

from __future__ import annotations

from bitlens.autoencoders import (
    Autoencoder,
    BatchTopKAutoencoder,
    BinaryAutoencoder,
    GatedAutoencoder,
    JumpReLUAutoencoder,
    LevelsAutoencoder,
    PCAAutoencoder,
    RandomAutoencoder,
    ReLUAutoencoder,
    ResidualAutoencoder,
    SkipTranscoder,
    TopKAutoencoder,
    Transcoder,
)
from bitlens.errors import BitlensError
from bitlens.training.binary_learner import BinaryLearner
from bitlens.training.config import TrainConfig
from bitlens.training.learner import Learner, Sampler
from bitlens.training.sparse_learners import (
    BatchTopKLearner,
    GatedLearner,
    JumpReLULearner,
    PCALearner,
    ReLULearner,
    TopKLearner,
    TranscoderLearner,
)
from bitlens.training.variant_learners import LevelsLearner, MatryoshkaLearner, RandomLearner, ResidualLearner

LEARNERS: dict[str, type[Learner]] = {
    "bae": BinaryLearner, "residual_bae": ResidualLearner, "levels_bae": LevelsLearner, "ternary_bae": LevelsLearner,
    "matryoshka_bae": MatryoshkaLearner, "random": RandomLearner, "relu": ReLULearner, "gated": GatedLearner,
    "topk": TopKLearner, "batch_topk": BatchTopKLearner, "jumprelu": JumpReLULearner, "transcoder": TranscoderLearner,
    "skip_transcoder": TranscoderLearner, "pca": PCALearner,
}  # fmt: skip


def build(config: TrainConfig, d_in: int, d_out: int) -> Autoencoder:
    """An autoencoder of the architecture that the config names, not yet initialised."""
    n = config.n_latents or 0
    match config.architecture:
        case "residual_bae":
            share = n // config.stages
            return ResidualAutoencoder(d_in, n, [n - share * (config.stages - 1)] + [share] * (config.stages - 1))
        case "levels_bae":
            return LevelsAutoencoder(d_in, n, [1] * config.thresholds)
        case "ternary_bae":
            return LevelsAutoencoder(d_in, n, [1, -1])
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
        case "bae" | "matryoshka_bae":
            return BinaryAutoencoder(d_in, n)
    raise BitlensError(f"There is no architecture '{config.architecture}'; choose one of: {', '.join(LEARNERS)}.")


def make_learner(model: Autoencoder, config: TrainConfig, sample: Sampler) -> Learner:
    """sample: `(n, generator) -> standardised rows [n, d_in]`, drawn from the training rows."""
    return LEARNERS[config.architecture](model, config, sample)
