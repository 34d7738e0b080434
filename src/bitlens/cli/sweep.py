"""`train --sweep`: settings and their values, read as the flags of these names are."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tyro

from bitlens.errors import BitlensError
from bitlens.training.config import TrainConfig

FORM = "name=value,value ... with names of flags, or a .json or .toml file with a list of settings"


def read_sweep(words: tuple[str, ...], config: TrainConfig) -> Any:
    """The words after --sweep -> what `bitlens.sweep` takes as settings."""
    if len(words) == 1 and Path(words[0]).suffix in (".json", ".toml"):
        return [
            {key.replace("-", "_"): _parsed(key, value, config) for key, value in one.items()}
            for one in _listed(Path(words[0]))
        ]
    grid: dict[str, list[Any]] = {}
    for word in words:
        name, equals, values = word.partition("=")
        if not (name and equals) or name.replace("-", "_") in grid:
            raise BitlensError(f"--sweep takes {FORM}, each name once, not '{word}'.")
        each = (_parsed(name, value.split(), config) for value in values.split(","))
        grid[name.replace("-", "_")] = list(each)
    return grid


def _listed(path: Path) -> list[dict[str, Any]]:
    """The settings in a file: a list of objects, in TOML the only array of tables."""
    try:
        text = path.read_text(encoding="utf-8")
        found: Any = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise BitlensError(f"{path} cannot be read ({error}); write {FORM}.") from error
    if path.suffix == ".toml" and len(found) == 1:
        (found,) = found.values()
    if not (isinstance(found, list) and all(isinstance(one, Mapping) for one in found)):
        raise BitlensError(f"{path} holds no list of settings; write [[run]] or a list of objects.")
    return found


def _parsed(name: str, value: Any, config: TrainConfig) -> Any:
    """One value, as the flag of this name would have it; what is wrong is said as for the flag."""
    words = map(str, value if isinstance(value, list) else [value])
    flags = tyro.cli(
        TrainConfig,
        prog="bitlens train --sweep",
        args=[f"--{name.replace('_', '-')}", *words],
        default=config,
        config=(tyro.conf.FlagConversionOff,),
    )
    return getattr(flags, name.replace("-", "_"))
