"""Write an autoencoder, or what it found, for another tool: bitlens export TOOL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bitlens.cli.common import RunFolder, Search, SearchFlags

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
    from bitlens.errors import BitlensError
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
