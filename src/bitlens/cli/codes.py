"""Commands that read codes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from bitlens.cli.common import CodesFolder, RunFolder, Search, SearchFlags, StoreFolder, open_pair


def entropy(codes: CodesFolder, seed: int = 0) -> dict[str, Any]:
    """Measure the information in a corpus of codes: estimates, bounds, and their intervals.

    Code lengths are those of some documents, coded by models fitted on the others: the documents
    that were held out when the autoencoder was trained on this store, or the last fifth if none
    were. Rows of outlying norm are left out.

    Args:
        seed: seed of the autoregression.
    """
    import torch

    from bitlens import show
    from bitlens.bits.codes import Codes
    from bitlens.hidden.source import held_out
    from bitlens.information.entropy import entropy as measure

    corpus = Codes(codes)
    usual = corpus.usual
    show.left_out(corpus.outliers)
    bits, document = corpus.parts.where(usual), corpus.document[usual]
    fraction = corpus.manifest.get("test_fraction") or 0.0
    test = torch.from_numpy(held_out(document.numpy(), fraction)) if fraction else None
    result = measure(bits, document, test, seed=seed)
    show.entropy(str(codes), result)
    return {"codes": str(codes), "outliers": corpus.outliers, **asdict(result)}


def compress(
    run: RunFolder,
    store: StoreFolder,
    out: Path,
    documents: Literal["all", "test"] = "all",
    seed: int = 0,
    search: SearchFlags = Search(),  # noqa: B008
    device: str = "auto",
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write the bits of a store to a file as long as their code; compare other ways to store it.

    The code is a model fitted on the training documents; it is in the file. `bitlens decompress`
    gives hidden states back.

    Args:
        run: a binary autoencoder.
        out: the file.
        documents: all, or test for the held-out documents only.
        seed: seed of the model's fit.
        overwrite: replace a file that is there.
    """
    from bitlens import show
    from bitlens.compression.store import compress_store

    autoencoder, rows = open_pair(run, store, device, search)
    result = compress_store(
        autoencoder, rows, run, out, documents=documents, seed=seed, overwrite=overwrite
    )
    show.compression(str(out), result)
    return {"file": str(out), **asdict(result)}


def decompress(
    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")],
    run: RunFolder,
    out: Path,
    skip_damaged: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Make a store of the hidden states that the bits of a compressed file give.

    Tokens and positions in the context are not in the file: tokens are -1 and positions count the
    rows of a document.

    Args:
        file: written by `bitlens compress`.
        run: the binary autoencoder that compressed it.
        out: the store.
        skip_damaged: leave out documents that are damaged instead of stopping.
        overwrite: replace a store that is there.
    """
    from bitlens import show
    from bitlens.compression.file import Compressed
    from bitlens.compression.store import decompress_file

    compressed = Compressed(file)
    store, damaged = decompress_file(
        compressed, run, out, skip_damaged=skip_damaged, overwrite=overwrite
    )
    show.say(f"{out}: {len(store):,} rows of {store.d_in}, float32, as the bits give them")
    if damaged:
        show.warn(f"Left out, as they are damaged: documents {', '.join(map(str, damaged))}.")
    return {"store": str(out), "rows": len(store), "damaged": damaged}
