"""Texts of one source, read as a stream: of a file, by its ending, or of a Hugging Face dataset."""

from __future__ import annotations

import bz2
import contextlib
import csv
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from bitlens import memory
from bitlens.errors import BitlensError
from bitlens.remote import said

PLAIN = (".txt", ".text", ".md", ".markdown")
LINES = (".jsonl", ".ndjson", ".jsonlines")
TABLES = (*LINES, ".json", ".csv", ".tsv", ".parquet")
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
KNOWN = f"{', '.join(PLAIN + TABLES)}; all but .parquet also with {', '.join(COMPRESSED)} after it"
BLOCK = 1 << 18  # bytes or characters that are read at once
BUFFER = 10_000  # rows among which a dataset is shuffled while it is streamed
SURROGATE = re.compile("[\ud800-\udfff]")


def ending(path: Path | str) -> str:
    """What a file is, by its name: `.jsonl` of `A.JSONL.gz`."""
    path = Path(str(path).lower())
    return Path(path.stem).suffix if path.suffix in COMPRESSED else path.suffix


def is_text(path: Path | str) -> bool:
    """Whether the name of a file says that it can be read here."""
    packed = Path(path).suffix.lower() in COMPRESSED
    return ending(path) in PLAIN + TABLES and not (ending(path) == ".parquet" and packed)


class TextFile:
    """One file. column: of the text, in a table. kind: an ending, if not that of the name."""

    def __init__(self, path: Path, column: str, kind: str | None = None) -> None:
        if kind is None and not is_text(path):
            raise BitlensError(f"{path} has none of the endings that are read as text: {KNOWN}.")
        self.path, self.column, self.kind = path, column, kind or ending(path)
        self._raw: IO[bytes] | None = None
        self._share = 0.0  # of parquet, whose rows are counted

    def share(self) -> float:
        """How much of the file was read, 0 to 1, from which the rest can be estimated."""
        if self.kind == ".parquet" or self._raw is None:
            return self._share
        if self._raw.closed:
            return 1.0
        return min(1.0, self._raw.tell() / max(1, self.path.stat().st_size))

    def texts(self) -> Iterator[Iterable[str]]:
        """The lines of every text, with their ends: of every row of a table, or of the file."""
        if self.kind in PLAIN:
            yield self._guarded(self._plain())
            return
        for where, row in self.rows():
            yield io.StringIO(column_of(row, self.column, where), newline="")

    def rows(self) -> Iterator[tuple[str, Any]]:
        """(where it is, for errors, and its value) of every row of a table."""
        readers = {".parquet": self._parquet, ".json": self._json}
        readers |= {".csv": self._csv, ".tsv": self._csv}
        return self._guarded(readers.get(self.kind, self._lines)())

    def _guarded(self, items: Iterator[Any]) -> Iterator[Any]:
        try:
            yield from items
        except UnicodeDecodeError as error:
            raise self._not_utf8(error) from None
        except (gzip.BadGzipFile, zlib.error, EOFError, lzma.LZMAError) as error:
            raise BitlensError(f"{self.path} could not be decompressed: {error}.") from None
        except (OSError, ValueError, csv.Error, RecursionError, MemoryError) as error:
            memory.refuse(error, self.path)  # all of pyarrow's are of these kinds, too
            raise BitlensError(f"{self.path} could not be read: {said(error)}.") from error

    def _not_utf8(self, reason: object) -> BitlensError:
        return BitlensError(f"{self.path} is not UTF-8 text ({reason}); convert it first.")

    @contextlib.contextmanager
    def _open(self, newline: str) -> Iterator[io.TextIOWrapper]:
        openers: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
        openers[".zst"] = lambda raw: io.BufferedReader(_Zstandard(raw), BLOCK)
        opener = openers.get(self.path.suffix.lower())
        with self.path.open("rb") as self._raw:
            stream: Any = opener(self._raw) if opener else self._raw
            # UTF-16 of English text would pass for UTF-8, but every other byte of it is 0
            if 0 in stream.peek(4)[:4]:
                raise self._not_utf8("it begins with bytes of 0")
            yield io.TextIOWrapper(stream, encoding="utf-8-sig", newline=newline)

    def _plain(self) -> Iterator[str]:
        with self._open("") as file:
            yield from file

    def _lines(self) -> Iterator[tuple[str, Any]]:
        with self._open("\n") as file:  # a text may hold U+2028 and other ends of line
            for number, line in enumerate(file, 1):
                if line.strip():
                    where = f"{self.path}, line {number}"
                    yield where, _parsed(line, where)

    def _json(self) -> Iterator[tuple[str, Any]]:
        """An array of objects, or one object after another, in blocks as large as needed."""
        decoder, number, at, text = json.JSONDecoder(), 0, 0, ""
        with self._open("") as file:
            while not text and (block := file.read(BLOCK)):
                text = block.lstrip()
            array = text.startswith("[")
            text = text[1:] if array else text
            between = re.compile(r"[, \t\r\n]*" if array else r"[ \t\r\n]*")
            while True:
                at = between.match(text, at).end()  # pyright: ignore[reportOptionalMemberAccess]
                if array and text[at : at + 1] == "]":
                    break
                try:
                    value, at = decoder.raw_decode(text, at)
                except json.JSONDecodeError:
                    block = file.read(max(BLOCK, len(text)))
                    if not block and at < len(text):  # says what is wrong
                        _parsed(text[at:], f"{self.path}, document {number + 1}")
                    if not block and array:
                        message = f"{self.path} ends before its array of documents does."
                        raise BitlensError(message) from None
                    if not block:
                        return
                    text, at = text[at:] + block, 0
                    continue
                number += 1
                yield f"{self.path}, document {number}", value
                if at > BLOCK:
                    text, at = text[at:], 0
            rest = text[at + 1 :]
            if rest.strip() or any(block.strip() for block in iter(lambda: file.read(BLOCK), "")):
                raise BitlensError(
                    f"{self.path} goes on after its array of documents; one array is a file."
                )

    def _csv(self) -> Iterator[tuple[str, Any]]:
        csv.field_size_limit(2**31 - 1)
        with self._open("") as file:
            delimiter = "\t" if self.kind == ".tsv" else ","
            rows = csv.reader(file, delimiter=delimiter, strict=True)
            names = next(rows, None)
            if names is None:  # an empty file
                return
            if self.column not in names:
                raise _no_column(str(self.path), self.column, names)
            for row in filter(None, rows):
                where = f"{self.path}, line {rows.line_num}"
                if len(row) != len(names):
                    raise BitlensError(
                        f"{where} has {len(row)} fields and the header {len(names)}; "
                        "put texts with separators in them between quotes."
                    )
                yield where, dict(zip(names, row, strict=True))

    def _parquet(self) -> Iterator[tuple[str, Any]]:
        import pyarrow.parquet as parquet

        with parquet.ParquetFile(self.path) as table:
            if self.column not in table.schema_arrow.names:
                raise _no_column(str(self.path), self.column, table.schema_arrow.names)
            number, total = 0, table.metadata.num_rows
            for batch in table.iter_batches(256, columns=[self.column]):
                for row in batch.to_pylist():
                    number += 1
                    self._share = number / total
                    yield f"{self.path}, row {number}", row


