"""The command that compares two dictionaries."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from bitlens.cli.common import StoreFolder, open_pair
from bitlens.errors import BitlensError

if TYPE_CHECKING:
    from torch import Tensor

    from bitlens.bits.packed import PackedBits
    from bitlens.matching import Explained, Matching

RunA = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_A")]
RunB = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_B")]
EXAMPLES = 2  # of each category
TOKENS = 4


def match(
    run: RunA, other: RunB, store: StoreFolder, rows: int | None = None, device: str = "auto"
) -> dict[str, Any]:
    """Compare two autoencoders of one hook point: which latents of one are the same as, part of, or
    absent from the other.

    Both encode the documents of the store that were held out from the training of both. Jaccards
    and shares are corrected for what independent latents of the same rates would show.

    Args:
        run: an autoencoder, A.
        other: another one, B.
        store: hidden states of their hook point.
        rows: read only so many of the held-out rows.
    """
    from bitlens import matching, show
    from bitlens.hidden.split import unseen
    from bitlens.results import numbers_of

    opened = [open_pair(path, store, device) for path in (run, other)]
    models = [model for model, _ in opened]
    sources = [unseen(source, model.metadata) for model, source in opened]
    data = min(sources, key=lambda source: source.test_fraction)
    (a, b), token = _encode(models, data, rows)
    W_a, W_b = (model.W_dec.detach().cpu() for model in models)
    a_in_b, b_in_a = matching.match(a, b, (W_a, W_b)), matching.match(b, a, (W_b, W_a))
    summaries = {"a_in_b": matching.summary(a_in_b), "b_in_a": matching.summary(b_in_a)}
    stability = matching.likeness([a_in_b, b_in_a])._asdict()
    dense_a, dense_b = matching.explain_dense(a, b), matching.explain_dense(b, a)

    show.say(f"A: {run}, B: {other}; {len(a):,} held-out rows of {store}")
    headings = {"A in B": summaries["a_in_b"], "B in A": summaries["b_in_a"]}
    lines = [
        {"": name, **{k: v.get(name) for k, v in headings.items()}, " ": number.meaning}
        for name, number in numbers_of(matching.Summary).items()
    ]
    show.rows("Every latent of one in the other", lines)
    show.rows("Stability", [stability])
    lines = [_dense_line("A", dense_a), _dense_line("B", dense_b)]
    show.rows("Dense latents: share of their entropy that the other's latents explain", lines)
    if (text := _text_of_tokens(data, token)) is not None:
        for name, found, ours, theirs in (("A", a_in_b, a, b), ("B", b_in_a, b, a)):
            lines = _examples(found, ours, theirs, token, text)
            show.rows(f"Some latents of {name}, and the tokens they are on most", lines)
    return {
        "a": str(run),
        "b": str(other),
        "store": str(store),
        "rows": len(a),
        **summaries,
        "stability": stability,
        "dense_a": [explained._asdict() for explained in dense_a],
        "dense_b": [explained._asdict() for explained in dense_b],
    }


def _encode(models: list[Any], store: Any, most: int | None) -> tuple[list[PackedBits], Tensor]:
    """The bits of every model on the same held-out rows, and the rows' tokens."""
    import torch

    from bitlens.bits.packed import PackedBits

    if most is not None and most < 1:
        raise BitlensError(f"--rows must be at least 1, not {most}.")
    for model in models:
        store.require_width(model.d_in)
    words: list[list[Tensor]] = [[] for _ in models]
    tokens: list[Tensor] = []
    left = len(store) if most is None else most
    with torch.inference_mode():
        for block in store.read("test"):
            x = block.hidden[:left]
            for parts, model in zip(words, models, strict=True):
                parts.append(model.encode_bits(model.pair(x.to(model.mean.device))[0]).words.cpu())
            tokens.append(block.columns["token"][:left])
            left -= len(x)
            if not left:
                break
    if not tokens:
        raise BitlensError(
            f"{store.path} has no held-out rows to compare on; harvest more documents."
        )
    bits = [PackedBits(torch.cat(w), m.n_latents) for w, m in zip(words, models, strict=True)]
    return bits, torch.cat(tokens)


def _dense_line(name: str, explained: list[Explained]) -> dict[str, Any]:
    """How many there are, the mean share of their entropy that is explained, and the best."""
    if not explained:
        return {"": name, "dense": 0}
    shares = [e.shares or [0.0] for e in explained]
    best = max(explained, key=lambda e: max(e.shares, default=0.0))
    return {
        "": name,
        "dense": len(explained),
        "best one": sum(share[0] for share in shares) / len(shares),
        "up to five": sum(share[-1] for share in shares) / len(shares),
        "best explained": str(best.latent),
        "its share": max(best.shares, default=0.0),
        "by": " ".join(map(str, best.by)) or "none",
    }


def _text_of_tokens(store: Any, token: Tensor) -> dict[int, str] | None:
    """How the tokens read; None for a store without tokens, or if its tokenizer is not there."""
    from bitlens import show
    from bitlens.hidden.pieces import token_texts
    from bitlens.labels.sources import load_tokenizer

    if int(token.min()) < 0:
        return None
    try:
        return token_texts(load_tokenizer(store), token.unique().tolist())
    except BitlensError as error:
        show.warn(f"Without examples: {error}")
        return None


def _examples(
    found: Matching, a: PackedBits, b: PackedBits, token: Tensor, text: dict[int, str]
) -> list[dict[str, Any]]:
    """A few random latents of each category, each with the other's latent that makes it so."""
    import torch

    from bitlens import show
    from bitlens.seeding import generator

    def tokens(bits: PackedBits, latent: int) -> str:
        ids, counts = token[bits.column(latent).bool()].unique(return_counts=True)
        common = ids[counts.argsort(descending=True, stable=True)[:TOKENS]].tolist()
        return " ".join(show.token(text[i]) for i in common)

    lines = []
    for category in ("same", "contained", "contains", "absent"):
        latents = found.are(category).nonzero()[:, 0]
        order = torch.randperm(len(latents), generator=generator("match", category))
        for latent in latents[order[:EXAMPLES]].tolist():
            parts = found.parts[latent]
            others = {"contained": found.container[latent], "contains": parts[0] if parts else -1}
            other = int(others.get(category, found.best[latent]))
            line = {
                "": category,
                "latent": latent,
                "on %": 100 * float(found.rate[latent]),
                "tokens": tokens(a, latent),
                "other": other if other >= 0 else None,
                "its tokens": tokens(b, other) if other >= 0 else "",
                "Jaccard": float(found.jaccard[latent]),
                "implies": float(found.implication[latent]),
                "parts": len(parts),
            }
            lines.append(line)
    return lines
