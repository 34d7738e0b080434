"""What a run's folder says of it, as plain data: curves, sentences, and how it was made."""

from __future__ import annotations

import contextlib
import json
import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitlens.autoencoders.base import CONFIG, Autoencoder
from bitlens.autoencoders.base import SCHEMA as CONFIG_SCHEMA
from bitlens.autoencoders.formats import registry as formats
from bitlens.errors import BitlensError
from bitlens.files import read_manifest
from bitlens.hidden.hooks import differ
from bitlens.training.checkpoint import RUN
from bitlens.training.checkpoint import SCHEMA as RUN_SCHEMA
from bitlens.training.config import settings_that_apply
from bitlens.training.metrics import METRICS

MEANINGS = {  # of the columns of metrics.jsonl, in the order of a report
    "mse": "squared error of a batch, as the loss weighs it: about the fvu",
    "l0": "latents on, per row of a batch",
    "bits_batch": "sum of the latents' entropies in a batch",
    "price": "what the codes of a batch cost, as the loss weighs it",
    "total": "what is minimised: error, price and further terms",
    "covariance": "penalty on latents that are on together",
    "auxiliary": "further terms of the architecture's own",
    "rows_per_second": "speed of this machine",
}
ARCHITECTURES = {
    "bae": "Binary autoencoder",
    "topk": "TopK autoencoder",
    "batch_topk": "BatchTopK autoencoder",
    "relu": "ReLU autoencoder",
    "gated": "Gated autoencoder",
    "jumprelu": "JumpReLU autoencoder",
    "transcoder": "Transcoder",
    "skip_transcoder": "Skip transcoder",
    "tanh_relu": "Tanh-ReLU autoencoder",
    "relu_transcoder": "ReLU transcoder",
    "relu_skip_transcoder": "ReLU skip transcoder",
    "jumprelu_transcoder": "JumpReLU transcoder",
    "jumprelu_skip_transcoder": "JumpReLU skip transcoder",
    "pca": "Principal components",
    "random": "Random autoencoder",
}
Pairs = list[tuple[str, str]]


def configuration(run: Path) -> tuple[dict[str, Any], bool]:
    """What `cfg.json` holds, or would of another library's autoencoder, and that training has
    ended; before that the same from `training.json`."""
    if (run / CONFIG).exists() or not (run / RUN).exists():
        if formats.another(run, CONFIG) is not None:
            return Autoencoder.from_pretrained(run).config(), True
        return read_manifest(run / CONFIG, CONFIG_SCHEMA, "an autoencoder"), True
    begun = read_manifest(run / RUN, RUN_SCHEMA, "a run")
    settings, source = begun.get("config") or {}, begun.get("source") or {}
    about = {"n_latents_trained": settings.get("n_latents"), "training": settings}
    config = {"architecture": settings.get("architecture"), "d_in": source.get("d_in")}
    config |= {"d_sae": settings.get("n_latents"), "coding": settings.get("coding")}
    return {**config, "metadata": {**source, **about}}, False


