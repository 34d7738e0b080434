"""The packed codes of a store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from bitlens import terminal
from bitlens.autoencoders import Autoencoder
from bitlens.bits.codes import KIND, MANIFEST, Codes
from bitlens.bits.packed import PackedBits
from bitlens.files import prepare_output
from bitlens.hidden.split import held_out_share
from bitlens.hidden.store import ActivationStore
from bitlens.remote import place
from bitlens.writing import holding

PART_ROWS = 1 << 20


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
    share, out = held_out_share(store, autoencoder.metadata), place(out)
    prepare_output(out, resume=None, overwrite=overwrite, marker=MANIFEST, kind=KIND)
    kept = ("model", "revision", "model_digest", "hook", "documents")
    about = {
        "autoencoder": name,
        "architecture": autoencoder.architecture,
        "store": str(store.path),
        **{key: store.manifest.get(key) for key in kept},
        "test_fraction": share,
    }
    total = len(store) if rows is None else min(rows, len(store))
    return Codes.write(out, _parts(autoencoder, store, total), autoencoder.n_latents, about)


def _parts(
    autoencoder: Autoencoder, store: ActivationStore, total: int
) -> Iterator[tuple[PackedBits, dict[str, Tensor]]]:
    """Bits and columns of the first rows, `PART_ROWS` or a little more at a time."""
    device, usual = autoencoder.W_enc.device, store.usual()
    words: list[Tensor] = []
    columns: list[dict[str, Tensor]] = []
    done = first = 0  # rows encoded, and the first of the part
    for rows in store.read("all"):
        x, _ = autoencoder.pair(rows.hidden[: total - done].to(device))
        words.append(autoencoder.encode_bits(x).words.cpu())
        block = {name: column[: len(x)] for name, column in rows.columns.items()}
        columns.append({**block, "usual": usual[done : done + len(x)]})
        done += len(x)
        terminal.at(done, total=total)
        if done - first >= PART_ROWS or done == total:
            joined = {name: torch.cat([block[name] for block in columns]) for name in columns[0]}
            yield PackedBits(torch.cat(words), autoencoder.n_latents), joined
            words, columns, first = [], [], done
        if done == total:
            return
