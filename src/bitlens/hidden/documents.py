"""Corpora: which files and datasets are read, and what a document is."""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
import json
import os
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from bitlens.errors import BitlensError
from bitlens.files import sha256
from bitlens.hidden.reading import (
    COMPRESSED,
    KNOWN,
    TextFile,
    column_of,
    ending,
    is_text,
    load_dataset,
    rows_of,
    saved_folder,
)
from bitlens.options import BUNDLED, BUNDLED_FOLDER, Unit
from bitlens.seeding import generator

LONG, PIECE = 8000, 2000  # characters, four or so a token
ABOUT_A_FOLDER = ("readme", "license", "licence")


Documents = Iterator[tuple[str, float]]  # each with the share (0 to 1) that was read by its end


@dataclass(frozen=True)
class Corpus:
    """Documents from files, folders, datasets (NAME or NAME:CONFIG) or 'bundled', as a stream. The
    fields are those of `TextConfig`, where `unit` is called `documents`."""

    sources: tuple[str, ...]
    text_column: str = "text"
    split: str = "train"
    streaming: bool = False
    unit: Unit = "auto"
    shuffle_seed: int | None = None

    def documents(self) -> Iterator[tuple[int, str]]:
        """(id, text) of every document with text in it; the id is its place in the unshuffled
        corpus, but for datasets that are shuffled as they are streamed."""
        numbered = enumerate(text for _, documents in self._parts() for text, _ in documents)
        if self.shuffle_seed is not None and not any(map(self._is_streamed, self.sources)):
            order = torch.randperm(
                len(self._spool[1]) - 1, generator=generator(self.shuffle_seed, "documents")
            )
            numbered = ((i, self._spooled(i)) for i in order.tolist())
        return ((i, text) for i, text in numbered if text.strip())

    def sample(self) -> Documents | None:
        """Documents in the order of the source, each with the share of the corpus that was read;
        None where a dataset would have to be fetched."""
        if any(_is_dataset(source) and not saved_folder(source) for source in self.sources):
            return None
        parts = list(self._parts())
        sizes = [size for size, _ in parts]
        total = max(1, sum(sizes))
        before = itertools.accumulate(sizes, initial=0)
        return (
            (text, (begin + share * size) / total)
            for begin, (size, documents) in zip(before, parts, strict=False)
            for text, share in documents
            if text.strip()
        )

    def fingerprint(self) -> str:
        """A digest of what the text holds, wherever it lies."""
        contents: list[Any] = []
        for source in self.sources:
            if folder := saved_folder(source):
                files = sorted(folder.rglob("*"))
                contents.append([self.split, [_digest(p) for p in files if p.is_file()]])
            elif _is_dataset(source):
                shuffled = self.streaming and self.shuffle_seed is not None
                contents.append([self.split, source, shuffled])
            else:
                contents.append([[ending(p), _digest(p)] for p in self._files(source)])
        settings = [self.text_column, self.unit, self.shuffle_seed]
        return hashlib.sha256(json.dumps([settings, contents]).encode()).hexdigest()

    def origin(self) -> list[str]:
        """The sources, files by their whole path."""
        return [
            source if source == BUNDLED or (path := _local(source)) is None else str(path.resolve())
            for source in self.sources
        ]

    def left_out(self) -> list[str]:
        """Files in the folders that are not read."""
        places = [_local(source) for source in self.sources if not _is_dataset(source)]
        return [
            str(file.relative_to(folder))
            for folder in places
            if folder and folder.is_dir()
            for file in _walk(folder)
            if not _is_read(file)
        ]

    def _is_streamed(self, source: str) -> bool:
        """Whether this is read as it is used, so shuffled in a buffer only."""
        return self.streaming and _local(source) is None

    def _parts(self) -> Iterator[tuple[int, Documents]]:
        """Bytes and documents of every file or dataset."""
        for source in self.sources:
            if _is_dataset(source):
                folder = saved_folder(source)
                size = sum(p.stat().st_size for p in folder.rglob("*")) if folder else 0
                yield size, self._of_dataset(source)
            else:
                for file in self._files(source):
                    yield file.stat().st_size, self._of_file(file)

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

    def _of_file(self, path: Path) -> Documents:
        file = TextFile(path, self.text_column)
        for lines in file.texts():
            for document in _cut(lines, self.unit):
                yield document, file.share()

    def _of_dataset(self, source: str) -> Documents:
        seed = self.shuffle_seed if self._is_streamed(source) else None
        data = load_dataset(source, self.split, self.streaming, seed)
        total = len(data) if hasattr(data, "__len__") else 0
        for number, row in enumerate(rows_of(data, source), 1):
            text = column_of(row, self.text_column, f"{source}, row {number}")
            for document in _cut(io.StringIO(text, newline=""), self.unit):
                yield document, number / max(number, total)

    @functools.cached_property
    def _spool(self) -> tuple[IO[bytes], array[int]]:
        """All documents in a temporary file, to be read in any order, and where each begins."""
        starts = array("q", [0])
        try:
            file = tempfile.TemporaryFile()  # noqa: SIM115
            for text, _ in itertools.chain.from_iterable(part for _, part in self._parts()):
                starts.append(starts[-1] + file.write(text.encode()))
            file.flush()
        except OSError as error:
            raise BitlensError(
                "Shuffling takes a temporary file as large as the text, and there is no room for it"
                f" in {tempfile.gettempdir()} ({error.strerror}); name another folder in TMPDIR."
            ) from error
        return file, starts

    def _spooled(self, i: int) -> str:
        file, starts = self._spool
        return os.pread(file.fileno(), starts[i + 1] - starts[i], starts[i]).decode()


