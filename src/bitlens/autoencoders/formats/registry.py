"""The formats that are read, each told by the files of its folder. A new one is one line here."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import NamedTuple

from bitlens import hub, remote
from bitlens.autoencoders.formats.foreign import Foreign
from bitlens.errors import BitlensError


class Format(NamedTuple):
    """A library, the module that reads its folders, and the files that such a folder has."""

    tool: str
    module: str
    files: tuple[str, ...]


FORMATS = (
    Format("sae-lens", "saelens", ("cfg.json", "sae_weights.safetensors")),
    Format("sparsify", "sparsify", ("cfg.json", "sae.safetensors")),
    Format("Llama Scope", "llama_scope", ("hyperparams.json", "checkpoints/final.safetensors")),
    Format("Llama Scope", "llama_scope", ("config.json", "sae_weights.safetensors")),
    Format("dictionary_learning", "dictionary_learning", ("config.json", "ae.pt")),
    Format("dictionary_learning", "dictionary_learning", ("config.json", "ae.safetensors")),
    Format("Gemma Scope 2", "gemma_scope", ("params.safetensors",)),
    Format("Gemma Scope", "gemma_scope", ("params.npz",)),
    Format("Goodfire", "goodfire", ("*.pt",)),
    Format("Goodfire", "goodfire", ("*.pth",)),
)
IN_REPOSITORY = re.compile(r"([^/]+/[^/@]+)(?:@([^/]+))?(?:/(.+))?")


def folder_of(
    source: Path | str, *, revision: str | None = None, subfolder: str | None = None
) -> Path:
    """The folder that holds an autoencoder: one here, or fetched from a repository of the hub.

    source: a folder or its address, `owner/name` or `owner/name@revision/subfolder`. What lies in a
    folder that is here is never asked for at a hub.
    """
    if remote.is_address(source):
        return remote.place(source) / (subfolder or "")
    here = Path(source, subfolder or "")
    match = IN_REPOSITORY.fullmatch(str(source))
    known_here = here.exists() or Path(source).exists() or Path(source).parent.exists()
    if known_here or match is None or not hub.is_name(match[1]):
        return here
    repository, branch, below = match.groups()
    name = repository.rpartition("/")[2]
    files = [file for each in FORMATS for file in each.files if "*" not in file]
    files += [f"{name}.pt", f"{name}.pth"]
    place = "/".join(filter(None, (below, subfolder)))
    where = {"revision": revision or branch, "subfolder": place or None}
    folder = hub.fetch(repository, patterns=list(dict.fromkeys(files)), **where)
    if not (folder / "cfg.json").exists() and find(folder) is None:
        raise BitlensError(
            f"There is no autoencoder in {place or 'the top folder'} of '{repository}'; name the "
            f"folder of one: {repository}/FOLDER."
        )
    return folder


def read(folder: Path, own: str) -> Foreign | None:
    """What another library wrote into this folder; None for what bitlens did, or nobody.

    own: the name of bitlens' own file of settings.
    """
    kind = another(folder, own)
    if kind is None:
        if folder.is_dir() and not (folder / own).exists():
            tools = ", ".join(dict.fromkeys(each.tool for each in FORMATS))
            raise BitlensError(
                f"{folder} is not an autoencoder: it has no {own}, and no files of {tools}."
            )
        return None
    module = importlib.import_module(f"bitlens.autoencoders.formats.{kind.module}")
    return module.read(folder)


def weights_of(source: Path | str, own: str) -> Path:
    """The file with the tensors of an autoencoder. own: the name of bitlens' own."""
    folder = folder_of(source)
    kind = find(folder)
    return next(folder.glob(kind.files[-1])) if kind else folder / own


def another(folder: Path, own: str) -> Format | None:
    """The format of a folder that is not bitlens' own; own: bitlens' file of settings."""
    return None if (folder / own).exists() and _has_schema(folder / own) else find(folder)


def find(folder: Path) -> Format | None:
    """The format of a folder, by its files."""
    for kind in FORMATS:
        if all(any(folder.glob(file)) for file in kind.files):
            return kind
    return None


def _has_schema(path: Path) -> bool:
    """Whether a file of settings is bitlens' own, or too damaged to say."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return True
    return not isinstance(config, dict) or "schema" in config
