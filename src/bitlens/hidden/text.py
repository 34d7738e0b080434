"""The contexts of a corpus: what a model is shown."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bitlens.errors import BitlensError
from bitlens.hidden.documents import Corpus, stretches
from bitlens.hidden.pieces import cut
from bitlens.hidden.source import held_out
from bitlens.options import TEST_FRACTION
from bitlens.results import brief

STRETCH = 100_000  # characters that are tokenized at once
GROUP = 64  # texts, of STRETCH characters in all
SAMPLE = 200_000  # characters that the number of rows is estimated from


class Contexts(NamedTuple):
    """A batch of contexts, `[batch, context]` each: token ids, which are real (not padding), which make rows of the
    store (real and not special), and the document of each token."""

    __repr__ = brief

    tokens: Tensor
    mask: Tensor
    keep: Tensor
    document: Tensor


class ContextReader:
    """Cuts the documents of a corpus into contexts of one length, always in the same way.

    packed: documents follow one another, separated by the tokenizer's end token, in full contexts; where training and
    held-out documents meet a new context begins, so that none holds both. Otherwise a context is (the beginning of) one
    document. What the tokenizer puts around a text (BOS, [CLS], [SEP]) goes around every context. Special tokens are
    recognised by id and make no rows.
    """

    def __init__(
        self, corpus: Corpus, tokenizer: Any, length: int, packed: bool = True, bos: bool | None = None,
        test_fraction: float = TEST_FRACTION,
    ) -> None:  # fmt: skip
        """bos: begin every context with the BOS token; None: if the tokenizer does so by itself. test_fraction: share of
        the documents that will be held out, which packing keeps apart."""
        if not 0 <= test_fraction < 1:
            raise BitlensError(f"`test_fraction` must be in [0, 1), not {test_fraction}.")
        self.corpus, self.tokenizer, self.length, self.packed = corpus, tokenizer, length, packed
        self.test_fraction = test_fraction
        self.before, self.after = _around(tokenizer)
        begin = tokenizer.bos_token_id
        if bos is True:
            if begin is None:
                raise BitlensError("This tokenizer has no BOS token; leave out `bos`.")
            self.before = [begin]
        elif bos is False:
            self.before = [i for i in self.before if i != begin]
        self.after = (
            [i for i in self.after if i != tokenizer.eos_token_id] if packed else self.after
        )
        end = (
            tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
        )
        self.separator = [] if end is None else [end]
        self.room = length - len(self.before) - len(self.after)
        if self.room < 1:
            raise BitlensError(
                f"A context of {length} tokens has no room for text; choose a longer one."
            )
        self.special = torch.tensor(sorted(set(tokenizer.all_special_ids)), dtype=torch.long)
        pad = (
            tokenizer.pad_token_id
        )  # masked, so any will do that the model knows; one that was added it may not
        self.pad = pad if pad is not None and pad < tokenizer.vocab_size else 0

    def __repr__(self) -> str:
        return f"ContextReader({self.corpus}, contexts of {self.length:,} tokens{', packed' if self.packed else ''})"

    @property
    def prepends_bos(self) -> bool:
        return bool(self.before) and self.before[0] == self.tokenizer.bos_token_id

    def tokenized(self) -> Iterator[tuple[int, list[int]]]:
        """(document, token ids) without special tokens, a long document in several parts; unpacked only its first"""
        for group in _groups(self._stretches()):
            yield from zip(
                (i for i, _ in group), self._ids([text for _, text in group]), strict=True
            )

    def _stretches(self) -> Iterator[tuple[int, str]]:
        for document, text in self.corpus.documents():
            parts = stretches(text, STRETCH)
            yield from (
                (document, part) for part in (parts if self.packed else itertools.islice(parts, 1))
            )

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]

    def contexts(self) -> Iterator[tuple[list[int], list[int]]]:
        """(tokens, documents) of one context after another, not padded"""
        pieces = (
            self._packed()
            if self.packed
            else ((ids[: self.room], [d]) for d, ids in self.tokenized() if ids)
        )
        for ids, documents in pieces:
            documents = documents * len(ids) if len(documents) == 1 else documents
            yield (
                self.before + ids + self.after,
                documents[:1] * len(self.before) + documents + documents[-1:] * len(self.after),
            )

    def _packed(self) -> Iterator[tuple[list[int], list[int]]]:
        for _, parts in itertools.groupby(self._separated(), lambda part: self._is_test(part[0])):
            tokens: list[int] = []
            documents: list[int] = []
            for document, ids in parts:
                tokens += ids
                documents += [document] * len(ids)
                whole = len(tokens) // self.room * self.room
                for start in range(0, whole, self.room):
                    yield tokens[start : start + self.room], documents[start : start + self.room]
                tokens, documents = tokens[whole:], documents[whole:]
            if len(tokens) > len(self.separator):
                yield tokens, documents

    def _separated(self) -> Iterator[tuple[int, list[int]]]:
        for document, parts in itertools.groupby(self.tokenized(), lambda part: part[0]):
            yield from parts
            yield document, self.separator

    def _is_test(self, document: int) -> bool:
        return bool(held_out(np.array([document]), self.test_fraction)[0])

    def batches(self, size: int, skip: int = 0) -> Iterator[Contexts]:
        """Batches of `size` contexts (the last may be smaller), padded on the right, after the first `skip` contexts."""
        for group in _grouped(itertools.islice(self.contexts(), skip, None), size):
            longest = max(len(ids) for ids, _ in group)
            tokens = np.full((len(group), longest), self.pad, np.int64)
            documents = np.full((len(group), longest), -1, np.int64)
            for row, (ids, owners) in enumerate(group):
                tokens[row, : len(ids)], documents[row, : len(ids)] = ids, owners
            real = torch.from_numpy(documents >= 0)
            ids = torch.from_numpy(tokens)
            yield Contexts(
                ids, real, real & ~torch.isin(ids, self.special), torch.from_numpy(documents)
            )

    def estimate_rows(self) -> int | None:
        """About how many tokens the corpus has, from its beginning: exact where that is all, None where it is unknown."""
        sample = self.corpus.sample()
        if sample is None:
            return None
        tokens = characters = 0
        for group in _grouped(sample, GROUP):
            texts = [text[:STRETCH] for text, _ in group]
            sizes = [len(ids) for ids in self._ids(texts)]
            if self.packed:
                sizes = [
                    n * len(text) / len(t)
                    for n, t, (text, _) in zip(sizes, texts, group, strict=True)
                ]
            else:
                sizes = [min(n, self.room) for n in sizes]
            tokens, characters = tokens + sum(sizes), characters + sum(map(len, texts))
            if characters >= SAMPLE:
                return int(tokens / max(group[-1][1], 1e-9))
        return int(tokens)


def _around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """What a tokenizer puts before and after every text, seen on the first text that it has tokens for."""
    special = set(tokenizer.all_special_ids)
    vocabulary = (cut(tokenizer, [i], ())[0] for i in range(len(tokenizer)) if i not in special)
    for text in itertools.chain(("a", "A", "0"), vocabulary):
        plain = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        full = list(tokenizer(text)["input_ids"])
        for at in range(len(full) - len(plain) + 1 if plain else 0):
            if full[at : at + len(plain)] == plain:
                return full[:at], full[at + len(plain) :]
    raise BitlensError("This tokenizer gives no tokens for any text; take that of the model.")


def _groups(texts: Iterable[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    """Texts to be tokenized together."""
    group: list[tuple[int, str]] = []
    size = 0
    for item in texts:
        group.append(item)
        size += len(item[1])
        if len(group) == GROUP or size >= STRETCH:
            yield group
            group, size = [], 0
    if group:
        yield group


def _grouped(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while group := list(itertools.islice(iterator, size)):
        yield group
