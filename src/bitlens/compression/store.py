"""A store in a file of bits, at the price of its code length, and back; and what other ways of storing it cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitlens import terminal
from bitlens.autoencoders import Autoencoder, BinaryAutoencoder
from bitlens.autoencoders.base import WEIGHTS
from bitlens.bits.packed import PackedBits
from bitlens.compression.file import MAGIC, Compressed, Damaged, Exact, compress
from bitlens.errors import BitlensError
from bitlens.files import prepare_output, required, sha256
from bitlens.hidden.split import held_out_share
from bitlens.hidden.store import MANIFEST, ActivationStore
from bitlens.hidden.writer import StoreWriter
from bitlens.information.autoregression import Autoregression
from bitlens.information.moments import fvu
from bitlens.information.residual import Decoder, difference, float_bytes, zstandard
from bitlens.information.tree import Blocks
from bitlens.results import brief

COMPARED_BYTES = 1 << 23  # of hidden states: zstd -19 is slow
SHARD_BYTES = 1 << 26
OF_TEXT = (
    "model",
    "revision",
    "model_digest",
    "hook",
    "corpus",
    "documents_of",
    "text",
)  # kept of a store's manifest


@dataclass(frozen=True)
class Line:
    """One way to store rows. fvu: of what comes back, on the held-out rows that are compared."""

    bytes: int
    bits_a_row: float
    fvu: float


@dataclass(frozen=True)
class Compression:
    """A compressed store beside what else could be done with its held-out rows."""

    __repr__ = brief

    rows: int
    """rows of the file"""
    held_out_rows: int
    """rows that all lines but the file's are about"""
    dtype: str
    bits_joint: float
    """code length of these rows under the float model, in bits a row"""
    ratio: float
    """bytes of the streams over the code length"""
    gain: float | None
    """share of zstd's bytes of the stored values that an exact file saves on these rows"""
    lines: dict[str, Line]


