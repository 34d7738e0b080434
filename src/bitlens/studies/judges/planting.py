"""Contexts where a planted meaning holds, and contexts where it does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from bitlens.errors import BitlensError
from bitlens.seeding import generator
from bitlens.studies.judges.meanings import Meaning
from bitlens.studies.judges.sentences import Sentence, in_context

BLOCK = 50  # sentences that go to the explainer, or to the judge, together
NEAR = 3  # words around one where a meaning holds, of which hard negatives are taken
# whether a word may be taken: the words of its sentence, its place, and where the meaning holds
Fits = Callable[[Sequence[str], int, list[bool]], bool]


class Place(NamedTuple):
    """A word of a sentence."""

    sentence: int
    at: int


class Planted(NamedTuple):
    """A meaning, and the texts that it is explained and judged by, each of another sentence."""

    meaning: Meaning
    examples: list[str]
    """where it holds, for the explainer"""
    counterexamples: list[str]
    """where it does not, for the explainer"""
    positives: list[str]
    random: list[str]
    """negatives drawn at random"""
    hard: list[str]
    """negatives next to a word where it holds, or the same word as a positive"""

    @property
    def judged(self) -> list[tuple[str, str]]:
        """(text, kind) of all that the judge is asked about; kinds as in `sampling.JudgedRow`"""
        kinds = {"positive": self.positives, "random": self.random, "hard": self.hard}
        return [(text, kind) for kind, texts in kinds.items() for text in texts]


def plant(
    meaning: Meaning,
    sentences: Sequence[Sentence],
    *,
    examples: int,
    judged: int,
    window: int,
    seed: int,
) -> Planted:
    """Draw `judged` positives (fewer where there are no more) and as many negatives, half of them
    hard, from every second block of sentences, and the explainer's examples and counterexamples
    from the others."""
    order = torch.randperm(len(sentences), generator=generator(seed, "plant", meaning.phrase))
    parts = ([], [])
    for number in order.tolist():
        parts[number // BLOCK % 2].append(number)
    explained = _Draw(meaning, sentences, parts[0], seed)
    asked = _Draw(meaning, sentences, parts[1], seed)

    def texts(places: list[Place]) -> list[str]:
        return [in_context(sentences[p.sentence].words, p.at, window) for p in places]

    positives = asked.on(judged)
    n = len(positives)
    same = asked.same_word(positives, n // 4)
    hard = [*same, *asked.near(n // 2 - len(same))]
    random = asked.off(n - len(hard))
    planted = Planted(
        meaning,
        texts(explained.on(examples)),
        texts(explained.off(examples)),
        texts(positives[: len(random) + len(hard)]),
        texts(random),
        texts(hard),
    )
    if min(map(len, (planted.examples, planted.counterexamples, planted.positives))) < 5:
        raise BitlensError(
            f"The text has too few words for '{meaning.phrase}' to be planted; name more text."
        )
    return planted


class _Draw:
    """Words of sentences in a random order, one of a sentence at most, none taken twice."""

    def __init__(
        self, meaning: Meaning, sentences: Sequence[Sentence], order: list[int], seed: int
    ) -> None:
        self.meaning, self.sentences, self.order = meaning, sentences, order
        self.draw = generator(seed, "words", meaning.phrase)
        self.used: set[int] = set()

    def on(self, n: int) -> list[Place]:
        """Where the meaning holds."""
        return self._take(n, lambda words, i, holds: holds[i])

    def off(self, n: int) -> list[Place]:
        """Where it does not."""
        return self._take(n, lambda words, i, holds: not holds[i])

    def near(self, n: int) -> list[Place]:
        """Where it does not, but does at most `NEAR` words away."""
        return self._take(
            n, lambda words, i, holds: not holds[i] and any(holds[max(0, i - NEAR) : i + NEAR + 1])
        )

    def same_word(self, places: Sequence[Place], n: int) -> list[Place]:
        """Where it does not, though the word is one of these."""
        known = {self.sentences[p.sentence].words[p.at].lower() for p in places}
        return self._take(n, lambda words, i, holds: not holds[i] and words[i].lower() in known)

    def _take(self, n: int, fits: Fits) -> list[Place]:
        taken: list[Place] = []
        for sentence in self.order:
            if len(taken) >= n:
                break
            if sentence in self.used:
                continue
            own = self.sentences[sentence]
            holds = [self.meaning.holds(own, i) for i in range(len(own.words))]
            found = [i for i in range(len(holds)) if fits(own.words, i, holds)]
            if found:
                self.used.add(sentence)
                chosen = int(torch.randint(len(found), (), generator=self.draw))
                taken.append(Place(sentence, found[chosen]))
        return taken
