"""The command that runs SAEBench."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import tyro

from bitlens.cli.common import RunFolder, Search, SearchFlags
from bitlens.devices import pick_device
from bitlens.ecosystem.saebench_config import BenchConfig
from bitlens.errors import BitlensError

SHOWN = ("explained_variance", "mse", "cossim", "l0", "ce_loss_score", "ce_loss_without_sae")
SHOWN += ("ce_loss_with_sae", "ce_loss_with_ablation", "kl_div_score", "frac_alive")
SHOWN += ("decoder_fraction_variance_explained",)


def saebench(
    run: RunFolder,
    out: Path,
    config: Annotated[BenchConfig, tyro.conf.arg(name="")] = BenchConfig(),  # noqa: B008
    search: SearchFlags = Search(),  # noqa: B008
    model: str | None = None,
    text: tuple[str, ...] = (),
    text_column: str = "text",
    device: str = "auto",
    overwrite: bool = False,
) -> dict[str, Any]:
    """Run SAEBench's own core and meta_structure on an autoencoder, offline.

    Bits found by descent are searched here as anywhere; --coding step measures the encoder's.

    Args:
        out: folder for SAEBench's files.
        model: the language model; by default that of the run.
        text: files or folders; by default those of the run, of which held-out documents are read.
        text_column: of tables and datasets.
    """
    from bitlens import show
    from bitlens.autoencoders import Autoencoder
    from bitlens.ecosystem.saebench import bench, require

    require()
    autoencoder = search.of(Autoencoder.from_pretrained(run))
    about = autoencoder.metadata
    model = model or about.get("model")
    texts = text or tuple((about.get("documents_of") or {}).get("texts") or ())
    lacking = [name for name, value in (("model", model), ("text", texts)) if not value]
    if not model or lacking:
        flags = " and ".join(f"--{name}" for name in lacking)
        raise BitlensError(f"{run} does not say its {' and '.join(lacking)}: add {flags}.")
    documents = _unseen(texts, text_column, about)
    found = bench(
        autoencoder, model, documents, out, config, device=pick_device(device), overwrite=overwrite
    )
    numbers = {name: value for group in found.values() for name, value in group.items()}
    lines = [{"number": name, "value": numbers[name]} for name in SHOWN if name in numbers]
    show.rows(f"SAEBench on {run}", lines)
    return {"run": str(run), "out": str(out), **found}


def _unseen(texts: tuple[str, ...], column: str, about: dict[str, Any]) -> Iterator[str]:
    """Documents that the training held out; all, of other text."""
    import numpy as np

    from bitlens.hidden import Corpus
    from bitlens.hidden.source import held_out
    from bitlens.hidden.split import documents_of, same_numbers

    corpus = Corpus(texts, text_column=column)
    share = (about.get("training") or {}).get("test_fraction")
    if share is None or not same_numbers(about, {"documents_of": documents_of(corpus)}):
        share = 1.0
    for number, document in corpus.documents():
        if held_out(np.array([number]), share)[0]:
            yield document
