"""The file of a corpus of bits: its size is their code length.

Every document is a stream of its own under the quantised autoregression that the file begins with.
See docs/codec.md for the format.
"""

from __future__ import annotations

import contextlib
import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from bitlens import memory
from bitlens.bits.packed import PackedBits
from bitlens.bits.shards import AnyBits
from bitlens.compression import range_coder
from bitlens.compression.range_coder import Quantised
from bitlens.errors import BitlensError
from bitlens.files import replacing
from bitlens.forms import fits
from bitlens.information.autoregression import Autoregression

SCHEMA = 1
KIND = "bitlens.compressed"
MAGIC = b"BITLENSC"
PREFIX = struct.Struct("<8sII")  # magic, bytes of the header, its checksum
# Of each document; `words` are the 32-bit words of its stream, `stream` and `bits` are checksums.
INDEX = np.dtype(
    [("id", "<i8"), ("rows", "<u4"), ("words", "<u4"), ("stream", "<u4"), ("bits", "<u4")]
)
_MODEL = ("bytes", "crc32", "unit_bits", "weight_bits", "level_bits", "levels", "chunk")
HEADER = {**dict.fromkeys(("n_latents", "rows", "documents"), int), "about": dict}
HEADER["model"] = dict.fromkeys(_MODEL, int)


@dataclass(frozen=True)
class Sizes:
    """Bytes of a compressed file: all documents, the model, and header and index; their sum."""

    streams: int
    model: int
    head: int