def json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """(where it is, for errors, and its value) of every line of a file, packed or not."""
    return TextFile(path, "", LINES[0]).rows()


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise BitlensError(
            f"{where} is not JSON ({error}); an object for every document is expected."
        ) from None


def column_of(row: Any, column: str, where: str) -> str:
    """The text of one row of a table; null is empty, and a lone surrogate, which JSON can hold and
    UTF-8 cannot, becomes U+FFFD."""
    if not isinstance(row, dict) or column not in row:
        raise _no_column(where, column, list(row) if isinstance(row, dict) else [])
    text = row[column]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise BitlensError(
            f"{where} holds {type(text).__name__} in the column '{column}' where text is expected; "
            "name another one with `column`, or convert this one."
        )
    return text if text.isascii() else SURROGATE.sub("\ufffd", text)


def _no_column(where: str, column: str, names: list[str]) -> BitlensError:
    return BitlensError(
        f"{where} has no column '{column}'; name the column of the text with `column`: "
        f"{', '.join(names) or 'none'}."
    )


class _Zstandard(io.RawIOBase):
    """The bytes of a .zst file; the library's own reader takes a cut file for a whole one."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._blocks, self._block = _decompressed(raw), memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._block = self._block or memoryview(next(self._blocks, b""))
        n = min(len(buffer), len(self._block))
        buffer[:n], self._block = self._block[:n], self._block[n:]
        return n


def _decompressed(raw: IO[bytes]) -> Iterator[bytes]:
    """Frame after frame, as `zstd` writes several files into one."""
    import zstandard

    decompressor = zstandard.ZstdDecompressor(max_window_size=2**31)
    frame: Any = None
    rest = b""  # of what was read, after the end of a frame
    while rest := rest or raw.read(1 << 10):  # which may stand for 32 MiB
        frame = frame or decompressor.decompressobj()
        try:
            block = frame.decompress(rest)
        except zstandard.ZstdError as error:
            kind = MemoryError if "not enough memory" in str(error) else EOFError
            raise kind(str(error)) from None
        rest = b""
        if frame.eof:
            rest, frame = frame.unused_data, None
        if block:
            yield block
    if frame is not None:
        raise EOFError("the compressed data end too early")


# --- datasets -------------------------------------------------------------------------------------


def saved_folder(source: str) -> Path | None:
    """The folder of a dataset that `save_to_disk` wrote, if `source` is one."""
    path = Path(source.removeprefix("hf:")).expanduser()
    try:
        saved = (path / "state.json").exists() or (path / "dataset_dict.json").exists()
    except (OSError, ValueError):  # not a name that a folder could have
        return None
    return path if saved else None


def load_dataset(
    source: str, split: str, streaming: bool = False, shuffle_seed: int | None = None
) -> Any:
    """The split of a dataset (NAME, NAME:CONFIG or a saved folder, also with hf: before it).

    shuffle_seed: of an order that is shuffled within a buffer as the rows are read.
    """
    try:
        import datasets
    except ImportError:
        raise BitlensError("Reading datasets needs a library: pip install datasets.") from None
    name, _, config = source.removeprefix("hf:").partition(":")
    with _readable(source):
        if folder := saved_folder(source):
            data: Any = datasets.load_from_disk(str(folder))
            data = data[split] if isinstance(data, datasets.DatasetDict) else data
        else:
            data = datasets.load_dataset(name, config or None, split=split, streaming=streaming)
        if shuffle_seed is not None:
            data = data.to_iterable_dataset() if isinstance(data, datasets.Dataset) else data
            data = data.shuffle(seed=shuffle_seed, buffer_size=BUFFER)
    return data


def rows_of(data: Any, source: str) -> Iterator[Any]:
    """The rows of a loaded dataset; what goes wrong in between is raised as a `BitlensError`."""
    with _readable(source):
        yield from data


@contextlib.contextmanager
def _readable(source: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the library raises many kinds
        memory.refuse(error, source)
        raise BitlensError(
            f"'{source}' is neither a file here nor a dataset that could be read: {said(error)}."
        ) from error