def records(run: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`; without those that are no records, and those of a file that
    cannot be read."""
    text, found = "", []
    with contextlib.suppress(OSError):
        text = (run / METRICS).read_text(encoding="utf-8", errors="replace")
    for line in text.splitlines():
        with contextlib.suppress(ValueError, RecursionError):  # the last line of a killed run
            found.append(json.loads(line))
    return [record for record in found if isinstance(record, dict)]


def curves(run: Path) -> dict[str, list[float | None]]:
    """The columns of `metrics.jsonl`, None where a line has no such number."""
    known = [record for record in records(run) if _finite(record.get("step")) is not None]
    names = ["step", *(name for name in MEANINGS if any(name in one for one in known))]
    return {name: [_finite(one.get(name)) for one in known] for name in names if known}


def _finite(value: Any) -> float | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and math.isfinite(value) else None


def heading(config: Mapping[str, Any]) -> str:
    """What the run is, in a line."""
    metadata = config.get("metadata") or {}
    kind = ARCHITECTURES.get(str(config.get("architecture")), str(config.get("architecture")))
    n_latents = config.get("d_sae")
    parts = [kind, f"{n_latents:,} latents"] if type(n_latents) is int else [kind]
    model, hook = metadata.get("model"), (metadata.get("hook") or {}).get("module")
    if model or hook:  # of a model in a folder or a file, its name alone
        name = Path(str(model)).name if model else "an unknown model"
        parts.append(f"{name} at {hook or 'an unknown hook point'}")
    return " · ".join(parts)


def measured_on(evaluation: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[str, list[str]]:
    """A sentence that says of which rows the numbers are, and what is special about them."""
    metadata = config.get("metadata") or {}
    store, part, same_text = evaluation["store"], evaluation["part"], evaluation.get("same_text")
    known = "imported_from" not in metadata  # what the training read
    if part != "test":
        where = f"Measured on every document of {store}."
    elif same_text and known:
        where = f"Measured on the documents of {store} that the training held out."
    else:
        where = f"Measured on the held-out share of {store}."
    special = []
    if not same_text and (known or part != "test"):
        special.append("These numbers are of other text than the training's.")
    elif part != "test" and metadata.get("corpus"):
        special.append(
            "These numbers are of the training's own text: most of the rows are not held out."
        )
    if part == "all":
        special.append("Rows of outlying norm, which are never trained on, are among them.")
    digests = [about.get("model_digest") for about in (metadata, evaluation)]
    if all(digests) and digests[0] != digests[1]:
        special.append("The store is of another model than the training's.")
    if differ(metadata.get("hook"), evaluation.get("hook")):
        special.append("The store is of another hook point than the training's.")
    if evaluation.get("flips") is not None:
        special.append(
            "Bits were found in another way than the autoencoder's own: at most "
            f"{evaluation['flips']} flips a row from the encoder's bits on."
        )
    elif evaluation.get("coding") != config.get("coding"):
        special.append(
            f"Bits were found by {evaluation.get('coding')}, the autoencoder's own way is "
            f"{config.get('coding')}."
        )
    return where, special


def made(config: Mapping[str, Any]) -> dict[str, Pairs]:
    """How the run was made: of the hidden states and of the training, names and values that are
    known."""
    metadata: dict[str, Any] = config.get("metadata") or {}
    training, hook = metadata.get("training") or {}, metadata.get("hook") or {}
    texts = (metadata.get("documents_of") or {}).get("texts") or []
    length, packed = metadata.get("context_length"), metadata.get("packed")
    how = "" if packed is None else ", packed" if packed else ", a document each"
    hidden = {
        "language model": metadata.get("model"),
        "revision": metadata.get("revision"),
        "digest of the model": (metadata.get("model_digest") or "")[:16],
        "hook point": " = ".join(dict.fromkeys(str(name) for name in hook.values() if name)),
        "writes to": (metadata.get("target_hook") or {}).get("module"),
        "text": ", ".join(map(str, texts)),
        "contexts": f"{_shown(length)} tokens{how}" if length else None,
        "store": metadata.get("store"),
        "rows": metadata.get("rows"),
        "width": metadata.get("d_in") or config.get("d_in"),
        "standard deviation": metadata.get("std"),
        "outlying above a norm of": metadata.get("outlier_norm"),
    }
    steps, batch = training.get("steps"), training.get("batch_size")
    seen = steps * batch if isinstance(steps, int) and isinstance(batch, int) else None
    autoencoder = {
        "latents trained": metadata.get("n_latents_trained"),
        "latents kept": config.get("d_sae"),
        "steps": steps,
        "rows of a batch": batch,
        "rows seen in training": seen,
        "share of documents held out": training.get("test_fraction"),
        "device": training.get("device"),
        "imported from": metadata.get("imported_from"),
        "bitlens": metadata.get("bitlens_version"),
    }
    groups = {"Hidden states": hidden, "Training": autoencoder}
    return {
        title: [(name, _shown(value)) for name, value in group.items() if value not in (None, "")]
        for title, group in groups.items()
    }


def settings(config: Mapping[str, Any]) -> Pairs:
    """The settings of the training that the architecture reads."""
    training = (config.get("metadata") or {}).get("training") or {}
    try:
        applying = settings_that_apply(str(training.get("architecture")), training.get("coding"))
    except BitlensError:  # of a later version, or another program
        applying = set(training)
    return [(name, _shown(value)) for name, value in training.items() if name in applying]


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}"
    return ", ".join(map(_shown, value)) if isinstance(value, list) else str(value)


def commands(run: Path, config: Mapping[str, Any], codes: str | None) -> Pairs:
    """What one can do with the run next: a sentence and a command. codes: of this run, if known."""
    store = (config.get("metadata") or {}).get("store")
    here = shlex.quote(str(run))
    there = shlex.quote(str(store)) if store else "STORE"
    lines = [("Numbers, for this page, too", f"bitlens evaluate {here} {there}")]
    if not codes:
        lines.append(("Bits of every row", f"bitlens encode {here} {there} --out codes"))
    return [*lines, ("Every latent, and any text", explore(run, codes))]


def explore(run: Path, codes: Path | str | None) -> str:
    """The command that opens the explorer. codes: of this run, if known."""
    command = "bitlens explore {} --codes {}" if codes else "bitlens explore {}"
    return command.format(*(shlex.quote(str(path)) for path in (run, codes)))
