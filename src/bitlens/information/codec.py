"""Packed bits of a corpus in a file whose size is their code length, by range coding under a logistic autoregression.

What is decoded depends on integers only: log-odds are sums of quantised weights, and the file holds the table that maps
them to probabilities. Every document is a stream of its own. See docs/codec.md for the format.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

import numba
import numpy as np
import torch
from torch import Tensor

from bitlens.bits.packed import PackedBits, words_for
from bitlens.bits.words import add_row
from bitlens.errors import BitlensError
from bitlens.files import replacing
from bitlens.information.autoregression import Autoregression

# pyright: reportCallIssue=false, reportArgumentType=false

SCHEMA = 1
KIND = "bitlens.compressed"
MAGIC = b"BITLENSC"
PREFIX = struct.Struct("<8sII")  # magic, bytes of the header, its checksum
INDEX = np.dtype([("id", "<i8"), ("rows", "<u4"), ("words", "<u4"), ("stream", "<u4"), ("bits", "<u4")])

UNIT_BITS = 8  # log-odds are integers in units of 2^-8
WEIGHT_BITS = 4  # weights are multiples of 2^-4; finer ones cost more bytes than they save
LEVEL_BITS = 4  # one probability for each 2^-4 of log-odds,
LEVELS = 512  # up to 16 either way
PROBABILITY_BITS = 24  # what the range coder resolves, and a float32 holds exactly
FREQUENCY_BITS = 16
LARGEST = (1 << 11) - 1  # a weight, in steps: shifted to units it fits 16 bits
CELLS = 1 << 19  # rows times latents of a chunk: its log-odds stay in cache


def _coder() -> Any:
    try:
        return import_module("constriction").stream
    except ImportError as error:
        raise BitlensError("Compressing codes needs constriction; pip install 'bitlens[compress]'.") from error


# --- integers ---------------------------------------------------------------------------------------------------------


@numba.njit(cache=True, boundscheck=False)
def _read_bits(words, order, symbols):
    """symbols[j, r]: bit order[j] of row r"""
    for j in range(len(order)):
        word, shift = order[j] // 64, np.uint64(order[j] % 64)
        for r in range(len(words)):
            symbols[j, r] = (words[r, word] >> shift) & np.uint64(1)


@numba.njit(cache=True, boundscheck=False)
def _probabilities(sums, j, shift, table, out):
    """Of latent j being off and on in every row."""
    levels = len(table)
    for r in range(len(sums)):
        level = min(max((sums[r, j] >> shift) + levels // 2, 0), levels - 1)
        out[r, 0], out[r, 1] = table[level, 0], table[level, 1]


@numba.njit(cache=True, boundscheck=False)
def _learn(symbols, j, weights, sums):
    """Add the weights of latent j where it is on."""
    for r in range(len(symbols)):
        if symbols[r]:
            add_row(weights[j, j + 1 :], sums[r, j + 1 :])


@numba.njit(cache=True, boundscheck=False)
def _all_probabilities(symbols, weights, sums, shift, table, out):
    for j in range(len(symbols)):
        _probabilities(sums, j, shift, table, out[j])
        _learn(symbols[j], j, weights, sums)


@numba.njit(cache=True, boundscheck=False)
def _next(symbols, j, order, weights, sums, shift, table, words, out):
    """Take in the decoded latent j, and leave the probabilities of the latent after it in `out`."""
    word, place = order[j] // 64, np.uint64(order[j] % 64)
    for r in range(len(symbols)):
        words[r, word] |= np.uint64(symbols[r]) << place
    _learn(symbols, j, weights, sums)
    if j + 1 < len(order):
        _probabilities(sums, j + 1, shift, table, out)


# --- the model --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Quantised:
    """An autoregression in integers.

    order `[n_latents]` int64: the latents as they are predicted. biases int32 `[n_latents]`: log-odds where all latents
    are off, in units. weights int16 `[n_latents, n_latents]`: in units, zero on and below the diagonal. table uint32
    `[levels]`: probabilities of being on in 2^-24. level_shift: bits of a sum of units that its level leaves out.
    weight_shift: bits of a weight in units that are always zero. chunk: rows coded side by side.
    """

    order: np.ndarray
    biases: np.ndarray
    weights: np.ndarray
    table: np.ndarray
    weight_shift: int
    level_shift: int
    chunk: int

    @classmethod
    def of(cls, model: Autoregression) -> Quantised:
        """The nearest integers; what the rates subtract becomes part of the biases. Log-odds beyond 16 count as 16."""
        n = len(model.order)
        rates, biases = model.rates.double().numpy(), model.biases.detach().double().numpy()
        weights, first, shift = np.zeros((n, n), np.int16), 0, UNIT_BITS - WEIGHT_BITS
        for block in model.weights:
            end = len(block)
            steps = np.rint(np.triu(block.detach().numpy(), 1 - first) * np.float32(1 << WEIGHT_BITS))
            if not np.isfinite(steps).all():
                raise BitlensError("The autoregression has weights that are not finite; fit it again.")
            weights[:end, first:end] = np.clip(steps, -LARGEST, LARGEST).astype(np.int16) << shift
            first = end
        offset = np.array([rates[:j] @ weights[:j, j] for j in range(n)])
        biases = np.rint(np.clip(biases * (1 << UNIT_BITS) - offset, -(1 << 29), 1 << 29)).astype(np.int32)
        middles = (np.arange(LEVELS) - LEVELS // 2 + 0.5) / (1 << LEVEL_BITS)
        one = 1 << PROBABILITY_BITS
        table = np.clip(np.rint(one / (1 + np.exp(-middles))), 1, one - 1).astype(np.uint32)
        order = model.order.numpy().astype(np.int64)
        return cls(order, biases, weights, table, shift, UNIT_BITS - LEVEL_BITS, max(1, CELLS // n))

    @cached_property
    def pairs(self) -> np.ndarray:
        """Probabilities of off and on, float32 `[levels, 2]`: integers over a power of two, without any rounding."""
        one = np.int64(1) << PROBABILITY_BITS
        on = self.table.astype(np.int64)
        return (np.stack([one - on, on], 1) / one).astype(np.float32)

    def chunks(self, words: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Bits `[latents, rows]` and probabilities `[latents, rows, 2]` of some rows at a time, as they are coded."""
        n = len(self.order)
        for start in range(0, len(words), self.chunk):
            part = words[start : start + self.chunk]
            symbols, out = np.empty((n, len(part)), np.int32), np.empty((n, len(part), 2), np.float32)
            _read_bits(part, self.order, symbols)
            sums = np.tile(self.biases, (len(part), 1))
            _all_probabilities(symbols, self.weights, sums, self.level_shift, self.pairs, out)
            yield symbols, out

    def code_lengths(self, bits: PackedBits) -> Tensor:
        """Bits that each row costs -> float64 `[rows]`"""
        parts = [
            -np.log2(np.take_along_axis(p, s[..., None], 2)[..., 0].astype(np.float64)).sum(0)
            for s, p in self.chunks(bits.numpy())
        ]
        return torch.from_numpy(np.concatenate(parts) if parts else np.empty(0))

    def encode(self, words: np.ndarray) -> np.ndarray:
        """Rows, uint64 `[rows, words]` -> a stream of 32-bit words"""
        stream = _coder()
        encoder, family = stream.queue.RangeEncoder(), stream.model.Categorical(perfect=False)
        for symbols, probabilities in self.chunks(words):
            encoder.encode(symbols.reshape(-1), family, probabilities.reshape(-1, 2))
        return encoder.get_compressed()

    def decode(self, code: np.ndarray, rows: int) -> np.ndarray:
        """A stream of 32-bit words -> its rows, uint64 `[rows, words]`"""
        stream = _coder()
        decoder, family = stream.queue.RangeDecoder(code), stream.model.Categorical(perfect=False)
        words = np.zeros((rows, words_for(len(self.order))), np.uint64)
        for start in range(0, rows, self.chunk):
            part = words[start : start + self.chunk]
            sums = np.tile(self.biases, (len(part), 1))
            out = np.empty((len(part), 2), np.float32)
            _probabilities(sums, 0, self.level_shift, self.pairs, out)
            for j in range(len(self.order)):
                symbols = decoder.decode(family, out)
                _next(symbols, j, self.order, self.weights, sums, self.level_shift, self.pairs, part, out)
        return words

    # Bytes: order, biases, table, the least weight and how many values there are from it to the greatest, their
    # frequencies, and the weights above the diagonal, row by row, range coded under those frequencies.

    def to_bytes(self) -> bytes:
        n, stream = len(self.order), _coder()
        counts, rows = np.zeros(2 * LARGEST + 1, np.int64), self.weights >> self.weight_shift
        for i in range(n):
            counts += np.bincount(rows[i, i + 1 :].astype(np.int64) + LARGEST, minlength=len(counts))
        used = np.flatnonzero(counts) if n > 1 else np.array([LARGEST])
        least, values = int(used[0]) - LARGEST, max(2, int(used[-1] - used[0]) + 1)  # a coder needs two
        some = np.zeros(values, np.int64)
        some[: used[-1] - used[0] + 1] = counts[used[0] : used[-1] + 1]
        frequencies = np.maximum((some << FREQUENCY_BITS) // max(1, some.sum()), some > 0)
        frequencies[frequencies.argmax()] += (1 << FREQUENCY_BITS) - frequencies.sum()
        encoder, model = stream.queue.RangeEncoder(), _frequency_model(stream, frequencies)
        for i in range(n - 1):
            encoder.encode(rows[i, i + 1 :].astype(np.int32) - least, model)
        parts = [self.order.astype("<u4"), self.biases.astype("<i4"), self.table.astype("<u4")]
        parts += [np.array([least, values], "<i4"), frequencies.astype("<u4"), encoder.get_compressed().astype("<u4")]
        return b"".join(part.tobytes() for part in parts)

    @classmethod
    def from_bytes(cls, data: bytes, n: int, about: dict[str, Any]) -> Quantised:
        stream, numbers = _coder(), np.frombuffer(data, "<u4").astype(np.uint32)
        order, biases, rest = numbers[:n].astype(np.int64), numbers[n : 2 * n].view(np.int32), numbers[2 * n :]
        table, rest = rest[: about["levels"]], rest[about["levels"] :]
        least, values = rest[:2].view(np.int32).tolist()
        decoder = stream.queue.RangeDecoder(rest[2 + values :])
        model = _frequency_model(stream, rest[2 : 2 + values].astype(np.int64))
        weights, shift = np.zeros((n, n), np.int16), about["unit_bits"] - about["weight_bits"]
        for i in range(n - 1):
            weights[i, i + 1 :] = (decoder.decode(model, n - 1 - i) + least) << shift
        return cls(order, biases, weights, table, shift, about["unit_bits"] - about["level_bits"], about["chunk"])


def _frequency_model(stream: Any, frequencies: np.ndarray) -> Any:
    """Frequencies add up to a power of two: the division is exact."""
    exact = (frequencies / (1 << FREQUENCY_BITS)).astype(np.float32)
    return stream.model.Categorical(exact, perfect=False)


# --- the file ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sizes:
    """Bytes of a compressed file; they add up to its size."""

    streams: int
    """the bits of all documents"""
    model: int
    head: int
    """header and index of the documents"""


def compress(
    bits: PackedBits, documents: Tensor, model: Autoregression, out: Path, about: dict[str, Any]
) -> Compressed:
    """Write `bits` to the file `out`, in place of one that is there, document by document.

    documents: int64 `[rows]`, the rows of a document together. model: fitted on these latents, to any rows. about: what
    the file says of the origin of the bits, for JSON.
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
    quantisation = {
        "bytes": len(section),
        "crc32": zlib.crc32(section),
        "unit_bits": UNIT_BITS,
        "weight_bits": WEIGHT_BITS,
        "level_bits": LEVEL_BITS,
        "levels": LEVELS,
        "probability_bits": PROBABILITY_BITS,
        "chunk": quantised.chunk,
    }
    sizes = {"n_latents": bits.n_latents, "rows": len(bits), "documents": len(starts)}
    header = {"schema": SCHEMA, "kind": KIND, **sizes, "model": quantisation, "about": about}
    text = json.dumps(header).encode()
    index, bounds = np.zeros(len(starts), INDEX), np.append(starts, len(ids))
    with replacing(out) as temporary, temporary.open("wb") as file:
        file.write(PREFIX.pack(MAGIC, len(text), zlib.crc32(text)) + text + section)
        at = file.tell()
        file.write(bytes(index.nbytes + 4))
        for i, (start, stop) in enumerate(zip(starts, bounds[1:], strict=True)):
            words = bits[int(start) : int(stop)].numpy()
            code = quantised.encode(words).astype("<u4").tobytes()
            index[i] = (ids[start], stop - start, len(code) // 4, zlib.crc32(code), _checksum(words))
            file.write(code)
        file.seek(at)
        file.write(index.tobytes() + struct.pack("<I", zlib.crc32(index.tobytes())))
    return Compressed(out)


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
        expected = sum((self.sizes.streams, self.sizes.model, self.sizes.head))
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
        index = file.read(INDEX.itemsize * header["documents"])
        if file.read(4) != struct.pack("<I", zlib.crc32(index)):
            raise self._damaged("index")
        self._index = np.frombuffer(index, INDEX)
        self.documents = torch.from_numpy(self._index["id"].astype(np.int64))
        lengths = self._index["words"].astype(np.int64) * 4
        first = file.tell()
        self._offsets = first + np.cumsum(lengths) - lengths
        self._places = {int(document): i for i, document in enumerate(self._index["id"])}
        self.sizes = Sizes(int(lengths.sum()), len(self._section), first - len(self._section))

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
        if document_id not in self._places:
            raise BitlensError(f"{self.path} has no document {document_id}.")
        i = self._places[document_id]
        entry = self._index[i]
        model = self.model
        try:
            with self.path.open("rb") as file:
                file.seek(int(self._offsets[i]))
                code = file.read(4 * int(entry["words"]))
        except OSError as error:
            raise BitlensError(f"{self.path} cannot be read: {error.strerror}.") from error
        if len(code) != 4 * entry["words"] or zlib.crc32(code) != entry["stream"]:
            raise _Damaged(
                f"Document {document_id} of {self.path} is damaged: its checksum differs; restore the file or compress "
                "the codes again, all other documents can still be read."
            )
        try:
            words = model.decode(np.frombuffer(code, "<u4").astype(np.uint32), int(entry["rows"]))
        except AssertionError:  # the coder's word for a stream that no symbols lead to
            words = None
        if words is None or _checksum(words) != entry["bits"]:
            raise _Damaged(
                f"Document {document_id} of {self.path} was decoded to other bits than were compressed, though its "
                "stream is whole; install the version of constriction that bitlens[compress] names."
            )
        return PackedBits(torch.from_numpy(words.view(np.int64)), self.n_latents)

    def verify(self) -> list[int]:
        """Decode every document -> the ids of those that are damaged"""
        damaged = []
        for document in self.documents.tolist():
            try:
                self.read(document)
            except _Damaged:
                damaged.append(document)
        return damaged


class _Damaged(BitlensError):
    pass
