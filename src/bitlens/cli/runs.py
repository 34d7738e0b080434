"""Commands that train autoencoders and use them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from bitlens.cli.common import (
    Device,
    Json,
    On,
    RunFolder,
    Search,
    SearchFlags,
    Source,
    StoreFolder,
    TextFlags,
    open_pair,
    open_text,
    pick_device,
    write_result,
)
from bitlens.errors import BitlensError
from bitlens.hidden.config import ModelConfig, TextConfig
from bitlens.options import TEST_FRACTION, Logger
from bitlens.training.config import TrainConfig


def train(
    source: Source,
    out: Path,
    config: Annotated[TrainConfig, tyro.conf.arg(name="")] = TrainConfig(),  # noqa: B008
    target: Path | None = None,
    stream: bool = False,
    text: TextFlags = TextConfig((), streaming=True, shuffle_seed=0),  # noqa: B008
    hook: str = "",
    log: tuple[Logger, ...] = (),
    resume: bool = False,
    overwrite: bool = False,
    json: Json = None,
) -> None:
    """Train an autoencoder on a store, or with --stream straight from a model.

    The result is a folder with cfg.json and sae_weights.safetensors. A killed run goes on, bit-exactly, with --resume.

    Args:
        source: a store; with --stream a language model.
        out: folder of the run.
        config: settings of the training.
        target: for transcoders: the store of what is to be predicted, from the same harvest.
        stream: make hidden states as they are needed, without a store (takes --text and --hook).
        text: with --stream: the text, as for harvest.
        hook: with --stream: the hook point.
        log: further loggers beside metrics.jsonl: tensorboard, wandb.
        resume: continue a run that was stopped.
        overwrite: replace a run that is there.
        json: also write the last numbers of the training to this file.
    """
    from bitlens import show
    from bitlens.hidden import ActivationStore, PairedStore
    from bitlens.hidden.live import LiveSource
    from bitlens.training import train as run

    fraction = config.test_fraction
    if stream:
        if not text.text or not hook:
            raise BitlensError("--stream needs the text and the hook point: add --text and --hook.")
        held_out = TEST_FRACTION if fraction is None else fraction
        loading = ModelConfig(device=config.device)
        language_model, reader = open_text(source, (hook,), text, held_out, loading)
        if left_out := reader.corpus.left_out():
            show.err.print(f"Not read as text: {', '.join(left_out)}", soft_wrap=True)
        rows: Any = LiveSource(language_model, reader)
    elif target is not None:
        rows = PairedStore(source, target, fraction)
    else:
        rows = ActivationStore(source, fraction)
    last: dict[str, Any] = {}
    autoencoder = run(
        rows, config, out, resume=resume, overwrite=overwrite, loggers=log, report=last.update
    )
    show.out.print(
        f"{out}: {autoencoder.architecture} with {autoencoder.n_latents:,} live latents of {autoencoder.metadata['n_latents_trained']:,}, d_in {autoencoder.d_in}",
        soft_wrap=True,
    )
    write_result(json, {"run": str(out), "n_latents": autoencoder.n_latents, **last})


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
