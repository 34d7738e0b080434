"""Corpora and the contexts that a model is shown."""

from __future__ import annotations

import gzip
import hashlib
import importlib.resources
import itertools
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bitlens.errors import BitlensError
from bitlens.hidden.models import BUNDLED
from bitlens.seeding import generator

Unit = Literal["auto", "file", "paragraph", "line"]
PLAIN, TABLES = (".txt", ".md", ".text"), (".jsonl", ".json", ".parquet")
FEW_FILES = 10


@dataclass(frozen=True)
class Corpus:
    """Documents from text files, tables, folders of them, or Hugging Face datasets."""

    sources: tuple[str, ...]
    """files (.txt, .jsonl, .parquet; also .gz), folders, names of datasets (NAME or NAME:CONFIG), or 'bundled'"""
    text_column: str = "text"
    """column of the text in tables and datasets"""
    split: str = "train"
    """split of a dataset"""
    streaming: bool = False
    """read datasets over the network as they are used, without downloading them first"""
    unit: Unit = "auto"
    """what a document is in plain text files; auto: a file, or with fewer than ten files a paragraph"""
    shuffle_seed: int | None = None
    """seed of a random document order; by default the order of the source"""

    def documents(self) -> Iterator[tuple[int, str]]:
        """(id, text) of every document with text in it; the id is its place in the unshuffled corpus."""
        numbered = enumerate(text for source in self.sources for text in self._read(source))
        if self.shuffle_seed is not None and not any(map(self._is_streamed, self.sources)):
            everything = list(numbered)
            order = torch.randperm(len(everything), generator=generator(self.shuffle_seed, "documents")).tolist()
            numbered = (everything[i] for i in order)
        return ((i, text) for i, text in numbered if text.strip())

    def fingerprint(self) -> str:
        """Names this corpus: settings, files and their sizes. Two harvests of one fingerprint have the same rows."""
        files = [(p.name, p.stat().st_size) for s in self.sources if _local(s) for p in self._files(_local(s))]
        return hashlib.sha256(json.dumps([asdict(self), files], sort_keys=True).encode()).hexdigest()

    def text_bytes(self) -> int | None:
        """UTF-8 bytes of text in local sources, by one pass over them; None where a dataset would have to be fetched."""
        if any(_local(source) is None for source in self.sources):
            return None
        return sum(len(text.encode()) for _, text in self.documents())

    def _is_streamed(self, source: str) -> bool:
        """Whether this is a dataset that is read as it is used, and then mixed in a buffer only."""
        return self.streaming and _local(source) is None

    def _files(self, path: Path | None) -> list[Path]:
        if path is None or path.is_file():
            return [path] if path else []
        return sorted(p for p in path.rglob("*") if p.is_file() and _suffix(p) in PLAIN + TABLES)

    def _read(self, source: str) -> Iterator[str]:
        path = _local(source)
        if path is None or (path / "state.json").exists() or (path / "dataset_dict.json").exists():
            yield from self._read_dataset(source)
            return
        files = self._files(path)
        if not files:
            raise BitlensError(f"{path} holds no text: expected files ending in {', '.join(PLAIN + TABLES)} (or .gz).")
        plain = sum(_suffix(p) in PLAIN for p in files)
        unit = ("file" if plain >= FEW_FILES else "paragraph") if self.unit == "auto" else self.unit
        for file in files:
            if _suffix(file) == ".parquet":
                yield from self._read_parquet(file)
            elif _suffix(file) in TABLES:
                yield from self._read_lines(file)
            else:
                yield from _split(_text(file), unit)

    def _read_lines(self, file: Path) -> Iterator[str]:
        for number, line in enumerate(_text(file).split("\n"), 1):  # a text may hold U+2028 and other ends of line
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise BitlensError(
                    f"{file}, line {number} is not JSON ({error}); a document a line is expected."
                ) from None
            yield self._column(row, f"{file}, line {number}")

    def _read_parquet(self, file: Path) -> Iterator[str]:
        try:
            import pyarrow.parquet as parquet
        except ImportError:
            raise BitlensError("Reading parquet needs pyarrow: pip install pyarrow.") from None
        try:
            table = parquet.ParquetFile(file)
            if self.text_column not in table.schema_arrow.names:
                raise BitlensError(_no_column(str(file), self.text_column, table.schema_arrow.names))
            for batch in table.iter_batches(columns=[self.text_column]):
                yield from ("" if text is None else str(text) for text in batch.column(0).to_pylist())
        except (OSError, ValueError) as error:  # also pyarrow's own kinds
            raise BitlensError(f"{file} could not be read: {_first_line(error)}") from error

    def _read_dataset(self, source: str) -> Iterator[str]:
        try:
            import datasets
        except ImportError:
            raise BitlensError("Reading datasets needs a library: pip install datasets.") from None
        name, _, config = source.removeprefix("hf:").partition(":")
        try:
            if (Path(name) / "state.json").exists() or (Path(name) / "dataset_dict.json").exists():
                data = datasets.load_from_disk(name)
                data = data[self.split] if isinstance(data, datasets.DatasetDict) else data
            else:
                data = datasets.load_dataset(name, config or None, split=self.split, streaming=self.streaming)
            if self._is_streamed(source) and self.shuffle_seed is not None:
                data = data.to_iterable_dataset() if isinstance(data, datasets.Dataset) else data
                data = data.shuffle(seed=self.shuffle_seed, buffer_size=10_000)
            for row in data:
                yield self._column(row, source)
        except BitlensError:
            raise
        except Exception as error:  # the library raises many kinds
            raise BitlensError(
                f"'{source}' is neither a file here nor a dataset that could be read: {_first_line(error)}"
            ) from error

    def _column(self, row: Any, where: str) -> str:
        if not isinstance(row, dict) or self.text_column not in row:
            raise BitlensError(_no_column(where, self.text_column, list(row) if isinstance(row, dict) else []))
        text = row[self.text_column]
        return "" if text is None else str(text)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _no_column(where: str, column: str, names: list[str]) -> str:
    return f"{where} has no column '{column}'; name the column of the text with `column`: {', '.join(names) or 'none'}."


