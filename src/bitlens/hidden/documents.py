"""Corpora: which files and datasets are read, and what a document is."""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
import io
import itertools
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bitlens.errors import BitlensError
from bitlens.files import sha256
from bitlens.hidden.models import BUNDLED
from bitlens.hidden.reading import (
    COMPRESSED,
    KNOWN,
    TextFile,
    column_of,
    ending,
    first_line,
    is_text,
)
from bitlens.options import Unit
from bitlens.seeding import generator

LONG, PIECE = 8000, 2000  # characters, four or so a token
ABOUT_A_FOLDER = ("readme", "license", "licence")


@dataclass(frozen=True)
class Corpus:
    """Documents from text files, tables, folders of them, or Hugging Face datasets, read as a stream."""

    sources: tuple[str, ...]
    """files (.txt, .md, .jsonl, .json, .csv, .tsv, .parquet; also .gz, .zst), folders, datasets (NAME or NAME:CONFIG),
    or 'bundled'"""
    text_column: str = "text"
    """column of the text in tables and datasets"""
    split: str = "train"
    """split of a dataset"""
    streaming: bool = False
    """read datasets over the network as they are used, without downloading them first"""
    unit: Unit = "auto"
    """what a document is; auto: a file or row, but pieces of 2,000 characters or more of one that has more than 8,000"""
    shuffle_seed: int | None = None
    """seed of a random document order; by default the order of the source. It takes a pass over the whole corpus and a
    temporary file as large as its text"""

    def documents(self) -> Iterator[tuple[int, str]]:
        """(id, text) of every document with text in it; the id is its place in the unshuffled corpus."""
        if self.shuffle_seed is not None and not any(map(self._is_streamed, self.sources)):
            order = torch.randperm(
                len(self._spool), generator=generator(self.shuffle_seed, "documents")
            )
            numbered = ((int(i), self._spool.read(int(i))) for i in order)
        else:
            numbered = enumerate(text for source in self.sources for text in self._read(source))
        return ((i, text) for i, text in numbered if text.strip())

    def sample(self) -> Iterator[tuple[str, float]] | None:
        """Documents in the order of the source, each with the share of the corpus that was read by its end; None where a
        dataset would have to be fetched."""
        parts: list[tuple[int, Iterator[tuple[str, float]]]] = []
        for source in self.sources:
            if folder := _saved_dataset(source):
                parts.append(
                    (
                        sum(p.stat().st_size for p in folder.rglob("*")),
                        self._shares_of_dataset(source),
                    )
                )
            elif _is_dataset(source):
                return None
            else:
                parts += [(file.stat().st_size, self._shares(file)) for file in self._files(source)]
        total = max(1, sum(size for size, _ in parts))
        before = itertools.accumulate((size for size, _ in parts), initial=0)
        return (
            (text, (begin + share * size) / total)
            for begin, (size, texts) in zip(before, parts, strict=False)
            for text, share in texts
            if text.strip()
        )

    def _shares(self, path: Path) -> Iterator[tuple[str, float]]:
        file = TextFile(path, self.text_column)
        yield from ((text, file.share()) for text in _documents(file, self.unit))

    def _shares_of_dataset(self, source: str) -> Iterator[tuple[str, float]]:
        rows = len(self.dataset(source))
        for number, text in enumerate(self._read_dataset(source), 1):
            yield from ((part, number / rows) for part in _cut(text, self.unit))

    def fingerprint(self) -> str:
        """Names this text by what it holds, wherever it lies. Two harvests of one fingerprint have the same rows."""
        settings = [self.text_column, self.unit, self.shuffle_seed]
        found: list[Any] = []
        for source in self.sources:
            if folder := _saved_dataset(source):
                found.append(
                    [self.split, [_digest(p) for p in sorted(folder.rglob("*")) if p.is_file()]]
                )
            elif _is_dataset(source):
                found.append([self.split, source, self.streaming and self.shuffle_seed is not None])
            else:
                found.append([[ending(p), _digest(p)] for p in self._files(source)])
        return hashlib.sha256(json.dumps([settings, found]).encode()).hexdigest()

    def origin(self) -> list[str]:
        """The sources, files by their whole path."""
        return [
            s if s == BUNDLED or (p := _local(s)) is None else str(p.resolve())
            for s in self.sources
        ]

    def left_out(self) -> list[str]:
        """Files in the folders that are not read: of an unknown kind, or about the folder."""
        folders = [
            p
            for s in self.sources
            if not _is_dataset(s) and (p := _local(s)) is not None and p.is_dir()
        ]
        return [
            str(file.relative_to(p)) for p in folders for file in _walk(p) if not _is_read(file)
        ]

    def _is_streamed(self, source: str) -> bool:
        """Whether this is a dataset that is read as it is used, and then mixed in a buffer only."""
        return self.streaming and _local(source) is None

    def _files(self, source: str) -> list[Path]:
        path = _local(source)
        if path is None or path.is_file():
            return [path] if path else []
        if not path.is_dir():
            raise BitlensError(
                f"{path} is neither a file nor a folder; write the text to a file first."
            )
        files = [file for file in _walk(path) if _is_read(file)]
        if not files:
            raise BitlensError(f"{path} holds no text: expected files ending in {KNOWN}.")
        return files

    def _read(self, source: str) -> Iterator[str]:
        if _is_dataset(source):
            yield from (
                part for text in self._read_dataset(source) for part in _cut(text, self.unit)
            )
            return
        for file in self._files(source):
            yield from _documents(TextFile(file, self.text_column), self.unit)

    def _read_dataset(self, source: str) -> Iterator[str]:
        data = self.dataset(source)
        try:
            for number, row in enumerate(data, 1):
                yield column_of(row, self.text_column, f"{source}, row {number}")
        except BitlensError:
            raise
        except Exception as error:  # the library raises many kinds
            raise BitlensError(_unreadable(source, error)) from error

    def dataset(self, source: str) -> Any:
        """The Hugging Face dataset that a source names, or the one saved in its folder."""
        try:
            import datasets
        except ImportError:
            raise BitlensError("Reading datasets needs a library: pip install datasets.") from None
        name, _, config = source.removeprefix("hf:").partition(":")
        try:
            if folder := _saved_dataset(source):
                data = datasets.load_from_disk(str(folder))
                data = data[self.split] if isinstance(data, datasets.DatasetDict) else data
            else:
                data = datasets.load_dataset(
                    name, config or None, split=self.split, streaming=self.streaming
                )
            if self._is_streamed(source) and self.shuffle_seed is not None:
                data = data.to_iterable_dataset() if isinstance(data, datasets.Dataset) else data
                data = data.shuffle(seed=self.shuffle_seed, buffer_size=10_000)
        except Exception as error:
            raise BitlensError(_unreadable(source, error)) from error
        return data

    @functools.cached_property
    def _spool(self) -> _Spool:
        return _Spool(text for source in self.sources for text in self._read(source))


