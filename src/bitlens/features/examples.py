"""Where a latent is on: tokens in their context."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bitlens.bits.codes import Codes, TextRows
from bitlens.features.on_rows import one_a_document, one_by_one
from bitlens.hidden.pieces import BYTES, in_text, outside
from bitlens.seeding import generator

PLAIN = str.maketrans("«»\n", "‹›⏎")
"""of a text in which one token is «marked», on one line: its own quotation marks are no marks"""


class Example(NamedTuple):
    """A token on which a latent is on, with the text before and after it."""

    row: int
    before: str
    token: str
    after: str


def random_examples(
    codes: Codes, latent: int, tokenizer: Any, n: int = 4, window: int = 8, seed: int = 0
) -> list[Example]:
    """Up to n rows of usual norm with the latent on, from different documents, with `window` tokens
    on each side."""
    on = (codes.bits.column(latent).bool() & codes.usual).nonzero()[:, 0]
    order = on[torch.randperm(len(on), generator=generator(seed, "examples", latent))]
    rows = one_a_document(one_by_one(order), codes.document, n)
    return [in_context(codes, row, tokenizer, window) for row in rows]


def around(columns: TextRows, row: int, before: int, after: int) -> range:
    """A row with those before and after it, up to so many, that are of its document."""
    first, last = max(0, row - before), min(len(columns.document), row + after + 1)
    other = (columns.document[first:last] != columns.document[row]).nonzero()[:, 0] + first
    start = max(other[other < row].tolist(), default=first - 1) + 1
    return range(start, min(other[other > row].tolist(), default=last))


def in_context(columns: TextRows, row: int, tokenizer: Any, window: int) -> Example:
    """The row's token amid its neighbours of the same document, as they read there."""
    # A few tokens more than are shown: the first and last may be only part of a character.
    span = around(columns, row, window + BYTES, window + BYTES - 1)
    tokens = columns.token[span.start : span.stop].tolist()
    return Example(row, *in_text(tokenizer, tokens, row - span.start, window))


def contexts(columns: TextRows, rows: Iterable[int], tokenizer: Any, window: int) -> dict[int, str]:
    """Every row's token in its context, «like» this, on one line; spaces before it stay outside."""
    text = {}
    for row in set(rows):
        _, *parts = in_context(columns, row, tokenizer, window)
        before, token, after = (part.translate(PLAIN) for part in parts)
        space, core = outside(token)
        text[row] = f"{before}{space}«{core}»{after}"
    return text


def drawn_contexts(codes: Codes, drawn: Tensor, tokenizer: Any, window: int) -> list[list[str]]:
    """The same of rows that were drawn of latents, among those of usual norm: `[latents, n]`, -1
    for none."""
    usual = codes.usual.nonzero()[:, 0]
    rows_by_latent = [usual[rows[rows >= 0]].tolist() for rows in drawn]
    text = contexts(codes, {row for rows in rows_by_latent for row in rows}, tokenizer, window)
    return [[text[row] for row in rows] for rows in rows_by_latent]
