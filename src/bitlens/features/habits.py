"""The habits of a latent, counted over the rows in which it is on: bursts, positions, tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from bitlens.bits.codes import Codes
from bitlens.features.on_rows import explainers_part
from bitlens.features.token_scores import TokenSets
from bitlens.hidden.pieces import token_texts
from bitlens.labels.sources import following, position_labels, require_tokens

NEXT = 16  # rows in which a latent may be on again


@dataclass(frozen=True)
class Preference:
    """A token that a latent is on at, or before, more often than at others."""

    token: int
    text: str
    count: int
    """on-rows"""
    share: float
    """of the latent's on-rows"""
    lift: float
    """the latent's rate at this token over its rate"""


class PlaceHabits:
    """How on-rows lie in documents and contexts, against all rows of usual norm."""

    def __init__(self, codes: Codes) -> None:
        document = codes.document[codes.usual].numpy()
        ends = np.append(np.flatnonzero(np.diff(document)) + 1, len(document))
        self.rows, self.sizes = len(document), np.diff(ends, prepend=0)
        self.document = np.repeat(np.arange(len(ends)), self.sizes)
        self.end = np.repeat(ends, self.sizes)
        self.positions = position_labels(codes.position[codes.usual].clamp_min(0))
        self.rows_at = self.positions.ids.bincount().numpy()

    def measure(self, on: np.ndarray) -> dict[str, Any]:
        """dispersion, again and positions of a `Profile`; on: the rows with the latent on."""
        rate = len(on) / self.rows
        on_at = np.bincount(self.positions.ids.numpy()[on], minlength=len(self.rows_at))
        with np.errstate(invalid="ignore"):
            lifts = (on_at / self.rows_at / rate if rate else on_at * math.nan).tolist()
        return {
            "dispersion": self._dispersion(on, rate),
            "again": self._again(on, rate),
            "positions": dict(zip(self.positions.names, lifts, strict=True)),
        }

    def _dispersion(self, on: np.ndarray, rate: float) -> float:
        """Pearson's index over documents, which are of different lengths."""
        if len(self.sizes) < 2 or not 0 < rate < 1:
            return math.nan
        surplus = np.bincount(self.document[on], minlength=len(self.sizes)) - self.sizes * rate
        index = (surplus**2 / (self.sizes * rate * (1 - rate))).sum()
        return float(index / (len(self.sizes) - 1))

    def _again(self, on: np.ndarray, rate: float) -> float:
        """Rate in the rows that follow an on-row in its document, over the rate."""
        stop = np.minimum(on + NEXT + 1, self.end[on])
        chances = (stop - on - 1).sum()
        hits = (np.searchsorted(on, stop) - np.arange(len(on)) - 1).sum()
        return float(hits / chances / rate) if chances else math.nan


class TokenHabits:
    """Which tokens a latent is on at and before, and how well they tell that it is on."""

    def __init__(self, codes: Codes, tokenizer: Any, top: int) -> None:
        require_tokens(codes.token)
        self.top = top
        self.token = codes.token[codes.usual].long().numpy()
        self.next = following(codes)[codes.usual].numpy()
        self.rows_of = np.bincount(self.token, minlength=int(codes.token.max()) + 1)
        self.rows_before = np.bincount(self.next[self.next >= 0], minlength=len(self.rows_of))
        seen = np.flatnonzero(self.rows_of + self.rows_before)
        self.text = token_texts(tokenizer, seen.tolist())
        self.sets = TokenSets(self.token, explainers_part(codes.document[codes.usual]).numpy())

    def measure(self, on: np.ndarray) -> dict[str, Any]:
        """tokens, next_tokens and, on rows enough, token_f1 and token_set of a `Profile`."""
        following = self.next[on]
        habits: dict[str, Any] = {
            "tokens": self.preferred(on),
            "next_tokens": self._preferred(following[following >= 0], self.rows_before),
        }
        if best := self.sets.best(on):
            habits |= {"token_f1": best[1], "token_set": len(best[0])}
        return habits

    def preferred(self, on: np.ndarray) -> list[Preference]:
        """Tokens that a latent is on at, of its rows `on`."""
        return self._preferred(self.token[on], self.rows_of)

    def _preferred(self, tokens: np.ndarray, rows_of: np.ndarray) -> list[Preference]:
        """By count * log2(lift): lift alone puts first what was seen once. rows_of: by token."""
        if not len(tokens):
            return []
        present, count = np.unique(tokens, return_counts=True)
        lift = count / rows_of[present] * (rows_of.sum() / len(tokens))
        best = np.argsort(-count * np.log2(lift), kind="stable")[: self.top]
        columns = (column[best].tolist() for column in (present, count, lift))
        return [
            Preference(token, self.text[token], n, n / len(tokens), value)
            for token, n, value in zip(*columns, strict=True)
            if value > 1
        ]
