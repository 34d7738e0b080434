"""Write what latents are on for, or what they add, for another tool: bitlens export TOOL."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import tyro

from bitlens.cli.common import On, RunFolder, Search, SearchFlags, StoreFolder, open_pair
from bitlens.errors import BitlensError


def delphi(
    run: RunFolder,
    store: StoreFolder,
    out: Path,
    splits: int = 5,
    search: SearchFlags = Search(),  # noqa: B008
    device: str = "auto",
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write delphi's latent cache (eai-delphi), which explains and scores latents.

    A bit's value is its gain: by how much its row's squared error, the bits' prices included, would
    rise without it. That of another latent is its activation. Rows of outlying norm are left out.

    Args:
        store: hidden states of its hook point, with their text.
        out: the cache, a folder for each hook point.
        splits: files, each of a range of latents.
        overwrite: replace the cache of this hook point.
    """
    from bitlens.ecosystem.delphi import export

    autoencoder, rows = open_pair(run, store, device, search)
    written = export(autoencoder, rows, out, name=str(run), splits=splits, overwrite=overwrite)
    return _said(out, written)


def neuronpedia(
    run: RunFolder,
    store: StoreFolder,
    out: Path,
    model_id: str | None = None,
    set_name: str | None = None,
    logits: On = True,
    features: int = 128,
    search: SearchFlags = Search(),  # noqa: B008
    device: str = "auto",
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write features and activations as SAEDashboard does for Neuronpedia: batch-N.json.

    A bit's value is its gain: by how much its row's squared error, the bits' prices included, would
    rise without it. That of another latent is its activation. Rows of outlying norm are left out.

    Args:
        store: hidden states of its hook point, with their text.
        out: the folder of batches.
        model_id: Neuronpedia's name of the language model; by default the last part of its own.
        set_name: the SAE set; by default the name of the run's folder.
        logits: leave out the logits that decoder rows raise and lower, which need the model.
        features: latents in a file.
    """
    from bitlens import show
    from bitlens.ecosystem.neuronpedia import effect_of, export

    autoencoder, rows = open_pair(run, store, device, search)
    effect = None
    if logits:
        try:
            effect = effect_of(autoencoder, rows)
        except BitlensError as error:
            show.warn(f"Without logits: {str(error).partition(';')[0]}.")
    settings = {"model_id": model_id, "set_name": set_name, "features": features}
    written = export(
        autoencoder,
        rows,
        out,
        name=str(run.resolve()),
        effect=effect,
        overwrite=overwrite,
        **settings,
    )
    return _said(out, written)


def vector(
    run: RunFolder,
    latents: Annotated[tuple[int, ...], tyro.conf.Positional, tyro.conf.arg(metavar="LATENT ...")],
    out: Path,
    strength: tuple[float, ...] = (1.0,),
    hint: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write decoder rows as a control vector of llama.cpp, a .gguf file.

    It is in the model's own units: strength 1 is what a bit adds when it goes on.

    Args:
        latents: their rows are added up.
        out: the file.
        strength: of all latents, or one for each.
        hint: llama.cpp's name of the model's architecture; by default by the model's configuration.
        overwrite: replace a file that is there.
    """
    from bitlens import show
    from bitlens.autoencoders import Autoencoder
    from bitlens.ecosystem.vector import write_gguf

    autoencoder = Autoencoder.from_pretrained(run)
    layer = write_gguf(out, autoencoder, latents, strength, hint, overwrite)
    show.say(f"{out}: direction.{layer}, added to what layer {layer} gives, counted from 0")
    return {"file": str(out), "layer": layer, "latents": list(latents), "strength": list(strength)}


def _said(out: Path, written: Any) -> dict[str, Any]:
    """Says and gives what was written."""
    from bitlens import show

    show.say(
        f"{out}: {written.activations:,} activations of {written.latents:,} latents on "
        f"{written.rows:,} tokens, in {written.contexts:,} contexts of {written.length:,}"
    )
    if written.raised:
        show.say(
            f"{written.raised:,} of the bits are worth nothing in their row; they have the least "
            "value above 0"
        )
    return {"out": str(out), **asdict(written)}
