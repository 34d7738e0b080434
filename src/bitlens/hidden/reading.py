"""One file of text: what it is, by its ending, and its texts, read as a stream."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from bitlens.errors import BitlensError

PLAIN = (".txt", ".text", ".md", ".markdown")
LINES = (".jsonl", ".ndjson", ".jsonlines")
TABLES = (*LINES, ".json", ".csv", ".tsv", ".parquet")
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
KNOWN = f"{', '.join(PLAIN + TABLES)}; all but .parquet also with {', '.join(COMPRESSED)} after it"
BLOCK = 1 << 18
LONGEST_FIELD = 2**31 - 1
SURROGATE = re.compile("[\ud800-\udfff]")


def ending(path: Path | str) -> str:
    """What a file is, by its name: `.jsonl` of `A.JSONL.gz`."""
    path = Path(str(path).lower())
    return Path(path.stem).suffix if path.suffix in COMPRESSED else path.suffix


def is_text(path: Path | str) -> bool:
    """Whether the name of a file says that it can be read here."""
    kind = ending(path)
    return kind in PLAIN + TABLES and not (
        kind == ".parquet" and Path(path).suffix.lower() in COMPRESSED
    )


class TextFile:
    """The texts of one file, read as a stream."""

    def __init__(self, path: Path, column: str) -> None:
        """column: of the text, in a table."""
        if not is_text(path):
            raise BitlensError(f"{path} has none of the endings that are read as text: {KNOWN}.")
        self.path, self.column, self.kind = path, column, ending(path)
        self._raw: IO[bytes] | None = None
        self._rows = (0, 1)

    def share(self) -> float:
        """How much of the file was read, 0 to 1, from which the rest can be estimated."""
        if self._raw is None:
            return self._rows[0] / max(1, self._rows[1])
        if self._raw.closed:
            return 1.0
        return min(1.0, self._raw.tell() / max(1, self.path.stat().st_size))

    def texts(self) -> Iterator[str | Iterator[str]]:
        """A text for every row of a table; of plain text, once, its lines with their ends."""
        tables = {
            ".parquet": self._parquet,
            ".json": self._json,
            ".csv": self._csv,
            ".tsv": self._csv,
        }
        if self.kind in PLAIN:
            yield self._guarded(lambda raw: iter(self._open(raw, "")))
        else:
            yield from self._guarded(tables.get(self.kind, self._lines))

    def _guarded(self, read: Callable[[IO[bytes]], Iterator[str]]) -> Iterator[str]:
        try:
            with self.path.open("rb") as raw:
                self._raw = None if self.kind == ".parquet" else raw
                yield from read(raw)
        except UnicodeDecodeError as error:
            raise BitlensError(
                f"{self.path} is not UTF-8 text ({error}); convert it first."
            ) from None
        except (gzip.BadGzipFile, zlib.error, EOFError, lzma.LZMAError) as error:
            raise BitlensError(f"{self.path} could not be decompressed: {error}.") from None
        except (
            OSError,
            ValueError,
            csv.Error,
            RecursionError,
        ) as error:  # also pyarrow's own kinds
            raise BitlensError(f"{self.path} could not be read: {first_line(error)}") from error

    def _open(self, raw: IO[bytes], newline: str) -> io.TextIOWrapper:
        def of_zstandard(raw: IO[bytes]) -> io.BufferedReader:
            return io.BufferedReader(_Zstandard(raw), BLOCK)

        stream: Any = {
            ".gz": gzip.open,
            ".bz2": bz2.open,
            ".xz": lzma.open,
            ".zst": of_zstandard,
        }.get(self.path.suffix.lower(), lambda raw: raw)(raw)
        if (
            0 in stream.peek(4)[:4]
        ):  # other bytes than text, or UTF-16, which would pass for UTF-8 if it is of English
            raise BitlensError(
                f"{self.path} is not UTF-8 text (it begins with bytes of 0); convert it first."
            )
        return io.TextIOWrapper(stream, encoding="utf-8-sig", newline=newline)

    def _lines(self, raw: IO[bytes]) -> Iterator[str]:
        for number, line in enumerate(
            self._open(raw, "\n"), 1
        ):  # a text may hold U+2028 and other ends of line
            if line.strip():
                yield self._column(
                    self._parsed(json.loads, line, f"line {number}"), f"line {number}"
                )

    def _json(self, raw: IO[bytes]) -> Iterator[str]:
        """An array of objects, or one object after another."""
        file, decoder = self._open(raw, ""), json.JSONDecoder()
        rest = ""
        while not rest and (more := file.read(BLOCK)):
            rest = more.lstrip()
        array, number = rest.startswith("["), 1
        at = int(array)
        while True:
            while at < len(rest) and rest[at] in (" \t\r\n," if array else " \t\r\n"):
                at += 1
            if rest[at : at + 1] == "]" and array:
                if rest[at + 1 :].strip() or any(
                    block.strip() for block in iter(lambda: file.read(BLOCK), "")
                ):
                    raise BitlensError(
                        f"{self.path} goes on after its array of documents; one array is a file."
                    )
                return
            try:
                value, at = decoder.raw_decode(rest, at)
            except json.JSONDecodeError:
                more = file.read(max(BLOCK, len(rest)))
                if not more and at < len(rest):
                    self._parsed(json.loads, rest[at:], f"document {number}")  # says what is wrong
                if not more and array:
                    raise BitlensError(
                        f"{self.path} ends before its array of documents does."
                    ) from None
                if not more:
                    return
                rest, at = rest[at:] + more, 0
                continue
            yield self._column(value, f"document {number}")
            number += 1
            if at > BLOCK:
                rest, at = rest[at:], 0

    def _parsed(self, parse: Any, text: str, where: str) -> Any:
        try:
            return parse(text)
        except json.JSONDecodeError as error:
            raise BitlensError(
                f"{self.path}, {where} is not JSON ({error}); an object for every document is expected."
            ) from None

    def _csv(self, raw: IO[bytes]) -> Iterator[str]:
        csv.field_size_limit(LONGEST_FIELD)
        rows = csv.reader(
            self._open(raw, ""), delimiter="\t" if self.kind == ".tsv" else ",", strict=True
        )
        names = next(rows, None)
        if names is None:  # an empty file
            return
        if self.column not in names:
            raise BitlensError(no_column(str(self.path), self.column, names))
        at = names.index(self.column)
        for row in filter(None, rows):
            if len(row) != len(names):
                raise BitlensError(
                    f"{self.path}, line {rows.line_num} has {len(row)} fields and the header {len(names)}; "
                    "put texts with separators in them between quotes."
                )
            yield row[at]

    def _parquet(self, raw: IO[bytes]) -> Iterator[str]:
        try:
            import pyarrow.parquet as parquet
        except ImportError:
            raise BitlensError("Reading parquet needs pyarrow: pip install pyarrow.") from None
        table = parquet.ParquetFile(raw)
        if self.column not in table.schema_arrow.names:
            raise BitlensError(no_column(str(self.path), self.column, table.schema_arrow.names))
        row, rows = 0, table.metadata.num_rows
        for batch in table.iter_batches(256, columns=[self.column]):
            for text in batch.column(0).to_pylist():
                row += 1
                self._rows = row, rows
                yield checked(text, self.column, f"{self.path}, row {row}")

    def _column(self, row: Any, where: str) -> str:
        return column_of(row, self.column, f"{self.path}, {where}")


def json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """(where it is, for errors, and its value) of every line of a file, packed or not."""
    file = TextFile.__new__(TextFile)
    file.path, number = path, 0

    def lines(raw: IO[bytes]) -> Iterator[Any]:
        nonlocal number
        for number, line in enumerate(file._open(raw, "\n"), 1):
            if line.strip():
                yield file._parsed(json.loads, line, f"line {number}")

    file.kind = LINES[0]
    for value in file._guarded(lines):
        yield f"{path}, line {number}", value


class _Zstandard(io.RawIOBase):
    """Decompresses frame after frame, and refuses an end within one (zstandard's own reader takes it for the end)."""

    def __init__(self, raw: IO[bytes]) -> None:
        try:
            import zstandard
        except ImportError:
            raise BitlensError("Reading .zst needs zstandard: pip install zstandard.") from None
        self._raw, self._error = raw, zstandard.ZstdError
        self._new = zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj
        self._frame: Any = None
        self._left = self._out = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._out:
            self._left = self._left or self._raw.read(1 << 14)
            if not self._left and self._frame is not None:
                raise EOFError("the compressed data end too early")
            if not self._left:
                return 0
            self._frame = self._frame or self._new()
            try:
                self._out = self._frame.decompress(self._left)
            except self._error as error:
                raise EOFError(str(error)) from None
            self._left = self._frame.unused_data if self._frame.eof else b""
            self._frame = None if self._frame.eof else self._frame
        n = min(len(buffer), len(self._out))
        buffer[:n], self._out = self._out[:n], self._out[n:]
        return n


def column_of(row: Any, column: str, where: str) -> str:
    """The text of one row of a table."""
    if not isinstance(row, dict) or column not in row:
        raise BitlensError(no_column(where, column, list(row) if isinstance(row, dict) else []))
    return checked(row[column], column, where)


def checked(text: Any, column: str, where: str) -> str:
    """A value of a text column: nothing else is taken for text, but nothing at all, which is empty.

    A lone surrogate, which JSON can hold and UTF-8 cannot, becomes U+FFFD.
    """
    if text is None:
        return ""
    if not isinstance(text, str):
        raise BitlensError(
            f"{where} holds {type(text).__name__} in the column '{column}' where text is expected; "
            "name another one with `column`, or convert this one."
        )
    return text if text.isascii() else SURROGATE.sub("\ufffd", text)


def no_column(where: str, column: str, names: list[str]) -> str:
    return f"{where} has no column '{column}'; name the column of the text with `column`: {', '.join(names) or 'none'}."


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
