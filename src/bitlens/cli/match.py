"""The command that compares two dictionaries."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from bitlens.cli.common import Device, Json, StoreFolder, open_pair, write_result

if TYPE_CHECKING:
    from torch import Tensor

    from bitlens.bits.packed import PackedBits
    from bitlens.matching import Explained
    from bitlens.matching import Matching

RunA = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_A")]
RunB = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_B")]
EXAMPLES = 2  # of each category
TOKENS = 4

_MEANINGS = {
    "live": "neither dead nor stuck",
    "same": "Jaccard with one latent of the other >= .5",
    "contained": "implies one latent of the other",
    "contains": "implied by some of the other",
    "absent": "none of these",
    "dead": "on in < 1 of 10,000 rows",
    "stuck": "off in < 1 of 10,000 rows",
    "one_to_one": "share with a partner of their own, Jaccard >= .5",
    "jaccard_q10": "best Jaccard of live latents: 10 % are below",
    "jaccard_q25": "a quarter are below",
    "jaccard_q50": "the median",
    "jaccard_q75": "a quarter are above",
    "jaccard_q90": "10 % are above",
    "parts": "latents that imply one that `contains`, mean",
    "covered": "share of its rows in which one of them is on, mean",
    "split": "latents that `contains`, covered by .8 or more",
    "partner_jaccard": "one to one, mean; 0 without a partner",
    "partner_cosine": "decoder cosine of partners, mean",
    "mcs": "highest decoder cosine, mean",
    "revived": "dead, but a live latent has its direction: cosine >= .7",
}


def match(
    run: RunA,
    other: RunB,
    store: StoreFolder,
    rows: int | None = None,
    device: Device = "auto",
    json: Json = None,
) -> None:
    """Compare two autoencoders of one hook point: which latents of one are the same as, part of, or absent from the other.

    Both encode the documents of the store that were held out from the training of both. Jaccards and shares are
    corrected for what independent latents of the same rates would show.

    Args:
        run: an autoencoder, A.
        other: another one, B.
        store: hidden states of their hook point.
        rows: read only so many of the held-out rows.
        device: auto, cpu, cuda.
        json: also write the numbers to this file.
    """
    from bitlens import show
    from bitlens.matching import explain_dense
    from bitlens.hidden.split import unseen
    from bitlens.matching import likeness, summary
    from bitlens.matching import match as compare

    opened = [open_pair(path, store, device) for path in (run, other)]
    pairs = [(model, unseen(source, model.metadata)) for model, source in opened]
    data = min((source for _, source in pairs), key=lambda source: source.test_fraction)
    models = [model for model, _ in pairs]
    (a, b), token = _encode(models, data, rows)
    decoders = models[0].W_dec.detach().cpu(), models[1].W_dec.detach().cpu()
    matchings = compare(a, b, decoders), compare(b, a, decoders[::-1])
    numbers = [summary(m) for m in matchings]
    alike = likeness(matchings)._asdict()
    dense = explain_dense(a, b), explain_dense(b, a)

    show.out.print(f"A: {run}, B: {other}; {len(a):,} held-out rows of {store}", soft_wrap=True)
    lines = [
        {"": k, "A in B": numbers[0][k], "B in A": numbers[1][k], " ": _MEANINGS[k]}
        for k in _MEANINGS
    ]
    show.rows("Every latent of one in the other", lines)
    show.rows("Stability", [alike])
    lines = [_dense_line("A", dense[0]), _dense_line("B", dense[1])]
    show.rows("Dense latents: share of their entropy that the other's latents explain", lines)
    if (tokenizer := _tokenizer(data, token)) is not None:
        say = _speaker(tokenizer, token)
        for name, matching, ours, theirs in (("A", matchings[0], a, b), ("B", matchings[1], b, a)):
            show.rows(
                f"Some latents of {name}, and the tokens they are on most",
                _examples(matching, ours, theirs, say),
            )
    write_result(
        json,
        {
            "a": str(run), "b": str(other), "store": str(store), "rows": len(a), "a_in_b": numbers[0], "b_in_a": numbers[1],
            "stability": alike, "dense_a": [e._asdict() for e in dense[0]], "dense_b": [e._asdict() for e in dense[1]],
        },
    )  # fmt: skip


def _encode(models: list[Any], store: Any, most: int | None) -> tuple[list[PackedBits], Tensor]:
    """The bits of every model on the same held-out rows, and the rows' tokens."""
    import torch

    from bitlens.bits.packed import PackedBits
    from bitlens.errors import BitlensError

    if most is not None and most < 1:
        raise BitlensError(f"--rows must be at least 1, not {most}.")
    for model in models:
        store.require_width(model.d_in)
    words: list[list[Any]] = [[] for _ in models]
    tokens: list[Any] = []
    left = len(store) if most is None else most
    with torch.inference_mode():
        for block in store.read("test"):
            x = block.hidden[:left]
            for mine, model in zip(words, models, strict=True):
                mine.append(model.encode_bits(model.pair(x.to(model.mean.device))[0]).words.cpu())
            tokens.append(block.columns["token"][:left])
            if (left := left - len(x)) <= 0:
                break
    if not tokens:
        raise BitlensError(
            f"{store.path} has no held-out rows to compare on; harvest more documents."
        )
    return [
        PackedBits(torch.cat(w), m.n_latents) for w, m in zip(words, models, strict=True)
    ], torch.cat(tokens)


