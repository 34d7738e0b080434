"""The packed codes of a store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from bitlens import terminal
from bitlens.autoencoders import Autoencoder
from bitlens.bits.codes import MANIFEST, Codes
from bitlens.bits.packed import PackedBits
from bitlens.files import prepare_output
from bitlens.hidden.split import held_out_share
from bitlens.hidden.store import ActivationStore

PART_ROWS = 1 << 20


@terminal.shown("encode")
@torch.inference_mode()
def encode_store(
    autoencoder: Autoencoder,
    store: ActivationStore,
    out: Path | str,
    *,
    name: str = "",
    overwrite: bool = False,
    progress: bool = True,
) -> Codes:
    """Encode every row of `store`, held-out and outlying ones, too, and write the codes to `out`.

    `usual` of the codes says which rows are not of outlying norm.

    name: what the codes' manifest calls the autoencoder. progress: show it on standard error.
    """
    store.require_width(autoencoder.d_in)
    share = held_out_share(store, autoencoder.metadata)
    out = Path(out)
    prepare_output(out, resume=None, overwrite=overwrite, marker=MANIFEST)
    device, usual = autoencoder.W_enc.device, store.usual()

    def parts() -> Iterator[tuple[PackedBits, dict[str, Tensor]]]:
        words: list[Tensor] = []
        columns: list[dict[str, Tensor]] = []
        done = held = 0
        for rows in store.read("all"):
            words.append(
                autoencoder.encode_bits(autoencoder.pair(rows.hidden.to(device))[0]).words.cpu()
            )
            first = done + held
            columns.append({**rows.columns, "usual": usual[first : first + len(rows.hidden)]})
            held += len(rows.hidden)
            terminal.at(done + held, total=len(store))
            if held >= PART_ROWS:
                yield _join(words, columns, autoencoder.n_latents)
                words, columns, done, held = [], [], done + held, 0
        if held:
            yield _join(words, columns, autoencoder.n_latents)

    about = {
        "autoencoder": name,
        "architecture": autoencoder.architecture,
        "store": str(store.path),
        **{
            key: store.manifest.get(key)
            for key in ("model", "revision", "model_digest", "hook", "documents")
        },
        "test_fraction": share,
    }
    return Codes.write(out, parts(), autoencoder.n_latents, about)


def _join(
    words: list[Tensor], columns: list[dict[str, Tensor]], n_latents: int
) -> tuple[PackedBits, dict[str, Tensor]]:
    return PackedBits(torch.cat(words), n_latents), {
        k: torch.cat([c[k] for c in columns]) for k in columns[0]
    }
