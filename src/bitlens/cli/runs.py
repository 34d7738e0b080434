"""Commands that train autoencoders and use them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from bitlens.cli.common import (
    Device,
    Json,
    On,
    RunFolder,
    Search,
    SearchFlags,
    StoreFolder,
    open_pair,
    pick_device,
    write_result,
)
from bitlens.errors import BitlensError


def encode(
    run: RunFolder,
    store: StoreFolder,
    out: Path,
    search: SearchFlags = Search(),  # noqa: B008
    device: Device = "auto",
    overwrite: bool = False,
    json: Json = None,
) -> None:
    """Write the packed bits of a store, with the token, document and position of every row.

    Args:
        run: an autoencoder.
        store: hidden states of its hook point.
        out: folder of the codes.
        search: how the codes are found.
        device: auto, cpu, cuda.
        overwrite: replace codes that are there.
        json: also write the result to this file.
    """
    from bitlens import show
    from bitlens.encode import encode_store

    autoencoder, rows = open_pair(run, store, device, search)
    codes = encode_store(autoencoder, rows, out, name=str(run), overwrite=overwrite)
    size = sum(file.stat().st_size for file in out.iterdir())
    show.out.print(
        f"{out}: {len(codes):,} rows of {codes.n_latents:,} bits, {size / 2**20:.1f} MiB",
        soft_wrap=True,
    )
    write_result(
        json, {"codes": str(out), "rows": len(codes), "n_latents": codes.n_latents, "bytes": size}
    )


def evaluate(
    run: RunFolder,
    store: StoreFolder,
    part: Literal["test", "all"] = "test",
    outliers: bool = False,
    contexts: int = 64,
    ce: On = True,
    joint: On = True,
    search: SearchFlags = Search(),  # noqa: B008
    device: Device = "auto",
    json: Json = None,
) -> None:
    """Print the table of numbers of an autoencoder, on held-out documents.

    Args:
        run: an autoencoder.
        store: hidden states of its hook point.
        part: test: the held-out documents; all: every document, for text that the autoencoder was not trained on.
        outliers: with --part all, take rows of outlying norm, too; they are never trained on.
        contexts: contexts that the language model reads for the cross-entropy numbers.
        ce: leave out the cross-entropy numbers, for which the language model runs with reconstructions spliced in.
        joint: leave out bits_joint, which takes most of the time.
        search: how the codes are found.
        device: auto, cpu, cuda.
        json: also write the numbers to this file.
    """
    from bitlens import show
    from bitlens.causal.splice import load_spliced
    from bitlens.evaluation import evaluate as measure
    from bitlens.hidden.split import same_numbers, unseen
    from bitlens.information.rate_distortion import ROWS_A_COMPONENT

    autoencoder, rows = open_pair(run, store, device, search)
    if part == "test":
        rows = unseen(rows, autoencoder.metadata)
        if not same_numbers(autoencoder.metadata, rows.manifest):
            show.err.print(
                "This store is other text than the training's; --part all takes every row of it."
            )
    elif autoencoder.metadata.get("corpus") and same_numbers(autoencoder.metadata, rows.manifest):
        show.err.print(
            "The autoencoder was trained on this text: with --part all, most rows measured are not held out."
        )
    model = None
    if ce and rows.manifest.get("context_length"):
        try:
            model = load_spliced(autoencoder, rows, pick_device(device))
        except BitlensError as error:
            show.err.print(f"Without cross-entropy numbers: {error}", soft_wrap=True)
    numbers = measure(
        autoencoder,
        rows,
        language_model=model,
        max_contexts=contexts,
        part=part,
        outliers=outliers,
        joint=joint,
    ).as_dict()
    show.table(f"{run} on {store}", {autoencoder.architecture: numbers})
    if numbers["bits_gaussian"] is None:
        show.err.print(
            f"Without bits_gaussian: a covariance of {autoencoder.d_out:,} components cannot be told from fewer than "
            f"{ROWS_A_COMPONENT * autoencoder.d_out:,} usual rows."
        )
    write_result(json, numbers)
