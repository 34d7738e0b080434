"""The texts of tokens, one by one, as they join to the text that they are from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bitlens.hidden.pieces import apart, token_texts


class Words:
    """Pieces of a text, a piece for each token; without a tokenizer, the tokens' numbers."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._alone: dict[int, str] = {}

    def alone(self, ids: Sequence[int]) -> list[str]:
        """Each token as it reads within a text."""
        if self.tokenizer is None:
            return [f"[{token}]" for token in ids]
        if unknown := [token for token in ids if token not in self._alone]:
            self._alone.update(token_texts(self.tokenizer, unknown))
        return [self._alone[token] for token in ids]

    def joined(self, ids: Sequence[int]) -> list[str]:
        """Each token as it reads in this text: the pieces join to it."""
        pieces = self.alone(ids)
        return pieces if self.tokenizer is None else apart(self.tokenizer, ids, pieces)
