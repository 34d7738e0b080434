"""What the studies can be told, in a module that imports nothing heavy: the command line reads it for its help."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from bitlens.errors import BitlensError
from bitlens.options import BUNDLED, Unit
from bitlens.training.config import Preset, TrainConfig

FAMILIES = ("independent", "pairs", "chain", "tree", "nested", "magnitudes", "noise")
NESTED = 4  # bits of one thermometer
SYNTHETIC_VARIANTS: dict[str, dict[str, Any]] = {
    "measure": {},
    "features": {"preset": "features"},
    "step": {"preset": "step"},
    "paper gradient": {"surrogate": "paper"},
    "straight-through": {"surrogate": "ste"},
    "no entropy": {"lam": 0.0},
    "no pruning": {"prune_at": (), "regrow_at": ()},
    "covariance": {"gamma": 10.0},
    "covariance, no pruning": {"gamma": 10.0, "prune_at": (), "regrow_at": ()},
    "paper": {"preset": "paper"},
}
"""What is changed of the preset `measure`; `paper` is all of the paper's own settings but the number of steps."""
Kind = Literal["cell", "shared"]
Condition = Literal["correct", "shuffled", "unrelated"]
NO_DEMONSTRATIONS = "none"  # the condition of k = 0, which all others share
FEWEST_PROMPTS = 50
BAE = "BAE"
ARCHITECTURES: dict[str, dict[str, Any]] = {
    BAE: {},
    "ReLU": {"architecture": "relu"},
    "Gated": {"architecture": "gated"},
    "TopK": {"architecture": "topk"},
    "BatchTopK": {"architecture": "batch_topk"},
    "JumpReLU": {"architecture": "jumprelu"},
    "random": {"architecture": "random"},
    "PCA": {"architecture": "pca"},
}
COMPARE_VARIANTS: dict[str, dict[str, Any]] = {
    "BAE, step": {"preset": "step"},
    "BAE, measure": {"preset": "measure"},
}


