"""Where the labels of rows come from: the codes' own columns, or a file of labelled text."""

from __future__ import annotations

import gzip
import json
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bitlens.bits.codes import Columns
from bitlens.errors import BitlensError
from bitlens.hidden.pieces import UNREADABLE, token_texts
from bitlens.hidden.recorded import folder_of, recorded_model
from bitlens.results import brief

MIN_ROWS = 20


class Labels(NamedTuple):
    """A labelling: at most one class a row."""

    __repr__ = brief

    name: str
    names: list[str]
    """of the classes"""
    ids: Tensor
    """class of each row, int64 `[rows]`; -1 where it has none"""

    def only(self, rows: Tensor) -> Labels:
        """The same, where rows outside of these, bool `[rows]`, have no class."""
        return self._replace(ids=self.ids.where(rows, -1))


def load_tokenizer(codes: Columns) -> Any:
    """The tokenizer of the language model whose hidden states were encoded."""
    import transformers

    model, revision = recorded_model(codes.manifest, codes.path)
    try:
        return transformers.AutoTokenizer.from_pretrained(folder_of(model), revision=revision)
    except (OSError, ValueError) as error:
        raise BitlensError(
            f"The tokenizer of '{model}', which made these codes, could not be loaded."
        ) from error


# --- from the codes' own columns --------------------------------------------------------------------------------------


def own_labels(codes: Columns, tokenizer: Any) -> list[Labels]:
    """The labellings that any text has: `token`, `next token` (of the same document), `spelling` and `position`.

    Tokens that read alike are one class. Spelling looks at a token's own characters: newline, space, bytes (part of a
    character), number, punctuation, upper case, capitalised, word (lower case, after a space) or continuation.
    Positions in the context are 0, 1, 2, 3, 4-7, 8-15 and so on.
    """
    token = codes.token.long()
    if token.min() < 0:
        raise BitlensError(
            f"The codes {codes.path} have no tokens: they come from hidden states imported without them."
        )
    strings = token_texts(tokenizer, token.unique().tolist())
    return [
        _mapped("token", token, strings.__getitem__),
        _mapped("next token", following(codes), strings.__getitem__),
        _mapped("spelling", token, lambda i: spelling(strings[i])),
        _mapped("position", codes.position.long(), _bucket),
    ]


def following(codes: Columns) -> Tensor:
    """The next token of the same document, int64 `[rows]`; -1 after its last."""
    ends = torch.cat([codes.document[1:] != codes.document[:-1], torch.tensor([True])])
    return codes.token.long().roll(-1).masked_fill(ends, -1)


def spelling(token: str) -> str:
    """The orthographic class of a token's characters."""
    core = token.strip()
    if UNREADABLE in token:
        return "bytes"
    if not core:
        return "newline" if "\n" in token else "space"
    if not any(c.isalpha() for c in core):
        return "number" if any(c.isdigit() for c in core) else "punctuation"
    if len(core) > 1 and core.isupper():
        return "upper case"
    if next(c for c in core if c.isalpha()).isupper():
        return "capitalised"
    return "word" if token[0].isspace() else "continuation"


def _mapped(name: str, values: Tensor, class_of: Callable[[int], str]) -> Labels:
    """The class of each value, in order of the values; -1 has none."""
    distinct, own = values.unique(return_inverse=True)
    number: dict[str, int] = {}
    ids = [number.setdefault(class_of(i), len(number)) if i >= 0 else -1 for i in distinct.tolist()]
    return Labels(name, list(number), torch.tensor(ids)[own])


def _bucket(position: int) -> str:
    if position < 4:
        return str(position)
    low = 1 << (position.bit_length() - 1)
    return f"{low}-{2 * low - 1}"


# --- from a file ------------------------------------------------------------------------------------------------------


