"""Groups of documents to be told apart: by labels or numbers of the codes' own, or texts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitlens.autoencoders import Autoencoder
from bitlens.bits.codes import Codes
from bitlens.bits.packed import PackedBits
from bitlens.errors import BitlensError
from bitlens.features.contrast import Group, apart
from bitlens.features.examples import contexts
from bitlens.features.habits import Preference, preferences
from bitlens.features.on_rows import one_a_document
from bitlens.features.search import rates, rows_of
from bitlens.features.texts import encode_texts
from bitlens.hidden.documents import Corpus
from bitlens.hidden.models import LanguageModel
from bitlens.hidden.pieces import token_texts
from bitlens.hidden.reading import TextFile
from bitlens.labels.sources import Labels
from bitlens.options import Unit
from bitlens.results import brief
from bitlens.seeding import generator

WINDOW = 8  # tokens on each side of an example
NAMED = 10  # of the classes or columns that there are
NUMBERS = re.compile(r"(\d+)(?:-(\d+))?")


@dataclass(frozen=True)
class Compared:
    """Rows of two groups of documents, in the order of their texts."""

    __repr__ = brief

    bits: PackedBits
    """with the rare state as 1"""
    token: Tensor
    document: Tensor
    positive: Tensor
    """bool `[rows]`"""
    negative: Tensor

    @classmethod
    def of_codes(cls, codes: Codes, positive: Tensor, negative: Tensor, seed: int = 0) -> Compared:
        """positive, negative: bool `[rows]`; of a document with rows of both only one kind counts,
        as `apart` draws it."""
        first, second = positive & codes.usual, negative & codes.usual
        if (first & second).any():
            raise BitlensError("Some rows are in both groups; name groups without common rows.")
        first, second = apart(codes.document, first, second, seed)
        documents = codes.document[first | second].unique()
        rows = torch.isin(codes.document, documents).nonzero()[:, 0]
        bits = rates(codes).canonical(rows_of(codes, rows.numpy()))
        return cls(bits, codes.token[rows], codes.document[rows], first[rows], second[rows])

    @classmethod
    def read(
        cls,
        codes: Codes,
        model: LanguageModel,
        autoencoder: Autoencoder,
        positive: Sequence[str],
        negative: Sequence[str],
    ) -> Compared:
        """Texts, read now; documents are numbered through, the positive ones first. codes: of the
        same autoencoder, by which the rare state of a latent is known."""
        read = encode_texts(model, autoencoder, [*positive, *negative])
        in_first = read.document < len(positive)
        bits = rates(codes).canonical(read.bits)
        sides = read.usual & in_first, read.usual & ~in_first
        return cls(bits, read.token, read.document, *sides)

    def text(self, document: Tensor | int) -> list[int]:
        """Token ids of a document."""
        return self.token[self.document == document].tolist()

    def groups(self, seed: int = 0) -> tuple[Group, Group]:
        """The positive and the negative documents, to be contrasted."""
        first = Group.of(self.bits, self.document, self.positive, seed)
        return first, Group.of(self.bits, self.document, self.negative, seed)

    def tokens(self, latents: Sequence[int], tokenizer: Any, top: int) -> list[list[Preference]]:
        """The tokens that each latent prefers in these documents."""
        counted = self.positive | self.negative
        rows_of = self.token[counted].long().bincount().numpy()
        text = token_texts(tokenizer, self.token[counted].unique().tolist())
        on = (self.bits.column(latent).bool() & counted for latent in latents)
        return [preferences(self.token[rows].long().numpy(), rows_of, text, top) for rows in on]

    def examples(
        self, latent: int, tokenizer: Any, n: int = 3, seed: int = 0
    ) -> tuple[list[str], list[str]]:
        """Positive and negative texts with a token «marked» on which the latent is on, up to n of
        each, drawn at random, each from another document."""
        on = self.bits.column(latent).bool()
        sides = []
        for side in (self.positive, self.negative):
            rows = (on & side).nonzero()[:, 0]
            rows = rows[torch.randperm(len(rows), generator=generator(seed, "examples"))]
            shown = one_a_document(rows.tolist(), self.document, n)
            text = contexts(self, shown, tokenizer, WINDOW)
            sides.append([text[row] for row in shown])
        return sides[0], sides[1]


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
    sources: Sequence[str],
    column: str = "text",
    unit: Unit = "auto",
    most: int = 500,
    seed: int = 0,
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


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