@dataclass(frozen=True)
class SyntheticConfig:
    """Settings of the study `synthetic`. Nothing is tuned for a case: all are trained alike."""

    families: tuple[str, ...] = FAMILIES
    """kinds of planted bits"""
    variants: tuple[str, ...] = tuple(SYNTHETIC_VARIANTS)
    """how autoencoders are trained: measure, on everything; all others on independent bits"""
    ranks: tuple[int, ...] = (4, 8, 16, 32, 48, 64)
    """numbers of planted bits; families in which bits depend on one another take those from 16"""
    rates: tuple[float, ...] = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
    """chances of a bit to be on, where bits are independent"""
    other_rates: tuple[float, ...] = (0.5, 0.1)
    """the same in all other families, and for all variants but measure"""
    spreads: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4, 0.8)
    """of magnitudes: standard deviation of their logarithm"""
    noises: tuple[float, ...] = (0.01, 0.03, 0.1, 0.2, 0.4)
    """share of noise in the variance"""
    seeds: tuple[int, ...] = (0, 1, 2)
    """a source, its rows and the training are drawn anew for each"""
    d_in: int = 64
    """width of the hidden states"""
    n_latents: int = 256
    """latents of the autoencoder"""
    rows: int = 8192
    """rows to train on"""
    measured_rows: int = 16384
    """rows to measure on, all of them new"""
    steps: int = 2000
    """training steps"""

    def cells(self) -> list[dict[str, Any]]:
        """Everything that is measured, one dict of settings each."""
        for name, values, known in (
            ("family", self.families, FAMILIES),
            ("variant", self.variants, tuple(SYNTHETIC_VARIANTS)),
        ):
            for value in values:
                if value not in known:
                    raise BitlensError(
                        f"There is no {name} '{value}'; choose from: {', '.join(known)}."
                    )
        if not self.ranks or max(self.ranks) > self.d_in:
            raise BitlensError(
                f"Ranks of {list(self.ranks)} do not fit hidden states of width {self.d_in}."
            )
        common, broad = self.other_rates, [r for r in self.ranks if r >= 16]
        middle = [r for r in self.ranks if r == 32] or [max(self.ranks)]
        plans: list[tuple[str, str, Sequence[int], Sequence[float], Sequence[float]]] = []
        for family in self.families:
            if family == "independent":
                plans += [(family, "measure", self.ranks, self.rates, [0.0])]
            elif family == "nested":
                plans += [(family, "measure", [r for r in broad if r % NESTED == 0], [0.5], [0.0])]
            elif family in ("magnitudes", "noise"):
                plans += [
                    (
                        family,
                        "measure",
                        middle,
                        common,
                        self.spreads if family == "magnitudes" else self.noises,
                    )
                ]
            else:
                plans += [(family, "measure", broad, common, [0.0])]
        spread = sorted({self.ranks[len(self.ranks) // 3], self.ranks[-1], *middle})
        plans += [
            ("independent", v, spread, common, [0.0]) for v in self.variants if v != "measure"
        ]
        return [
            {"family": family, "variant": variant, "rank": rank, "p": p, "strength": strength, "seed": seed}
            for family, variant, ranks, rates, strengths in plans
            for rank in ranks for p in rates for strength in strengths for seed in self.seeds
        ]  # fmt: skip


@dataclass(frozen=True)
class SequenceConfig:
    """Settings of the study."""

    model: str = BUNDLED
    """Hugging Face model, by name or folder; 'bundled' is the one that comes with bitlens"""
    text: tuple[str, ...] = (BUNDLED,)
    """files (.txt, .jsonl, .parquet, also .gz), folders of them, datasets (NAME or NAME:CONFIG), or 'bundled'"""
    hooks: tuple[str, ...] = ()
    """hook points, in the order of their depth; empty: the output of every layer"""
    context: int = 64
    """tokens the model sees at once"""
    positions: tuple[int, ...] = ()
    """positions in the context, from 0; empty: the first and the last that hold text, and the powers of two between"""
    packed: bool = True
    """documents one after another until a context is full; with --no-packed it holds the beginning of one"""
    bos: bool | None = None
    """begin every context with the BOS token; None: if the tokenizer does"""
    text_column: str = "text"
    """column of the text in tables and datasets"""
    split: str = "train"
    """split of a dataset"""
    streaming: bool = False
    """read a dataset over the network without downloading it first; with max_tokens, or it is read to its end"""
    documents: Unit = "auto"
    """what a document is; file: a file, or row of a table; auto: the same, but pieces of a long one"""
    max_tokens: int | None = None
    """read so many tokens of text; None: all"""
    max_rows: int | None = None
    """rows of a cell, at most; it has the same number at every position in any case"""
    test_fraction: float = 0.1
    """share of the documents that is held out of training"""
    autoencoders: tuple[Kind, ...] = ("cell", "shared")
    """cell: one for every layer and position; shared: one for every layer, measured at each position"""
    seeds: tuple[int, ...] = (0,)
    """each trains all autoencoders again"""
    preset: Preset = "measure"
    """of the training: measure, features or paper"""
    n_latents: int | None = None
    """latents of every autoencoder; None: four times the width of the hidden states"""
    steps: int = 3000
    """optimiser steps of every autoencoder"""
    batch_size: int = 16
    """contexts in a forward pass of the language model"""
    dtype: str = "auto"
    """of the language model: auto, float32, bfloat16 or float16"""
    store_dtype: Literal["auto", "float16", "bfloat16", "float32"] = "auto"
    """of the stored hidden states; auto: the language model's"""
    device: str = "auto"
    """auto: the GPU if there is one"""

    def training(self, seed: int) -> TrainConfig:
        return TrainConfig(
            preset=self.preset, n_latents=self.n_latents, steps=self.steps, device=self.device, seed=seed
        )  # fmt: skip


@dataclass(frozen=True)
class IclConfig:
    """Settings of the study."""

    data: str
    """labelled texts: a file (.jsonl, .jsonl.gz) or a dataset (NAME, NAME:CONFIG or a saved folder)"""
    model: str = BUNDLED
    """causal language model, by name or folder; 'bundled' is the one that comes with bitlens"""
    text_column: str = "text"
    """column of the text"""
    label_column: str = "label"
    """column of the label, whose name is the word that the model is to answer"""
    split: str = "train"
    """split of a dataset"""
    template: str = "{text}\nAnswer: {label}\n\n"
    """how a demonstration is written; the query is this up to the space before its label"""
    ks: tuple[int, ...] = (0, 1, 2, 4, 8, 16)
    """numbers of demonstrations"""
    conditions: tuple[Condition, ...] = ("correct", "shuffled", "unrelated")
    """correct: as labelled; shuffled: labels dealt anew, right by chance only; unrelated: other texts under the labels"""
    balanced: bool = False
    """every label equally often in a prompt, to within one; otherwise as often as they come"""
    unrelated: str | None = None
    """text whose sentences are the unrelated ones, of any kind that a corpus may be; None: the words of all texts of the
    data, dealt at random into texts of the same lengths"""
    n_prompts: int = 4000
    """prompts of each condition and k, with the same queries; the last fifth is held out"""
    max_tokens: int | None = None
    """leave out texts that with their label have more tokens; None: as many as let the largest k fit into the context"""
    hooks: tuple[str, ...] = ()
    """hook points, in the order of their depth; empty: the output of every layer"""
    seeds: tuple[int, ...] = (0,)
    """each draws all prompts and trains all autoencoders again"""
    n_latents: int | None = None
    """latents of every autoencoder; None: four times the width of the hidden states"""
    steps: int = 2000
    """optimiser steps of every autoencoder"""
    batch_size: int = 16
    """prompts in a forward pass of the language model"""
    dtype: str = "auto"
    """of the language model: auto, float32, bfloat16 or float16"""
    revision: str | None = None
    """of a model from the hub"""
    device: str = "auto"
    """auto: the GPU if there is one"""

    def refuse_nonsense(self) -> None:
        """Whatever is wrong before any file is read."""
        known = get_args(Condition)
        if not self.ks or min(self.ks) < 0:
            raise BitlensError(
                f"`ks` must be numbers of demonstrations from 0, not {list(self.ks)}."
            )
        if not self.seeds or not self.conditions or not set(self.conditions) <= set(known):
            raise BitlensError(f"Name at least one seed, and conditions among {', '.join(known)}.")
        if self.n_prompts < FEWEST_PROMPTS:
            raise BitlensError(
                f"{self.n_prompts} prompts are too few to measure on; take at least {FEWEST_PROMPTS}."
            )

    def sets_of_prompts(self) -> list[tuple[str, int, int]]:
        """(condition, k, seed) of every set; without demonstrations the conditions are one."""
        named = lambda k: dict.fromkeys(self.conditions) if k else [NO_DEMONSTRATIONS]  # noqa: E731
        return [
            (c, k, seed)
            for seed in dict.fromkeys(self.seeds)
            for k in sorted(set(self.ks))
            for c in named(k)
        ]


@dataclass(frozen=True)
class CompareConfig:
    """Settings of the study `compare`. Every baseline is led to the l0 of the BAE of the same width and price."""

    store: str = ""
    """a store of hidden states; by default layers.2 of the bundled model, harvested into the study's folder"""
    architectures: tuple[str, ...] = tuple(ARCHITECTURES)
    """what is compared, with every seed"""
    variants: tuple[str, ...] = tuple(COMPARE_VARIANTS)
    """binary autoencoders of other kinds, with the first seed"""
    n_latents: tuple[int, ...] = ()
    """widths; by default four times that of the hidden states"""
    prices: tuple[float, ...] = (0.1, 0.2)
    """prices of a bit, hence sparsities; those after the first with the first seed"""
    seeds: tuple[int, ...] = (0, 1, 2)
    """of the training"""
    steps: int = 3000
    """training steps"""
    labels: Path | None = None
    """labels of the store's text, as `bitlens labels` reads them; by default those that any text has"""
    contexts: int = 64
    """contexts that the language model reads for the cross-entropy numbers"""
    test_fraction: float = field(default=0.1)
    """share of the documents that is held out"""

    def cells(self, name: str, width: int) -> list[dict[str, Any]]:
        """What is measured of one architecture at one width."""
        prices, seeds = (
            (self.prices, self.seeds)
            if name in self.architectures
            else (self.prices[:1], self.seeds[:1])
        )
        if name == "PCA":  # closed form: seeds say nothing
            seeds = seeds[:1]
        return [
            {"name": name, "n_latents": width, "price": price, "seed": seed}
            for i, price in enumerate(prices)
            for seed in (seeds if i == 0 else seeds[:1])
        ]

    def refuse_unknown(self) -> None:
        for kind, names, known in (
            ("architecture", self.architectures, ARCHITECTURES), ("variant", self.variants, COMPARE_VARIANTS)
        ):  # fmt: skip
            for name in names:
                if name not in known:
                    raise BitlensError(
                        f"There is no {kind} '{name}'; choose from: {', '.join(known)}."
                    )
        if BAE not in self.architectures:
            raise BitlensError(
                f"The comparison needs '{BAE}' among its architectures: its l0 is that of all others."
            )
        if not self.prices or not self.seeds:
            raise BitlensError("The comparison needs at least one price and one seed.")
