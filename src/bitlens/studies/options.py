"""Settings that several studies share, in a module that imports nothing heavy."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bitlens.errors import BitlensError
from bitlens.options import BUNDLED
from bitlens.training.config import Preset, TrainConfig

if TYPE_CHECKING:
    from bitlens.hidden import LanguageModel


@dataclass
class RunOptions:
    """How a study is run, whatever it measures."""

    out: Path
    """folder of the study"""
    workers: int = 1
    """processes that train and measure, each with one thread where they are several"""
    resume: bool = False
    """continue a study, and keep what was measured under the same settings"""
    overwrite: bool = False
    """replace a study that is there"""


@dataclass(frozen=True, kw_only=True)
class ModelStudyConfig:
    """A language model, its hook points, and the autoencoders of each."""

    model: str = BUNDLED
    """Hugging Face model, by name or folder; 'bundled' is the one that comes with bitlens"""
    revision: str | None = None
    """of a model from the hub"""
    dtype: str = "auto"
    """of the language model: auto, float32, bfloat16 or float16"""
    device: str = "auto"
    """auto: the GPU if there is one"""
    batch_size: int = 16
    """contexts or prompts in a forward pass of the language model"""
    hooks: tuple[str, ...] = ()
    """hook points, in the order of their depth; empty: the output of every layer"""
    seeds: tuple[int, ...] = (0,)
    """each draws everything and trains all autoencoders again"""
    n_latents: int | None = None
    """latents of every autoencoder; None: four times the width of the hidden states"""
    steps: int = 3000
    """optimiser steps of every autoencoder"""
    preset: Preset = "measure"
    """of the training of every autoencoder"""
    price: float | None = None
    """of a bit, `lam` of the training: the fvu that one bit a dimension is worth"""

    def load(self, causal: bool = False) -> LanguageModel:
        """The language model, hooked. BitlensError for settings that cannot train on its widths."""
        from bitlens.hidden import LanguageModel

        loading = {"dtype": self.dtype, "device": self.device, "revision": self.revision}
        hooks = list(self.hooks)
        if not hooks:  # its first layer alone tells how many there are
            first = LanguageModel.load(self.model, ["layers.0"], **loading)
            count = first.config.get_text_config().num_hidden_layers
            hooks = [f"layers.{i}" for i in self.layers(count)]
        model = LanguageModel.load(self.model, hooks, causal=causal, **loading)
        self.training(0).resolved(max(model.widths().values()), "cpu")
        return model

    def layers(self, count: int) -> Iterable[int]:
        """Those that are read where no hook points are named, of so many."""
        return range(count)

    def training(self, seed: int) -> TrainConfig:
        """Of every autoencoder."""
        return TrainConfig(
            preset=self.preset,
            lam=self.price,
            n_latents=self.n_latents,
            steps=self.steps,
            device=self.device,
            seed=seed,
        )


def refuse_unknown(kind: str, names: Iterable[str], known: Collection[str]) -> None:
    """Raise BitlensError for the first name that is none of the known ones."""
    for name in names:
        if name not in known:
            raise BitlensError(f"There is no {kind} '{name}'; choose from: {', '.join(known)}.")
