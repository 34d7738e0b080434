"""The text of tokens, cut out of one decoded string.

Tokens decoded one by one lose what lies between them: the space before a word (Llama 2, WordPiece),
the bytes of a character that several tokens share. So a string is decoded once, and each cut is
where its tokens so far reach.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

UNREADABLE = "\ufffd"  # what a decoder writes for bytes that are no character
BYTES = 4  # at most, of a character


def cut(tokenizer: Any, ids: Sequence[int], at: Iterable[int]) -> list[str]:
    """`tokenizer.decode(ids)` in pieces that join to it, cut before each of the tokens `at`
    (ascending, 0 to len(ids)).

    A character whose bytes lie in several tokens belongs to the last of them; a space that the
    decoder puts between two tokens to the second.
    """
    ids = list(ids)
    whole = tokenizer.decode(ids)
    places = [0]
    for stop in at:
        places.append(max(places[-1], _reach(tokenizer, ids, stop, whole)))
    places.append(len(whole))
    return [whole[low:high] for low, high in itertools.pairwise(places)]


def apart(tokenizer: Any, ids: Sequence[int], alone: Sequence[str]) -> list[str]:
    """`tokenizer.decode(ids)` in a piece for each token. alone: their `token_texts`, which are the
    pieces where they join to the text, as they mostly do."""
    if "".join(alone) == tokenizer.decode(list(ids)):
        return list(alone)  # nothing lies between them, and no character is of several
    return cut(tokenizer, ids, range(1, len(ids)))


def in_text(tokenizer: Any, ids: Sequence[int], index: int, window: int) -> tuple[str, str, str]:
    """(text before, token, text after) of `ids[index]`, with up to `window` tokens on each side.

    A token that is only part of a character stands for the character.
    """
    ids = list(ids)
    first, last = max(0, index - window), min(len(ids), index + window + 1)
    low, high = _whole_characters(tokenizer, ids, first, last)
    whole = tokenizer.decode(ids[low:high])
    ends = range(index + 1, min(high, index + BYTES) + 1)
    complete = (end for end in ends if _align(tokenizer.decode(ids[low:end]), whole)[1])
    stop = next(complete, index + 1)
    places = (first - low, index - low, stop - low, max(last, stop) - low)
    _, before, token, after, _ = cut(tokenizer, ids[low:high], places)
    return before, token, after


def token_texts(tokenizer: Any, ids: Iterable[int]) -> dict[int, str]:
    """Each token, in the order given, as it reads within a text: after itself, as some decoders
    drop the space before a text's first token."""

    def text(token: int) -> str:
        alone = tokenizer.decode([token])
        return alone if UNREADABLE in alone else cut(tokenizer, [token, token], [1])[1]

    return {token: text(token) for token in dict.fromkeys(ids)}


def outside(token: str) -> tuple[str, str]:
    """A token's leading spaces and the rest; a token of nothing but spaces stays whole."""
    core = token.lstrip(" ")
    return (token[: len(token) - len(core)], core) if core else ("", token)


def _reach(tokenizer: Any, ids: list[int], stop: int, whole: str) -> int:
    """How far the first `stop` tokens reach into the text of all: their last bytes may be no
    character yet, and some decoders then give up those before, too."""
    reached = 0
    for end in range(stop, max(-1, stop - BYTES), -1):
        place, complete = _align(tokenizer.decode(ids[:end]), whole)
        reached = max(reached, place)
        if complete:
            break
    return reached


def _align(prefix: str, whole: str) -> tuple[int, bool]:
    """Where `prefix` ends in `whole`, and whether all of it is there, but for spaces, which a
    decoder may have cleaned up."""
    if whole.startswith(prefix):
        return len(prefix), True
    i = j = 0
    while i < len(prefix) and j < len(whole):
        if prefix[i] == whole[j]:
            i, j = i + 1, j + 1
        elif prefix[i] == " ":
            i += 1
        elif whole[j] == " ":
            j += 1
        else:
            return j, False
    return j, not prefix[i:].strip(" ")


def _whole_characters(tokenizer: Any, ids: list[int], first: int, last: int) -> tuple[int, int]:
    """Ends of a slice, up to BYTES wider than from first to last, that begins and ends between
    characters; if none does, the one with the fewest broken characters."""
    lows = range(max(0, first - 1), max(-1, first - 1 - BYTES), -1)
    highs = range(last, min(len(ids), last + BYTES - 1) + 1)
    fewest, best = None, (lows[0], last)
    for low, high in itertools.product(lows, highs):
        broken = tokenizer.decode(ids[low:high]).count(UNREADABLE)
        if fewest is None or broken < fewest:
            fewest, best = broken, (low, high)
        if not broken:
            break
    return best
