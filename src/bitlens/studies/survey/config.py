"""Settings of the study `survey`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from bitlens.errors import BitlensError
from bitlens.hidden.config import TextConfig
from bitlens.options import BUNDLED
from bitlens.studies.options import ModelStudyConfig
from bitlens.training.config import Preset

BAE, RIVAL = "BAE", "TopK"
ARCHITECTURES = {BAE: "bae", RIVAL: "topk"}


@dataclass(frozen=True)
class SurveyConfig(ModelStudyConfig, TextConfig):
    """Settings of the study `survey`."""

    text: tuple[str, ...] = (BUNDLED,)
    hooks: tuple[str, ...] = ()
    """hook points, in the order of their depth; empty: the layer in the middle"""
    max_rows: int | None = None
    """read so many tokens of text; None: all"""
    test_fraction: float = 0.1
    """share of the documents that is held out of training"""
    store_dtype: Literal["auto", "float16", "bfloat16", "float32"] = "auto"
    """of the stored hidden states; auto: the language model's"""
    preset: Preset = "features"
    contexts: int = 64
    """contexts that the language model reads for the cross-entropy numbers"""

    def layers(self, count: int) -> Iterable[int]:
        """The one in the middle."""
        return [(count - 1) // 2]

    def refuse_nonsense(self) -> None:
        """Raise BitlensError for what is wrong before any file is read."""
        if not self.seeds:
            raise BitlensError("The survey needs at least one seed.")
        if self.contexts < 2:
            raise BitlensError(f"`contexts` must be at least 2, not {self.contexts}.")
