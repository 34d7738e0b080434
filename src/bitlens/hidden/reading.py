"""One file of text: what it is, by its ending, and its texts, read as a stream."""

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
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from bitlens.errors import BitlensError

PLAIN = (".txt", ".text", ".md", ".markdown")
LINES = (".jsonl", ".ndjson", ".jsonlines")
TABLES = (*LINES, ".json", ".csv", ".tsv", ".parquet")
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
KNOWN = f"{', '.join(PLAIN + TABLES)}; all but .parquet also with {', '.join(COMPRESSED)} after it"
BLOCK = 1 << 18  # bytes or characters that are read at once
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
    """The texts of one file, read as a stream."""

    def __init__(self, path: Path, column: str, kind: str | None = None) -> None:
        """column: of the text, in a table. kind: an ending, if not that of the name."""
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
        except (OSError, ValueError, csv.Error, RecursionError) as error:  # pyarrow's are of these
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise BitlensError(f"{self.path} could not be read: {reason}") from error

    def _not_utf8(self, reason: object) -> BitlensError:
        return BitlensError(f"{self.path} is not UTF-8 text ({reason}); convert it first.")

    @contextlib.contextmanager
    def _open(self, newline: str) -> Iterator[io.TextIOWrapper]:
        openers: dict[str, Any] = {
            ".gz": gzip.open,
            ".bz2": bz2.open,
            ".xz": lzma.open,
            ".zst": lambda raw: io.BufferedReader(_Zstandard(raw), BLOCK),
        }
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
                    yield where, _parsed(json.loads, line, where)

    def _json(self) -> Iterator[tuple[str, Any]]:
        """An array of objects, or one object after another, in blocks as large as needed."""
        decoder, number, at, text = json.JSONDecoder(), 0, 0, ""
        with self._open("") as file:
            while not text and (block := file.read(BLOCK)):
                text = block.lstrip()
            array = text.startswith("[")
            text = text[1:] if array else text
            while True:
                at = _skip(text, at, ", \t\r\n" if array else " \t\r\n")
                if array and text[at : at + 1] == "]":
                    return self._end(text[at + 1 :], file)
                try:
                    value, at = decoder.raw_decode(text, at)
                except json.JSONDecodeError:
                    block = file.read(max(BLOCK, len(text)))
                    if not block and at < len(text):  # says what is wrong
                        _parsed(json.loads, text[at:], f"{self.path}, document {number + 1}")
                    if not block and array:
                        message = f"{self.path} ends before its array of documents does."
                        raise BitlensError(message) from None
                    if not block:
                        return None
                    text, at = text[at:] + block, 0
                    continue
                number += 1
                yield f"{self.path}, document {number}", value
                if at > BLOCK:
                    text, at = text[at:], 0

    def _end(self, rest: str, file: io.TextIOWrapper) -> None:
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


def _parsed(parse: Callable[[str], Any], text: str, where: str) -> Any:
    try:
        return parse(text)
    except json.JSONDecodeError as error:
        raise BitlensError(
            f"{where} is not JSON ({error}); an object for every document is expected."
        ) from None


def _skip(text: str, at: int, characters: str) -> int:
    """The next place of a character that is none of these, or the end."""
    while at < len(text) and text[at] in characters:
        at += 1
    return at


def column_of(row: Any, column: str, where: str) -> str:
    """The text of one row of a table: nothing else is taken for text, but null, which is empty.

    A lone surrogate, which JSON can hold and UTF-8 cannot, becomes U+FFFD.
    """
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
        self._blocks, self._block = _decompressed(raw), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._block = self._block or next(self._blocks, b"")
        n = min(len(buffer), len(self._block))
        buffer[:n], self._block = self._block[:n], self._block[n:]
        return n


def _decompressed(raw: IO[bytes]) -> Iterator[bytes]:
    """Frame after frame, as `zstd` writes several files into one."""
    import zstandard

    decompressor = zstandard.ZstdDecompressor(max_window_size=2**31)
    frame: Any = None
    rest = b""
    while rest := rest or raw.read(1 << 14):
        frame = frame or decompressor.decompressobj()
        try:
            block = frame.decompress(rest)
        except zstandard.ZstdError as error:
            raise EOFError(str(error)) from None
        rest = b""
        if frame.eof:
            rest, frame = frame.unused_data, None
        if block:
            yield block
    if frame is not None:
        raise EOFError("the compressed data end too early")
