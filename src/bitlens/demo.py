"""The main job from end to end, offline, on the bundled model and text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape

from bitlens import show
from bitlens.autoencoders import Autoencoder
from bitlens.bits.codes import Codes
from bitlens.encode import encode_store
from bitlens.errors import BitlensError
from bitlens.evaluation import evaluate
from bitlens.features.examples import random_examples
from bitlens.features.token_scores import TokenScore, clearest, token_scores
from bitlens.files import prepare_output, write_json
from bitlens.hidden import ActivationStore, Corpus, LanguageModel
from bitlens.hidden.harvest import harvest
from bitlens.hidden.pieces import token_texts
from bitlens.hidden.text import ContextReader
from bitlens.options import BUNDLED
from bitlens.report import REPORT, write_report
from bitlens.report.contents import explore
from bitlens.results import Number
from bitlens.training import TrainConfig, train
from bitlens.version import __version__

HOOK = "layers.2"
CONTEXT = 256
MARKER = "demo.json"
TOKEN_LATENTS = {"token_latents": Number("sparse latents that tokens predict, F1 > .5")}
SIDE_BY_SIDE = (
    *("fvu", "l0", "dead", "dense", "highest_rate"),
    *("bits_joint", "bits_magnitudes", "bits_gaussian"),
    *("ce_loss_score", "ce_loss_score_low", "ce_loss_score_high"),
    *("kl_div", "kl_div_low", "kl_div_high", "token_latents"),
)


def run_demo(
    out: Path,
    n_latents: int = 1024,
    steps: int = 2000,
    max_rows: int | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Harvest (`max_rows` at most), train a BAE, evaluate it and show features; then a TopK
    autoencoder of its width and sparsity beside it -> the numbers of both, also in
    `OUT/demo.json`"""
    for name, value in (("n_latents", n_latents), ("steps", steps), ("max_rows", max_rows)):
        if value is not None and value < 1:
            raise BitlensError(f"`{name}` must be at least 1, not {value}.")
    prepare_output(out, resume=None, overwrite=overwrite, marker=MARKER)
    write_json(out / MARKER, {"bitlens": "unfinished demo"})
    show.marked(
        "[bold]1. From text to hidden states[/bold]: "
        "the bundled language model reads the bundled text."
    )
    model = LanguageModel.load(BUNDLED, [HOOK])
    reader = ContextReader(Corpus((BUNDLED,)), model.tokenizer, CONTEXT, packed=False)
    (store,) = harvest(model, reader, out / "store", max_rows=max_rows, store_dtype=torch.float16)
    show.marked(
        f"   {len(store):,} rows of {store.d_in} floats at {HOOK}, the middle of the model.\n"
        "[bold]2. From hidden states to bits[/bold]: "
        f"a binary autoencoder of {n_latents:,} latents."
    )
    causal = LanguageModel.load(BUNDLED, [HOOK], causal=True)
    config = TrainConfig(n_latents=n_latents, steps=steps)
    bae, scores = _run(store, config, out, "bae", causal)
    show.table("3. The numbers, on held-out documents", {"BAE": bae}, TOKEN_LATENTS)
    _show_features(Codes(out / "codes-bae"), scores, causal.tokenizer)
    k = max(1, round(bae["l0"]))
    show.marked(
        f"\n[bold]5. A rival[/bold]: TopK, of the same width and with as many latents on, {k}."
    )
    topk, _ = _run(store, replace(config, architecture="topk", k=k), out, "topk", causal)
    both = {"BAE": bae, f"TopK, k {k}": topk}
    chosen = {name: {key: numbers[key] for key in SIDE_BY_SIDE} for name, numbers in both.items()}
    show.table("   Side by side", chosen, TOKEN_LATENTS)
    write_json(out / MARKER, {"bitlens": __version__, **both})
    show.marked(
        f"\nEverything is in [bold]{escape(str(out))}[/bold]: "
        "store, bae, topk, codes-bae, codes-topk and demo.json with the numbers.\n"
        f"Open in a browser:  {escape(str(out / 'bae' / REPORT))}\n"
        f"Every latent, and any text:  {escape(explore(out / 'bae', out / 'codes-bae'))}\n"
        "Next, on a model of your own:  "
        "bitlens harvest MODEL --text TEXT --hook layers.6 --out store",
        soft_wrap=True,
    )
    return both


def _run(
    store: ActivationStore, config: TrainConfig, out: Path, name: str, causal: LanguageModel
) -> tuple[dict[str, Any], list[TokenScore]]:
    """Train, encode and evaluate -> the numbers, and the token scores of the sparse latents."""
    model: Autoencoder = train(store, config, out / name)
    codes = encode_store(model, store, out / f"codes-{name}", name=str(out / name))
    bits, token = codes.bits[codes.usual], codes.token[codes.usual]
    scores = token_scores(bits, token, store.is_test(codes.document[codes.usual]))
    evaluation = evaluate(model, store, language_model=causal)
    write_report(out / name, evaluation=evaluation, codes=codes, tokenizer=causal.tokenizer)
    numbers = evaluation.as_dict()
    numbers["token_latents"] = sum(score.good for score in scores)
    return numbers, [score for score in scores if not score.dense]


def _show_features(codes: Codes, scores: list[TokenScore], tokenizer: Any) -> None:
    show.marked(
        "\n[bold]4. The ten clearest latents[/bold]: "
        "how well their tokens predict them (F1), and where they are on"
    )
    show.out.print("   " + show.SIGNS)
    text = token_texts(tokenizer, {token for score in scores for token in score.tokens})
    for score in clearest(scores, lambda s: s.f1, lambda s: len(s.tokens))[:10]:
        names = list(dict.fromkeys(show.token(text[token]) for token in score.tokens))
        more = f"  and {len(names) - 8} more" if len(names) > 8 else ""
        rate = f"on in {100 * score.rate:.2f} % of rows"
        heading = f"latent {score.latent}, {rate}, F1 {score.f1:.2f}:"
        show.out.print(f"\n{heading}  {'  '.join(names[:8])}{more}", style="bold")
        for one in random_examples(codes, score.latent, tokenizer, n=3):
            line = show.example(one.before, one.token, one.after)
            show.marked("   " + line, no_wrap=True, overflow="ellipsis", crop=True)
