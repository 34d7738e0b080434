"""Groups of documents to be told apart: by labels or numbers of the codes' own, or texts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitlens.errors import BitlensError
from bitlens.hidden.documents import Corpus
from bitlens.hidden.reading import TextFile
from bitlens.labels.sources import Labels
from bitlens.options import Unit
from bitlens.seeding import generator

NUMBERS = re.compile(r"(\d+)(?:-(\d+))?")


def labelled(labellings: Sequence[Labels], name: str) -> Tensor:
    """The rows of a class, named as `LABELLING=CLASS`, bool `[rows]`"""
    labelling, equals, wanted = name.partition("=")
    by_name = {each.name: each for each in labellings}
    if not equals or labelling not in by_name:
        raise BitlensError(
            f"'{name}' names no class of the labels; write it as LABELLING=CLASS, with a labelling "
            f"of {', '.join(by_name)}."
        )
    labels = by_name[labelling]
    if wanted not in labels.names:
        raise BitlensError(
            f"The labelling '{labelling}' has no class '{wanted}', only {_some(labels.names)}."
        )
    return labels.ids == labels.names.index(wanted)


def numbered(document: Tensor, names: Sequence[str]) -> Tensor:
    """The rows of some documents, named by numbers and ranges such as `20-40`, bool `[rows]`"""
    rows = torch.zeros(len(document), dtype=torch.bool)
    for name in names:
        match = NUMBERS.fullmatch(name)
        if match is None:
            raise BitlensError(
                f"'{name}' is no document: name numbers or ranges as 20-40, files of text, or with "
                "`labels` or `texts` a class as NAME=CLASS."
            )
        first, last = int(match[1]), int(match[2] or match[1])
        found = (document >= first) & (document <= last)
        if not found.any():
            raise BitlensError(f"The codes have no document {name}.")
        rows |= found
    return rows


def texts_of(
    sources: Sequence[str], column: str = "text", unit: Unit = "auto", most: int = 500, seed: int = 0
) -> list[str]:
    """The documents of files of text, or a random sample of so many."""
    corpus = Corpus(tuple(sources), text_column=column, unit=unit)
    return _sampled([text for _, text in corpus.documents()], most, seed)


def texts_where(
    sources: Sequence[str], name: str, column: str = "text", most: int = 500, seed: int = 0
) -> list[str]:
    """The texts of tables in whose rows a column, or a label of `labels`, has a value, named as
    `COLUMN=VALUE`; or a random sample of so many."""
    key, equals, wanted = name.partition("=")
    if not equals:
        raise BitlensError(f"'{name}' names no texts of a table; write it as COLUMN=VALUE.")
    found: list[str] = []
    values: set[str] = set()
    for source in sources:
        if not Path(source).is_file():
            raise BitlensError(f"There is no table at {source}.")
        for where, row in TextFile(Path(source), column).rows():
            value = _value(row, key, where)
            values.add(value)
            text = row.get(column)
            if value == wanted and isinstance(text, str) and text.strip():
                found.append(text)
    if not found:
        raise BitlensError(f"No row has {key}={wanted}; there are {_some(sorted(values))}.")
    return _sampled(found, most, seed)


def _value(row: Any, key: str, where: str) -> str:
    if not isinstance(row, dict):
        raise BitlensError(f"{where} is no row of a table.")
    labels = row.get("labels")
    table = row | labels if isinstance(labels, dict) else row
    if key not in table:
        raise BitlensError(f"{where} has no column '{key}', only {_some(list(map(str, table)))}.")
    return str(table[key])


def _sampled(texts: list[str], most: int, seed: int) -> list[str]:
    drawn = torch.randperm(len(texts), generator=generator(seed, "documents"))[:most]
    return [texts[i] for i in drawn.sort().values.tolist()]


def _some(names: Sequence[str], most: int = 10) -> str:
    more = ", ..." if len(names) > most else ""
    return ", ".join(names[:most]) + more
