"""How a run came to be: its settings, its curves, its numbers, and the commands that make it
again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from bitlens.errors import BitlensError
from bitlens.evaluation import Evaluation
from bitlens.results import Number, numbers_of
from bitlens.training.config import TrainConfig, settings_that_apply
from bitlens.training.metrics import METRICS

EVALUATION = "evaluation.json"
CURVES = {
    "total": "loss: mse and all penalties",
    "mse": "squared error a component, standardised; about the fvu",
    "price": "what the bits or latents on cost",
    "covariance": "covariance penalty",
    "auxiliary": "loss of latents that are never on",
    "l0": "latents on, per row",
    "bits_batch": "sum of the latents' entropies, in one batch",
    "rows_per_second": "rows trained on",
}
ENTROPIES = ("bits_joint", "bits_tree", "bits_marginal", "bits_magnitudes", "bits_gaussian")


def curves(run: Path) -> dict[str, list[Any]]:
    """The columns of metrics.jsonl; nothing where there is none."""
    lines: list[dict[str, Any]] = []
    try:
        for line in (run / METRICS).read_text(encoding="utf-8").splitlines():
            lines.append(json.loads(line))
    except (OSError, ValueError):  # the last line of a killed run
        pass
    names = dict.fromkeys(name for line in lines for name in line)
    columns = {name: [line.get(name) for line in lines] for name in names}
    return {n: column for n, column in columns.items() if n == "step" or any(column)}


def meanings(names: Mapping[str, Any]) -> dict[str, str]:
    """What the curves show."""
    return {name: CURVES.get(name, "") for name in names if name != "step"}


def evaluation(run: Path) -> dict[str, Any]:
    """The numbers that an evaluation left in the run's folder, by name."""
    try:
        found = json.loads((run / EVALUATION).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    numbers = found.get("numbers", found) if isinstance(found, dict) else {}
    return numbers if isinstance(numbers, dict) else {}


def numbers(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of a table of numbers: value, interval, meaning, and as a terminal shows it."""
    known, rows = numbers_of(Evaluation), []
    for name, value in found.items():
        stem, _, end = name.rpartition("_")
        if (end in ("low", "high") and stem in found) or not isinstance(value, int | float):
            continue
        number = known.get(name, Number(""))
        low, high = (found.get(f"{name}_{side}") for side in ("low", "high"))
        shown = format(value, number.format)
        if low is not None and high is not None:
            shown += f" ± {format((high - low) / 2, number.format)}"
        row = {"name": name, "value": value, "low": low, "high": high}
        rows.append({**row, "meaning": number.meaning, "shown": shown})
    return rows


def entropies(found: Mapping[str, Any], marginal: float) -> dict[str, Any]:
    """Bits a row: of the code, and of the Gaussian bound at the same error, where they are known.
    marginal: the sum of the latents' entropies in the codes."""
    values = {name: found[name] for name in ENTROPIES if found.get(name) is not None}
    return {"bits_marginal": marginal} | values


def made(metadata: Mapping[str, Any], codes: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a reader wants to know of the origin, in pairs of words."""
    hook = (metadata.get("hook") or {}).get("module")
    target = (metadata.get("target_hook") or {}).get("module")
    texts = (metadata.get("documents_of") or {}).get("texts")
    training = metadata.get("training") or {}
    pairs = {
        "model": metadata.get("model"),
        "revision": metadata.get("revision"),
        "hook point": f"{hook} → {target}" if target else hook,
        "text": ", ".join(texts) if texts else None,
        "context": metadata.get("context_length"),
        "store": metadata.get("store"),
        "rows of the store": metadata.get("rows"),
        "latents trained": metadata.get("n_latents_trained"),
        "rows of the codes": codes.get("rows"),
        "documents": codes.get("documents"),
        **{f"training: {k}": training[k] for k in _chosen(training)},
        "bitlens": metadata.get("bitlens_version"),
    }
    return [(label, _word(value)) for label, value in pairs.items() if value not in (None, "")]


def _word(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _chosen(training: Mapping[str, Any]) -> list[str]:
    """The settings that this architecture reads."""
    try:
        applying = settings_that_apply(training.get("architecture", ""), training.get("coding"))
    except BitlensError:  # of a later version, or another program
        return []
    order = [field.name for field in fields(TrainConfig) if field.name in applying]
    return [name for name in order if training.get(name) not in (None, "", [])]


def commands(run: Path, metadata: Mapping[str, Any], codes: Mapping[str, Any]) -> list[str]:
    """The command lines that make store, run and codes again, with the settings recorded."""
    training, store = metadata.get("training") or {}, metadata.get("store")
    texts = (metadata.get("documents_of") or {}).get("texts")
    model, hook = metadata.get("model"), (metadata.get("hook") or {}).get("module")
    lines = []
    if store and texts and hook and model:
        flags = _flag("text", texts) + _flag("hook", hook)
        flags += _flag("context", metadata.get("context_length"))
        flags += _flag("no_packed", True) if metadata.get("packed") is False else []
        lines.append(f"bitlens harvest {_words([model, *flags, *_flag('out', store)])}")
    if store and training:
        flags = _settings(training, metadata.get("d_in"))
        lines.append(f"bitlens train {_words([store, *_flag('out', run), *flags])}")
    if codes.get("store"):
        words = [run, codes["store"], *_flag("out", "codes")]
        lines.append(f"bitlens encode {_words(words)}")
    return lines


def _settings(training: Mapping[str, Any], d_in: Any) -> list[Any]:
    """As flags, those that are not what a training of this kind takes by itself."""
    kind = {name: training[name] for name in ("architecture", "preset") if name in training}
    try:
        usual = asdict(TrainConfig(**kind).resolved(int(d_in or 1), str(training.get("device"))))
    except BitlensError:
        usual = {}
    usual |= {"architecture": "bae", "preset": "features"}
    usual |= {name: training.get(name) for name in ("device", "precision")}
    flags: list[Any] = []
    for name in _chosen(training):
        value = training[name]
        own = tuple(value) if isinstance(value, list) else value
        flags += [] if own == usual.get(name) else _flag(name, value)
    return flags


def _flag(name: str, value: Any) -> list[Any]:
    if value is None:
        return []
    values = value if isinstance(value, list | tuple) else [value]
    return [f"--{name.replace('_', '-')}", *([] if value is True else values)]


def _words(words: list[Any]) -> str:
    return " ".join(shlex.quote(str(word)) for word in words)
