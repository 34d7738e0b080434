"""What `bitlens saebench` is told; nothing heavy is imported here."""

from dataclasses import dataclass
from typing import Literal

Evaluation = Literal["core", "meta_structure"]


@dataclass(frozen=True)
class BenchConfig:
    """What is run, and on how much text."""

    evaluations: tuple[Evaluation, ...] = ("core", "meta_structure")
    """core: how near, how sparse, what the language model loses. meta_structure: how much of the
    dictionary a smaller dictionary explains"""
    batches: int = 8
    """of contexts, for each of core's two halves"""
    batch_size: int = 8
    """contexts a batch"""
    context: int = 128
    """tokens a context"""
    bos: bool = True
    """begin every context with the BOS token, which is left out of every number; with --no-bos,
    none does"""
