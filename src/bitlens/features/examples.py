"""Where a latent is on: tokens in their context, from different documents."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch

from bitlens.bits.codes import Codes, Columns
from bitlens.hidden.pieces import BYTES, in_text, outside
from bitlens.seeding import generator


class Example(NamedTuple):
    """A token on which a latent is on, with the text before and after it."""

    row: int
    before: str
    token: str
    after: str


def examples(
    codes: Codes, latent: int, tokenizer: Any, n: int = 4, window: int = 8, seed: int = 0
) -> list[Example]:
    """Up to n rows of usual norm with the latent on, drawn at random from different documents; window: tokens shown on
    each side."""
    on = (codes.bits.column(latent).bool() & codes.usual).nonzero()[:, 0]
    order = on[torch.randperm(len(on), generator=generator(seed, "examples", latent))]
    found: list[Example] = []
    documents: set[int] = set()
    for row in order.tolist():
        document = int(codes.document[row])
        if document not in documents:
            documents.add(document)
            found.append(in_context(codes, row, tokenizer, window))
        if len(found) == n:
            break
    return found


def in_context(codes: Columns, row: int, tokenizer: Any, window: int) -> Example:
    """The row's token amid its neighbours of the same document, as they read there."""
    low, high = max(0, row - window - BYTES), min(len(codes.token), row + window + BYTES)
    same = (codes.document[low:high] == codes.document[row]).tolist()
    first = last = row - low
    while first > 0 and same[first - 1]:
        first -= 1
    while last + 1 < len(same) and same[last + 1]:
        last += 1
    ids = codes.token[low + first : low + last + 1].tolist()
    return Example(row, *in_text(tokenizer, ids, row - low - first, window))


def marked(example: Example) -> str:
    """The token in its context, «like» this; spaces before it stay outside, line ends show as ⏎."""
    space, core = outside(example.token)
    return f"{example.before}{space}«{core}»{example.after}".replace("\n", "⏎")


def contexts(columns: Columns, rows: Iterable[int], tokenizer: Any, window: int) -> dict[int, str]:
    """The text of every row with its token marked."""
    return {row: marked(in_context(columns, row, tokenizer, window)) for row in set(rows)}