@terminal.shown("compress")
def compress_store(
    autoencoder: Autoencoder,
    store: ActivationStore,
    run: Path | str,
    out: Path | str,
    *,
    documents: str = "all",
    exact: bool = False,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
) -> Compression:
    """Write the rows of `store` to the file `out`, coded by a model fitted on the training documents.

    run: folder of the autoencoder. documents: `all`, or `test` for the held-out ones (of a split without any, the last
    fifth). exact: keep what the bits leave out, too. progress: show it on standard error.
    """
    run, out = Path(run), Path(out)
    store.require_width(autoencoder.d_in)
    if not isinstance(autoencoder, BinaryAutoencoder):
        raise BitlensError(
            f"{run} is a {autoencoder.architecture} autoencoder, whose bits alone give no hidden states back; compress "
            "with a bae."
        )
    store = store.split(held_out_share(store, autoencoder.metadata) or 0.0)
    _refuse_occupied(out, overwrite)
    terminal.stage("bits")
    bits, ids, largest = _encode(autoencoder, store)
    test = _test_rows(ids, store)
    terminal.stage("autoregression")
    model = Autoregression.of_rows(bits[~test], ids[~test], seed)
    terminal.stage("streams")
    chosen = torch.ones_like(test) if documents == "all" else test
    decoder, dtype = (
        Decoder.of(autoencoder),
        required(store.manifest, "dtype", store.path / MANIFEST),
    )
    about = {
        "autoencoder": str(run), "weights_sha256": sha256(run / WEIGHTS), "store": str(store.path), "part": documents,
        **{key: store.manifest.get(key) for key in OF_TEXT}, "dtype": dtype,
    }  # fmt: skip
    rows = (
        Exact(decoder, dtype, (hidden for _, hidden in _documents(store, chosen)))
        if exact
        else None
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    file = compress(bits[chosen], ids[chosen], model, out, about, rows)
    terminal.stage("comparison")
    return _compare(file, decoder, store, bits, test, model, largest)


def _refuse_occupied(out: Path, overwrite: bool) -> None:
    if out.is_dir():
        raise BitlensError(f"{out} is a folder; name a file for the output.")
    if out.exists() and not overwrite:
        raise BitlensError(f"{out} is there already; pass `overwrite=True` to replace it.")
    if out.exists():
        with out.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise BitlensError(f"{out} was not written by this command; choose another file.")


@torch.inference_mode()
def _encode(autoencoder: Autoencoder, store: ActivationStore) -> tuple[PackedBits, Tensor, Tensor]:
    """-> bits and document of every row, and the largest absolute value of every component"""
    words, ids, largest = [], [], torch.zeros(store.d_in)
    for rows in store.read("all"):
        words.append(autoencoder.encode_bits(rows.hidden.to(autoencoder.W_enc.device)).words.cpu())
        ids.append(rows.columns["document"])
        largest = torch.maximum(largest, rows.hidden.float().abs().amax(0))
    return PackedBits(torch.cat(words), autoencoder.n_latents), torch.cat(ids), largest


def _test_rows(ids: Tensor, store: ActivationStore) -> Tensor:
    test = store.is_test(ids) if store.test_fraction else Blocks.of(len(ids), ids).last_fifth()
    if not test.any() or test.all():
        raise BitlensError(
            f"The code is fitted on some documents and measured on others, and all rows of {store.path} are on one side; "
            "take a store of more documents."
        )
    return test


def _documents(store: ActivationStore, chosen: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The hidden states of each document in turn; chosen: bool `[rows]`, the same for all rows of a document."""
    parts, current, at = [], None, 0
    for rows in store.read("all"):
        ids = rows.columns["document"]
        edges = [0, *((ids[1:] != ids[:-1]).nonzero()[:, 0] + 1).tolist(), len(ids)]
        for start, stop in pairwise(edges):
            if parts and int(ids[start]) != current:
                yield current or 0, torch.cat(parts)
                parts = []
            current = int(ids[start])
            if chosen[at + start]:
                parts.append(rows.hidden[start:stop])
        at += len(ids)
    if parts:
        yield current or 0, torch.cat(parts)


# --- what else could be done --------------------------------------------------------------------------------------------


def _compare(
    file: Compressed, decoder: Decoder, store: ActivationStore, bits: PackedBits, test: Tensor, model: Autoregression,
    largest: Tensor,
) -> Compression:  # fmt: skip
    """Every line is about the same held-out rows, the first documents up to 8 MiB, but the file's own."""
    some: dict[int, Tensor] = {}
    for document, hidden in _documents(store, test):
        some[document] = hidden
        if (
            sum(len(rows) for rows in some.values()) * store.d_in * hidden.itemsize
            >= COMPARED_BYTES
        ):
            break
    hidden = torch.cat(list(some.values()))
    n, held = len(hidden), bits[test][: len(hidden)]
    places = [i for i, document in enumerate(file.documents.tolist()) if document in some]
    streams = int(file.stream_bytes[places].sum())
    residual = int(file.residual_bytes[places].sum())
    scale = torch.where(largest > 0, largest / 127, 1.0)
    steps = (hidden.float() / scale).round().to(torch.int8)
    usual = torch.linalg.vector_norm(hidden, dim=1, dtype=torch.float64) <= store.outlier_norm
    from_bits = fvu(hidden[usual], decoder.decode(held)[usual])
    whole = file.path.stat().st_size
    words, fvu_of_int8 = (
        held.numpy().astype("<u8").tobytes(),
        fvu(hidden[usual], (steps * scale)[usual]),
    )
    stored = _zstd(float_bytes(hidden))
    sizes = {
        "streams": (streams, from_bits), "words": (len(words), from_bits), "words_zstd": (_zstd(words), from_bits),
        "int8_zstd": (_zstd(steps.numpy().tobytes()), fvu_of_int8), "stored_zstd": (stored, 0.0),
        "stored_planes": (sum(len(difference(x, torch.zeros_like(x))) for x in some.values()), 0.0),
    }  # fmt: skip
    if file.dtype:
        sizes["exact"] = (streams + residual, 0.0)
    lines = {name: Line(size, 8 * size / n, lost) for name, (size, lost) in sizes.items()}
    lines["file"] = Line(whole, 8 * whole / file.rows, 0.0 if file.dtype else from_bits)
    length = float(model.code_lengths(held).mean())
    gain = 1 - (streams + residual) / stored if file.dtype else None
    return Compression(
        file.rows,
        n,
        store.manifest["dtype"],
        length,
        8 * streams / n / length if length else 1.0,
        gain,
        lines,
    )


def _zstd(data: bytes) -> int:
    return len(zstandard().ZstdCompressor(level=19).compress(data))


# --- back ---------------------------------------------------------------------------------------------------------------


@terminal.shown("decompress")
def decompress_file(
    file: Compressed,
    run: Path,
    out: Path,
    *,
    skip_damaged: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> tuple[ActivationStore, list[int]]:
    """Write the hidden states of `file` to the store `out` -> the store, and the documents that were left out.

    They are the original ones in a file with residuals, otherwise float32 reconstructions. run: the autoencoder that
    compressed them. skip_damaged: leave out damaged documents; without it nothing is written if there is one.
    progress: show it on standard error.
    """
    autoencoder = _same_autoencoder(file, run)
    damaged = file.verify(decode=False)
    if damaged and not skip_damaged:
        raise BitlensError(
            f"{file.path} has damaged documents ({', '.join(map(str, damaged))}); restore it, or pass `skip_damaged=True` to "
            "write the others."
        )
    if len(damaged) == len(file):
        raise BitlensError(f"{file.path} has no document that can be read; restore it.")
    prepare_output(out, resume=None, overwrite=overwrite, marker=MANIFEST)
    about = {key: file.about.get(key) for key in OF_TEXT}
    about |= {"d_in": autoencoder.d_in, "dtype": file.dtype or "float32", "context_length": None}
    writer = StoreWriter(out, {**about, "decompressed": str(file.path)})
    decoder, parts, done = Decoder.of(autoencoder), [], 0
    for document in file.documents.tolist():
        if document in damaged:
            continue
        try:
            hidden = file.hidden(document, decoder)
        except Damaged:
            if not skip_damaged:
                raise
            damaged.append(document)
            continue
        parts.append((document, hidden))
        done += len(hidden)
        terminal.at(done, total=file.rows)
        if sum(x.nbytes for _, x in parts) >= SHARD_BYTES:
            _add(writer, parts)
            parts = []
    if parts:
        _add(writer, parts)
    return writer.finish(), damaged


def _same_autoencoder(file: Compressed, run: Path) -> BinaryAutoencoder:
    expected: Any = file.about.get("weights_sha256")
    if expected is None:
        raise BitlensError(
            f"{file.path} does not name the weights that give hidden states back; read its bits with "
            "bitlens.compression.file.Compressed."
        )
    autoencoder = Autoencoder.from_pretrained(run)
    if sha256(run / WEIGHTS) != expected or not isinstance(autoencoder, BinaryAutoencoder):
        raise BitlensError(
            f"{file.path} was compressed with other weights than those of {run}; take the run "
            f"{file.about.get('autoencoder')} as it was then."
        )
    return autoencoder


def _add(writer: StoreWriter, parts: list[tuple[int, Tensor]]) -> None:
    counts = torch.tensor([len(hidden) for _, hidden in parts])
    position = torch.cat([torch.arange(n) for n in counts.tolist()])
    columns = {
        "token": torch.full_like(position, -1), "position": position,
        "document": torch.tensor([document for document, _ in parts]).repeat_interleave(counts),
    }  # fmt: skip
    writer.add(torch.cat([hidden for _, hidden in parts]), columns)
