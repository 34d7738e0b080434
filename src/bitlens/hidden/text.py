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

STRETCH = 100_000  # characters of a document that are tokenized at once
GROUP_CHARACTERS, GROUP_TEXTS = 200_000, 256  # that are tokenized in one call, about
SAMPLE = 200_000  # characters that the number of rows is estimated from
SAMPLED = 64  # documents at a time


class Contexts(NamedTuple):
    """A batch of contexts, each field `[batch, context]`, padded on the right."""

    __repr__ = brief

    tokens: Tensor
    mask: Tensor
    """which tokens are real, not padding"""
    keep: Tensor
    """which make rows of the store: real, and not special"""
    document: Tensor
    """of each token, -1 for padding"""

    def of(self, chosen: Tensor) -> Contexts:
        """These contexts, padded no further than they need."""
        longest = int(self.mask[chosen].sum(1).max())
        return Contexts(*(field[chosen, :longest] for field in self))

    def by_length(self, tokens: int) -> list[Tensor]:
        """Batches of contexts of like length, the longest first, as indices: each of at most
        `tokens` tokens if it is not one context, of which a sixteenth may be padding."""
        lengths = self.mask.sum(1)
        batches: list[list[int]] = []
        longest = padding = 0
        for context in lengths.argsort(descending=True, stable=True).tolist():
            length = int(lengths[context])
            padding += longest - length
            full = bool(batches) and (len(batches[-1]) + 1) * longest > tokens
            if not batches or full or padding > tokens / 16:
                batches.append([])
                longest, padding = length, 0
            batches[-1].append(context)
        return [torch.tensor(batch) for batch in batches]


class Run(NamedTuple):
    """Consecutive contexts, each (token ids, the document of each), not padded."""

    contexts: list[tuple[list[int], list[int]]]
    surplus: int
    """rows at their end that nobody asked for"""


