"""Where the model of a name lies, and whether it is the same one as before."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bitlens.errors import BitlensError
from bitlens.files import sha256
from bitlens.hidden.gguf import ENDING, is_gguf
from bitlens.options import BUNDLED, BUNDLED_FOLDER
from bitlens.remote import place


def bundled_folder() -> Path:
    """Folder of the language model that is installed with bitlens."""
    return BUNDLED_FOLDER / "model"


def folder_of(name: str) -> str:
    """Where a model of this name is: a folder, a file, or again the name, of one on the hub."""
    if name == BUNDLED:
        return str(bundled_folder())
    return os.path.expanduser(name)  # noqa: PTH111 - without a home it stays as it is


def here(name: str) -> bool:
    """Whether the model of this name is a folder or a file, and not one on the hub."""
    return Path(folder_of(name)).is_dir() or is_gguf(folder_of(name))


def name_from_anywhere(name: str) -> str:
    """The absolute path of a model in a folder or a file; the name of any other."""
    if name == BUNDLED or not here(name):
        return name
    path = Path(folder_of(name))
    # A file keeps its name, and so its ending, where it is a link.
    return str(path.resolve() if path.is_dir() else path.parent.resolve() / path.name)


def digest(name: str) -> str | None:
    """SHA-256 of config.json and the safetensors weights of a model in a folder, or of a file; None
    for one on the hub."""
    path = Path(folder_of(name))
    if not here(name):
        return None
    if path.is_file():
        return sha256(path)
    files = [path / "config.json", *sorted(path.glob("*.safetensors"))]
    with ThreadPoolExecutor(4) as pool:
        digests = pool.map(sha256, (file for file in files if file.is_file()))
        return hashlib.sha256("".join(digests).encode()).hexdigest()


def recorded_model(manifest: dict[str, Any], path: Path | str) -> tuple[str, str | None]:
    """Name and revision of the model that the manifest of the folder `path` names; refused if there
    is none, if its folder or file is gone, or if another model is there now."""
    name, revision = manifest.get("model"), manifest.get("revision")
    if name is None:
        raise BitlensError(f"{path} names no language model: it comes from imported hidden states.")
    way_out = f'write the path of the right one as "model" into {place(path) / "manifest.json"}'
    if Path(name).is_absolute() and not here(name):
        kind = "file" if Path(name).suffix.lower() == ENDING else "folder"
        raise BitlensError(
            f"The {kind} {name} of the language model behind {path} is gone; put it back, or "
            f"{way_out}."
        )
    if revision is not None and here(name):
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
