"""One training step, one search, or a whole training run of other libraries, by their own code.

What is timed comes with the library's defaults: each function builds the rival once and returns
what is to be called. Call that once before the clock starts: first calls allocate. `TRAINERS` train
to the end, with everything that depends on the length of a run fitted to it. All runs on the CPU in
float32, with as many threads as torch and OpenMP are given.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import count, repeat
from typing import Any, NamedTuple

import numpy as np
import torch

from bitlens.errors import BitlensError

RIVALS = ("sae-lens", "dictionary-learning", "faiss-cpu")
_STEPS = (
    100_000  # the length of run a trainer is told to expect; neither rival's step depends on it
)


def versions() -> dict[str, str]:
    """The installed version of each rival; absent ones are left out."""
    found = {}
    for name in RIVALS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def sae_lens_topk_step(
    d_in: int, n_latents: int, k: int, batch: torch.Tensor
) -> Callable[[], None]:
    """SAELens: `SAETrainer.step` of a `TopKTrainingSAE`, with the step counter moved on as
    `SAETrainer.fit` does.

    Included: forward pass with pre-activations scaled by the decoder norms, loss and its auxiliary
    term (zero until a latent has been silent for 1000 steps), firing statistics, backward, gradient
    clipping to norm 1, Adam and the schedules. Left out: progress bar, checkpoints and wandb, which
    `fit` adds around the step.
    """
    rival = _load("sae-lens", "sae_lens")
    config = _load("sae-lens", "sae_lens.config")
    sae = rival.TopKTrainingSAE(rival.TopKTrainingSAEConfig(d_in=d_in, d_sae=n_latents, k=k))
    cfg = config.SAETrainerConfig(
        total_training_samples=_STEPS * len(batch),
        train_batch_size_samples=len(batch),
        lr_end=3e-5,  # must be set; the constant schedule does not use it
    )
    trainer = rival.SAETrainer(cfg, sae, repeat(batch))

    def step() -> None:
        trainer.step(batch)
        trainer.n_training_steps += 1

    return step


def dictionary_learning_topk_step(
    d_in: int, n_latents: int, k: int, batch: torch.Tensor
) -> Callable[[], None]:
    """dictionary_learning: `TopKTrainer.update`, numbered from 0.

    Included: forward pass, loss and its auxiliary term (zero until a latent has been silent for ten
    million rows), firing counts, backward, removal of the gradient along the decoder, gradient
    clipping to norm 1, Adam and its warm-up, decoder back to unit norm, `loss.item()`. Call 0 also
    finds the geometric median of the batch and trains at rate 0; the running threshold joins in
    after call 1000.
    """
    trainer = _load("dictionary-learning", "dictionary_learning.trainers.top_k").TopKTrainer(
        steps=_STEPS,
        activation_dim=d_in,
        dict_size=n_latents,
        k=k,
        layer=0,
        lm_name="none",
        device="cpu",
    )
    numbers = count()

    def step() -> None:
        trainer.update(next(numbers), batch)

    return step


@dataclass(frozen=True)
class Run:
    """What a rival's trainer is told, in bitlens's words.

    Rows are standardised: centred, of mean square 1 a component.
    """

    architecture: str
    """relu, gated, jumprelu, topk or batch_topk"""
    d_in: int
    n_latents: int
    steps: int
    batch_size: int
    sparsity: float
    """k of topk and batch_topk; for dictionary_learning's jumprelu the l0 that it aims at;
    otherwise the weight of the sparsity term beside the squared error of a standardised row"""
    lr: float | None = None
    """by default the rival's own"""

    @property
    def warm_up(self) -> int:
        """Steps in which the learning rate and the sparsity weight rise: 5 % of the run, as
        bitlens's own."""
        return max(2, self.steps // 20)

    @property
    def decay(self) -> int:
        """Steps in which the learning rate falls to zero: the last 30 %, as bitlens's own."""
        return 3 * self.steps // 10

    @property
    def patience(self) -> int:
        """Batches after which a silent latent counts as dead, as for bitlens's own."""
        return max(20, self.steps // 20)


class Trainer(NamedTuple):
    """A rival under way."""

    lr: float
    step: Callable[[torch.Tensor], object]
    """takes the next batch of standardised rows `[batch_size, d_in]`"""
    finish: Callable[[], Any]
    """-> the rival's own autoencoder for use after training: `encode` and `decode` of standardised
    rows"""


def sae_lens_trainer(run: Run) -> Trainer:
    """SAELens: `SAETrainer.step` of the architecture's training SAE, and the inference SAE that it
    saves.

    Its weights are meant for rows of mean squared norm d_in (`expected_average_only_in`), as
    standardised rows are.
    """
    rival, settings = _load("sae-lens", "sae_lens"), _load("sae-lens", "sae_lens.config")
    l1 = {"l1_coefficient": run.sparsity, "l1_warm_up_steps": run.warm_up}
    kind, options = {
        "relu": ("Standard", l1),
        "gated": ("Gated", l1),
        "jumprelu": ("JumpReLU", {"l0_coefficient": run.sparsity, "l0_warm_up_steps": run.warm_up}),
        "topk": ("TopK", {"k": round(run.sparsity)}),
        # the default of 0.01 takes some thousand steps to forget that the threshold began at zero
        "batch_topk": (
            "BatchTopK",
            {"k": run.sparsity, "topk_threshold_lr": max(0.01, 20 / run.steps)},
        ),
    }[run.architecture]
    config = getattr(rival, f"{kind}TrainingSAEConfig")(
        d_in=run.d_in, d_sae=run.n_latents, **options
    )
    sae = getattr(rival, f"{kind}TrainingSAE")(config)
    lr = settings.SAETrainerConfig.lr if run.lr is None else run.lr
    cfg = settings.SAETrainerConfig(
        total_training_samples=run.steps * run.batch_size,
        train_batch_size_samples=run.batch_size,
        lr=lr,
        lr_end=lr,
        lr_warm_up_steps=run.warm_up,
        lr_decay_steps=run.decay,
        dead_feature_window=run.patience,
    )
    trainer = rival.SAETrainer(cfg, sae, iter(()))

    def step(rows: torch.Tensor) -> None:
        trainer.step(rows)
        trainer.n_training_steps += 1

    def finish() -> Any:
        with tempfile.TemporaryDirectory() as folder:
            sae.save_inference_model(folder)
            return rival.SAE.load_from_disk(folder)

    return Trainer(lr, step, finish)


def dictionary_learning_trainer(run: Run) -> Trainer:
    """dictionary_learning: `update` of the architecture's trainer, on rows scaled to mean squared
    norm 1 with biases scaled back at the end, as its `trainSAE(normalize_activations=True)` does:
    its penalties and bandwidths are meant for those."""
    norm = run.d_in**0.5
    warm_up = {"sparsity_warmup_steps": run.warm_up}
    l1 = {"l1_penalty": run.sparsity / norm, **warm_up}
    threshold = {"threshold_start_step": run.warm_up, "threshold_beta": 1 - 1 / run.warm_up}
    kind, options = {
        "relu": ("StandardTrainer", l1),
        "gated": ("GatedSAETrainer", l1),
        "jumprelu": ("JumpReluTrainer", {"target_l0": run.sparsity, **warm_up}),
        "topk": ("TopKTrainer", {"k": round(run.sparsity), **threshold}),
        "batch_topk": ("BatchTopKTrainer", {"k": round(run.sparsity), **threshold}),
    }[run.architecture]
    trainer = getattr(_load("dictionary-learning", "dictionary_learning.trainers"), kind)(
        steps=run.steps,
        activation_dim=run.d_in,
        dict_size=run.n_latents,
        layer=0,
        lm_name="none",
        device="cpu",
        warmup_steps=run.warm_up,
        decay_start=run.steps - run.decay,
        **({} if run.lr is None else {"lr": run.lr}),
        **options,
    )
    trainer.dead_feature_threshold = run.patience * run.batch_size
    numbers = count()

    def finish() -> Any:
        trainer.ae.scale_biases(norm)
        return trainer.ae

    return Trainer(trainer.lr, lambda rows: trainer.update(next(numbers), rows / norm), finish)


TRAINERS: dict[str, Callable[[Run], Trainer]] = {
    "sae-lens": sae_lens_trainer,
    "dictionary-learning": dictionary_learning_trainer,
}


def faiss_search(
    codes: np.ndarray, queries: np.ndarray, k: int
) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
    """faiss: exact Hamming search with `IndexBinaryFlat` over codes packed in uint64 words, one
    code a row.

    Included: the search alone, as (distances, indices), nearest first. The index, a copy of the
    codes, is built before.
    """
    index = _load("faiss-cpu", "faiss").IndexBinaryFlat(codes.shape[1] * 64)
    index.add(_as_bytes(codes))
    wanted = _as_bytes(queries)
    return lambda: index.search(wanted, k)


def _load(name: str, module: str) -> Any:
    """A module of the rival `name`, imported only now: importing one takes seconds."""
    if name not in versions():
        raise BitlensError(
            f"The comparison with {name} needs it installed: `make bench` does, and docs/speed.md "
            "says how."
        )
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise BitlensError(
            f"The comparison with {name} is left out, for it does not import: {error}."
        ) from error


def _as_bytes(words: np.ndarray) -> np.ndarray:
    """Rows of uint64 words as rows of bytes; the order of bytes in a word does not change a Hamming
    distance."""
    return np.ascontiguousarray(words, np.uint64).view(np.uint8)