class _Spool:
    """Texts in a temporary file, to be read in any order."""

    def __init__(self, texts: Iterator[str]) -> None:
        ends = [0]
        try:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115
            for text in texts:
                ends.append(ends[-1] + self._file.write(text.encode()))
            self._file.flush()
        except OSError as error:
            raise BitlensError(
                f"Mixing the documents takes a temporary file as large as the text, and there is no room for it in "
                f"{tempfile.gettempdir()} ({error.strerror}); name another folder in TMPDIR."
            ) from error
        self._ends = np.array(ends)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def read(self, i: int) -> str:
        start, stop = self._ends[i : i + 2].tolist()
        return os.pread(self._file.fileno(), stop - start, start).decode()


def _unreadable(source: str, error: Exception) -> str:
    return (
        f"'{source}' is neither a file here nor a dataset that could be read: {first_line(error)}"
    )


# --- which files -----------------------------------------------------------------------------------------------------


def _local(source: str) -> Path | None:
    if source == BUNDLED:
        return Path(str(importlib.resources.files("bitlens") / "bundled" / "corpus.jsonl.gz"))
    path = Path(source).expanduser()
    try:
        if path.exists():
            return path
    except (OSError, ValueError):  # no name that a file could have, as of a text itself
        return None
    if (
        source.startswith(("/", "./", "../", "~"))
        or is_text(path)
        or path.suffix.lower() in COMPRESSED
    ):
        raise BitlensError(f"There is no text at {source}.")
    return None


