"""A store in a file of bits, at the price of its code length, and back; and what other ways of
storing it cost."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bitlens import terminal
from bitlens.autoencoders import Autoencoder, BinaryAutoencoder
from bitlens.autoencoders.base import WEIGHTS
from bitlens.autoencoders.formats.registry import weights_of
from bitlens.bits.packed import PackedBits
from bitlens.bits.shards import BitShards
from bitlens.compression.file import MAGIC, Compressed, Damaged, compress
from bitlens.compression.plan import (
    COMPARED_BYTES,
    DECODED_ROWS,
    compress_plan,
    decompress_plan,
    shard_rows,
)
from bitlens.encode import encode_store
from bitlens.errors import BitlensError
from bitlens.files import prepare_output, replacing, required, sha256
from bitlens.hidden.split import held_out_share
from bitlens.hidden.store import KIND, MANIFEST, ActivationStore
from bitlens.hidden.writer import StoreWriter
from bitlens.information.autoregression import Autoregression
from bitlens.information.moments import fvu
from bitlens.information.tree import Blocks
from bitlens.memory import require
from bitlens.remote import place
from bitlens.results import brief
from bitlens.writing import holding

KEPT_OF_MANIFEST = ("model", "revision", "model_digest", "hook", "corpus", "documents_of", "text")


@dataclass(frozen=True)
class Line:
    """One way to store rows. fvu: of what comes back, on the held-out rows that are compared."""

    bytes: int
    bits_a_row: float
    fvu: float


@dataclass(frozen=True)
class Compression:
    """A compressed store beside what else could be done with its held-out rows.

    bits_joint: code length of the held-out rows under the float model, in bits a row. ratio: bytes
    of the streams over the code length. lines: by their names in `bitlens.show`; all but `file` are
    about the held-out rows.
    """

    __repr__ = brief

    rows: int
    held_out_rows: int
    dtype: str
    bits_joint: float
    ratio: float
    lines: dict[str, Line]


class _Rows(NamedTuple):
    """Every row of a store: its bits, document, and whether that is held out."""

    bits: BitShards
    documents: Tensor
    held_out: Tensor


@terminal.shown("compress")
@holding()
def compress_store(
    autoencoder: Autoencoder,
    store: ActivationStore,
    run: Path | str,
    out: Path | str,
    *,
    documents: str = "all",
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
) -> Compression:
    """Write the rows of `store` to the file `out`, coded by a model of the training documents.

    run: folder of the autoencoder. documents: `all`, or `test` for the held-out ones (of a split
    without any, the last fifth). progress: show it on standard error. Until it is done, the codes
    are in a folder beside `out`, and are read from there.
    """
    run, out = place(run), Path(out)
    store.require_width(autoencoder.d_in)
    if documents not in ("all", "test"):
        raise BitlensError(f"`documents` are all or test, not '{documents}'.")
    if not isinstance(autoencoder, BinaryAutoencoder):
        kind = autoencoder.architecture
        raise BitlensError(f"The bits of a {kind} give no hidden states back; compress with a bae.")
    store = store.split(held_out_share(store, autoencoder.metadata) or 0.0)
    dtype = required(store.manifest, "dtype", store.path / MANIFEST)
    if out.is_dir():
        raise BitlensError(f"{out} is a folder; name a file for the output.")
    if out.exists():
        _refuse_occupied(out, overwrite)
    require(lambda: compress_plan(autoencoder, store), "take an autoencoder of fewer latents")
    ids, test = _documents(store)
    about = {
        "autoencoder": str(run),
        "weights_sha256": sha256(weights_of(run, WEIGHTS)),
        "store": str(store.path),
        "part": documents,
        **{key: store.manifest.get(key) for key in KEPT_OF_MANIFEST},
        "dtype": dtype,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as temporary:
        searching = copy.copy(autoencoder)  # what the search caches, W W^T, goes with it
        bits = encode_store(searching, store, temporary.with_name("codes")).parts
        del searching
        terminal.stage("autoregression")
        model = Autoregression.fit(bits.where(~test), ids[~test], seed)
        terminal.stage("streams")
        chosen = torch.ones_like(test) if documents == "all" else test
        file = compress(bits.where(chosen), ids[chosen], model, temporary, about)
        terminal.stage("comparison")
        return _compare(file, autoencoder, store, _Rows(bits, ids, test), model)


def _refuse_occupied(out: Path, overwrite: bool) -> None:
    if not overwrite:
        raise BitlensError(f"{out} is there already; pass `overwrite=True` to replace it.")
    with out.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise BitlensError(f"{out} was not written by this command; choose another file.")


def _documents(store: ActivationStore) -> tuple[Tensor, Tensor]:
    """Of every row its document and whether that is held out: the code is fitted on the others."""
    shards = range(len(store.shards))
    ids = torch.cat([store.shard(index, ["document"])["document"] for index in shards])
    test = store.is_test(ids) if store.test_fraction else Blocks.of(len(ids), ids).last_fifth()
    if not test.any() or test.all():
        raise BitlensError(
            "The code is fitted on some documents and measured on others, and all rows of "
            f"{store.path} are on one side; take a store of more documents."
        )
    return ids, test


# --- what else could be done ----------------------------------------------------------------------


def _compare(
    file: Compressed,
    autoencoder: BinaryAutoencoder,
    store: ActivationStore,
    rows: _Rows,
    model: Autoregression,
) -> Compression:
    """All lines but the file's are about the same held-out rows: first documents up to 8 MiB."""
    hidden, documents, largest = _some_held_out(store, rows)
    bits = rows.bits.where(rows.held_out)[: len(hidden)]
    streams = int(file.stream_bytes[torch.isin(file.documents, documents)].sum())
    scale = torch.where(largest > 0, largest / 127, 1.0)
    int8 = (hidden.float() / scale).round().to(torch.int8)
    usual = torch.linalg.vector_norm(hidden, dim=1, dtype=torch.float64) <= store.outlier_norm
    fvu_of_bits = fvu(hidden[usual], reconstruct(autoencoder, bits)[usual])

    def line(size: int, lost: float, count: int = len(hidden)) -> Line:
        return Line(size, 8 * size / count, lost)

    length = float(model.code_lengths(bits).mean())
    return Compression(
        rows=file.rows,
        held_out_rows=len(hidden),
        dtype=store.manifest["dtype"],
        bits_joint=length,
        ratio=8 * streams / len(hidden) / length if length else 1.0,
        lines={
            "streams": line(streams, fvu_of_bits),
            "words": line(bits.words.nbytes, fvu_of_bits),
            "words_zstd": line(_zstd(bits.words), fvu_of_bits),
            "int8_zstd": line(_zstd(int8), fvu(hidden[usual], (int8 * scale)[usual])),
            "stored_zstd": line(_zstd(hidden), 0.0),
            "file": line(file.path.stat().st_size, fvu_of_bits, file.rows),
        },
    )


