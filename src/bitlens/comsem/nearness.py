"""A judge without words: is the marked token nearer to a latent's examples than to others?

An encoder embeds the marked token in its context; it is asked nothing, and no one names anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import normalize

from bitlens.comsem.examples import Examples
from bitlens.comsem.judges import Question, Verdict
from bitlens.errors import BitlensError

if TYPE_CHECKING:
    from bitlens.hidden.models import LanguageModel

FEWEST = 2  # examples on each side: the threshold needs one beside the one left out


class EmbeddingJudge:
    """Answers by the cosine to the mean of the examples, less that to the mean of the
    counterexamples, above the threshold that these themselves give.

    A token is the states of its pieces in its context, mean over pieces, at every hook point of the
    model side by side, each scaled to length 1.
    """

    def __init__(self, model: LanguageModel, batch: int = 64) -> None:
        if not model.tokenizer.is_fast:
            raise BitlensError(
                f"The tokenizer of {model.name} does not say where tokens begin; take another "
                "encoder."
            )
        self.model, self.batch = model, batch
        revision = f"@{model.revision}" if model.revision else ""
        self.name = f"nearness in {model.name}{revision}"
        self._known: dict[str, Tensor] = {}

    def answer(self, questions: Sequence[Question]) -> list[Verdict]:
        """A verdict for each question, with how far above the threshold it is."""
        sides = {q.explanation: self._sides(q.explanation) for q in questions}
        texts = [q.text for q in questions]
        texts += [text for side in sides.values() for text in (*side.like, *side.unlike)]
        self._known = {text: self._known[text] for text in texts if text in self._known}
        self._embed(texts)
        classifiers = {
            explanation: Nearness.of(self._states(side.like), self._states(side.unlike))
            for explanation, side in sides.items()
        }
        scores = [
            float(classifiers[q.explanation].scores(self._states([q.text]))) for q in questions
        ]
        return [Verdict(score > 0, score) for score in scores]

    def _sides(self, explanation: str) -> Examples:
        sides = Examples.of(explanation)
        if sides is None or min(len(sides.like), len(sides.unlike)) < FEWEST:
            raise BitlensError(
                "A judge by embeddings reads no words: its explanations are examples and "
                f"counterexamples, at least {FEWEST} of each; take the explainer of examples."
            )
        return sides

    def _states(self, texts: Sequence[str]) -> Tensor:
        return torch.stack([self._known[text] for text in texts])

    def _embed(self, texts: Sequence[str]) -> None:
        """Embed texts that are not known yet, those of a like length together."""
        unknown = dict.fromkeys(text for text in texts if text not in self._known)
        missing = sorted(unknown, key=len)  # a set's order, and so the last bits, would vary
        for start in range(0, len(missing), self.batch):
            batch = missing[start : start + self.batch]
            self._known |= dict(zip(batch, self.embed(batch), strict=True))

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """Texts with one token «marked» -> float32 `[texts, d]`, of length 1, on the CPU"""
        cut = [unmarked(text) for text in texts]
        encoded = [
            self.model.tokenizer(text, return_offsets_mapping=True, verbose=False)
            for text, _, _ in cut
        ]
        longest = max(len(each["input_ids"]) for each in encoded)
        self.model.require_context(longest, "`window`")
        ids = torch.zeros(len(texts), longest, dtype=torch.long)
        mask, own = torch.zeros_like(ids), torch.zeros(len(texts), longest)
        for i, (each, (_, first, last)) in enumerate(zip(encoded, cut, strict=True)):
            n = len(each["input_ids"])
            ids[i, :n], mask[i, :n] = torch.tensor(each["input_ids"]), 1
            places = torch.tensor(each["offset_mapping"])
            within = (places[:, 0] < last) & (places[:, 1] > first) & (places.diff()[:, 0] > 0)
            # a mark with nothing that the encoder reads, such as a space, stands for its text
            own[i, :n] = within.float() if within.any() else 1.0
        weights = (own / own.sum(1, keepdim=True))[..., None]
        states = self.model.hidden_states(ids, mask).values()
        parts = [normalize((state.float().cpu() * weights).sum(1), dim=1) for state in states]
        return normalize(torch.cat(parts, 1), dim=1)


def unmarked(text: str) -> tuple[str, int, int]:
    """A text without the marks of its «token» -> it, and where the token begins and ends."""
    first, last = text.index("«"), text.index("»", text.index("«"))
    return text[:first] + text[first + 1 : last] + text[last + 1 :], first, last - 1


@dataclass(frozen=True)
class Nearness:
    """To the mean of examples, against that of counterexamples."""

    like: Tensor
    """of length 1, `[d]`"""
    unlike: Tensor
    threshold: float

    @classmethod
    def of(cls, like: Tensor, unlike: Tensor) -> Nearness:
        """Of embeddings `[examples, d]` and `[counterexamples, d]`. The threshold lies midway
        between the mean scores of the two, each scored without itself in the mean of its side."""
        means = normalize(like.mean(0), dim=0), normalize(unlike.mean(0), dim=0)
        own = (like * _others(like)).sum(1) - like @ means[1]
        other = unlike @ means[0] - (unlike * _others(unlike)).sum(1)
        return cls(*means, float(own.mean() + other.mean()) / 2)

    def scores(self, x: Tensor) -> Tensor:
        """Embeddings `[n, d]` -> above 0 where nearer to the examples, `[n]`"""
        return x @ self.like - x @ self.unlike - self.threshold


def _others(x: Tensor) -> Tensor:
    """For each row the direction of the mean of all others, `[n, d]`"""
    return normalize(x.sum(0) - x, dim=1)


def load_encoder(model: str, device: str = "auto") -> LanguageModel:
    """An encoder, or any language model, read at every layer."""
    from bitlens.hidden import LanguageModel

    first = LanguageModel.load(model, ["layers.0"], device=device)
    layers = first.config.get_text_config().num_hidden_layers
    return LanguageModel.load(model, [f"layers.{i}" for i in range(layers)], device=device)
