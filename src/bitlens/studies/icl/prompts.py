"""Prompts of k demonstrations and a query: which texts they hold, and how they are written."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bitlens.errors import BitlensError
from bitlens.seeding import generator
from bitlens.studies.icl.examples import Examples

HELD_OUT = 0.2


class Template:
    """How an example is written, with {text} and then {label}; a query ends before its label."""

    def __init__(self, pattern: str) -> None:
        parts = re.fullmatch(r"(.*)\{text\}(.*)\{label\}(.*)", pattern, re.DOTALL)
        if parts is None or pattern.count("{text}") + pattern.count("{label}") != 2:
            raise BitlensError(
                f"The template {pattern!r} must have {{text}} and after it {{label}}, each once."
            )
        self.before, self.between, self.after = parts.groups()

    def demonstration(self, text: str, label: str) -> str:
        """A solved example."""
        return f"{self.before}{text}{self.between}{label}{self.after}"

    def query(self, text: str) -> str:
        """Without the spaces before the label: tokenizers count them to the word that follows."""
        return f"{self.before}{text}{self.between.rstrip(' ')}"

    def continuations(self, names: Sequence[str], tokenizer: Any) -> list[list[int]]:
        """Token ids of each label as it follows a query."""
        texts = [f"{self.before}A text.{self.between}{name}" for name in names]
        asked, *answered = token_ids([self.query("A text."), *texts], tokenizer)
        for name, ids in zip(names, answered, strict=True):
            if ids[: len(asked)] != asked or len(ids) == len(asked):
                raise BitlensError(
                    f"The label '{name}' melts into the tokens before it; let a space or a new "
                    "line precede {label}."
                )
        return [ids[len(asked) :] for ids in answered]


def token_ids(texts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """Of every text, without special tokens."""
    if not texts:
        return []
    return tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]


def short_enough(
    texts: Sequence[str], names: Sequence[str], template: Template, tokenizer: Any, limit: int
) -> Tensor:
    """Which texts make demonstrations of up to `limit` tokens with any label -> bool `[texts]`"""
    lengths = [len(ids) for ids in template.continuations(names, tokenizer)]
    longest = names[lengths.index(max(lengths))]
    ids = token_ids([template.demonstration(text, longest) for text in texts], tokenizer)
    return torch.tensor([len(i) <= limit for i in ids], dtype=torch.bool)


class Draw(NamedTuple):
    """Which texts make the prompts: int64 places in the examples."""

    queries: Tensor
    """`[prompts]`, all different"""
    held_out: Tensor
    """bool `[prompts]`: the prompts to measure on; their queries are in no other prompt"""
    demonstrations: Tensor
    """`[prompts, k]`, within a prompt all different and none the query"""


def draw_prompts(labels: Tensor, n_prompts: int, k: int, balanced: bool, seed: int) -> Draw:
    """Draw queries and, anew for every prompt, k demonstrations.

    labels: of all texts. balanced: every label equally often among the demonstrations of a prompt,
    to within one.
    """
    queries = torch.randperm(len(labels), generator=generator(seed, "queries"))[:n_prompts]
    held_out = torch.arange(n_prompts) >= n_prompts - int(HELD_OUT * n_prompts)
    free = torch.ones(len(labels), dtype=torch.bool)
    free[queries[held_out]] = False
    piles = [free.nonzero()[:, 0]]
    if balanced:
        piles = [(free & (labels == i)).nonzero()[:, 0] for i in labels.unique()]
    rounds, fewest = -(-k // len(piles)), min(map(len, piles))
    if fewest <= rounds:
        which = "of every label" if balanced else "besides its query"
        raise BitlensError(
            f"A prompt needs {rounds} demonstrations {which}, and there are {fewest}; give more "
            "texts, or lower `ks` or `n_prompts`."
        )
    chosen = [
        _demonstrations(piles, query, rounds, generator(seed, "demonstrations", i))[:k]
        for i, query in enumerate(queries)
    ]
    return Draw(queries, held_out, torch.stack(chosen))


def _demonstrations(
    piles: list[Tensor], query: Tensor, rounds: int, random: torch.Generator
) -> Tensor:
    """In every round one of each pile, the piles in random order."""
    shuffled = [pile[torch.randperm(len(pile), generator=random)] for pile in piles]
    dealt = torch.stack([pile[pile != query][:rounds] for pile in shuffled], 1)
    if not rounds:
        return dealt.flatten()
    turns = [torch.randperm(len(piles), generator=random) for _ in range(rounds)]
    return dealt.gather(1, torch.stack(turns)).flatten()


def permuted_labels(labels: Tensor, seed: int) -> Tensor:
    """Labels `[prompts, k]` dealt anew over the prompts: as frequent, right by chance only."""
    permuted = labels.clone()
    for place in range(labels.shape[1]):
        random = generator(seed, "permuted labels", place)
        permuted[:, place] = labels[torch.randperm(len(labels), generator=random), place]
    return permuted


def write_prompts(
    examples: Examples,
    drawn: Draw,
    template: Template,
    condition: str,
    k: int,
    others: Sequence[str],
    seed: int,
) -> list[str]:
    """Prompts of the first k demonstrations drawn.

    condition: shuffled gives the demonstrations permuted labels, unrelated the texts of `others`
    under their own labels. The queries are the same under every condition and for every k, and a
    larger k only adds demonstrations.
    """
    texts: Sequence[str] = examples.texts
    labels = examples.labels[drawn.demonstrations]
    places: list[list[int]] = drawn.demonstrations.tolist()
    if condition == "shuffled":
        labels = permuted_labels(labels, seed)
    if condition == "unrelated":
        texts = others
        orders = (generator(seed, "unrelated", i) for i in range(len(labels)))
        places = [torch.randperm(len(others), generator=order).tolist() for order in orders]
    prompts = []
    for query, own, named in zip(drawn.queries.tolist(), places, labels.tolist(), strict=True):
        demonstrations = (
            template.demonstration(texts[place], examples.names[label])
            for place, label in zip(own[:k], named[:k], strict=True)
        )
        prompts.append("".join([*demonstrations, template.query(examples.texts[query])]))
    return prompts
