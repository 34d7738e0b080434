"""The packed codes of a store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from bitlens import terminal
from bitlens.autoencoders import Autoencoder
from bitlens.bits.codes import KIND, MANIFEST, Codes
from bitlens.bits.descent import BLOCK_BYTES, GRAM_BYTES
from bitlens.bits.packed import PackedBits
from bitlens.bits.words import words_for
from bitlens.errors import BitlensError
from bitlens.files import prepare_output
from bitlens.hidden.split import held_out_share
from bitlens.hidden.store import ActivationStore
from bitlens.memory import MemoryPlan, at_peak, require
from bitlens.remote import place
from bitlens.writing import holding

PART_ROWS, PART_BYTES, BLOCK_ROWS = 1 << 20, 1 << 30, 16384  # of a shard, and encoded at once
COLUMN_BYTES = 17  # of a row: token, document, position, usual


@terminal.shown("encode")
@holding()
@torch.inference_mode()
def encode_store(
    autoencoder: Autoencoder,
    store: ActivationStore,
    out: Path | str,
    *,
    name: str = "",
    rows: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Codes:
    """Encode every row of `store`, held-out and outlying ones, too, and write the codes to `out`.

    name: what the codes' manifest calls the autoencoder. rows: only so many, the first ones.
    progress: show it on standard error.
    """
    store.require_width(autoencoder.d_in)
    if rows is not None and rows < 1:
        raise BitlensError(f"`rows` must be at least 1, not {rows}.")
    share, out = held_out_share(store, autoencoder.metadata), place(out)
    total = len(store) if rows is None else min(rows, len(store))
    plan = encode_plan(autoencoder, store, total)
    require(lambda: plan, "take an autoencoder of fewer latents")
    prepare_output(out, resume=None, overwrite=overwrite, marker=MANIFEST, kind=KIND)
    kept = ("model", "revision", "model_digest", "hook", "documents")
    about = {
        "autoencoder": name,
        "architecture": autoencoder.architecture,
        "store": str(store.path),
        **{key: store.manifest.get(key) for key in kept},
        "test_fraction": share,
    }
    return Codes.write(out, _parts(autoencoder, store, total), autoencoder.n_latents, about)


def encode_plan(autoencoder: Autoencoder, store: ActivationStore, rows: int) -> MemoryPlan:
    """Of the first rows of `store`."""
    W, m, block = autoencoder.W_dec, autoencoder.n_latents, min(rows, BLOCK_ROWS)
    device, weights = str(W.device), autoencoder.memory()
    part = min(rows, _part_rows(m) + BLOCK_ROWS) * (8 * words_for(m) + COLUMN_BYTES)
    codes = {"codes of a shard": 2 * part, "index of rows": 9 * len(store)}
    read, row = {"rows of a block": block * store.row_bytes()}, 4 * autoencoder.d_in
    encode = {"codes of a block": (7 if autoencoder.binary else 14) * block * m}
    search = [encode | {"standardised": block * row}]
    if autoencoder.settings.get("coding") == "descent":
        read["W W^T"] = 4 * m * m if 4 * m * m <= GRAM_BYTES else 0
        gains = {"gains": min(4 * block * m, BLOCK_BYTES), "standardised": 3 * block * row}
        search = [gains] if getattr(autoencoder, "flips", None) is None else [gains, *search]
    if device == "cpu":
        parts = at_peak(weights | codes | read, *search)
        return MemoryPlan("encode", parts, there=sum(weights.values()))
    return MemoryPlan("encode", at_peak(codes, read), at_peak(read, *search), device)


def _part_rows(n_latents: int) -> int:
    return min(PART_ROWS, max(1, PART_BYTES // (8 * words_for(n_latents))))


def _parts(
    autoencoder: Autoencoder, store: ActivationStore, total: int
) -> Iterator[tuple[PackedBits, dict[str, Tensor]]]:
    """Bits and columns of the first rows, up to PART_ROWS or PART_BYTES and a block at a time."""
    device, usual = autoencoder.W_enc.device, store.usual()
    part = _part_rows(autoencoder.n_latents)
    words: list[Tensor] = []
    columns: list[dict[str, Tensor]] = []
    done = first = 0  # rows encoded, and the first of the part
    for rows in store.read("all", BLOCK_ROWS):
        x, _ = autoencoder.pair(rows.hidden[: total - done].to(device))
        words.append(autoencoder.encode_bits(x).words.cpu())
        block = {name: column[: len(x)] for name, column in rows.columns.items()}
        columns.append({**block, "usual": usual[done : done + len(x)]})
        done += len(x)
        terminal.at(done, total=total)
        if done - first >= part or done == total:
            joined = {name: torch.cat([block[name] for block in columns]) for name in columns[0]}
            yield PackedBits(torch.cat(words), autoencoder.n_latents), joined
            words, columns, first = [], [], done
        if done == total:
            return
