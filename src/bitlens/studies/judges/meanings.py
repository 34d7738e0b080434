"""Meanings whose truth is known of every word: what judges are tested with."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from bitlens.studies.judges.sentences import Sentence


class Meaning(NamedTuple):
    """A phrase, as an explainer might say it, and whether it holds for the word of a sentence."""

    kind: str
    phrase: str
    holds: Callable[[Sentence, int], bool]
    tagged: bool = False
    """whether it needs parts of speech"""


def _word(word: str) -> Meaning:
    return Meaning("word", f'the word "{word}"', lambda s, i: s.words[i].lower() == word)


def _spelt(phrase: str, pattern: str) -> Meaning:
    compiled = re.compile(pattern)
    return Meaning("spelling", phrase, lambda s, i: bool(compiled.fullmatch(s.words[i])))


def _one_of(phrase: str, words: str) -> Meaning:
    members = frozenset(words.split())
    return Meaning("class of words", phrase, lambda s, i: s.words[i].lower() in members)


def _tagged(phrase: str, tags: str) -> Meaning:
    members = frozenset(tags.split())
    return Meaning("part of speech", phrase, lambda s, i: s.tags[i] in members, tagged=True)


_placed = partial(Meaning, "place")
MEANINGS = (
    *map(_word, ("she", "of", "that", "not", "time", "because")),
    _spelt("a number written in digits", r"\d[\d,.]*"),
    _spelt("a punctuation mark", r"[^\w\s]+"),
    _spelt('a word that ends with "ing"', r"\w+ing"),
    _spelt('a word that begins with the letter "w"', r"[Ww]\w+"),
    _spelt("a word that begins with a capital letter", r"[A-Z]\w*"),
    _spelt("a word with a hyphen in it", r"\w+-\w+(?:-\w+)*"),
    _one_of(
        "a member of a family",
        "mother father sister brother son daughter wife husband aunt uncle cousin parents "
        "children grandmother grandfather mama papa mothers fathers sisters brothers sons "
        "daughters wives husbands nephew niece",
    ),
    _one_of(
        "a part of the body",
        "hand hands eye eyes face head arm arms leg legs foot feet mouth nose finger fingers "
        "hair shoulder shoulders knee knees neck lips ear ears chest throat skin cheek cheeks",
    ),
    _one_of(
        "a colour",
        "red blue green yellow white black brown grey gray pink purple orange golden scarlet",
    ),
    _one_of(
        "a number word",
        "two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty "
        "hundred thousand million dozen",
    ),
    _one_of(
        "a unit of time",
        "second seconds minute minutes hour hours day days week weeks month months year years "
        "century centuries",
    ),
    _one_of("a verb of saying", "said asked replied answered cried told says shouted whispered"),
    _placed("the first word of a sentence", lambda s, i: i == 0),
    _placed("the last word before a comma", lambda s, i: s.words[i + 1 : i + 2] == (",",)),
    _placed('a word right after "the"', lambda s, i: i > 0 and s.words[i - 1].lower() == "the"),
    _placed(
        "the last word of a sentence",
        lambda s, i: s.words[i][0].isalpha() and i == len(s.words) - 2 and s.words[-1] in ".?!",
    ),
    _placed('a word followed by "of"', lambda s, i: s.words[i + 1 : i + 2] == ("of",)),
    _tagged("a verb in the past tense", "vbd bedz bed hvd dod"),
    _tagged("a plural noun", "nns"),
    _tagged("an adjective", "jj jjr jjt jjs"),
    _tagged("an adverb", "rb rbr rbt"),
    _tagged("a proper name", "np np$ nps"),
    _tagged("a preposition", "in"),
    _tagged("a personal pronoun", "pps ppss ppo"),
    _tagged("a modal verb", "md"),
    _tagged("a conjunction", "cc cs"),
)
"""what is planted where parts of speech are known; without them, those that need none"""
