"""The main job from end to end, offline, on the bundled model and text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bitlens import show
from bitlens.autoencoders import Autoencoder
from bitlens.encode import encode_store
from bitlens.evaluate import evaluate
from bitlens.features.examples import examples
from bitlens.features.profile import TokenScore, token_scores
from bitlens.files import prepare_output, write_json
from bitlens.hidden import ActivationStore, Corpus, LanguageModel
from bitlens.hidden.harvest import harvest
from bitlens.hidden.models import BUNDLED
from bitlens.hidden.text import ContextReader
from bitlens.training import TrainConfig, train

HOOK = "layers.2"
CONTEXT = 256
MARKER = "demo.json"


def run_demo(out: Path, n_latents: int = 1024, steps: int = 2000, overwrite: bool = False) -> dict[str, Any]:
    """Harvest, train a BAE and a TopK autoencoder of the same width and sparsity, encode, evaluate, show features.

    -> the numbers of both, also in `OUT/demo.json`
    """
    prepare_output(out, resume=False, overwrite=overwrite, marker=MARKER)
    write_json(out / MARKER, {})
    show.out.print("[bold]1. From text to hidden states[/bold]: the bundled language model reads the bundled text.")
    language_model = LanguageModel.load(BUNDLED, [HOOK])
    reader = ContextReader(Corpus((BUNDLED,)), language_model.tokenizer, CONTEXT)
    with show.bar("harvest", None) as bar:
        (store,) = harvest(
            language_model, reader, out / "store", store_dtype=torch.float16,
            report=lambda p: bar.at(p.rows, f"{p.rows_per_second:,.0f} rows/s", p.expected_rows),
        )  # fmt: skip
    show.out.print(
        f"   {len(store):,} rows of {store.d_in} floats at {HOOK}, the middle of {BUNDLED}, in {out / 'store'}\n"
        f"[bold]2. From hidden states to bits[/bold]: a binary autoencoder of {n_latents} latents, then TopK to compare."
    )
    config = TrainConfig(n_latents=n_latents, steps=steps)
    bae = _train(store, config, out / "bae")
    causal = LanguageModel.load(BUNDLED, [HOOK], causal=True)
    numbers = {"BAE": evaluate(bae, store, language_model=causal).as_dict()}
    k = max(1, round(float(numbers["BAE"]["l0"] or 1)))
    topk = _train(store, replace(config, architecture="topk", k=k), out / "topk")
    numbers[f"TopK, k {k}"] = evaluate(topk, store, language_model=causal).as_dict()
    scores = {}
    for name, (heading, model) in zip(("bae", "topk"), zip(numbers, (bae, topk), strict=True), strict=True):
        codes = encode_store(model, store, out / f"codes-{name}", name=str(out / name))
        scores[heading] = [
            s for s in token_scores(codes, store.is_test(codes.document)) if min(s.rate, 1 - s.rate) <= 0.1
        ]
        numbers[heading]["sparse_latents_f1_above_half"] = sum(s.f1 > 0.5 for s in scores[heading])
    show.table("3. The numbers, on held-out documents", numbers)
    show.out.print("   TopK's bits are its support alone: its float magnitudes come on top, a BAE has none.\n")
    _show_features(out, scores["BAE"], causal.tokenizer)
    write_json(out / MARKER, numbers)
    show.out.print(
        f"\nEverything is in [bold]{out}[/bold]: store, bae, topk, codes-bae, codes-topk and demo.json with the numbers.\n"
        f"Next, on a model of your own:  bitlens harvest MODEL --text TEXT --hook layers.6 --out store"
    )
    return numbers


def _train(store: ActivationStore, config: TrainConfig, out: Path) -> Autoencoder:
    with show.bar(f"train {config.architecture}", config.steps) as bar:
        return train(
            store,
            config,
            out,
            report=lambda r: bar.at(
                r["step"], f"fvu {r['mse']:.3f}  l0 {r['l0']:.0f}  {r['rows_per_second']:,.0f} rows/s"
            ),
        )


def _show_features(out: Path, scores: list[TokenScore], tokenizer: Any) -> None:
    from bitlens.bits.codes import Codes

    codes = Codes(out / "codes-bae")
    show.out.print(
        "[bold]4. The ten clearest latents[/bold] (held-out F1 of the tokens that predict the bit), in context:"
    )
    for score in clearest(scores, 10):
        tokens = ", ".join(repr(tokenizer.decode([t]))[1:-1].strip() or "space" for t in score.tokens[:8])
        more = f" and {len(score.tokens) - 8} more" if len(score.tokens) > 8 else ""
        heading = f"\nlatent {score.latent}: on in {100 * score.rate:.2f} % of rows, F1 {score.f1:.2f}, tokens: {tokens}{more}"
        show.out.print(heading, style="bold", markup=False)
        for found in examples(codes, score.latent, tokenizer, n=3):
            show.out.print(
                "   " + show.example(found.before, found.token, found.after),
                no_wrap=True,
                overflow="ellipsis",
                crop=True,
            )


def clearest(scores: list[TokenScore], n: int) -> list[TokenScore]:
    """The n best scores, preferring latents that join several tokens: at most half of them name a single one."""
    ranked = sorted(scores, key=lambda s: -s.f1)
    chosen: list[TokenScore] = []
    singles = 0
    for score in ranked:
        singles += len(score.tokens) == 1
        if len(score.tokens) > 1 or singles <= n // 2:
            chosen.append(score)
        if len(chosen) == n:
            break
    return chosen
