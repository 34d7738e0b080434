"""What other tools and bitlens give each other, and how far codes and reconstructions then differ:
the rows of the table in docs/ecosystem.md (`tools/exchange_table.py`).

Functions yield a `Row` for each thing that was exchanged; `exchanges` has them all.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bitlens.autoencoders import Autoencoder
from bitlens.hidden import ActivationStore, Corpus, LanguageModel, PairedStore
from bitlens.hidden.harvest import harvest
from bitlens.hidden.text import ContextReader
from bitlens.training import TrainConfig, train

BUNDLED, REAL = "bundled", "SmolLM2"
OUT, IN = "from bitlens", "to bitlens"
HOOK, MLP = "layers.2", ("layers.2.mlp:input", "layers.2.mlp")
ROWS = 1024


class Row(NamedTuple):
    """codes, reconstruction: the largest difference, as a share of the largest code, or hidden
    state; NaN where none are exchanged. differing: of so many codes (`compared`), those that are
    not zero on one side alone."""

    tool: str
    version: str
    direction: str
    what: str
    run: str
    codes: float
    reconstruction: float
    differing: int = 0
    compared: int = 0


class Pair(NamedTuple):
    """The same autoencoder on both sides: codes, and reconstructions of raw hidden states."""

    ours: Autoencoder
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]

    @torch.no_grad()
    def row(self, tool: str, direction: str, what: str, run: str, x: Tensor) -> Row:
        """Compared on hidden states x `[n, d]`."""
        ours, theirs = self.ours.encode(x), self.encode(x)
        x_ours, x_theirs = self.ours(x), self.decode(theirs)
        return Row(
            tool,
            version(tool),
            direction,
            what,
            run,
            float((ours - theirs).abs().max() / ours.abs().max()),
            float((x_ours - x_theirs).abs().max() / x.abs().max()),
            int(((ours != 0) != (theirs != 0)).sum()),
            ours.numel(),
        )


def bundled_runs(folder: Path) -> dict[str, Path]:
    """A short run of every architecture on the bundled model and text, by name -> their folders;
    their stores lie beside them, `store-0` of what most read, then a transcoder's two."""
    text = folder / "texts"
    text.mkdir(parents=True)
    for i, (_, document) in enumerate(itertools.islice(Corpus(("bundled",)).documents(), 120)):
        (text / f"{i:03d}.txt").write_text(document[:400], encoding="utf-8")
    for i, hook in enumerate((HOOK, *MLP)):
        model = LanguageModel.load("bundled", [hook], device="cpu")
        reader = ContextReader(Corpus((str(text),)), model.tokenizer, 64)
        harvest(model, reader, folder / f"store-{i}", progress=False)
    common: dict[str, Any] = {"n_latents": 192, "steps": 60, "batch_size": 256, "device": "cpu"}
    settings: dict[str, dict[str, Any]] = {
        "bae": {},
        "bae-step": {"preset": "step"},
        **{name: {"architecture": name} for name in ("random", "pca", "relu", "gated", "jumprelu")},
        **{name: {"architecture": name, "k": 12} for name in ("topk", "batch_topk", "transcoder")},
        "skip_transcoder": {"architecture": "skip_transcoder", "k": 12},
    }
    for name, own in settings.items():
        paired = "transcoder" in name
        stores = [folder / f"store-{i}" for i in ((1, 2) if paired else (0,))]
        source = PairedStore(*stores) if paired else ActivationStore(*stores)
        train(source, TrainConfig(**common | own), folder / name)
    return {name: folder / name for name in settings}


def hidden_states(store: Path, part: str = "test") -> Tensor:
    """The first rows of a store, raw, float32 `[n, d]`."""
    blocks = (rows.hidden.float() for rows in ActivationStore(store).read(part))
    found = next(blocks)
    while len(found) < ROWS and (more := next(blocks, None)) is not None:
        found = torch.cat([found, more])
    return found[:ROWS]


def exported(bundled: Mapping[str, Path], real: Path | None = None) -> Iterator[Row]:
    """What SAELens opens of our runs. bundled: of `bundled_runs`; real: the folder of `make real`,
    None where there is none."""
    for name, run in bundled.items():
        store = run.parent / f"store-{int('transcoder' in name)}"
        yield from _exported(name, run, BUNDLED, hidden_states(store, "usual"))
    for kind in ("bae", "topk") if real else ():
        run, store = real / f"runs/layers.14-{kind}-0", real / "stores/layers.14"
        yield from _exported(kind, run, REAL, hidden_states(store))


def _exported(name: str, run: Path, model: str, x: Tensor) -> Iterator[Row]:
    """One run: written, where SAELens has an architecture for it, and opened as it is."""
    from sae_lens import SAE

    import bitlens.saelens
    from bitlens.ecosystem.saelens import export, stock

    own: Any = Autoencoder.from_pretrained(run)
    written, what = own, own.architecture
    if own.binary and own.coding == "descent":
        written, what = own.coded("step"), f"{what}, bits of its encoder"
    elif own.binary:
        what = f"{what}, bits of one step"
    if stock(written):
        with tempfile.TemporaryDirectory() as folder:
            export(written, folder, overwrite=True)
            sae = SAE.load_from_disk(folder)
        what = f"{what}: written as {sae.cfg.architecture()}"
        yield _pair(written, sae, x).row("sae-lens", OUT, what, model, x)
    if not stock(own):
        sae = SAE.load_from_disk(run, converter=bitlens.saelens.converter)
        by = ", bits by descent" * own.binary
        yield _pair(own, sae, x).row(
            "sae-lens", OUT, f"{own.architecture}{by}: the run itself", model, x
        )


def _pair(ours: Autoencoder, sae: Any, x: Tensor) -> Pair:
    def decode(codes: Tensor) -> Tensor:
        # a skip transcoder adds its skip only when it is called
        return sae(x) if hasattr(sae, "W_skip") else sae.decode(codes)

    return Pair(ours, sae.encode, decode)


def exchanges(bundled: Mapping[str, Path], real: Path | None = None) -> Iterator[Row]:
    """All there are, as `exported`."""
    from exchanged_features import features
    from exchanged_imports import imported

    for each in (exported, features, imported):
        yield from each(bundled, real)
