"""Where the labels of rows come from: the codes' own columns, or a file of labelled text."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sized
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bitlens.bits.codes import Columns
from bitlens.errors import BitlensError
from bitlens.hidden import loading, named
from bitlens.hidden.pieces import UNREADABLE, token_texts
from bitlens.hidden.reading import json_lines
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

    def frequent(self, parts: list[Tensor], min_rows: int, min_others: int = 0) -> Tensor:
        """Classes with `min_rows` rows, and `min_others` rows of other classes, in each part (bool
        `[rows]`) -> int64, those with most rows in the first part first; there must be some."""
        counts = torch.stack([self.class_counts(part) for part in parts])
        others = counts.sum(1, keepdim=True) - counts
        enough = ((counts >= min_rows) & (others >= min_others)).all(0)
        if not enough.any():
            raise BitlensError(
                f"No class of '{self.name}' has {min_rows} rows among the fitting and among the "
                "held-out documents, or no rows beside it; label more text, or lower min_rows."
            )
        order = counts[0].argsort(descending=True, stable=True)
        return order[enough[order]]

    def require(self, features: Sized, *columns: Tensor) -> None:
        """BitlensError unless features and columns have as many rows as there are labels."""
        if any(len(each) != len(self.ids) for each in (features, *columns)):
            raise BitlensError(
                f"There are {len(features):,} rows and {len(self.ids):,} labels; each needs one."
            )

    def class_counts(self, rows: Tensor) -> Tensor:
        """Rows of each class among these, bool `[rows]` -> int64 `[classes]`"""
        return self.ids[rows & (self.ids >= 0)].bincount(minlength=len(self.names))


def load_tokenizer(codes: Columns) -> Any:
    """The tokenizer of the language model whose hidden states were encoded."""
    model, revision = named.recorded_model(codes.manifest, codes.path)
    try:
        return loading.load_tokenizer(model, revision)
    except (OSError, ValueError) as error:
        raise BitlensError(
            f"The tokenizer of '{model}', which made these codes, could not be loaded."
        ) from error


# --- from the codes' own columns ------------------------------------------------------------------


def own_labels(codes: Columns, tokenizer: Any) -> list[Labels]:
    """The labellings that any text has: `token`, `next token`, `spelling` and `position`. Tokens
    that read alike are one class."""
    token = codes.token.long()
    require_tokens(token)
    strings = token_texts(tokenizer, token.unique().tolist())
    return [
        _mapped("token", token, strings.__getitem__),
        _mapped("next token", following(codes), strings.__getitem__),
        _mapped("spelling", token, lambda i: spelling(strings[i])),
        position_labels(codes.position),
    ]


def require_tokens(token: Tensor) -> None:
    """BitlensError for rows `[rows]` that were imported without their tokens."""
    if len(token) and int(token.min()) < 0:
        raise BitlensError(
            "These rows have no tokens: they come from hidden states imported without them."
        )


def position_labels(position: Tensor) -> Labels:
    """The bucket of each position in the context `[rows]`: 0, 1, 2, 3, 4-7, 8-15 and so on."""
    return _mapped("position", position.long(), position_bucket)


def following(codes: Columns) -> Tensor:
    """The next token of the same document, int64 `[rows]`; -1 after its last."""
    ends = torch.cat([codes.document[1:] != codes.document[:-1], torch.tensor([True])])
    return codes.token.long().roll(-1).masked_fill(ends, -1)


def spelling(token: str) -> str:
    """The orthographic class of a token: newline, space, bytes, number, punctuation, upper case,
    capitalised, word (lower case, after a space) or continuation."""
    core = token.strip()
    letters = [c for c in core if c.isalpha()]
    if UNREADABLE in token:
        return "bytes"
    if not core:
        return "newline" if "\n" in token else "space"
    if not letters:
        return "number" if any(c.isdigit() for c in core) else "punctuation"
    if len(core) > 1 and core.isupper():
        return "upper case"
    if letters[0].isupper():
        return "capitalised"
    return "word" if token[0].isspace() else "continuation"


def _mapped(name: str, values: Tensor, class_of: Callable[[int], str]) -> Labels:
    """The class of each value, in the order of the values; -1 has none."""
    distinct, own = values.unique(return_inverse=True)
    number: dict[str, int] = {}
    ids = [number.setdefault(class_of(i), len(number)) if i >= 0 else -1 for i in distinct.tolist()]
    return Labels(name, list(number), torch.tensor(ids)[own])


# --- from a file ----------------------------------------------------------------------------------


def read_labels(path: Path, codes: Columns, tokenizer: Any) -> list[Labels]:
    """Labellings from JSON lines (also .gz), a document a line, as the corpus was harvested:

        {"text": "A cat.", "spans": {"pos": [[0, 1, "DET"], [2, 5, "NOUN"]]},
         "labels": {"genre": "news"}}

    labels: one class for all rows of the document. spans: classes of characters from start to end
    (exclusive); a row has the class of its token's last character that is no space, so " cat" is a
    noun, and a token of spaces has none. Later spans go before earlier ones, and spans before
    labels. Rows of documents that the file lacks have no label.

    The rows of a document must be the first tokens of its text, without special tokens; this is
    checked by token id.
    """
    if not tokenizer.is_fast:
        raise BitlensError("Spans cannot be placed: the tokenizer does not say where tokens begin.")
    token, rows_of = codes.token.numpy(), _rows_of(codes.document.numpy())
    ids: dict[str, np.ndarray] = defaultdict(lambda: np.full(len(token), -1))
    numbers: dict[str, dict[str, int]] = defaultdict(dict)
    for document, (where, line) in enumerate(json_lines(path)):
        if not isinstance(line, dict) or not isinstance(line.get("text"), str):
            raise BitlensError(f"{where} has no 'text'; a line for each document is expected.")
        if document not in rows_of:
            continue
        rows, text = rows_of[document], line["text"]
        token_ids, offsets = placed_tokens(tokenizer, text, len(rows))
        if not np.array_equal(token_ids, token[rows]):
            raise BitlensError(
                f"{where}: its tokens are not those of document {document} in the codes; the file "
                "must hold the texts that were harvested, in their order."
            )
        last = _last_characters(text, offsets)
        labels, spans = line.get("labels", {}), line.get("spans", {})
        for name in [*labels, *spans]:
            number = numbers[name]
            if name in labels:
                ids[name][rows] = number.setdefault(str(labels[name]), len(number))
            in_span = _classes_of_characters(len(text), spans.get(name, []), number, where)[last]
            ids[name][rows] = np.where(in_span >= 0, in_span, ids[name][rows])
    if not ids:
        raise BitlensError(f"{path} labels none of the documents in these codes.")
    return [Labels(name, list(numbers[name]), torch.from_numpy(own)) for name, own in ids.items()]


def _rows_of(documents: np.ndarray) -> dict[int, np.ndarray]:
    """The rows of every document, in order."""
    order = np.argsort(documents, kind="stable")
    numbers, first = np.unique(documents[order], return_index=True)
    return dict(zip(numbers.tolist(), np.split(order, first[1:]), strict=True))


def placed_tokens(tokenizer: Any, text: str, n: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The first n tokens of a text, or all, that are not special: ids `[n]`, their start and
    end `[n, 2]`."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids = np.array(encoded["input_ids"], np.int64)
    usual = ~np.isin(ids, np.array(tokenizer.all_special_ids, np.int64))
    return ids[usual][:n], np.array(encoded["offset_mapping"]).reshape(-1, 2)[usual][:n]


def _last_characters(text: str, offsets: np.ndarray) -> np.ndarray:
    """Place of the last character of each token that is no space; `len(text)` for one of spaces."""
    space = np.array([c.isspace() for c in text], bool)
    last = np.maximum.accumulate(np.where(space, -1, np.arange(len(text))))
    start, end = offsets.T
    place = np.where(end > start, last[end - 1], -1)
    return np.where(place >= start, place, len(text))


def _classes_of_characters(
    length: int, spans: list[Any], number: dict[str, int], where: str
) -> np.ndarray:
    """Class of each character, -1 for none, and a last -1; new classes get the next `number`."""
    classes = np.full(length + 1, -1)
    for span in spans:
        match span:
            case [int(start), int(end), name] if 0 <= start < end <= length:
                classes[start:end] = number.setdefault(str(name), len(number))
            case _:
                raise BitlensError(
                    f"{where} has the span {span}; a span is [start, end, class] within the text."
                )
    return classes


def position_bucket(position: int, alone: int = 4) -> str:
    """Name of the bucket: of positions below `alone` their own, then 4-7, 8-15 and so on."""
    if position < alone:
        return str(position)
    low = 1 << (position.bit_length() - 1)
    return f"{low}-{2 * low - 1}" if low > 1 else "1"
