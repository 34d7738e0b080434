"""Explanations without words: the texts themselves where a latent is on, and where it is not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

LIKE, UNLIKE = "+ ", "- "


class Examples(NamedTuple):
    """What stands in place of a phrase; texts have one token marked, and are of one line each."""

    like: tuple[str, ...]
    """texts on whose marked token the latent is on"""
    unlike: tuple[str, ...]
    """texts on whose marked token it is off"""

    @property
    def explanation(self) -> str:
        """As an explanation, a line for each text."""
        marks = [LIKE + text for text in self.like] + [UNLIKE + text for text in self.unlike]
        return "\n".join(mark.replace("\r", " ") for mark in marks)

    @classmethod
    def of(cls, explanation: str) -> Examples | None:
        """Of an explanation; None of one in words, which is of a single line."""
        lines = explanation.split("\n")
        if len(lines) < 2 or not all(line.startswith((LIKE, UNLIKE)) for line in lines):
            return None
        like, unlike = (
            tuple(line.removeprefix(mark) for line in lines if line.startswith(mark))
            for mark in (LIKE, UNLIKE)
        )
        return cls(like, unlike)

    def __str__(self) -> str:
        return "tokens like " + ", ".join(f"«{marked(text)}»" for text in self.like)


def marked(text: str) -> str:
    """The token of a text that is «marked»; empty where none is."""
    return text.partition("«")[2].partition("»")[0]


class ExampleExplainer:
    """Asks nobody: the explanation is the examples."""

    name = "the examples themselves"

    def explain(
        self, examples: Sequence[Sequence[str]], others: Sequence[Sequence[str]] = ()
    ) -> list[str]:
        """The examples of each latent, and of `others`, on whose tokens it is off."""
        unlike = others or [()] * len(examples)
        pairs = zip(examples, unlike, strict=True)
        return [Examples(tuple(on), tuple(off)).explanation for on, off in pairs]
