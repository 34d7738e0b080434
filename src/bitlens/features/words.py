"""Latents by words: those whose explanation or preferred tokens have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bitlens.bits.codes import Codes
from bitlens.errors import BitlensError
from bitlens.features.habits import Preference, TokenHabits
from bitlens.features.on_rows import canonical
from bitlens.features.token_scores import rows_on
from bitlens.results import brief

PART = 0.5  # what a part of a word or token counts beside the whole
LONG = 3  # letters that a part has at least
INK = "\"'“”‘’.,;:!?()[]«»"  # that is no part of a word


class Found(NamedTuple):
    """A latent that was found by words."""

    __repr__ = brief

    latent: int
    score: float
    """sum over the words of the larger of two numbers: 1 for a word of the explanation (a part of
    one counts half), and the share of the latent's on-rows that are at such a token"""
    explanation: str
    tokens: list[Preference]
    """those the latent prefers"""


def find_latents(
    words: str,
    explanations: Mapping[int, str] | None = None,
    tokens: Mapping[int, Sequence[Preference]] | Sequence[Sequence[Preference]] = (),
    limit: int = 20,
) -> list[Found]:
    """Latents in whose explanation or preferred tokens every one of the words is, whatever its
    case; the best first.

    explanations: by latent; tokens: of each latent, as `preferred_tokens` or a `Profile` has them.
    """
    wanted = words.casefold().split()
    if not wanted:
        raise BitlensError("Name at least one word to find latents by.")
    if limit < 1:
        raise BitlensError(f"`limit` must be at least 1, not {limit}.")
    named = dict(tokens.items() if isinstance(tokens, Mapping) else enumerate(tokens))
    said = explanations or {}
    found: list[Found] = []
    for latent in sorted({*named, *said}):
        explanation, preferred = said.get(latent, ""), list(named.get(latent, ()))
        parts = [word.strip(INK) or word for word in explanation.casefold().split()]
        scores = [max(_in_words(w, parts), _in_tokens(w, preferred)) for w in wanted]
        if all(scores):
            found.append(Found(latent, sum(scores), explanation, preferred))
    return sorted(found, key=lambda one: -one.score)[:limit]


def _in_words(wanted: str, words: Sequence[str]) -> float:
    if wanted in words:
        return 1.0
    return PART * (len(wanted) >= LONG and any(wanted in word for word in words))


def _in_tokens(wanted: str, tokens: Sequence[Preference]) -> float:
    """Share of the on-rows at the token; of a longer one that has it as a part, half."""
    texts = [(token.text.strip().casefold(), token.share) for token in tokens]
    whole = sum(share for text, share in texts if text == wanted)
    part = sum(share for text, share in texts if text != wanted and wanted in text)
    return whole + PART * part * (len(wanted) >= LONG)


def preferred_tokens(codes: Codes, tokenizer: Any, top: int = 8) -> list[list[Preference]]:
    """Of every latent the tokens that it is on at more often than at others, in rows of usual
    norm."""
    rare = canonical(codes.parts.where(codes.usual))
    habits = TokenHabits(codes, tokenizer, top)
    return [habits.preferred(on) for on in rows_on(rare)]
