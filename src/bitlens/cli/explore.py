"""The command that shows a run in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitlens import terminal
from bitlens.cli.common import On, RunFolder
from bitlens.errors import BitlensError

if TYPE_CHECKING:
    from bitlens.explorer.explorer import Explorer


def explore(
    run: RunFolder,
    codes: Path | None = None,
    store: Path | None = None,
    explanations: Path | None = None,
    effects: Path | None = None,
    beside: Path | None = None,
    beside_codes: Path | None = None,
    port: int = 8321,
    export: Path | None = None,
    overwrite: bool = False,
    model: On = True,
    browser: On = True,
) -> dict[str, Any]:
    """Look at a run in the browser: its latents, what they do to a text, its numbers.

    The page is served on this computer only, until Ctrl-C. What is counted of the latents is kept
    in the run's folder, so that the next start is quick.

    Args:
        codes: its codes, from `bitlens encode`; by default those of the first rows of its store are
            made and kept in the run's folder.
        store: hidden states of its hook point, where the run's own store has gone.
        explanations: folder of `bitlens interpret`.
        effects: file of `bitlens effects`.
        beside: another run of the same hook point, to compare.
        beside_codes: the other run's codes.
        port: of the server; a free one if it is taken.
        export: write the page into this folder instead, for any web server; without live text.
        overwrite: replace a copy that is there.
        model: do not load the language model: without live text and promoted tokens.
        browser: do not open the browser.
    """
    from bitlens.explorer.explorer import Explorer, Sources

    sources = Sources(run, codes, store, explanations, effects, beside, beside_codes, model)
    if export is not None:
        return _export(Explorer(sources), export, overwrite)
    try:
        import bitlens.explorer.serving as serving
    except ImportError as error:
        if (error.name or "").startswith("bitlens"):
            raise
        raise BitlensError(
            f"The explorer's server needs the extra [explore]: {error.name} is missing; install "
            "fastapi and uvicorn, or write a copy with --export."
        ) from error
    with serving.listen(port) as listening:  # before the work, so that a bad port is said now
        address = f"http://{serving.HOST}:{listening.getsockname()[1]}/"
        explorer = Explorer(sources)
        terminal.dismiss()
        _say(address, port, browser)
        serving.serve(explorer, listening)
    return {"address": address}


def _say(address: str, port: int, browser: bool) -> None:
    from bitlens import show

    if port and f":{port}/" not in address:
        show.warn(f"Port {port} is taken, so another one was chosen.")
    show.say(f"{address}  (Ctrl-C ends it)")
    if browser:
        import webbrowser

        webbrowser.open(address)


def _export(explorer: Explorer, out: Path, overwrite: bool) -> dict[str, Any]:
    from bitlens import show
    from bitlens.explorer.export import export

    written = export(explorer, out, overwrite)
    show.say(f"{out}: {written.files:,} files, {written.bytes / 2**20:.1f} MiB, for any web server")
    return {"folder": str(out), **written._asdict()}