def _some_held_out(store: ActivationStore, rows: _Rows) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states of the first held-out documents, up to `COMPARED_BYTES`, and documents; and
    the largest absolute value of each component in all rows."""
    ids = rows.documents[rows.held_out]
    ends = torch.unique_consecutive(ids, return_counts=True)[1].cumsum(0)
    enough = ends[ends * store.row_bytes() >= COMPARED_BYTES]
    n = int(enough[0]) if len(enough) else len(ids)
    hidden, found, place, largest = [], 0, 0, torch.zeros(store.d_in)
    for block in store.read("all"):
        if found < n:
            own = rows.held_out[place : place + len(block.hidden)]
            hidden.append(block.hidden[own][: n - found])
            found += len(hidden[-1])
        place += len(block.hidden)
        largest = torch.maximum(largest, block.hidden.float().abs().amax(0))
    return torch.cat(hidden), ids[:n], largest


def _zstd(data: Tensor) -> int:
    """Bytes of `data` under zstd -19."""
    zstandard: Any = import_module("zstandard")
    content = data.contiguous().view(torch.uint8).numpy().tobytes()
    return len(zstandard.ZstdCompressor(level=19).compress(content))


# --- back -----------------------------------------------------------------------------------------


def reconstruct(autoencoder: BinaryAutoencoder, bits: PackedBits) -> Tensor:
    """The hidden states that these bits stand for, float32 `[rows, d_in]`, rounded once."""
    return torch.cat([*map(_decoder(autoencoder), _blocks(bits))])


def _decoder(autoencoder: BinaryAutoencoder) -> Callable[[PackedBits], Tensor]:
    """-> `reconstruct`, of bits alone and for a block of rows"""
    rows, b_dec, scale, mean = (
        tensor.detach().to("cpu", torch.float64, copy=True)
        for tensor in (autoencoder.W_dec, autoencoder.b_dec, autoencoder.scale, autoencoder.mean)
    )
    rows *= scale
    base = b_dec * scale + mean
    if not (rows.isfinite().all() and base.isfinite().all()):
        raise BitlensError("The autoencoder has weights that are not finite; train it again.")
    return lambda bits: (bits.unpack(torch.float64) @ rows + base).float()


def _blocks(bits: PackedBits) -> list[PackedBits]:
    """Rows that are decoded at a time: one block at least"""
    return [PackedBits(words, bits.n_latents) for words in bits.words.split(DECODED_ROWS)]


@terminal.shown("decompress")
@holding()
def decompress_file(
    file: Compressed,
    run: Path,
    out: Path,
    *,
    skip_damaged: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> tuple[ActivationStore, list[int]]:
    """Write the reconstructions of `file`, float32, to the store `out` -> it, documents left out

    run: the autoencoder that compressed the file. skip_damaged: leave out damaged documents;
    without it nothing is written if there is one. progress: show it on standard error.
    """
    autoencoder = _same_autoencoder(file, run)
    require(lambda: decompress_plan(file, autoencoder))
    damaged = file.verify(decode=False)
    if damaged and not skip_damaged:
        raise BitlensError(
            f"{file.path} has damaged documents ({', '.join(map(str, damaged))}); restore it, or "
            "pass `skip_damaged=True` to write the others."
        )
    if len(damaged) == len(file):
        raise BitlensError(f"{file.path} has no document that can be read; restore it.")
    prepare_output(out, resume=None, overwrite=overwrite, marker=MANIFEST, kind=KIND)
    about = {key: file.about.get(key) for key in KEPT_OF_MANIFEST}
    about |= {"d_in": autoencoder.d_in, "dtype": "float32", "context_length": None}
    writer = StoreWriter(out, {**about, "decompressed": str(file.path)})
    blocks = _decoded(file, autoencoder, damaged, skip_damaged)
    for hidden, position, document in _shards(
        blocks, shard_rows(file, autoencoder), autoencoder.d_in
    ):
        token = torch.full_like(position, -1)
        writer.add(hidden, {"token": token, "position": position, "document": document})
    return writer.finish(), damaged


def _same_autoencoder(file: Compressed, run: Path) -> BinaryAutoencoder:
    expected: Any = file.about.get("weights_sha256")
    if expected is None:
        raise BitlensError(
            f"{file.path} does not name the weights that give hidden states back; read its bits "
            "with bitlens.compression.file.Compressed."
        )
    autoencoder = Autoencoder.from_pretrained(run)
    if sha256(weights_of(run, WEIGHTS)) != expected or not isinstance(
        autoencoder, BinaryAutoencoder
    ):
        raise BitlensError(
            f"{file.path} was compressed with other weights than those of {run}; take the run "
            f"{file.about.get('autoencoder')} as it was then."
        )
    return autoencoder


def _decoded(
    file: Compressed, autoencoder: BinaryAutoencoder, damaged: list[int], skip_damaged: bool
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Hidden states, positions and documents of some rows at a time; to `damaged` is added which
    documents are found so on the way, if those may be left out."""
    decode, done = _decoder(autoencoder), 0
    for document in file.documents.tolist():
        if document in damaged:
            continue
        try:
            bits = file.read(document)
        except Damaged:
            if not skip_damaged:
                raise
            damaged.append(document)
            continue
        first = 0
        for hidden in map(decode, _blocks(bits)):
            position = torch.arange(first, first + len(hidden))
            yield hidden, position, torch.full_like(position, document)
            first += len(hidden)
            terminal.at(done := done + len(hidden), total=file.rows)


def _shards(
    blocks: Iterator[tuple[Tensor, ...]], rows: int, d_in: int
) -> Iterator[tuple[Tensor, ...]]:
    """The same rows, so many at a time, in one place: blocks left lying until a shard is whole
    would leave holes in memory as large as what decodes them."""
    shard = (torch.empty(rows, d_in), *(torch.empty(2, rows, dtype=torch.int64)))
    filled = 0
    for block in blocks:
        while len(block[0]):
            taken = min(rows - filled, len(block[0]))
            for column, piece in zip(shard, block, strict=True):
                column[filled : filled + taken] = piece[:taken]
            block = tuple(piece[taken:] for piece in block)
            filled += taken
            if filled == rows:
                yield shard
                filled = 0
    if filled:
        yield tuple(column[:filled] for column in shard)