def _dense_line(name: str, explained: list[Explained]) -> dict[str, Any]:
    """How many there are, the share of their entropy that is explained, on average, and the best explained."""
    if not explained:
        return {"": name, "dense": 0}
    shares = [[e.shares[0], e.shares[-1]] if e.shares else [0.0, 0.0] for e in explained]
    one, all_ = (sum(column) / len(column) for column in zip(*shares, strict=True))
    best = max(explained, key=lambda e: max(e.shares, default=0.0))
    by = " ".join(map(str, best.by)) or "none"
    return {
        "": name, "dense": len(explained), "best one": one, "up to five": all_, "best explained": str(best.latent),
        "its share": max(best.shares, default=0.0), "by": by,
    }  # fmt: skip


def _tokenizer(store: Any, token: Tensor) -> Any:
    """Of the store's model; None for a store without tokens, or if the model is not there."""
    from bitlens import show
    from bitlens.errors import BitlensError
    from bitlens.hidden import LanguageModel

    manifest = store.manifest
    if int(token.min()) < 0 or not (manifest.get("model") and manifest.get("hook")):
        return None
    try:
        hook = manifest["hook"]["module"]
        return LanguageModel.again(manifest, store.path, [hook], device="cpu").tokenizer
    except BitlensError as error:
        show.err.print(f"Without examples: {error}", soft_wrap=True)
        return None


def _speaker(tokenizer: Any, token: Tensor) -> Any:
    """-> a function: a latent's most common tokens, as they read in a text"""
    from bitlens import show
    from bitlens.hidden.pieces import token_texts

    def say(bits: PackedBits, latent: int) -> str:
        on = bits.column(latent).bool()
        ids, counts = token[on].unique(return_counts=True)
        common = ids[counts.argsort(descending=True, stable=True)[:TOKENS]].tolist()
        return " ".join(map(show.token, token_texts(tokenizer, common).values()))

    return say


def _examples(matching: Matching, a: PackedBits, b: PackedBits, say: Any) -> list[dict[str, Any]]:
    """A few latents of each category, drawn at random, each with the latent of the other that makes it so."""
    import torch

    from bitlens.seeding import generator

    lines = []
    for category in ("same", "contained", "contains", "absent"):
        found = [i for i, c in enumerate(matching.category) if c == category]
        for i in torch.randperm(len(found), generator=generator("match", category))[
            :EXAMPLES
        ].tolist():
            latent = found[i]
            best, container, parts = (
                int(matching.best[latent]),
                int(matching.container[latent]),
                matching.parts[latent],
            )
            other = {"contained": container, "contains": parts[0] if parts else -1}.get(
                category, best
            )
            lines.append(
                {
                    "": category, "latent": latent, "on %": 100 * float(matching.rate[latent]), "tokens": say(a, latent),
                    "other": other if other >= 0 else None, "its tokens": say(b, other) if other >= 0 else "",
                    "Jaccard": float(matching.jaccard[latent]), "implies": float(matching.implication[latent]), "parts": len(parts),
                }
            )  # fmt: skip
    return lines
