"""Commands that make activation stores."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bitlens.cli.calling import in_flags
from bitlens.cli.common import Files, ModelFlags, ModelName, TextFlags, open_text
from bitlens.hidden.config import ModelConfig
from bitlens.options import TEST_FRACTION

if TYPE_CHECKING:
    from bitlens.hidden import ActivationStore


def harvest(
    model: ModelName,
    text: TextFlags,
    hook: tuple[str, ...],
    out: Path,
    batch_size: int = 16,
    max_rows: int | None = None,
    test_fraction: float = TEST_FRACTION,
    loading: ModelFlags = ModelConfig(),  # noqa: B008
    store_dtype: Literal["auto", "float16", "bfloat16", "float32"] = "auto",
    outlier_multiple: float = 10.0,
    rank: int | None = None,
    ranks: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> dict[str, Any] | None:
    """Run a language model over text and store its hidden states, one store for each hook point.

    Special tokens (BOS, padding, end of text) make no rows. A killed harvest goes on with --resume.
    Several processes, of `torchrun -m bitlens harvest ...` or each with its own --rank, write one
    store together, the same as a single one would.

    Args:
        model: Hugging Face model, by name or folder; 'bundled' is the one that comes with bitlens.
        hook: hook points: layers.4, layers.4.mlp, layers.4.mlp:input, hidden_states[5] or
            blocks.4.hook_resid_post.
        out: the store; with several hook points a folder with a store for each.
        batch_size: contexts of full length a forward pass; of shorter ones more.
        max_rows: stop after so many tokens.
        test_fraction: share of the documents that is held out; packed contexts hold either such
            documents or others.
        store_dtype: of the stored hidden states; auto: the model's.
        outlier_multiple: rows whose norm is above this multiple of the median are never trained on.
        rank: which of several processes this is, from 0; by default as torchrun says.
        ranks: how many processes write the store together.
        resume: continue a harvest that was stopped; a rank of several does so without it.
        overwrite: replace a store that is there.
    """
    import torch

    from bitlens import show
    from bitlens.hidden.harvest import harvest as run
    from bitlens.training.signals import stop_on_signals
    from bitlens.writing import Share

    Share.of(rank, ranks)  # what is no share is refused before the model is loaded
    language_model, reader = open_text(model, hook, text, test_fraction, loading)
    how: dict[str, Any] = {"batch_size": batch_size, "max_rows": max_rows}
    how |= {"rank": rank, "ranks": ranks, "resume": resume, "overwrite": overwrite}
    with stop_on_signals() as stop:
        stores = run(
            language_model,
            reader,
            out,
            **how,
            outlier_multiple=outlier_multiple,
            store_dtype=getattr(torch, store_dtype, None),  # None for auto
            announce=lambda plan: show.warn(in_flags(f"Plan: {plan}", harvest)),
            stop=lambda: stop.signal,
        )
    return {"stores": _report(stores)} if stores else None


def import_(
    files: Files,
    out: Path,
    hidden: str | None = None,
    tokens: str | None = None,
    documents: str | None = None,
    positions: str | None = None,
    name: str = "imported",
    outlier_multiple: float = 10.0,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Make a store of hidden states from elsewhere (.npy, .npz, .safetensors, .parquet, .h5).

    Args:
        files: arrays of hidden states, [rows, d] or [items, positions, d]; joined in this order.
        out: the store.
        hidden: name of the array inside a file; needed where there are several matrices.
        tokens: name of an integer array with the token id of each row.
        documents: name of an integer array with the document of each row; by default every row (or
            item) is its own.
        positions: name of an integer array with each row's position; by default counted within
            documents.
        name: what to call the origin.
        outlier_multiple: rows whose norm is above this multiple of the median are never trained on.
        overwrite: replace a store that is there.
    """
    from bitlens.hidden.arrays import import_arrays

    store = import_arrays(
        list(files),
        out,
        hidden=hidden,
        tokens=tokens,
        documents=documents,
        positions=positions,
        name=name,
        outlier_multiple=outlier_multiple,
        overwrite=overwrite,
    )
    return _report([store])[0]


def _report(stores: list[ActivationStore]) -> list[dict[str, Any]]:
    """Print what was made -> for JSON, what the manifests say."""
    from bitlens import show

    summaries = []
    for store in stores:
        about = {k: v for k, v in store.manifest.items() if k not in ("mean", "shards")}
        show.say(
            f"{store.path}: {len(store):,} rows of {store.d_in} from {about['documents']:,} "
            f"documents, {about['model']} at {about['hook']['module']}; std {store.scale:.4g}, "
            f"{about['outliers']} rows of outlying norm"
        )
        summaries.append({"store": str(store.path), **about})
    for warning in dict.fromkeys(warning for store in stores for warning in store.warnings()):
        show.warn(warning)
    return summaries
