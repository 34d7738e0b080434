"""Features with their activations, as SAEDashboard (0.8) writes them for Neuronpedia: files
`batch-N.json`, each a `NeuronpediaDashboardBatch`, and `skipped_indexes.json` with the latents that
are never on.

Of each latent: the contexts where it is on most, tokens drawn from five intervals up to its highest
value, histograms, the logits that its decoder row raises and lowers, and the largest entries of
that row. Correlations with neurons and other latents are left out, as the page can be without.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bitlens import terminal
from bitlens.autoencoders import Autoencoder
from bitlens.causal.direct import direct_effect
from bitlens.ecosystem.activations import Activations, Written, activations, tokenizer_of
from bitlens.files import replacing_folder, write_json
from bitlens.hidden.pieces import token_texts
from bitlens.hidden.store import ActivationStore
from bitlens.seeding import generator
from bitlens.version import __version__

SETTINGS, SKIPPED = "run_settings.json", "skipped_indexes.json"  # names of SAEDashboard
TOP, INTERVALS, DRAWN = 20, 5, 5  # contexts, intervals and tokens of each, as it has them
WINDOW = 128  # tokens that are shown of a context
BINS, LOGITS, ALIGNED = 50, 10, 3
EFFECTS = 64  # latents whose effects on all logits are in memory at a time
Effect = Callable[[Tensor], Tensor]


class Shown(NamedTuple):
    """A token where a latent is on, among the latent's entries, and why it is shown: the ends of an
    interval and the share of tokens in it (-1: it is one of the highest)."""

    entry: int
    bin_min: float
    bin_max: float
    bin_contains: float


class _Exporter:
    """What the features of all files have in common."""

    def __init__(
        self, found: Activations, directions: Tensor, tokenizer: Any, dataset: str, seed: int
    ) -> None:
        """directions: decoder rows in the model's own units, `[n_latents, d_out]`"""
        self.found, self.directions, self.tokenizer = found, directions, tokenizer
        self.dataset, self.seed = dataset, seed
        self.tokens = found.tokens
        self.text: dict[int, str] = {}

    def features(self, split: int, effect: Effect | None) -> list[dict[str, Any]]:
        """Those of a range of latents that are on at least once."""
        first, end = self.found.edges[split : split + 2]
        locations, values = self.found.entries(split)
        logits = None
        if effect is not None:
            parts = self.directions[first:end].split(EFFECTS)
            logits = torch.cat([effect(some) for some in parts])
        ends = np.searchsorted(locations[:, 2], np.arange(end - first + 1))
        features = []
        for latent in range(first, end):
            mine = slice(*ends[latent - first : latent - first + 2])
            if mine.start < mine.stop:
                own = None if logits is None else logits[latent - first]
                features.append(self.feature(latent, locations[mine, :2], values[mine], own))
        return features

    def feature(
        self, latent: int, places: np.ndarray, values: np.ndarray, logits: Tensor | None
    ) -> dict[str, Any]:
        """One, in the keys of `NeuronpediaDashboardFeature`. places: context and position."""
        written, direction = self.found.written, self.directions[latent]
        aligned = direction.topk(min(ALIGNED, len(direction)))
        norm = direction.abs().sum().clamp_min(torch.finfo().tiny)  # of a row of zeros, too
        heights, centres = histogram(torch.from_numpy(values))
        draw = generator(self.seed, "neuronpedia", latent)
        shown = [*highest(places, values), *intervals(values, written.rows, draw)]
        return {
            "feature_index": latent,
            "neuron_alignment_indices": aligned.indices.tolist(),
            "neuron_alignment_values": _rounded(aligned.values),
            "neuron_alignment_l1": _rounded(aligned.values.abs() / norm),
            **{key: [] for key in _CORRELATED},
            **self.effects(logits),
            "frac_nonzero": len(values) / written.rows,
            "freq_hist_data_bar_values": centres,
            "freq_hist_data_bar_heights": heights,
            "n_prompts_total": written.contexts,
            "n_tokens_in_prompt": written.length,
            "dataset": self.dataset,
            "decoder_weights_dist": [],
            "activations": [self.activation(one, places, values) for one in shown],
            "vector": [],
        }

    def effects(self, logits: Tensor | None) -> dict[str, Any]:
        """The tokens whose logits a latent raises and lowers most, and the histogram of all."""
        record: dict[str, Any] = {}
        for name, largest in (("pos", True), ("neg", False)):
            values, tokens = [], []
            if logits is not None:
                most = logits.topk(min(LOGITS, len(logits)), largest=largest)
                values, tokens = _rounded(most.values), self.texts(most.indices.tolist())
            record |= {f"{name}_str": tokens, f"{name}_values": values}
        heights, centres = ([], []) if logits is None else histogram(logits)
        names = "logits_hist_data_bar_heights", "logits_hist_data_bar_values"
        return record | dict(zip(names, (heights, centres), strict=True))

    def activation(self, shown: Shown, places: np.ndarray, values: np.ndarray) -> dict[str, Any]:
        """A token in up to WINDOW tokens of its context, with the values of all of them."""
        context, position = places[shown.entry].tolist()
        tokens = self.tokens[context]
        tokens = tokens[tokens >= 0]
        start = max(0, min(position - WINDOW // 2, len(tokens) - WINDOW))
        tokens = tokens[start : start + WINDOW]
        every = np.zeros(len(tokens))
        rows = slice(*np.searchsorted(places[:, 0], [context, context + 1]))
        columns = places[rows, 1].astype(np.int64) - start
        inside = (columns >= 0) & (columns < len(tokens))
        every[columns[inside]] = values[rows][inside]
        return {
            "bin_min": shown.bin_min,
            "bin_max": shown.bin_max,
            "bin_contains": shown.bin_contains,
            "tokens": self.texts(tokens.tolist()),
            "values": _rounded(every),
            "qualifying_token_index": position - start,
        }

    def texts(self, tokens: list[int]) -> list[str]:
        """Each token as it reads within a text."""
        self.text |= token_texts(self.tokenizer, set(tokens) - set(self.text))
        return [self.text[token] for token in tokens]


_CORRELATED = [
    f"correlated_{others}_{what}"
    for others in ("neurons", "features")
    for what in ("indices", "l1", "pearson")
]


def highest(places: np.ndarray, values: np.ndarray) -> list[Shown]:
    """The highest token of each of the TOP contexts where a latent is on most."""
    top: dict[int, int] = {}
    for entry in (-values).argsort(kind="stable").tolist():
        top.setdefault(int(places[entry, 0]), entry)
        if len(top) == TOP:
            break
    return [Shown(entry, -1, round(float(values.max()), 3), -1) for entry in top.values()]


def intervals(values: np.ndarray, rows: int, draw: torch.Generator) -> list[Shown]:
    """Tokens drawn from each of INTERVALS equal parts of 0 to the highest value, the highest part
    first. rows: tokens in all; those where the latent is off are in the lowest part."""
    shown = []
    ends = np.linspace(0, float(values.max()), INTERVALS + 1)
    for part in range(INTERVALS - 1, -1, -1):
        low, high = ends[part : part + 2].tolist()
        inside = ((values >= low) & (values <= high)).nonzero()[0]
        share = (len(inside) + (0 if part else rows - len(values))) / rows
        some = torch.randperm(len(inside), generator=draw)[:DRAWN].tolist()
        about = (round(low, 3), round(high, 3), round(share, 5))
        shown += [Shown(int(inside[i]), *about) for i in some]
    return shown


def histogram(values: Tensor) -> tuple[list[int], list[float]]:
    """Counts in BINS equal bins from the least to the highest value, and the centres of the bins.
    No float32 count is exact beyond 16 million."""
    low, high = float(values.min()), float(values.max())
    edges = torch.linspace(low, high, BINS + 1)
    heights = torch.histc(values.float(), BINS).int().tolist()
    return heights, _rounded(edges[:-1] + (high - low) / BINS / 2)


@terminal.shown("export")
def export(
    autoencoder: Autoencoder,
    store: ActivationStore,
    out: Path | str,
    *,
    name: str = "",
    model_id: str | None = None,
    set_name: str | None = None,
    effect: Effect | None = None,
    features: int = 128,
    seed: int = 0,
    overwrite: bool = False,
) -> Written:
    """Write `batch-N.json` of so many `features` each into the folder `out`, whole or not at all.

    name: what it calls the autoencoder. model_id: Neuronpedia's name of the model, by default the
    last part of its own. set_name: the SAE set, by default the last part of `name`. effect: of
    directions on logits, see `effect_of`; without it no logits are written.
    """
    out = Path(out).resolve()
    tokenizer, model = tokenizer_of(store)
    head = {
        "model_id": model_id or Path(model).name,
        "layer": _layer(autoencoder.output_hook or ""),
        "sae_set": set_name or Path(name).name,
        "sae_id_suffix": None,
    }
    dataset = ", ".join(map(str, store.manifest.get("text") or []))
    splits = -(-autoencoder.n_latents // max(1, features))
    directions = (autoencoder.W_dec.detach() * autoencoder.output_scale).float().cpu()
    with (
        replacing_folder(out, overwrite, SETTINGS) as folder,
        tempfile.TemporaryDirectory(dir=folder.parent) as parts,
    ):
        found = activations(autoencoder, store, Path(parts), splits)
        exporter = _Exporter(found, directions, tokenizer, dataset, seed)
        on: set[int] = set()
        for split in range(len(found.counts)):
            batch = exporter.features(split, effect)
            on |= {feature["feature_index"] for feature in batch}
            text = json.dumps({**head, "features": batch}, ensure_ascii=False, allow_nan=False)
            (folder / f"batch-{split}.json").write_text(text, encoding="utf-8")
            terminal.at(found.edges[split + 1], "features", total=autoencoder.n_latents)
        about = {key: head[key] for key in ("model_id", "layer", "sae_set")}
        skipped = sorted(set(range(autoencoder.n_latents)) - on)
        write_json(folder / SKIPPED, {**about, "skipped_indexes": skipped})
        origin = {"version": __version__, "autoencoder": name, "store": str(store.path)}
        write_json(folder / SETTINGS, {**about, "bitlens": origin})
    return found.written


def effect_of(autoencoder: Autoencoder, store: ActivationStore) -> Effect:
    """What directions where the decoder writes do to the model's logits, past the layers between;
    BitlensError where there is no such path."""
    first = store.shard(0, ["token", "document"])
    columns: Any = SimpleNamespace(manifest=store.manifest, path=store.path, **first)
    return direct_effect(columns, autoencoder.output_hook)


def _layer(module: str) -> int:
    """The first number in the path of a module."""
    found = re.search(r"\.(\d+)(?:\.|:|$)", module)
    return int(found[1]) if found else 0


def _rounded(values: Any) -> list[float]:
    return [round(float(value), 3) for value in values]
