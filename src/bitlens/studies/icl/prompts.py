"""Labelled texts, and prompts made of them: k demonstrations and a query."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bitlens.errors import BitlensError
from bitlens.hidden import Corpus
from bitlens.hidden.reading import json_lines, load_dataset, rows_of
from bitlens.seeding import generator

MOST_LABELS = 100
HELD_OUT = 0.2


class Examples(NamedTuple):
    """Labelled texts, each text once."""

    texts: tuple[str, ...]
    labels: Tensor
    """place in `names` of each text's label, int64 `[texts]`"""
    names: tuple[str, ...]


def read_examples(
    source: str, text_column: str = "text", label_column: str = "label", split: str = "train"
) -> Examples:
    """Labelled texts of a file (.jsonl, .jsonl.gz) or a Hugging Face dataset (NAME, NAME:CONFIG or
    a saved folder), without rows that lack text or label and texts that came before."""
    labels: dict[str, str] = {}
    for where, row in _rows(source, split):
        for column in (text_column, label_column):
            if not isinstance(row, dict) or column not in row:
                names = ", ".join(row) if isinstance(row, dict) else "none"
                raise BitlensError(
                    f"{where} has no column '{column}'; name them with `text_column` and "
                    f"`label_column`: {names}."
                )
        values = (row[text_column], row[label_column])
        text, label = ("" if value is None else str(value).strip() for value in values)
        if text and label:
            labels.setdefault(text, label)
    names = tuple(sorted(set(labels.values())))
    if not 2 <= len(names) <= MOST_LABELS:
        raise BitlensError(
            f"The column '{label_column}' of {source} has {len(names)} different labels, and the "
            f"study needs 2 to {MOST_LABELS}; name another with `label_column`."
        )
    places = torch.tensor([names.index(label) for label in labels.values()])
    return Examples(tuple(labels), places, names)


def _rows(source: str, split: str) -> Iterator[tuple[str, Any]]:
    """(where it is, row) of every row; classes that are kept as integers get their names."""
    path = Path(source)
    if path.is_file():
        yield from json_lines(path)
        return
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        raise BitlensError(f"There is no file {path}.")
    data = load_dataset(source, split)
    classes = {n: f.int2str for n, f in data.features.items() if hasattr(f, "int2str")}
    for row in rows_of(data, source):
        for name, label_of in classes.items():
            labelled = row[name] is not None and row[name] >= 0
            row[name] = label_of(row[name]) if labelled else None
        yield source, row


def word_salad(texts: Sequence[str], seed: int) -> list[str]:
    """As many texts, as long, with the words of all dealt over them: no grammar, no meaning."""
    words = [word for text in texts for word in text.split()]
    dealt = iter(torch.randperm(len(words), generator=generator(seed, "word salad")).tolist())
    return [" ".join(words[next(dealt)] for _ in text.split()) for text in texts]


def sentences(source: str, text_column: str, split: str) -> list[str]:
    """Sentences of any text that `Corpus` reads, each once."""
    texts = (text for _, text in Corpus((source,), text_column, split, unit="file").documents())
    parts = (part.strip() for text in texts for part in re.split(r"(?<=[.!?])\s+|\n+", text))
    return list(dict.fromkeys(part for part in parts if part))


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

    labels: of all texts. balanced: every label equally often in a prompt, to within one.
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
    chosen = torch.empty(n_prompts, k, dtype=torch.long)
    for i, query in enumerate(queries if k else ()):
        random = generator(seed, "demonstrations", i)
        shuffled = [pile[torch.randperm(len(pile), generator=random)] for pile in piles]
        dealt = torch.stack([pile[pile != query][:rounds] for pile in shuffled], 1)
        # in every round one of each pile, the piles in random order
        turns = [torch.randperm(len(piles), generator=random) for _ in range(rounds)]
        chosen[i] = dealt.gather(1, torch.stack(turns)).flatten()[:k]
    return Draw(queries, held_out, chosen)


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

    condition: shuffled gives the demonstrations permuted labels, unrelated the texts of `others`.
    Queries are the same for every condition and k, and a larger k only adds demonstrations.
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
