"""A static copy of the page and of all its answers, for any web server, in any folder of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bitlens import terminal
from bitlens.errors import BitlensError
from bitlens.explorer import FILES
from bitlens.explorer.explorer import Explorer, encoded
from bitlens.files import replacing_folder
from bitlens.version import __version__

MARKER = "api/run.json"


class Exported(NamedTuple):
    """What was written."""

    files: int
    bytes: int


@terminal.shown("export")
def export(explorer: Explorer, out: Path, overwrite: bool = False) -> Exported:
    """Write the copy, whole or not at all. overwrite: in place of one that is there."""
    files = size = 0
    others = explorer.other.subject.n_latents if explorer.other else 0
    try:
        with replacing_folder(out, overwrite, MARKER) as folder:
            for name, content in _contents(explorer):
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                files, size = files + 1, size + len(content)
                terminal.at(files, total=explorer.subject.n_latents + others)
    except OSError as error:
        raise BitlensError(f"The copy {out} could not be written: {error.strerror}.") from error
    return Exported(files, size)


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
