"""The command that shows a run in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bitlens.cli.common import On, RunFolder
from bitlens.errors import BitlensError


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
        run: an autoencoder.
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
    from bitlens import show
    from bitlens.explorer.explorer import Explorer, Sources

    try:
        from bitlens.explorer.serving import HOST, listen, server
    except ImportError as error:
        raise BitlensError(
            f"The explorer needs the extra [explore] ({error.name} is missing): "
            "pip install fastapi uvicorn."
        ) from error
    sources = Sources(run, codes, store, explanations, effects, beside, beside_codes, model)
    explorer = Explorer(sources)
    with listen(port) as socket:
        chosen = socket.getsockname()[1]
        if chosen != port:
            show.warn(f"Port {port} is taken.")
        address = f"http://{HOST}:{chosen}/"
        show.say(f"{address}   (Ctrl-C ends)")
        server(explorer, chosen).run(sockets=[socket])
    return {"address": address}
