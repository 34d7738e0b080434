"""One training step, or one search, of other libraries, each with its own defaults and run by its own code.

Every function builds the rival once and returns what is to be timed. Call that once before the clock starts: first
calls allocate. All of it runs on the CPU in float32, with as many threads as torch and OpenMP are given.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from itertools import count, repeat
from typing import Any

import numpy as np
import torch

from bitlens.errors import BitlensError

RIVALS = ("sae-lens", "dictionary-learning", "faiss-cpu")
_STEPS = 100_000  # the length of run a trainer is told to expect; neither rival's step depends on it


def versions() -> dict[str, str]:
    """The installed version of each rival; absent ones are left out."""
    found = {}
    for name in RIVALS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def sae_lens_topk_step(d_in: int, n_latents: int, k: int, batch: torch.Tensor) -> Callable[[], None]:
    """SAELens: `SAETrainer.step` of a `TopKTrainingSAE`, with the step counter moved on as `SAETrainer.fit` does.

    Included: forward pass with pre-activations scaled by the decoder norms, loss and its auxiliary term (zero until
    a latent has been silent for 1000 steps), firing statistics, backward, gradient clipping to norm 1, Adam and the
    schedules. Left out: progress bar, checkpoints and wandb, which `fit` adds around the step.
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


def dictionary_learning_topk_step(d_in: int, n_latents: int, k: int, batch: torch.Tensor) -> Callable[[], None]:
    """dictionary_learning: `TopKTrainer.update`, numbered from 0.

    Included: forward pass, loss and its auxiliary term (zero until a latent has been silent for ten million rows),
    firing counts, backward, removal of the gradient along the decoder, gradient clipping to norm 1, Adam and its
    warm-up, decoder back to unit norm, `loss.item()`. Call 0 also finds the geometric median of the batch and trains
    at rate 0; the running threshold joins in after call 1000.
    """
    trainer = _load("dictionary-learning", "dictionary_learning.trainers.top_k").TopKTrainer(
        steps=_STEPS, activation_dim=d_in, dict_size=n_latents, k=k, layer=0, lm_name="none", device="cpu"
    )
    numbers = count()

    def step() -> None:
        trainer.update(next(numbers), batch)

    return step


def faiss_search(codes: np.ndarray, queries: np.ndarray, k: int) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
    """faiss: exact Hamming search with `IndexBinaryFlat` over codes packed in uint64 words, one code a row.

    Included: the search alone, as (distances, indices), nearest first. The index, a copy of the codes, is built before.
    """
    index = _load("faiss-cpu", "faiss").IndexBinaryFlat(codes.shape[1] * 64)
    index.add(_as_bytes(codes))
    wanted = _as_bytes(queries)
    return lambda: index.search(wanted, k)


def _load(name: str, module: str) -> Any:
    """A module of the rival `name`, imported only now: importing one takes seconds."""
    if name not in versions():
        raise BitlensError(
            f"The comparison with {name} needs it installed: `make bench` does, and docs/speed.md says how."
        )
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise BitlensError(f"The comparison with {name} is left out, for it does not import: {error}.") from error


def _as_bytes(words: np.ndarray) -> np.ndarray:
    """Rows of uint64 words as rows of bytes; the order of bytes in a word does not change a Hamming distance."""
    return np.ascontiguousarray(words, np.uint64).view(np.uint8)
