"""Settings of the study `sequence`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bitlens.errors import BitlensError
from bitlens.hidden.config import TextConfig
from bitlens.options import BUNDLED
from bitlens.studies.options import ModelStudyConfig

KINDS = {"cell": "an autoencoder for each position", "shared": "one autoencoder for all positions"}
FEWEST_TRAINING, FEWEST_TEST = 64, 8  # rows of a cell


@dataclass(frozen=True)
class SequenceConfig(ModelStudyConfig, TextConfig):
    """Settings of the study `sequence`."""

    text: tuple[str, ...] = (BUNDLED,)
    context: int = 64
    positions: tuple[int, ...] = ()
    """positions in the context, from 0; empty: first, last and the powers of two between"""
    max_tokens: int | None = None
    """read so many tokens of text; None: all"""
    max_rows: int | None = None
    """rows of a cell, at most; it has the same number at every position in any case"""
    test_fraction: float = 0.1
    """share of the documents that is held out of training"""
    autoencoders: tuple[Literal["cell", "shared"], ...] = ("shared",)
    """shared: one for a layer, measured at each position; cell: one for each layer and position,
    which takes thousands of rows at each"""
    store_dtype: Literal["auto", "float16", "bfloat16", "float32"] = "auto"
    """of the stored hidden states; auto: the language model's"""

    def refuse_nonsense(self) -> None:
        """Raise BitlensError for what is wrong before any file is read."""
        if not self.seeds or not self.autoencoders or not set(self.autoencoders) <= set(KINDS):
            raise BitlensError(
                "The study needs at least one seed, and autoencoders of the kinds 'cell', 'shared' "
                "or both."
            )
        fewest = FEWEST_TRAINING + FEWEST_TEST
        if self.max_rows is not None and self.max_rows < fewest:
            raise BitlensError(f"`max_rows` must be at least {fewest}, not {self.max_rows}.")
