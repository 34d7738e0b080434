"""A store in a file of bits, at the price of its code length, and back; and what other ways of
storing it cost."""

from __future__ import annotations

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
from bitlens.compression.file import MAGIC, Compressed, Damaged, compress
from bitlens.errors import BitlensError
from bitlens.files import prepare_output, required, sha256
from bitlens.hidden.split import held_out_share
from bitlens.hidden.store import KIND, MANIFEST, ActivationStore
from bitlens.hidden.writer import StoreWriter
from bitlens.information.autoregression import Autoregression
from bitlens.information.moments import fvu
from bitlens.information.tree import Blocks
from bitlens.remote import place
from bitlens.results import brief
from bitlens.writing import holding

COMPARED_BYTES = 1 << 23  # of hidden states: zstd -19 is slow
SHARD_BYTES = 1 << 26
DECODED_ROWS = 4096  # at a time, in float64
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
    """Every row of a store: its bits, document, and whether that is held out; and the largest
    absolute value of each component."""

    bits: PackedBits
    documents: Tensor
    held_out: Tensor
    largest: Tensor


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
    without any, the last fifth). progress: show it on standard error.
    """
    run, out = place(run), Path(out)
    store.require_width(autoencoder.d_in)
    if not isinstance(autoencoder, BinaryAutoencoder):
        kind = autoencoder.architecture
        raise BitlensError(f"The bits of a {kind} give no hidden states back; compress with a bae.")
    store = store.split(held_out_share(store, autoencoder.metadata) or 0.0)
    dtype = required(store.manifest, "dtype", store.path / MANIFEST)
    if out.is_dir():
        raise BitlensError(f"{out} is a folder; name a file for the output.")
    if out.exists():
        _refuse_occupied(out, overwrite)
    terminal.stage("bits")
    rows = _encode(autoencoder, store)
    terminal.stage("autoregression")
    training = ~rows.held_out
    model = Autoregression.fit(rows.bits[training], rows.documents[training], seed)
    terminal.stage("streams")
    chosen = torch.ones_like(training) if documents == "all" else rows.held_out
    about = {
        "autoencoder": str(run),
        "weights_sha256": sha256(weights_of(run, WEIGHTS)),
        "store": str(store.path),
        "part": documents,
        **{key: store.manifest.get(key) for key in KEPT_OF_MANIFEST},
        "dtype": dtype,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    file = compress(rows.bits[chosen], rows.documents[chosen], model, out, about)
    terminal.stage("comparison")
    return _compare(file, autoencoder, store, rows, model)


def _refuse_occupied(out: Path, overwrite: bool) -> None:
    if not overwrite:
        raise BitlensError(f"{out} is there already; pass `overwrite=True` to replace it.")
    with out.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise BitlensError(f"{out} was not written by this command; choose another file.")


@torch.inference_mode()
def _encode(autoencoder: Autoencoder, store: ActivationStore) -> _Rows:
    words, documents, largest = [], [], torch.zeros(store.d_in)
    for rows in store.read("all"):
        words.append(autoencoder.encode_bits(rows.hidden.to(autoencoder.W_enc.device)).words.cpu())
        documents.append(rows.columns["document"])
        largest = torch.maximum(largest, rows.hidden.float().abs().amax(0))
    ids = torch.cat(documents)
    test = store.is_test(ids) if store.test_fraction else Blocks.of(len(ids), ids).last_fifth()
    if not test.any() or test.all():
        raise BitlensError(
            "The code is fitted on some documents and measured on others, and all rows of "
            f"{store.path} are on one side; take a store of more documents."
        )
    return _Rows(PackedBits(torch.cat(words), autoencoder.n_latents), ids, test, largest)


# --- what else could be done ----------------------------------------------------------------------


def _compare(
    file: Compressed,
    autoencoder: BinaryAutoencoder,
    store: ActivationStore,
    rows: _Rows,
    model: Autoregression,
) -> Compression:
    """All lines but the file's are about the same held-out rows: first documents up to 8 MiB."""
    hidden, documents = _some_held_out(store, rows)
    bits = rows.bits[rows.held_out][: len(hidden)]
    streams = int(file.stream_bytes[torch.isin(file.documents, torch.unique(documents))].sum())
    scale = torch.where(rows.largest > 0, rows.largest / 127, 1.0)
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


def _some_held_out(store: ActivationStore, rows: _Rows) -> tuple[Tensor, Tensor]:
    """Hidden states of the first held-out documents, up to `COMPARED_BYTES`, and documents."""
    ids = rows.documents[rows.held_out]
    ends = torch.unique_consecutive(ids, return_counts=True)[1].cumsum(0)
    row_bytes = store.d_in * getattr(torch, store.manifest["dtype"]).itemsize
    enough = ends[ends * row_bytes >= COMPARED_BYTES]
    n = int(enough[0]) if len(enough) else len(ids)
    hidden, place = [], 0
    for block in store.read("all"):
        hidden.append(block.hidden[rows.held_out[place : place + len(block.hidden)]])
        place += len(block.hidden)
        if sum(map(len, hidden)) >= n:
            break
    return torch.cat(hidden)[:n], ids[:n]


def _zstd(data: Tensor) -> int:
    """Bytes of `data` under zstd -19."""
    zstandard: Any = import_module("zstandard")
    content = data.contiguous().view(torch.uint8).numpy().tobytes()
    return len(zstandard.ZstdCompressor(level=19).compress(content))


# --- back -----------------------------------------------------------------------------------------


def reconstruct(autoencoder: BinaryAutoencoder, bits: PackedBits) -> Tensor:
    """The hidden states that these bits stand for, float32 `[rows, d_in]`, rounded once."""
    w_dec, b_dec, scale, mean = (
        tensor.detach().cpu().double()
        for tensor in (autoencoder.W_dec, autoencoder.b_dec, autoencoder.scale, autoencoder.mean)
    )
    rows, base = w_dec * scale, b_dec * scale + mean
    if not (rows.isfinite().all() and base.isfinite().all()):
        raise BitlensError("The autoencoder has weights that are not finite; train it again.")
    out = torch.empty(len(bits), len(base))
    for start in range(0, len(bits), DECODED_ROWS):
        block = slice(start, start + DECODED_ROWS)
        out[block] = (bits[block].unpack(torch.float64) @ rows + base).float()
    return out


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
    waiting: list[tuple[int, Tensor]] = []  # documents and hidden states, until a shard is full
    done = 0
    for document in file.documents.tolist():
        if document in damaged:
            continue
        try:
            hidden = reconstruct(autoencoder, file.read(document))
        except Damaged:
            if not skip_damaged:
                raise
            damaged.append(document)
            continue
        waiting.append((document, hidden))
        done += len(hidden)
        terminal.at(done, total=file.rows)
        if sum(rows.nbytes for _, rows in waiting) >= SHARD_BYTES:
            _write_shard(writer, waiting)
            waiting = []
    if waiting:
        _write_shard(writer, waiting)
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


def _write_shard(writer: StoreWriter, documents: list[tuple[int, Tensor]]) -> None:
    counts = torch.tensor([len(hidden) for _, hidden in documents])
    position = torch.cat([torch.arange(n) for n in counts.tolist()])
    columns = {
        "token": torch.full_like(position, -1),
        "position": position,
        "document": torch.tensor([document for document, _ in documents]).repeat_interleave(counts),
    }
    writer.add(torch.cat([hidden for _, hidden in documents]), columns)
