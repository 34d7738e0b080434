"""The language model that a manifest names, and whether what lies there is still the same one."""

from __future__ import annotations

import hashlib
import importlib.resources
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bitlens.errors import BitlensError
from bitlens.files import sha256
from bitlens.options import BUNDLED


def bundled_folder() -> Path:
    """Folder of the language model that is installed with bitlens."""
    return Path(str(importlib.resources.files("bitlens") / "bundled" / "model"))


def folder_of(name: str) -> str:
    """Where a model of this name is: a folder, or again the name, of a model on the hub."""
    if name == BUNDLED:
        return str(bundled_folder())
    return os.path.expanduser(name)  # noqa: PTH111 - without a home it stays as it is


def name_from_anywhere(name: str) -> str:
    """The absolute path of a model in a folder; the name of any other."""
    folder = Path(folder_of(name))
    return str(folder.resolve()) if name != BUNDLED and folder.is_dir() else name


def digest(name: str) -> str | None:
    """SHA-256 of config.json and the safetensors weights of a model in a folder; None for one on
    the hub."""
    folder = Path(folder_of(name))
    if not folder.is_dir():
        return None
    files = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    with ThreadPoolExecutor(4) as pool:
        digests = pool.map(sha256, (file for file in files if file.is_file()))
        return hashlib.sha256("".join(digests).encode()).hexdigest()


def recorded_model(manifest: dict[str, Any], path: Path | str) -> tuple[str, str | None]:
    """Name and revision of the model that the manifest of the folder `path` names, to be loaded
    again.

    Refused if no model is named, if its folder is gone, or if another model is there now; manifests
    of earlier versions have no digest to compare.
    """
    name, revision = manifest.get("model"), manifest.get("revision")
    if name is None:
        raise BitlensError(f"{path} names no language model: it comes from imported hidden states.")
    way_out = f'write the path of the right one as "model" into {Path(path) / "manifest.json"}'
    if Path(name).is_absolute() and not Path(name).is_dir():
        raise BitlensError(
            f"The folder {name} of the language model behind {path} is gone; put it back, or "
            f"{way_out}."
        )
    if revision is not None and Path(name).is_dir():
        raise BitlensError(
            f"{path} was made with '{name}' from the Hugging Face Hub, but here that is a folder; "
            "call the command elsewhere."
        )
    recorded = manifest.get("model_digest")
    if recorded is not None and digest(name) != recorded:
        raise BitlensError(
            f"The language model '{name}' is another one than when {path} was made: its "
            f"configuration or weights differ; put the former one back, or {way_out}."
        )
    return name, revision
