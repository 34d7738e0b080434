"""Rows of the table in docs/ecosystem.md: what delphi, SAEDashboard, gguf, nnsight and
TransformerLens read of our runs (see `exchanged`). NaN: nothing of the kind is exchanged."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitlens.autoencoders import Autoencoder
from bitlens.causal.intervene import steering_vector
from bitlens.ecosystem import delphi, neuronpedia
from bitlens.ecosystem.activations import graded
from bitlens.ecosystem.vector import write_gguf
from bitlens.hidden import ActivationStore, LanguageModel
from exchanged import BUNDLED, OUT, REAL, Row

TEXT = "It was the best of times, it was the worst of times"
KINDS = ("bae", "topk")


def features(bundled: Mapping[str, Path], real: Path | None = None) -> Iterator[Row]:
    """What others read of activations, decoder rows, and hooked models."""
    for name in KINDS:
        autoencoder = Autoencoder.from_pretrained(bundled[name])
        store = ActivationStore(bundled[name].parent / "store-0")
        every = _activations(autoencoder, store)
        yield _row(
            "eai-delphi", f"{name}: latent cache", BUNDLED, _of_delphi(autoencoder, store, every)
        )
        yield _row(
            "sae-dashboard", f"{name}: batches", BUNDLED, _of_batches(autoencoder, store, every)
        )
        yield _vector(name, autoencoder, BUNDLED)
        yield from _hooked(name, autoencoder, store, BUNDLED)
    for name in KINDS if real else ():
        autoencoder = Autoencoder.from_pretrained(real / f"runs/layers.14-{name}-0")
        yield _vector(name, autoencoder, REAL)
        yield from _hooked(name, autoencoder, ActivationStore(real / "stores/layers.14"), REAL)


def _row(tool: str, what: str, run: str, codes: float, reconstruction: float = math.nan) -> Row:
    return Row(tool, version(tool), OUT, what, run, codes, reconstruction)


def _share(theirs: Tensor, ours: Tensor) -> float:
    return float((theirs - ours).abs().max() / ours.abs().max())


def _activations(autoencoder: Autoencoder, store: ActivationStore) -> Tensor:
    """`[contexts, length, n_latents]`"""
    shard = store.shard(0)
    with torch.no_grad():
        values, _ = graded(autoencoder, shard["hidden"])
    every = torch.zeros(*shard["context_tokens"].shape, autoencoder.n_latents)
    usual = shard["norm"] <= store.outlier_norm
    every[shard["context"][usual].long(), shard["position"][usual].long()] = values[usual]
    return every


def _of_delphi(autoencoder: Autoencoder, store: ActivationStore, every: Tensor) -> float:
    from delphi.latents.loader import TensorBuffer

    found = torch.zeros_like(every)
    with tempfile.TemporaryDirectory() as folder:
        delphi.export(autoencoder, store, folder)
        for file in Path(folder).glob("*/*.safetensors"):
            locations, activations, _ = TensorBuffer(str(file), "").load()
            found[tuple(locations.T)] = activations.float()
    return _share(found, every)


def _of_batches(autoencoder: Autoencoder, store: ActivationStore, every: Tensor) -> float:
    """The highest activation of each latent."""
    from sae_dashboard.neuronpedia.neuronpedia_dashboard import NeuronpediaDashboardBatch

    found = torch.zeros(autoencoder.n_latents)
    with tempfile.TemporaryDirectory() as folder:
        neuronpedia.export(autoencoder, store, folder)
        for file in Path(folder).glob("batch-*.json"):
            for feature in NeuronpediaDashboardBatch(**json.loads(file.read_text())).features:
                found[feature.feature_index] = max(feature.activations[0].values)
    return _share(found, every.amax((0, 1)))


def _vector(name: str, autoencoder: Autoencoder, run: str) -> Row:
    import gguf

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vector.gguf"
        layer = write_gguf(file, autoencoder, [3], hint="llama")
        (tensor,) = gguf.GGUFReader(file).tensors
    assert tensor.name == f"direction.{layer}"
    found = torch.tensor(tensor.data.copy())
    difference = _share(found, steering_vector(autoencoder, 3))
    return _row("gguf", f"{name}: control vector", run, math.nan, difference)


@torch.no_grad()
def _hooked(name: str, autoencoder: Autoencoder, store: ActivationStore, run: str) -> Iterator[Row]:
    """Codes and logits with reconstructions of all hidden states, also those of outlying norm,
    against our own hook."""
    import nnsight

    hook = store.manifest["hook"]
    language_model = LanguageModel.again(
        store.manifest, store.path, [hook["module"]], device="cpu", causal=True
    )
    model: Any = language_model.model
    tokens = language_model.tokenizer(TEXT, add_special_tokens=False, return_tensors="pt")
    with autoencoder.hook(language_model, replace=True, max_norm=math.inf) as hooked:
        logits = model(**tokens).logits
    traced = nnsight.TransformersModel(
        model, task="text-generation", tokenizer=language_model.tokenizer
    )
    layer = int(hook["module"].removeprefix("layers."))
    with traced.trace(tokens["input_ids"]):
        x = traced.model.layers[layer].output
        codes = autoencoder.encode(x).save()
        x[:] = autoencoder.decode(codes)
        found = traced.lm_head.output.save()
    what = f"{name}: codes and logits in a trace"
    yield _row("nnsight", what, run, _share(codes, hooked.codes), _share(found, logits))
    if run == BUNDLED:  # a bridge loads the tokenizer again, and the other model is one .gguf file
        yield _bridged(name, autoencoder, language_model, tokens["input_ids"], hooked.codes, logits)


def _bridged(
    name: str, autoencoder: Autoencoder, model: Any, ids: Tensor, codes: Tensor, logits: Tensor
) -> Row:
    from transformer_lens.model_bridge import TransformerBridge

    found: dict[str, Tensor] = {}

    def replaced(x: Tensor, hook: Any) -> Tensor:
        found["codes"] = autoencoder.encode(x)
        return autoencoder.decode(found["codes"])

    network = model.model
    bridge = TransformerBridge.boot_transformers(
        network.config.name_or_path, hf_model=network, tokenizer=model.tokenizer
    )
    fwd_hooks = [(model.hooks[0].transformer_lens, replaced)]
    output = bridge.run_with_hooks(ids, prepend_bos=False, fwd_hooks=fwd_hooks)
    what = f"{name}: codes and logits of a hook"
    difference = _share(found["codes"], codes)
    return _row("transformer-lens", what, BUNDLED, difference, _share(output, logits))
