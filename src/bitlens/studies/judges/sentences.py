"""Sentences as words whose part of speech is known, or words alone, and a word in its context."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bitlens.errors import BitlensError
from bitlens.features.examples import PLAIN
from bitlens.hidden import Corpus
from bitlens.hidden.reading import json_lines

FEWEST_WORDS = 5  # of a sentence
LONGEST = 60  # words: more is a list or a mistake
QUOTES: dict[str, str] = {"``": '"', "''": '"'}
CLOSING = re.compile(r"[.,;:?!%)\]}’]+|'|n't|'\w{1,2}")
OPENING = re.compile(r"[(\[{$“]")
_WORD = re.compile(r"\w+(?:[-'’.]\w+)*|[^\w\s]")
_END = re.compile(r"(?<=[.!?])[\"”’')]*\s+(?=[\"“‘'(]?[A-Z])")


class Sentence(NamedTuple):
    """Words, marks of punctuation among them."""

    words: tuple[str, ...]
    tags: tuple[str, ...] = ()
    """part of speech of each word, in the tags of the Brown corpus; empty if not known"""


def tagged_sentences(path: Path) -> list[Sentence]:
    """Of JSON lines (also .gz), a sentence a line: `tokens`, and Brown's `tags` of these."""
    sentences = []
    for where, line in json_lines(path):
        known: dict[str, list[str]] = line if isinstance(line, dict) else {}
        tokens, tags = known.get("tokens"), known.get("tags")
        if not tokens or not tags or len(tokens) != len(tags):
            raise BitlensError(
                f"{where} has no 'tokens' with as many 'tags'; name lines of tagged sentences."
            )
        words = tuple(QUOTES.get(token, token) for token in tokens)
        sentences.append(Sentence(words, tuple(tag.split("-")[0] for tag in tags)))
    return _usual(sentences)


def plain_sentences(source: str) -> list[Sentence]:
    """Of any text that `bitlens harvest` reads, split into sentences and words by punctuation."""
    texts = (text for _, text in Corpus((source,)).documents())
    parts = (part for text in texts for part in _END.split(" ".join(text.split())))
    return _usual([Sentence(tuple(_WORD.findall(part))) for part in parts])


def _usual(sentences: list[Sentence]) -> list[Sentence]:
    return [s for s in sentences if FEWEST_WORDS <= len(s.words) <= LONGEST]


def in_context(words: tuple[str, ...], index: int, window: int) -> str:
    """Up to `window` words before and after the one at `index`, and that one «marked»."""
    first, last = max(0, index - window), min(len(words), index + window + 1)
    return "".join(_spaced(words, first, last, index)).strip()


def _spaced(words: tuple[str, ...], first: int, last: int, marked: int) -> Iterator[str]:
    """The words of a part, with spaces where print has them."""
    open_quote = words[:first].count('"') % 2 == 1
    glued = True  # whether the next word follows without a space
    for i in range(first, last):
        word = words[i]
        closes = CLOSING.fullmatch(word) or (word == '"' and open_quote)
        yield "" if glued or closes else " "
        plain = word.translate(PLAIN)
        yield f"«{plain}»" if i == marked else plain
        opens = word == '"' and not open_quote
        open_quote ^= word == '"'
        glued = bool(OPENING.fullmatch(word)) or opens