def compress(
    bits: AnyBits, documents: Tensor, model: Autoregression, out: Path, about: dict[str, Any]
) -> Compressed:
    """Write `bits` to the file `out`, in place of one that is there, document by document.

    documents: int64 `[rows]`, the rows of a document together. model: fitted on these latents.
    about: what the file says of the origin of the bits, for JSON.
    """
    ids = documents.cpu().numpy().astype(np.int64)
    if len(ids) != len(bits) or len(model.order) != bits.n_latents:
        raise BitlensError(
            f"{len(bits)} rows of {bits.n_latents} latents do not go with {len(ids)} rows of "
            f"documents and a model of {len(model.order)} latents; take all three from the same "
            "codes."
        )
    starts = np.flatnonzero(np.concatenate([np.ones(min(1, len(ids)), bool), ids[1:] != ids[:-1]]))
    if len(np.unique(ids[starts])) != len(starts):
        raise BitlensError("The rows of a document are not together; sort the rows by document.")
    quantised = Quantised.of(model)
    section = quantised.to_bytes()
    header = _header(bits, len(starts), quantised, section, about)
    index, ends = np.zeros(len(starts), INDEX), np.append(starts, len(ids))[1:]
    with replacing(out) as temporary, temporary.open("wb") as file:
        file.write(PREFIX.pack(MAGIC, len(header), zlib.crc32(header)) + header + section)
        index_place = file.tell()
        file.write(bytes(index.nbytes + 4))
        for i, (start, stop) in enumerate(zip(starts, ends, strict=True)):
            words = bits[int(start) : int(stop)].numpy()
            stream = quantised.encode(words).astype("<u4").tobytes()
            file.write(stream)
            checksums = zlib.crc32(stream), _checksum(words)
            index[i] = (ids[start], stop - start, len(stream) // 4, *checksums)
        file.seek(index_place)
        file.write(index.tobytes() + struct.pack("<I", zlib.crc32(index.tobytes())))
    return Compressed(out)


def _header(
    bits: AnyBits, documents: int, quantised: Quantised, section: bytes, about: dict[str, Any]
) -> bytes:
    header = {
        "schema": SCHEMA,
        "kind": KIND,
        "n_latents": bits.n_latents,
        "rows": len(bits),
        "documents": documents,
        "model": {
            "bytes": len(section),
            "crc32": zlib.crc32(section),
            "unit_bits": range_coder.UNIT_BITS,
            "weight_bits": range_coder.WEIGHT_BITS,
            "level_bits": range_coder.LEVEL_BITS,
            "levels": range_coder.LEVELS,
            "probability_bits": range_coder.PROBABILITY_BITS,
            "chunk": quantised.chunk,
        },
        "about": about,
    }
    return json.dumps(header).encode()


def _checksum(words: np.ndarray) -> int:
    return zlib.crc32(words.astype("<u8", copy=False).data)


class Damaged(BitlensError):
    """A document that cannot be decoded, while others can."""


class Compressed:
    """A file of compressed bits: what it holds, and any document of it.

    Opening checks header, index and model; streams are read when they are asked for. Iteration
    gives `(document, bits)` in the order of the file.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        with self._reading() as file:
            size = file.seek(0, 2)
            file.seek(0)
            self._open(file, size)
        expected = sum(vars(self.sizes).values())
        if size != expected:
            raise BitlensError(
                f"{self.path} is truncated or was appended to: it has {size} bytes, not "
                f"{expected}; restore it or compress the codes again."
            )

    @contextlib.contextmanager
    def _reading(self) -> Iterator[BinaryIO]:
        try:
            with self.path.open("rb") as file:
                yield file
        except OSError as error:
            raise BitlensError(f"{self.path} cannot be read: {error.strerror}.") from error

    def _open(self, file: BinaryIO, size: int) -> None:
        header = self._read_header(file, size)
        self.n_latents: int = header["n_latents"]
        self.rows: int = header["rows"]
        self.about: dict[str, Any] = header["about"]
        self._quantisation: dict[str, Any] = header["model"]
        if self._quantisation["bytes"] + INDEX.itemsize * header["documents"] > size:
            raise self._damaged("header")
        self._section = file.read(self._quantisation["bytes"])
        if zlib.crc32(self._section) != self._quantisation["crc32"]:
            raise self._damaged("model")
        index = file.read(INDEX.itemsize * header["documents"])
        if file.read(4) != struct.pack("<I", zlib.crc32(index)):
            raise self._damaged("index")
        self._index = np.frombuffer(index, INDEX)
        if self._index["rows"].sum(dtype=np.int64) != self.rows:
            raise self._damaged("index")
        self.documents = torch.from_numpy(self._index["id"].astype(np.int64))
        self.longest = int(self._index["rows"].max(initial=0))
        """rows of the longest document"""
        lengths, first = self._index["words"].astype(np.int64) * 4, file.tell()
        self.stream_bytes = torch.from_numpy(lengths)
        self._offsets = first + np.cumsum(lengths) - lengths
        self._places = {document: i for i, document in enumerate(self.documents.tolist())}
        self.sizes = Sizes(int(lengths.sum()), len(self._section), first - len(self._section))

    def _read_header(self, file: BinaryIO, size: int) -> dict[str, Any]:
        prefix = file.read(PREFIX.size)
        if prefix[: len(MAGIC)] != MAGIC:
            raise BitlensError(f"{self.path} is not a file of compressed codes.")
        if len(prefix) < PREFIX.size:
            raise self._damaged("header")
        _, length, checksum = PREFIX.unpack(prefix)
        text = file.read(min(length, size))
        if len(text) != length or zlib.crc32(text) != checksum:
            raise self._damaged("header")
        try:
            header: Any = json.loads(text)
        except (ValueError, RecursionError):
            header = None
        if not fits(header, {"schema": int, "kind": str}):
            raise self._damaged("header")
        kind, schema = header["kind"], header["schema"]
        if kind == KIND and "residual" in header:
            raise BitlensError(f"{self.path} has a residual, not read any more; compress again.")
        if kind != KIND or schema > SCHEMA:
            raise BitlensError(
                f"{self.path} has schema {schema} of {kind}, but this bitlens reads up to {SCHEMA} "
                f"of {KIND}; upgrade bitlens to open it."
            )
        if not fits(header, HEADER) or not header["n_latents"]:
            raise self._damaged("header")
        return header

    def _damaged(self, part: str) -> BitlensError:
        return BitlensError(
            f"The {part} of {self.path} is damaged or cut short; restore it or compress the codes "
            "again."
        )

    @cached_property
    def model(self) -> Quantised:
        """The model that the streams are coded under."""
        try:
            return Quantised.from_bytes(self._section, self.n_latents, self._quantisation)
        except (AssertionError, ValueError, MemoryError) as error:
            memory.refuse(error, self.path)
            raise self._damaged("model") from error

    def __len__(self) -> int:
        return len(self._index)

    def __iter__(self) -> Iterator[tuple[int, PackedBits]]:
        for document in self.documents.tolist():
            yield document, self.read(document)

    def read(self, document_id: int) -> PackedBits:
        """The bits of one document; no other is decoded. `Damaged` if it cannot be."""
        stream, model = self._stream(document_id), self.model
        entry = self._index[self._places[document_id]]
        try:
            words = model.decode(np.frombuffer(stream, "<u4").astype(np.uint32), int(entry["rows"]))
        except (AssertionError, MemoryError) as error:
            memory.refuse(error, f"document {document_id} of {self.path}")
            words = None  # AssertionError: the coder's word for a stream that no symbols lead to
        if words is None or _checksum(words) != entry["bits"]:
            raise Damaged(
                f"Document {document_id} of {self.path} was decoded to other bits than were "
                "compressed, though its stream is whole; install the version of constriction "
                "that bitlens asks for."
            )
        return PackedBits(torch.from_numpy(words.view(np.int64)), self.n_latents)

    def verify(self, decode: bool = True) -> list[int]:
        """Ids of damaged documents; without `decode` only checksums are compared, which
        finds all damage but a coder that decodes otherwise."""
        damaged = []
        for document in self.documents.tolist():
            try:
                self.read(document) if decode else self._stream(document)
            except Damaged:
                damaged.append(document)
        return damaged

    def _stream(self, document_id: int) -> bytes:
        """The stream of a document, as it is in the file."""
        if document_id not in self._places:
            raise BitlensError(f"{self.path} has no document {document_id}.")
        i = self._places[document_id]
        with self._reading() as file:
            file.seek(int(self._offsets[i]))
            stream = file.read(int(self.stream_bytes[i]))
        if len(stream) != self.stream_bytes[i] or zlib.crc32(stream) != self._index[i]["stream"]:
            raise Damaged(
                f"Document {document_id} of {self.path} is damaged: its checksum differs; restore "
                "the file or compress the codes again, all other documents can still be read."
            )
        return stream
