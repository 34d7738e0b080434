"""What a run's folder says of it, for the page: numbers, curves, and the commands that make it
again."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from bitlens import terminal
from bitlens.errors import BitlensError
from bitlens.evaluation import Evaluation
from bitlens.explorer.keeping import Record
from bitlens.report import contents
from bitlens.report.kept import kept_evaluation
from bitlens.report.page import ODD
from bitlens.results import listed
from bitlens.training.config import TrainConfig, settings_that_apply

ENTROPIES = ("bits_joint", "bits_tree", "bits_marginal", "bits_magnitudes", "bits_gaussian")
UNKNOWN = ("numbers", "measured", "made", "settings")


def told(run: Path, marginal: float) -> Record:
    """Numbers of the last evaluation, curves, entropies, and how the run was made; empty where
    nothing is known, or a file is damaged or gone. marginal: the sum of the latents' entropies in
    the codes."""
    found: Record = {name: [] for name in UNKNOWN} | {"curves": {}, "curves_meaning": {}}
    found["entropy"] = {}
    for part in (_evaluated, _curves, _made):
        try:
            found |= part(run)
        except BitlensError as error:
            terminal.say(f"Left out: {error}")
        except ODD:
            terminal.say(f"Left out: what a damaged file in {run} says.")
    found["entropy"] = {"bits_marginal": marginal} | found["entropy"]
    return found


def _evaluated(run: Path) -> Record:
    record = kept_evaluation(run)
    if record is None:
        return {}
    values = record["numbers"]
    where, special = contents.measured_on(record, contents.configuration(run)[0])
    entropy = {name: values[name] for name in ENTROPIES if values.get(name) is not None}
    return {"numbers": _numbers(values), "measured": [where, *special], "entropy": entropy}


def _curves(run: Path) -> Record:
    curves = contents.curves(run)
    meanings = {name: contents.MEANINGS[name] for name in curves if name != "step"}
    return {"curves": curves, "curves_meaning": meanings}


def _made(run: Path) -> Record:
    config, _ = contents.configuration(run)
    made = [pair for pairs in contents.made(config).values() for pair in pairs]
    return {"made": made, "settings": contents.settings(config)}


def _numbers(values: Mapping[str, Any]) -> list[Record]:
    """Lines of a table: value, interval, meaning, and as a terminal shows it."""
    lines = []
    for line in listed(Evaluation, values):
        low, high = (values.get(f"{line.name}_{end}") for end in ("low", "high"))
        lines.append({**line._asdict(), "value": values[line.name], "low": low, "high": high})
    return lines


def _chosen(training: Mapping[str, Any]) -> list[str]:
    """The settings that this architecture reads."""
    try:
        applying = settings_that_apply(training.get("architecture", ""), training.get("coding"))
    except BitlensError:  # of a later version, or another program
        return []
    order = [field.name for field in fields(TrainConfig) if field.name in applying]
    return [name for name in order if training.get(name) not in (None, "", [])]


def commands(run: Path, metadata: Mapping[str, Any], codes: Mapping[str, Any]) -> list[str]:
    """The command lines that make store, run and codes again, with the settings recorded, and
    measure the run."""
    training, store = metadata.get("training") or {}, metadata.get("store")
    texts = (metadata.get("documents_of") or {}).get("texts")
    model, hook = metadata.get("model"), (metadata.get("hook") or {}).get("module")
    lines = []
    if store and texts and hook and model:
        flags = _texts(texts) + _flag("hook", hook)
        flags += _flag("context", metadata.get("context_length"))
        flags += _flag("no_packed", True) if metadata.get("packed") is False else []
        lines.append(f"bitlens harvest {_words([model, *flags, *_flag('out', store)])}")
    if store and training:
        flags = _settings(training, metadata.get("d_in"))
        lines.append(f"bitlens train {_words([store, *_flag('out', run), *flags])}")
    if store:
        lines.append(f"bitlens evaluate {_words([run, codes.get('store') or store])}")
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


def _texts(texts: list[str]) -> list[Any]:
    """Of a dataset the name, and its split."""
    found = [re.fullmatch(r"(.+) \((\w+)\)", text) for text in texts]
    names = [each[1] if each else text for each, text in zip(found, texts, strict=True)]
    splits = {each[2] for each in found if each} - {"train"}
    return _flag("text", names) + (_flag("split", splits.pop()) if splits else [])


def _flag(name: str, value: Any) -> list[Any]:
    if value is None:
        return []
    values = value if isinstance(value, list | tuple) else [value]
    return [f"--{name.replace('_', '-')}", *([] if value is True else values)]


def _words(words: list[Any]) -> str:
    return " ".join(shlex.quote(str(word)) for word in words)
