"""What a report shows beside the training: small JSON files in the run's folder, so that the page
can be made again. Each is of the last evaluation, or the last codes, that it was made with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bitlens.bits.codes import Codes
from bitlens.errors import BitlensError
from bitlens.evaluation import Evaluation
from bitlens.features.examples import drawn_contexts
from bitlens.features.on_rows import explainers_part, on_rows
from bitlens.features.token_scores import clearest, token_scores
from bitlens.files import read_manifest, write_json
from bitlens.hidden.pieces import token_texts
from bitlens.hidden.source import held_out
from bitlens.labels.sources import load_tokenizer
from bitlens.version import __version__

EVALUATION, LATENTS = "evaluation.json", "latents.json"
SCHEMA = 1  # of both
SHOWN, TOKENS, EXAMPLES, WINDOW = 12, 8, 3, 8  # latents; of each: tokens, examples, their length


def keep_evaluation(run: Path, evaluation: Evaluation) -> None:
    """Write `evaluation.json`: the numbers, and of what they are."""
    head = {"schema": SCHEMA, "kind": "bitlens.evaluation", "bitlens": __version__}
    write_json(run / EVALUATION, {**head, **evaluation.about, "numbers": evaluation.as_dict()})


def kept_evaluation(run: Path) -> dict[str, Any] | None:
    """What `keep_evaluation` wrote; None if it did not."""
    return _kept(run / EVALUATION, {"numbers": dict, "rates": dict, "store": str, "part": str})


def keep_latents(run: Path, codes: Codes, tokenizer: Any = None) -> None:
    """Write `latents.json`: the sparse latents that tokens predict best, with examples.

    tokenizer: of the model that the codes are of; by default it is loaded.
    """
    tokenizer = load_tokenizer(codes) if tokenizer is None else tokenizer
    head = {"schema": SCHEMA, "kind": "bitlens.latents", "bitlens": __version__}
    about = {"codes": str(codes.path.resolve()), "measured": len(codes) - codes.outliers}
    write_json(run / LATENTS, {**head, **about, "latents": _clearest(codes, tokenizer)})


def kept_latents(run: Path) -> dict[str, Any] | None:
    """What `keep_latents` wrote; None if it did not."""
    return _kept(run / LATENTS, {"latents": list, "codes": str})


def _kept(path: Path, forms: dict[str, type]) -> dict[str, Any] | None:
    if not path.exists():
        return None
    record = read_manifest(path, SCHEMA, "a report")
    for key, form in forms.items():
        if not isinstance(record.get(key), form):
            raise BitlensError(f"{path} is damaged: its '{key}' is missing or of another kind.")
    return record


def _clearest(codes: Codes, tokenizer: Any) -> list[dict[str, Any]]:
    usual = codes.usual
    bits, token, document = codes.bits[usual], codes.token[usual], codes.document[usual]
    if share := codes.manifest.get("test_fraction"):
        test = torch.from_numpy(held_out(document.numpy(), share))
    else:
        test = ~explainers_part(document)
    sparse = [score for score in token_scores(bits, token, test) if not score.dense]
    chosen = clearest(sparse, lambda score: score.f1, lambda score: len(score.tokens))[:SHOWN]
    if not chosen:
        return []
    drawn = on_rows(bits, document, EXAMPLES, latents=[score.latent for score in chosen])
    examples = drawn_contexts(codes, drawn, tokenizer, WINDOW)
    text = token_texts(tokenizer, {token for score in chosen for token in score.tokens})
    latents = []
    for score, shown in zip(chosen, examples, strict=True):
        texts = list(dict.fromkeys(text[token] for token in score.tokens))
        latents.append(
            {
                "latent": score.latent,
                "rate": score.rate,
                "f1": score.f1,
                "tokens": texts[:TOKENS],
                "more": len(texts[TOKENS:]),
                "examples": shown,
            }
        )
    return latents