class ContextReader:
    """Cuts the documents of a corpus into contexts of one length, always in the same way.

    packed: documents follow one another, separated by the tokenizer's end token, in full contexts,
    none of which holds both training and held-out documents. Otherwise a context is the beginning
    of one document. What the tokenizer puts around a text (BOS, [CLS], [SEP]) goes around every
    context. Special tokens are recognised by id and make no rows.
    """

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: Any,
        length: int,
        packed: bool = True,
        bos: bool | None = None,
        test_fraction: float = TEST_FRACTION,
    ) -> None:
        """bos: begin every context with the BOS token; None: if the tokenizer does so by itself."""
        if not 0 <= test_fraction < 1:
            raise BitlensError(f"`test_fraction` must be in [0, 1), not {test_fraction}.")
        self.corpus, self.tokenizer, self.length, self.packed = corpus, tokenizer, length, packed
        self.test_fraction = test_fraction
        begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.before, self.after = _special_around(tokenizer)
        if bos and begin is None:
            raise BitlensError("This tokenizer has no BOS token; leave out `bos`.")
        if bos is not None:
            self.before = [begin] if bos else [i for i in self.before if i != begin]
        if packed:
            self.after = [i for i in self.after if i != end]
        separator = tokenizer.sep_token_id if end is None else end
        self.separator = [] if separator is None else [separator]
        self.room = length - len(self.before) - len(self.after)
        if self.room < 1:
            raise BitlensError(
                f"A context of {length} tokens has no room for text; choose a longer one."
            )
        self.special = torch.tensor(sorted(set(tokenizer.all_special_ids)), dtype=torch.long)
        # Padding is masked, so any token will do that the model knows: it may lack an added one.
        pad = tokenizer.pad_token_id
        self.pad = pad if pad is not None and pad < tokenizer.vocab_size else 0

    def __repr__(self) -> str:
        packed = ", packed" if self.packed else ""
        return f"ContextReader({self.corpus}, contexts of {self.length:,} tokens{packed})"

    @property
    def prepends_bos(self) -> bool:
        """Whether every context begins with the BOS token."""
        return bool(self.before) and self.before[0] == self.tokenizer.bos_token_id

    def tokenized(self) -> Iterator[tuple[int, list[int]]]:
        """(document, token ids) without special tokens; a long document comes in several parts, but
        where contexts are not packed only its first."""
        most = None if self.packed else 1
        parts = (
            (document, part)
            for document, text in self.corpus.documents()
            for part in itertools.islice(stretches(text, STRETCH), most)
        )
        for group in _together(parts):
            documents, texts = zip(*group, strict=True)
            yield from zip(documents, self._ids(list(texts)), strict=True)

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]

    def contexts(self) -> Iterator[tuple[list[int], list[int]]]:
        """(token ids, the document of each) of one context after another, not padded."""
        beginnings = (
            (ids[: self.room], [document] * len(ids[: self.room]))
            for document, ids in self.tokenized()
            if ids
        )
        for ids, documents in self._packed() if self.packed else beginnings:
            before, after = documents[:1] * len(self.before), documents[-1:] * len(self.after)
            yield self.before + ids + self.after, before + documents + after

    def _packed(self) -> Iterator[tuple[list[int], list[int]]]:
        def is_test(part: tuple[int, list[int]]) -> bool:
            return bool(held_out(np.array([part[0]]), self.test_fraction)[0])

        for _, parts in itertools.groupby(self._separated(), is_test):
            tokens: list[int] = []
            documents: list[int] = []
            for document, ids in parts:
                tokens += ids
                documents += [document] * len(ids)
                full = len(tokens) // self.room * self.room
                for start in range(0, full, self.room):
                    yield tokens[start : start + self.room], documents[start : start + self.room]
                tokens, documents = tokens[full:], documents[full:]
            if len(tokens) > len(self.separator):
                yield tokens, documents

    def _separated(self) -> Iterator[tuple[int, list[int]]]:
        for document, parts in itertools.groupby(self.tokenized(), lambda part: part[0]):
            yield from parts
            yield document, self.separator

    def batches(self, size: int, skip: int = 0) -> Iterator[Contexts]:
        """Batches of `size` contexts (the last may be smaller), after the first `skip` contexts."""
        groups = _grouped(itertools.islice(self.contexts(), skip, None), size)
        yield from (self.padded(Run(group, 0)) for group in groups)

    def runs(self, tokens: int, skip: int = 0, rows: int | None = None) -> Iterator[Contexts]:
        """Consecutive contexts after the first `skip`, until they have so many tokens or there are
        no more; of all of them no more than make `rows` rows."""
        yield from map(self.padded, self.unpadded_runs(tokens, skip, rows))

    def unpadded_runs(self, tokens: int, skip: int = 0, rows: int | None = None) -> Iterator[Run]:
        """The same, before `padded`."""
        if rows == 0:
            return
        special, left = set(self.special.tolist()), rows
        contexts, size = [], 0
        for ids, documents in itertools.islice(self.contexts(), skip, None):
            contexts.append((ids, documents))
            size += len(ids)
            left = None if left is None else left - sum(i not in special for i in ids)
            surplus = -1 if left is None else -left
            if size >= tokens or surplus >= 0:
                yield Run(contexts, max(0, surplus))
                contexts, size = [], 0
            if surplus >= 0:
                return
        if contexts:
            yield Run(contexts, 0)

    def padded(self, run: Run) -> Contexts:
        """The contexts of a run as tensors, without its surplus rows."""
        shape = len(run.contexts), max(len(ids) for ids, _ in run.contexts)
        tokens, documents = np.full(shape, self.pad, np.int64), np.full(shape, -1, np.int64)
        for row, (ids, owners) in enumerate(run.contexts):
            tokens[row, : len(ids)], documents[row, : len(ids)] = ids, owners
        ids, document = torch.from_numpy(tokens), torch.from_numpy(documents)
        real = document >= 0
        keep = real & ~torch.isin(ids, self.special)
        if run.surplus:
            rows = keep.view(-1)
            rows[rows.nonzero()[-run.surplus :, 0]] = False
        return Contexts(ids, real, keep, document)

    def estimate_rows(self) -> int | None:
        """About how many tokens the corpus has, from its beginning: exact where that is all, None
        where it is unknown."""
        sample = self.corpus.sample()
        if sample is None:
            return None
        tokens = characters = 0
        for group in _grouped(sample, SAMPLED):
            beginnings = self._ids([text[:STRETCH] for text, _ in group])
            for (text, _), ids in zip(group, beginnings, strict=True):
                whole = len(ids) * len(text) / min(len(text), STRETCH)
                tokens += whole if self.packed else min(len(ids), self.room)
                characters += len(text)
            if characters >= SAMPLE:
                return int(tokens / max(group[-1][1], 1e-9))
        return int(tokens)


def _special_around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The tokens that a tokenizer puts before and after every text, as seen on the first text that
    it has tokens for: a vocabulary may lack even letters."""
    special = set(tokenizer.all_special_ids)
    vocabulary = (cut(tokenizer, [i], ())[0] for i in range(len(tokenizer)) if i not in special)
    for text in itertools.chain(("a", "A", "0"), vocabulary):
        plain = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        full = list(tokenizer(text)["input_ids"])
        for at in range(len(full) - len(plain) + 1 if plain else 0):
            if full[at : at + len(plain)] == plain:
                return full[:at], full[at + len(plain) :]
    raise BitlensError("This tokenizer gives no tokens for any text; take that of the model.")


def _together(parts: Iterable[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    group, characters = [], 0
    for part in parts:
        group.append(part)
        characters += len(part[1])
        if characters >= GROUP_CHARACTERS or len(group) == GROUP_TEXTS:
            yield group
            group, characters = [], 0
    if group:
        yield group


def _grouped(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while group := list(itertools.islice(iterator, size)):
        yield group
