"""SAEBench's own evaluations (Karvonen et al. 2025, arXiv 2503.09532) of an autoencoder, offline:
on a language model and text that are at hand.

`core` and `meta_structure` are called as SAEBench's own command calls them, but with a model that
bitlens has loaded, in a `TransformerBridge`: their command fetches model and text from the hub.
Nothing of SAEBench is changed.
"""

# pyright: reportMissingImports=false
# SAEBench is optional; the project's own environment need not have it.

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bitlens.autoencoders import Autoencoder
from bitlens.ecosystem.saebench_config import BenchConfig
from bitlens.errors import BitlensError
from bitlens.files import replacing_folder, write_json
from bitlens.hidden import LanguageModel

MARKER = "saebench.json"
SCHEMA = 1
CHARACTERS = 16  # of text, gathered for every token that is read


def bench(
    autoencoder: Autoencoder,
    model: str,
    texts: Iterable[str],
    out: Path | str,
    config: BenchConfig = BenchConfig(),  # noqa: B008
    *,
    device: str = "cpu",
    overwrite: bool = False,
) -> dict[str, dict[str, float]]:
    """Run them -> their numbers, by evaluation. SAEBench's own files are in `out`.

    Decoder rows get length 1, as SAEBench asks for, and codes the model's own units. model: hub
    name, folder or file. BitlensError where a package is missing, for a transcoder and for a hook
    point without a name of TransformerLens.
    """
    require()
    hook = (autoencoder.metadata.get("hook") or {}).get("transformer_lens")
    if autoencoder.transcodes or not hook:
        reason = "transcoders" if autoencoder.transcodes else "hook points without such a name"
        raise BitlensError(
            f"SAEBench replaces what it reads at a hook point of TransformerLens: {reason} cannot "
            "be measured; `bitlens evaluate` measures them."
        )
    sae = _standard(autoencoder, config, device)
    found: dict[str, dict[str, float]] = {}
    with replacing_folder(Path(out), overwrite, MARKER) as folder:  # former results stay till then
        if "core" in config.evaluations:
            found["core"] = _core(sae, _bridge(autoencoder, model, device), texts, folder, config)
        if "meta_structure" in config.evaluations:
            found["meta_structure"] = _meta_structure(sae, folder, device)
        write_json(folder / MARKER, {"schema": SCHEMA, **found})
    return found


def require() -> None:
    """BitlensError if SAEBench cannot be imported."""
    try:
        for name in ("core", "meta_structure"):
            importlib.import_module(f"sae_bench.evals.{name}.main")
    except ImportError as error:
        raise BitlensError(
            f"SAEBench is not here ({error}): pip install sae-lens tabulate, then pip install "
            "--no-deps sae-bench, whose pinned versions are older than what it runs with."
        ) from error


def _standard(autoencoder: Autoencoder, config: BenchConfig, device: str) -> Any:
    """As SAEBench's functions want an SAE: of SAELens, with what they read of its configuration."""
    from sae_bench.sae_bench_utils.general_utils import load_and_format_sae

    from bitlens.ecosystem.registered import opened

    sae = opened(autoencoder, unit_rows=True, device=device)
    sae.cfg.metadata.prepend_bos = config.bos
    load_and_format_sae("bitlens", sae, device)
    return sae


def _bridge(autoencoder: Autoencoder, name: str, device: str) -> Any:
    """A model of bitlens' loading, with TransformerLens' hook points."""
    from transformer_lens.model_bridge import TransformerBridge

    hooks = [autoencoder.metadata["hook"]["module"]]
    model = LanguageModel.load(name, hooks, dtype="float32", device=device, causal=True)
    bridge = TransformerBridge.boot_transformers(
        name, hf_model=model.model, tokenizer=model.tokenizer, device=device
    )
    bridge.enable_compatibility_mode(no_processing=True, disable_warnings=True)
    return bridge


def _core(
    sae: Any, model: Any, texts: Iterable[str], out: Path, config: BenchConfig
) -> dict[str, float]:
    from datasets import Dataset
    from sae_bench.evals.core import main as core
    from sae_bench.evals.core.eval_config import CoreEvalConfig
    from sae_lens import ActivationsStore

    chosen = _first(texts, CHARACTERS * config.batches * config.batch_size * config.context)
    computed: dict[str, Any] = {f"compute_{name}": True for name in COMPUTED}
    settings = CoreEvalConfig(
        model_name=str(sae.cfg.model_name),
        batch_size_prompts=config.batch_size,
        n_eval_reconstruction_batches=config.batches,
        n_eval_sparsity_variance_batches=config.batches,
        context_size=config.context,
        dataset="texts",
        exclude_special_tokens_from_reconstruction=True,
        **computed,
    )
    store = ActivationsStore.from_sae(
        model,
        sae,
        dataset=Dataset.from_dict({"text": chosen}),
        context_size=config.context,
        total_tokens=len(chosen),
        device=str(sae.device),
    )
    tokenizer = model.tokenizer
    special = {tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id} - {None}
    scalars, of_latents = core.run_evals(sae, store, model, settings, ignore_tokens=special)
    scalars["misc_metrics"] = core.calculate_misc_metrics(of_latents)
    result = {
        "eval_cfg": settings,
        "metrics": scalars,
        "feature_metrics": of_latents,
        "sae_set": "bitlens",
        "sae_id": "sae",
    }
    result = core.replace_nans_with_negative_one(result)
    versions = core.get_eval_uuid(), core.get_sae_lens_version(), core.get_sae_bench_version()
    core.save_single_eval_result(result, *versions, str(out / "core.json"), sae)
    return {name: value for group in scalars.values() for name, value in group.items()}


COMPUTED = ("kl", "ce_loss", "l2_norms", "sparsity_metrics", "variance_metrics")
COMPUTED += ("featurewise_density_statistics", "featurewise_weight_based_metrics")


def _meta_structure(sae: Any, out: Path, device: str) -> dict[str, float]:
    from sae_bench.evals.meta_structure import main as meta
    from sae_bench.evals.meta_structure.eval_config import MetaStructureEvalConfig

    made = meta.run_eval_single_sae("bitlens", "sae", sae, MetaStructureEvalConfig(), device)
    made.to_json_file(str(out / "meta_structure.json"), indent=2)
    found = json.loads((out / "meta_structure.json").read_text(encoding="utf-8"))
    return found["eval_result_metrics"]["meta_structure"]


def _first(texts: Iterable[str], characters: int) -> list[str]:
    """The first of them that have so many characters in all."""
    found: list[str] = []
    for text in texts:
        found.append(text)
        characters -= len(text)
        if characters <= 0:
            break
    if not found:
        raise BitlensError("There is no text to measure on; name more of it.")
    return found
