"""Choices that settings are made of. Imports nothing heavy: the command line's help needs them."""

from pathlib import Path
from typing import Literal

Coding = Literal["descent", "step"]
Surrogate = Literal["clipped", "sigmoid", "ste", "paper"]
PriceKind = Literal["entropy", "onbit"]
Weighting = Literal["scaled", "paper"]
Logger = Literal["tensorboard", "wandb"]
Unit = Literal["auto", "file", "paragraph", "line"]
TEST_FRACTION = 0.1  # share of the documents that is held out where nobody says another
BUNDLED = "bundled"  # the language model and the text that come with the package
BUNDLED_FOLDER = Path(__file__).parent / BUNDLED
