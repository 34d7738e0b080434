"""Dictionaries compared: the latents of one in terms of those of another."""

from bitlens.matching.dense import Explained, explain, explain_dense
from bitlens.matching.latents import (
    Matching,
    Stability,
    Summary,
    likeness,
    match,
    stability,
    summary,
)
from bitlens.matching.pairs import Pairs

__all__ = [
    "Explained",
    "Matching",
    "Pairs",
    "Stability",
    "Summary",
    "explain",
    "explain_dense",
    "likeness",
    "match",
    "stability",
    "summary",
]
