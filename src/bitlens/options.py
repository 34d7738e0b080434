"""Choices that settings are made of, in a module that imports nothing heavy: the command line reads them for its help."""

from typing import Literal

Coding = Literal["descent", "step"]
Surrogate = Literal["clipped", "sigmoid", "ste", "paper"]
PriceKind = Literal["entropy", "onbit"]
Weighting = Literal["scaled", "paper"]
Logger = Literal["tensorboard", "wandb"]
Unit = Literal["auto", "file", "paragraph", "line"]
TEST_FRACTION = 0.1  # share of the documents that is held out where nobody says another
BUNDLED = "bundled"  # the language model and the text that come with the package
