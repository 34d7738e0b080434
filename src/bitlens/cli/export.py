"""Write an autoencoder, or what it found, for another tool: bitlens export TOOL."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import tyro

from bitlens.cli.common import On, RunFolder, Search, SearchFlags, StoreFolder, open_pair
from bitlens.errors import BitlensError

MEASURED_ROWS = 8192


def saelens(
    run: RunFolder,
    out: Path,
    search: SearchFlags = Search(),  # noqa: B008
    model: str | None = None,
    unit_rows: bool = False,
    store: Path | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write an autoencoder as a folder that SAELens opens as it is installed.

    Standardisation is folded into the weights. Bits of one step become a gated SAE. Bits found by
    descent have no such form: --coding step writes those of the encoder, and what that costs is
    measured where the store is at hand.

    Args:
        out: folder for SAE.load_from_disk.
        model: name that SAELens loads the language model by; by default that of the run.
        unit_rows: decoder rows of length 1, with codes in the model's own units, as SAEBench asks
            for; by default codes are those of the autoencoder.
        store: hidden states to measure the loss on; by default those of the training.
    """
    from bitlens import show
    from bitlens.autoencoders import Autoencoder
    from bitlens.ecosystem.saelens import export

    own = Autoencoder.from_pretrained(run)
    autoencoder = search.of(own)
    config = export(autoencoder, out, model=model, unit_rows=unit_rows, overwrite=overwrite).config
    units = "in the model's own units" if unit_rows else "those of the run"
    about = config["metadata"]
    show.say(
        f"{out}: {autoencoder.architecture} as SAELens' {config['architecture']} of "
        f"{config['d_sae']:,} latents at {about['hook_name'] or 'no known place'}; "
        f"codes are {units}"
    )
    if not (own.metadata.get("hook") or {}).get("transformer_lens"):
        show.warn(
            "TransformerLens has no name for this hook point, so HookedSAETransformer will not "
            "find it: hook the module yourself."
        )
    result = {"sae": str(out), "architecture": config["architecture"], **about}
    if autoencoder.settings != own.settings:
        result |= _loss(own, autoencoder, store)
    return result


def _loss(own: Any, exported: Any, store: Path | None) -> dict[str, Any]:
    """Prints what is lost by coding in another way than the run's own."""
    import torch

    from bitlens import show
    from bitlens.evaluation.numbers import first_rows
    from bitlens.hidden import ActivationStore
    from bitlens.hidden.split import unseen
    from bitlens.information.moments import fvu

    try:
        source = unseen(ActivationStore(store or own.metadata.get("store") or ""), own.metadata)
        rows = first_rows(source, "test", MEASURED_ROWS)
        with torch.inference_mode():
            of_run, of_export = (fvu(rows, model(rows)) for model in (own, exported))
    except BitlensError as error:
        if store is not None:
            raise
        show.warn(f"What the other coding loses was not measured: {error}")
        return {}
    show.say(
        f"fvu on {len(rows):,} held-out rows: {of_export:.4f} with coding {exported.coding}, "
        f"{of_run:.4f} with the run's own, {own.coding}"
    )
    return {"fvu": of_export, "fvu_of_run": of_run}


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