def read_labels(path: Path, codes: Columns, tokenizer: Any) -> list[Labels]:
    """Labellings from JSON lines (also .gz), a document a line, in the order of the corpus that was harvested:

        {"text": "A cat sat.", "spans": {"pos": [[0, 1, "DET"], [2, 5, "NOUN"]]}, "labels": {"genre": "news"}}

    labels: one class for all rows of the document. spans: classes of characters from start to end (exclusive); a row has
    the class of its token's last character that is no space, so " cat" is a noun, and a token of spaces has none. Later
    spans go before earlier ones, and spans before labels. Rows of documents that the file lacks have no label.

    The rows of a document must be the first tokens of its text, without special tokens; this is checked by token id.
    """
    if not tokenizer.is_fast:
        raise BitlensError(
            "This model's tokenizer does not say where tokens begin, so spans cannot be placed."
        )
    special = np.array(sorted(set(tokenizer.all_special_ids)), np.int64)
    token, rows_of = codes.token.numpy(), _rows_of(codes.document.numpy())
    ids: dict[str, np.ndarray] = defaultdict(lambda: np.full(len(token), -1))
    classes: dict[str, dict[str, int]] = defaultdict(dict)
    for document, (line, where) in enumerate(_lines(path)):
        rows = rows_of.get(document)
        if rows is None:
            continue
        encoded = tokenizer(
            line["text"], add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        usual = ~np.isin(encoded["input_ids"], special)
        if not np.array_equal(np.array(encoded["input_ids"])[usual][: len(rows)], token[rows]):
            raise BitlensError(
                f"{where}: its tokens are not those of document {document} in the codes; the file must hold the texts "
                "that were harvested, in their order."
            )
        last = _last_characters(
            line["text"], np.array(encoded["offset_mapping"])[usual][: len(rows)]
        )
        labels, spans = line.get("labels", {}), line.get("spans", {})
        for name in [*labels, *spans]:
            number, own = classes[name], ids[name]
            if name in labels:
                own[rows] = number.setdefault(str(labels[name]), len(number))
            at = _painted(len(line["text"]), spans.get(name, []), number, where)[last]
            own[rows] = np.where(at >= 0, at, own[rows])
    if not ids:
        raise BitlensError(
            f"{path} labels none of the documents in these codes; it needs 'spans' or 'labels'."
        )
    return [Labels(name, list(classes[name]), torch.from_numpy(own)) for name, own in ids.items()]


def _lines(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Each document of the file, and the name of its line."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8-sig", newline="\n") as file:
        try:
            for number, text in enumerate(file, 1):
                if text.strip():
                    yield _parsed(text, f"{path}, line {number}"), f"{path}, line {number}"
        except (UnicodeDecodeError, gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise BitlensError(f"{path} is not UTF-8 text ({error}); convert it first.") from None


def _parsed(text: str, where: str) -> dict[str, Any]:
    try:
        line = json.loads(text)
    except json.JSONDecodeError as error:
        raise BitlensError(
            f"{where} is not JSON ({error}); a document a line is expected."
        ) from None
    if not isinstance(line, dict) or not isinstance(line.get("text"), str):
        raise BitlensError(
            f"{where} has no 'text'; a document a line is expected, with its text and labels."
        )
    return line


def _rows_of(documents: np.ndarray) -> dict[int, np.ndarray]:
    """The rows of every document, in order."""
    order = np.argsort(documents, kind="stable")
    found, first = np.unique(documents[order], return_index=True)
    return dict(zip(found.tolist(), np.split(order, first[1:]), strict=True))


def _last_characters(text: str, offsets: np.ndarray) -> np.ndarray:
    """Place of the last character of each token that is no space; `len(text)` for a token of spaces."""
    space = np.array([c.isspace() for c in text], bool)
    last = np.maximum.accumulate(np.where(space, -1, np.arange(len(text))))
    start, end = offsets.reshape(-1, 2).T
    found = np.where(end > start, last[end - 1], -1)
    return np.where(found >= start, found, len(text))


def _painted(length: int, spans: list[Any], number: dict[str, int], where: str) -> np.ndarray:
    """Class of each character, and -1 for the place behind the last."""
    at = np.full(length + 1, -1)
    for span in spans:
        match span:
            case [int(start), int(end), name] if 0 <= start < end <= length:
                at[start:end] = number.setdefault(str(name), len(number))
            case _:
                raise BitlensError(
                    f"{where} has the span {span}; a span is [start, end, class] within the text."
                )
    return at
