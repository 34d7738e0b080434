"""The file of a corpus of bits: its size is their code length, and with what bits leave out also the hidden states'.

Every document is a stream of its own under the quantised autoregression that the file begins with. See docs/codec.md for
the format.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from bitlens.bits.packed import PackedBits
from bitlens.compression import range_coder as codec
from bitlens.compression.range_coder import Quantised
from bitlens.errors import BitlensError
from bitlens.files import replacing
from bitlens.information.autoregression import Autoregression
from bitlens.information.residual import DTYPES, Decoder, corrected, difference, float_bytes

SCHEMA = 2  # of a file with residuals; without them 1
KIND = "bitlens.compressed"
MAGIC = b"BITLENSC"
PREFIX = struct.Struct("<8sII")  # magic, bytes of the header, its checksum
INDEX = np.dtype(
    [("id", "<i8"), ("rows", "<u4"), ("words", "<u4"), ("stream", "<u4"), ("bits", "<u4")]
)
EXACT_INDEX = np.dtype(
    [*INDEX.descr, ("residual_bytes", "<i8"), ("residual", "<u4"), ("hidden", "<u4")]
)


@dataclass(frozen=True)
class Exact:
    """For a file that gives the hidden states back exactly: those of each document, in the order of the bits."""

    decoder: Decoder
    dtype: str
    documents: Iterable[Tensor]


@dataclass(frozen=True)
class Sizes:
    """Bytes of a compressed file; they add up to its size."""

    streams: int
    """the bits of all documents"""
    model: int
    head: int
    """header and index of the documents"""
    residual: int = 0
    """what the bits leave out of the hidden states of all documents"""


def compress(
    bits: PackedBits,
    documents: Tensor,
    model: Autoregression,
    out: Path,
    about: dict[str, Any],
    exact: Exact | None = None,
) -> Compressed:
    """Write `bits` to the file `out`, in place of one that is there, document by document.

    documents: int64 `[rows]`, the rows of a document together. model: fitted on these latents, to any rows. about: what
    the file says of the origin of the bits, for JSON. exact: hidden states to be given back to the last bit, too.
    """
    ids = documents.cpu().numpy().astype(np.int64)
    if len(ids) != len(bits) or len(model.order) != bits.n_latents:
        raise BitlensError(
            f"{len(bits)} rows of {bits.n_latents} latents do not go with {len(ids)} rows of documents and a model of "
            f"{len(model.order)} latents; take all three from the same codes."
        )
    starts = np.flatnonzero(np.concatenate([np.ones(min(1, len(ids)), bool), ids[1:] != ids[:-1]]))
    if len(np.unique(ids[starts])) != len(starts):
        raise BitlensError("The rows of a document are not together; sort the rows by document.")
    quantised = Quantised.of(model)
    section = quantised.to_bytes()
    text = _header(bits, len(starts), quantised, section, about, exact)
    index, bounds = (
        np.zeros(len(starts), EXACT_INDEX if exact else INDEX),
        np.append(starts, len(ids)),
    )
    hidden = iter(exact.documents) if exact else iter(())
    with replacing(out) as temporary, temporary.open("wb") as file:
        file.write(PREFIX.pack(MAGIC, len(text), zlib.crc32(text)) + text + section)
        at = file.tell()
        file.write(bytes(index.nbytes + 4))
        for i, (start, stop) in enumerate(zip(starts, bounds[1:], strict=True)):
            words = bits[int(start) : int(stop)].numpy()
            code = quantised.encode(words).astype("<u4").tobytes()
            entry = (ids[start], stop - start, len(code) // 4, zlib.crc32(code), _checksum(words))
            file.write(code)
            if exact:
                residual, checksum = _residual(next(hidden), bits[int(start) : int(stop)], exact)
                entry += (len(residual), zlib.crc32(residual), checksum)
                file.write(residual)
            index[i] = entry
        file.seek(at)
        file.write(index.tobytes() + struct.pack("<I", zlib.crc32(index.tobytes())))
    return Compressed(out)


def _header(
    bits: PackedBits,
    documents: int,
    quantised: Quantised,
    section: bytes,
    about: dict[str, Any],
    exact: Exact | None,
) -> bytes:
    quantisation = {
        "bytes": len(section),
        "crc32": zlib.crc32(section),
        "unit_bits": codec.UNIT_BITS,
        "weight_bits": codec.WEIGHT_BITS,
        "level_bits": codec.LEVEL_BITS,
        "levels": codec.LEVELS,
        "probability_bits": codec.PROBABILITY_BITS,
        "chunk": quantised.chunk,
    }
    sizes = {"n_latents": bits.n_latents, "rows": len(bits), "documents": documents}
    header = {
        "schema": SCHEMA if exact else 1,
        "kind": KIND,
        **sizes,
        "model": quantisation,
        "about": about,
    }
    if exact:
        header["residual"] = {"dtype": exact.dtype, "d": len(exact.decoder.base)}
    return json.dumps(header).encode()


def _residual(hidden: Tensor, bits: PackedBits, exact: Exact) -> tuple[bytes, int]:
    """-> what the bits of a document leave out, and the checksum of its hidden states"""
    dtype = DTYPES[exact.dtype]
    if hidden.shape != (len(bits), len(exact.decoder.base)) or hidden.dtype != dtype:
        raise BitlensError(
            f"Hidden states {list(hidden.shape)} of {hidden.dtype} do not go with {len(bits)} rows of bits that give "
            f"{len(exact.decoder.base)} values of {exact.dtype}; take both from the same store."
        )
    return difference(hidden, exact.decoder.decode(bits, dtype)), zlib.crc32(float_bytes(hidden))


def _checksum(words: np.ndarray) -> int:
    return zlib.crc32(words.astype("<u8", copy=False).tobytes())


class Compressed:
    """A file of compressed bits: what it holds, and any document of it.

    Opening reads and checks the header, the index and the model; streams are read when they are asked for. Iteration
    gives `(document, bits)` in the order of the file.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        try:
            with self.path.open("rb") as file:
                self._open(file)
                size = file.seek(0, 2)
        except OSError as error:
            raise BitlensError(f"{self.path} cannot be read: {error.strerror}.") from error
        expected = sum(vars(self.sizes).values())
        if size != expected:
            raise BitlensError(
                f"{self.path} is truncated or was appended to: it has {size} bytes, not {expected}; restore it or "
                "compress the codes again."
            )

    def _open(self, file: BinaryIO) -> None:
        prefix = file.read(PREFIX.size)
        if prefix[: len(MAGIC)] != MAGIC:
            raise BitlensError(f"{self.path} is not a file of compressed codes.")
        if len(prefix) < PREFIX.size:
            raise self._damaged("header")
        _, length, checksum = PREFIX.unpack(prefix)
        text = file.read(length)
        if len(text) != length or zlib.crc32(text) != checksum:
            raise self._damaged("header")
        header = json.loads(text)
        if header["kind"] != KIND or header["schema"] > SCHEMA:
            raise BitlensError(
                f"{self.path} has schema {header['schema']} of {header['kind']}, but this bitlens reads up to {SCHEMA} "
                f"of {KIND}; upgrade bitlens to open it."
            )
        self.n_latents: int = header["n_latents"]
        self.rows: int = header["rows"]
        self.about: dict[str, Any] = header["about"]
        self._quantisation: dict[str, Any] = header["model"]
        self._section = file.read(self._quantisation["bytes"])
        if zlib.crc32(self._section) != self._quantisation["crc32"]:
            raise self._damaged("model")
        self.dtype: str | None = header["residual"]["dtype"] if header["schema"] > 1 else None
        layout = EXACT_INDEX if self.dtype else INDEX
        index = file.read(layout.itemsize * header["documents"])
        if file.read(4) != struct.pack("<I", zlib.crc32(index)):
            raise self._damaged("index")
        self._index = np.frombuffer(index, layout)
        self.documents = torch.from_numpy(self._index["id"].astype(np.int64))
        self.stream_bytes = torch.from_numpy(self._index["words"].astype(np.int64) * 4)
        self.residual_bytes = torch.zeros_like(self.stream_bytes)
        if self.dtype:
            self.residual_bytes += torch.from_numpy(self._index["residual_bytes"].astype(np.int64))
        lengths, first = (self.stream_bytes + self.residual_bytes).numpy(), file.tell()
        self._offsets = first + np.cumsum(lengths) - lengths
        self._places = {int(document): i for i, document in enumerate(self._index["id"])}
        streams, residual = int(self.stream_bytes.sum()), int(self.residual_bytes.sum())
        self.sizes = Sizes(streams, len(self._section), first - len(self._section), residual)

    def _damaged(self, part: str) -> BitlensError:
        return BitlensError(
            f"The {part} of {self.path} is damaged or cut short; restore it or compress the codes again."
        )

    @cached_property
    def model(self) -> Quantised:
        return Quantised.from_bytes(self._section, self.n_latents, self._quantisation)

    def __len__(self) -> int:
        return len(self._index)

    def __iter__(self) -> Iterator[tuple[int, PackedBits]]:
        for document in self.documents.tolist():
            yield document, self.read(document)

    def read(self, document_id: int) -> PackedBits:
        """The bits of one document; no other is decoded."""
        entry = self._entry(document_id)
        code, model = self._stored(document_id)[0], self.model
        try:
            words = model.decode(np.frombuffer(code, "<u4").astype(np.uint32), int(entry["rows"]))
        except AssertionError:  # the coder's word for a stream that no symbols lead to
            words = None
        if words is None or _checksum(words) != entry["bits"]:
            raise Damaged(
                f"Document {document_id} of {self.path} was decoded to other bits than were compressed, though its "
                "stream is whole; install the version of constriction that bitlens asks for."
            )
        return PackedBits(torch.from_numpy(words.view(np.int64)), self.n_latents)

    def hidden(self, document_id: int, decoder: Decoder) -> Tensor:
        """The hidden states of one document, `[rows, d]`: those that were compressed, to the last bit, in a file with
        residuals; what its bits give, in float32, in one without."""
        bits = self.read(document_id)
        if self.dtype is None:
            return decoder.decode(bits)
        residual = self._stored(document_id, residual=True)[1]
        try:
            exact = corrected(decoder.decode(bits, DTYPES[self.dtype]), residual)
        except ValueError:  # of another width
            exact = None
        if exact is None or zlib.crc32(float_bytes(exact)) != self._entry(document_id)["hidden"]:
            raise Damaged(
                f"Document {document_id} of {self.path} was decoded to other hidden states than were compressed; take "
                "the autoencoder that compressed it."
            )
        return exact

    def verify(self, decode: bool = True) -> list[int]:
        """Ids of the documents that are damaged. decode: decode every document; without it, checksums of what is stored
        are compared, which finds all damage but a coder that decodes otherwise."""
        damaged = []
        for document in self.documents.tolist():
            try:
                self._stored(document, residual=True)
                if decode:
                    self.read(document)
            except Damaged:
                damaged.append(document)
        return damaged

    def _entry(self, document_id: int) -> Any:
        if document_id not in self._places:
            raise BitlensError(f"{self.path} has no document {document_id}.")
        return self._index[self._places[document_id]]

    def _stored(self, document_id: int, residual: bool = False) -> tuple[bytes, bytes]:
        """The stream of a document and, if asked for and there, its residual, as they are in the file."""
        entry, i = self._entry(document_id), self._places[document_id]
        try:
            with self.path.open("rb") as file:
                file.seek(int(self._offsets[i]))
                code = file.read(int(self.stream_bytes[i]))
                rest = file.read(int(self.residual_bytes[i])) if residual else b""
        except OSError as error:
            raise BitlensError(f"{self.path} cannot be read: {error.strerror}.") from error
        whole = len(code) == self.stream_bytes[i] and zlib.crc32(code) == entry["stream"]
        if self.dtype and residual:
            whole = (
                whole
                and len(rest) == self.residual_bytes[i]
                and zlib.crc32(rest) == entry["residual"]
            )
        if not whole:
            raise Damaged(
                f"Document {document_id} of {self.path} is damaged: its checksum differs; restore the file or compress "
                "the codes again, all other documents can still be read."
            )
        return code, rest


class Damaged(BitlensError):
    """A document that cannot be decoded, while others can."""