# --- which files ----------------------------------------------------------------------------------


def _local(source: str) -> Path | None:
    """The file or folder that a source names; None where it can only be a dataset of the hub."""
    if source == BUNDLED:
        return BUNDLED_FOLDER / "corpus.jsonl.gz"
    path = Path(source).expanduser()
    try:
        if path.exists():
            return path
    except (OSError, ValueError):  # not a name that a file could have, but perhaps the text itself
        return None
    a_path = source.startswith(("/", "./", "../", "~"))
    if a_path or is_text(path) or path.suffix.lower() in COMPRESSED:
        raise BitlensError(f"There is no text at {source}.")
    return None


def _is_dataset(source: str) -> bool:
    return _local(source) is None or saved_folder(source) is not None


def _walk(folder: Path) -> list[Path]:
    """The files below a folder, in the order of their names, without hidden ones; each comes once,
    however many links lead to it."""
    paths: list[Path] = []
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths += [Path(place, name) for name in names if not name.startswith(".")]
    files: dict[str, Path] = {}  # by their real paths
    for file in sorted(paths):
        if _is_read(file) and not file.is_file():
            raise BitlensError(
                f"{file} is a broken link or no file; mend it or take it out of the folder."
            )
        files.setdefault(os.path.realpath(file), file)
    return list(files.values())


def _is_read(file: Path) -> bool:
    """Whether a file in a folder is part of the corpus."""
    return is_text(file) and file.name.lower().split(".")[0] not in ABOUT_A_FOLDER


def _digest(path: Path) -> str:
    state = path.stat()
    return _digest_of(path, state.st_size, state.st_mtime_ns, state.st_ino)


@functools.cache
def _digest_of(path: Path, *state: int) -> str:
    return sha256(path)


# --- what a document is ---------------------------------------------------------------------------


def _cut(lines: Iterable[str], unit: Unit) -> Iterator[str]:
    """The documents of one file or row, given as its lines with their ends."""
    if unit == "file":
        yield "".join(lines)
    elif unit == "line":
        yield from (line.rstrip("\r\n") for line in lines)
    elif unit == "paragraph":
        for empty, paragraph in itertools.groupby(lines, lambda line: not line.strip()):
            if not empty:
                yield "".join(paragraph).rstrip("\r\n")
    else:
        yield from _pieces(lines)


def _pieces(lines: Iterable[str]) -> Iterator[str]:
    """A text of at most LONG characters as it is, a longer one in pieces of PIECE or more; they end
    with a paragraph, or where that would make them twice as long with a line or a word."""
    held: list[str] = []
    size = 0
    for piece in _grown(part for line in lines for part in stretches(line, PIECE)):
        held.append(piece)
        size += len(piece)
        while size > LONG and len(held) > 2:
            yield held.pop(0)
    if size <= LONG or len(held[-1]) < PIECE:
        yield "".join(held)
    else:
        yield from held


def _grown(lines: Iterable[str]) -> Iterator[str]:
    """Lines joined until they are long enough: PIECE after an empty line, else twice that."""
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
    """A text in parts of at most so many characters, cut after a line or before a space if any."""
    start = 0
    while len(text) - start > longest:
        stop = text.rfind("\n", start, start + longest) + 1
        if stop <= start:
            stop = text.rfind(" ", start + 1, start + longest)
        if stop <= start:
            stop = start + longest
        yield text[start:stop]
        start = stop
    yield text[start:]
