"""The labelled texts that prompts are made of, and the unrelated texts of their control."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitlens.errors import BitlensError
from bitlens.hidden import Corpus
from bitlens.hidden.reading import json_lines, load_dataset, rows_of
from bitlens.seeding import generator

MOST_LABELS = 100


@dataclass(frozen=True)
class Examples:
    """Labelled texts, each text once."""

    texts: tuple[str, ...]
    labels: Tensor
    """place in `names` of each text's label, int64 `[texts]`"""
    names: tuple[str, ...]


def read_examples(
    source: str, text_column: str = "text", label_column: str = "label", split: str = "train"
) -> Examples:
    """Labelled texts of a file (.jsonl, .jsonl.gz) or of a Hugging Face dataset (NAME, NAME:CONFIG
    or a saved folder).

    A class that a dataset keeps as an integer gets its name. Rows without text or label are left
    out, and so is a text that came before.
    """
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
    """(where it is, row) of every row"""
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
    """As many texts, as long in words, with all words of all texts dealt over them at random: no
    grammar, no meaning."""
    words = [word for text in texts for word in text.split()]
    dealt = iter(torch.randperm(len(words), generator=generator(seed, "word salad")).tolist())
    return [" ".join(words[next(dealt)] for _ in text.split()) for text in texts]


def sentences(source: str, text_column: str, split: str) -> list[str]:
    """Sentences of any text that `Corpus` reads, each once."""
    texts = (text for _, text in Corpus((source,), text_column, split, unit="file").documents())
    parts = (part.strip() for text in texts for part in re.split(r"(?<=[.!?])\s+|\n+", text))
    return list(dict.fromkeys(part for part in parts if part))
