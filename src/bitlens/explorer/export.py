"""A static copy of the page and of all its answers, for any web server, in any folder of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bitlens import terminal
from bitlens.errors import BitlensError
from bitlens.explorer.explorer import Explorer, encoded
from bitlens.explorer.parts import FILES
from bitlens.version import __version__

MARKER = "api/run.json"


class Exported(NamedTuple):
    """What was written."""

    files: int
    bytes: int


@terminal.shown("export")
def export(explorer: Explorer, out: Path, overwrite: bool = False) -> Exported:
    """Write the copy, whole or not at all. overwrite: in place of one that is there."""
    _refuse(out, overwrite)
    folder = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(folder, ignore_errors=True)
    files = size = 0
    others = explorer.other.subject.n_latents if explorer.other else 0
    try:
        for name, content in _contents(explorer):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            files, size = files + 1, size + len(content)
            terminal.at(files, total=explorer.subject.n_latents + others)
        if out.exists():
            shutil.rmtree(out)
        folder.rename(out)
    except OSError as error:
        raise BitlensError(f"The copy {out} could not be written: {error.strerror}.") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Exported(files, size)


def _refuse(out: Path, overwrite: bool) -> None:
    """BitlensError where something is there that is not to be replaced."""
    if out.exists() and not out.is_dir():
        raise BitlensError(f"{out} is a file; name a folder for the copy.")
    if not out.exists() or not any(out.iterdir()):
        return
    if not overwrite:
        raise BitlensError(f"{out} is not empty; pass `overwrite=True` to replace it.")
    marker = out / MARKER
    if not marker.is_file() or '"bitlens"' not in marker.read_text(encoding="utf-8"):
        raise BitlensError(f"{out} is no copy of an explorer; choose another folder.")


def _contents(explorer: Explorer) -> Iterator[tuple[str, bytes]]:
    """Names and contents of all files."""
    for name, path in FILES.items():
        yield name, path.read_bytes()
    yield MARKER, encoded(explorer.run(live=False) | {"bitlens": __version__})
    yield "api/latents.json", explorer.latents
    for latent in range(explorer.subject.n_latents):
        yield f"api/latents/{latent}.json", encoded(explorer.latent(latent))
    if explorer.other is not None:
        yield "api/compare.json", explorer.compare
        for latent in range(explorer.other.subject.n_latents):
            yield f"api/beside/{latent}.json", encoded(explorer.beside(latent))