def _local(source: str) -> Path | None:
    if source == BUNDLED:
        return Path(str(importlib.resources.files("bitlens") / "bundled" / "corpus.jsonl.gz"))
    path = Path(source)
    if path.exists():
        return path
    if source.startswith(("/", "./", "../", "~")) or path.suffix in PLAIN + TABLES + (".gz",):
        raise BitlensError(f"There is no text at {source}.")
    return None


def _suffix(path: Path) -> str:
    return path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix


def _text(path: Path) -> str:
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return raw.decode("utf-8-sig")
    except (UnicodeDecodeError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise BitlensError(f"{path} is not UTF-8 text ({error}); convert it first.") from None


def _split(text: str, unit: Unit) -> Iterable[str]:
    if unit == "paragraph":
        return (part for part in text.replace("\r\n", "\n").split("\n\n") if part.strip())
    return text.splitlines() if unit == "line" else [text]


class Contexts(NamedTuple):
    """A batch of contexts, `[batch, context]` each: token ids, which are real (not padding), which make rows of the
    store (real and not special), and the document of each token."""

    tokens: Tensor
    mask: Tensor
    keep: Tensor
    document: Tensor


class ContextReader:
    """Cuts the documents of a corpus into contexts of one length, always in the same way.

    packed: documents follow one another, separated by the tokenizer's end token, and every context is full. Otherwise a
    context is (the beginning of) one document. What the tokenizer puts around a text (BOS, [CLS], [SEP]) goes around
    every context. Special tokens are recognised by id and make no rows.
    """

    def __init__(
        self, corpus: Corpus, tokenizer: Any, length: int, packed: bool = True, bos: bool | None = None
    ) -> None:
        """bos: begin every context with the BOS token; None: if the tokenizer does so by itself."""
        self.corpus, self.tokenizer, self.length, self.packed = corpus, tokenizer, length, packed
        plain = tokenizer("a", add_special_tokens=False)["input_ids"]
        full = tokenizer("a")["input_ids"]
        at = next((i for i in range(len(full)) if full[i : i + len(plain)] == plain), 0)
        self.before, self.after = list(full[:at]), list(full[at + len(plain) :])
        begin = tokenizer.bos_token_id
        if bos is True:
            if begin is None:
                raise BitlensError("This tokenizer has no BOS token; leave out `bos`.")
            self.before = [begin]
        elif bos is False:
            self.before = [i for i in self.before if i != begin]
        self.after = [i for i in self.after if i != tokenizer.eos_token_id] if packed else self.after
        end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
        self.separator = [] if end is None else [end]
        self.room = length - len(self.before) - len(self.after)
        if self.room < 1:
            raise BitlensError(f"A context of {length} tokens has no room for text; choose a longer one.")
        self.special = torch.tensor(sorted(set(tokenizer.all_special_ids)), dtype=torch.long)
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0

    @property
    def prepends_bos(self) -> bool:
        return bool(self.before) and self.before[0] == self.tokenizer.bos_token_id

    def tokenized(self) -> Iterator[tuple[int, list[int]]]:
        """(document, token ids) without special tokens"""
        for group in _grouped(self.corpus.documents(), 64):
            texts = [text for _, text in group]
            ids = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
            yield from zip((i for i, _ in group), ids, strict=True)

    def contexts(self) -> Iterator[tuple[list[int], list[int]]]:
        """(tokens, documents) of one context after another, not padded"""
        pieces = self._packed() if self.packed else ((ids[: self.room], [d]) for d, ids in self.tokenized() if ids)
        for ids, documents in pieces:
            documents = documents * len(ids) if len(documents) == 1 else documents
            yield (
                self.before + ids + self.after,
                documents[:1] * len(self.before) + documents + documents[-1:] * len(self.after),
            )

    def _packed(self) -> Iterator[tuple[list[int], list[int]]]:
        tokens: list[int] = []
        documents: list[int] = []
        for document, ids in self.tokenized():
            tokens += ids + self.separator
            documents += [document] * (len(ids) + len(self.separator))
            whole = len(tokens) // self.room * self.room
            for start in range(0, whole, self.room):
                yield tokens[start : start + self.room], documents[start : start + self.room]
            tokens, documents = tokens[whole:], documents[whole:]
        if len(tokens) > len(self.separator):
            yield tokens, documents

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
            yield Contexts(ids, real, real & ~torch.isin(ids, self.special), torch.from_numpy(documents))

    def estimate_rows(self) -> int | None:
        """About how many tokens the corpus has, from its size and the tokens per byte of its beginning."""
        total = self.corpus.text_bytes()
        if total is None:
            return None
        sample = [text[:20_000] for _, text in itertools.islice(self.corpus.documents(), 50)]
        if not sample:
            return 0
        ids = self.tokenizer(sample, add_special_tokens=False, verbose=False)["input_ids"]
        if not self.packed:
            documents = sum(1 for _ in self.corpus.documents())
            return documents * sum(min(len(i), self.room) for i in ids) // len(ids)
        return int(total * sum(map(len, ids)) / max(1, sum(len(text.encode()) for text in sample)))


def _grouped(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while group := list(itertools.islice(iterator, size)):
        yield group
