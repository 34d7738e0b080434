"""Settings of the study `compare`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitlens.errors import BitlensError
from bitlens.studies.options import refuse_unknown

BAE = "BAE"
# of each what it is trained with beside the settings of the study: where another learning rate
# suits one better than its default, it stands here
ARCHITECTURES: dict[str, dict[str, Any]] = {
    BAE: {},
    "ReLU": {"architecture": "relu"},
    "Gated": {"architecture": "gated"},
    "TopK": {"architecture": "topk", "lr": 3e-3},
    "BatchTopK": {"architecture": "batch_topk", "lr": 3e-3},
    "JumpReLU": {"architecture": "jumprelu"},
    "random": {"architecture": "random"},
    "PCA": {"architecture": "pca"},
}
NULLS = ("random", "PCA")
"""Nothing is trained."""
BINARY_VARIANTS: dict[str, dict[str, Any]] = {
    "BAE, step": {"preset": "step"},
    "BAE, measure": {"preset": "measure"},
}
SEARCHED = {"TopK, pursuit": "TopK"}
"""Sparse autoencoders whose codes are searched, as a BAE's bits are, by orthogonal matching pursuit
on the decoder: by the name of what was trained."""
VARIANTS = (*BINARY_VARIANTS, *SEARCHED)


@dataclass(frozen=True)
class CompareConfig:
    """Settings of the study `compare`. Baselines get the l0 of the BAE of that width and price."""

    store: str = ""
    """a store of hidden states; by default one of layers.2 of the bundled model is harvested"""
    architectures: tuple[str, ...] = tuple(ARCHITECTURES)
    """what is compared, with every seed"""
    variants: tuple[str, ...] = VARIANTS
    """binary autoencoders of other kinds, and TopK with codes by matching pursuit, with the first
    seed"""
    n_latents: tuple[int, ...] = ()
    """widths; by default four times that of the hidden states"""
    prices: tuple[float, ...] = (0.1, 0.05, 0.2, 0.4)
    """prices of a bit, hence sparsities; those after the first with the first seed and width"""
    seeds: tuple[int, ...] = (0, 1, 2)
    """of the training"""
    steps: int = 3000
    """training steps"""
    labels: Path | None = None
    """labels of the text, as `bitlens labels` reads them; by default those that any text has"""
    contexts: int = 64
    """contexts that the language model reads for the cross-entropy numbers"""
    test_fraction: float = 0.1
    """share of the documents that is held out"""
    device: str = "auto"
    """auto: the GPU if there is one"""
    dtype: str = "auto"
    """of the language model: auto, float32, bfloat16 or float16"""

    def cells(self, name: str, width: int, first: bool = True) -> list[dict[str, Any]]:
        """What is measured of one architecture at one width, the first one or a later one."""
        compared = name in self.architectures
        several = first and name not in (*NULLS, *BINARY_VARIANTS)
        prices = self.prices if several else self.prices[:1]
        # only the first price with every seed; those of PCA, a closed form, say nothing
        seeds = {self.prices[0]: self.seeds} if compared and name != "PCA" else {}
        return [
            {"name": name, "n_latents": width, "price": price, "seed": seed}
            for price in prices
            for seed in seeds.get(price, self.seeds[:1])
        ]

    def refuse_nonsense(self) -> None:
        """Raise BitlensError for what cannot be compared."""
        refuse_unknown("architecture", self.architectures, ARCHITECTURES)
        refuse_unknown("variant", self.variants, VARIANTS)
        if BAE not in self.architectures:
            raise BitlensError(f"It needs '{BAE}' among its architectures: all get its l0.")
        if not self.prices or not self.seeds:
            raise BitlensError("The comparison needs at least one price and one seed.")
        for name in self.variants:
            if (searched := SEARCHED.get(name, BAE)) not in self.architectures:
                raise BitlensError(f"'{name}' needs '{searched}' among the architectures.")