def _saved_dataset(source: str) -> Path | None:
    """The folder that `save_to_disk` wrote."""
    path = Path(source.removeprefix("hf:")).expanduser()
    return path if (path / "state.json").exists() or (path / "dataset_dict.json").exists() else None


def _is_dataset(source: str) -> bool:
    return _local(source) is None or _saved_dataset(source) is not None


def _walk(folder: Path) -> list[Path]:
    """The files below a folder, each once and links followed, in the order of their names; hidden ones are passed over."""
    found, seen = [], set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(place, name) for name in names if not name.startswith(".")]
    files = []
    for file in sorted(found):
        if _is_read(file) and not file.is_file():
            raise BitlensError(
                f"{file} is a broken link or no file; mend it or take it out of the folder."
            )
        if (real := os.path.realpath(file)) not in seen:
            seen.add(real)
            files.append(file)
    return files


def _is_read(file: Path) -> bool:
    """Whether a file in a folder is part of the corpus."""
    return is_text(file) and file.name.lower().split(".")[0] not in ABOUT_A_FOLDER


def _digest(path: Path) -> str:
    state = path.stat()
    return _digest_of(path, state.st_size, state.st_mtime_ns, state.st_ino)


@functools.cache
def _digest_of(path: Path, *state: int) -> str:
    return sha256(path)


# --- what a document is ----------------------------------------------------------------------------------------------


def _documents(file: TextFile, unit: Unit) -> Iterator[str]:
    for text in file.texts():
        yield from _cut(text, unit)


def _cut(text: str | Iterator[str], unit: Unit) -> Iterator[str]:
    """The documents of one file or row. text: as a whole, or its lines with their ends."""
    if isinstance(text, str):
        if unit == "file" or (unit == "auto" and len(text) <= LONG):
            yield text
            return
        text = iter(io.StringIO(text, newline=""))
    if unit == "file":
        yield "".join(text)
    elif unit == "line":
        yield from (line.rstrip("\r\n") for line in text)
    elif unit == "paragraph":
        for empty, lines in itertools.groupby(text, lambda line: not line.strip()):
            if not empty:
                yield "".join(lines).rstrip("\r\n")
    else:
        yield from _pieces(text)


def _pieces(lines: Iterator[str]) -> Iterator[str]:
    """A text of at most LONG characters as it is, a longer one in pieces of PIECE or more: they end with a paragraph, or
    where that would make them twice as long, with a line; in lines that are as long, with a word."""
    held: list[str] = []
    size, long = 0, False
    for piece in _grown(part for line in lines for part in stretches(line, PIECE)):
        held.append(piece)
        size += len(piece)
        long = long or size > LONG
        while long and len(held) > 2:
            yield held.pop(0)
    if not long or len(held[-1]) < PIECE:
        yield "".join(held)
    else:
        yield from held


def _grown(lines: Iterator[str]) -> Iterator[str]:
    piece, size = [], 0
    for line in lines:
        piece.append(line)
        size += len(line)
        if size >= (2 * PIECE if line.strip() else PIECE):
            yield "".join(piece)
            piece, size = [], 0
    if piece:
        yield "".join(piece)


def stretches(text: str, longest: int) -> Iterator[str]:
    """A text in parts of at most so many characters, cut after a line or before a space where there is one."""
    start = 0
    while len(text) - start > longest:
        line = text.rfind("\n", start, start + longest) + 1
        word = text.rfind(" ", start + 1, start + longest)
        stop = max(line, start) if line > start else word if word > start else start + longest
        yield text[start:stop]
        start = stop
    yield text[start:]
