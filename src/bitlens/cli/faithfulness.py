"""The command that asks what a language model does with reconstructions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bitlens.cli.common import RunFolder, Search, SearchFlags, StoreFolder, open_pair, signed
from bitlens.devices import pick_device

if TYPE_CHECKING:
    from bitlens.autoencoders import Autoencoder
    from bitlens.causal.faithfulness import Kept
    from bitlens.causal.splice import Splice
    from bitlens.information.intervals import Estimate

WORST = 10  # tokens that are shown
SCORES = ("ce_loss_score", "ce_loss_score_mean", "kl_div")
SHOWN = (
    *("l0", "surprisal", "fvu", "ce_spliced", *SCORES, "top1"),
    *(f"{name}_{end}" for name in SCORES for end in ("low", "high")),
)


def faithfulness(
    run: RunFolder,
    store: StoreFolder,
    keep: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64),
    contexts: int = 64,
    by: Literal["surprisal", "magnitude"] = "surprisal",
    part: Literal["test", "all"] = "test",
    against: tuple[Path, ...] = (),
    seed: int = 0,
    out: Path | None = None,
    search: SearchFlags = Search(),  # noqa: B008
    device: str = "auto",
) -> dict[str, Any]:
    """Print what the language model loses with only the k most surprising bits of each row.

    For each k and for the whole code: what is left of the hidden states and of the predictions.
    For the whole code also how that depends on the position, and the ten tokens that lose most.

    Args:
        keep: latents to keep of every row; the whole code is always measured, too.
        contexts: contexts that the language model reads, drawn at random.
        by: keep the rarest latents, or those of the largest magnitude times decoder norm.
        part: test: the held-out documents; all: every row, of text it was not trained on.
        against: other autoencoders of the hook point: what they lose less on the same contexts.
        seed: seed of the contexts.
        out: also write every token's numbers under the whole code, with its text in context, to
            this file (.jsonl).
    """
    from bitlens.causal import faithfulness as measure
    from bitlens.causal.splice import Splice, load_spliced
    from bitlens.hidden.split import unseen

    autoencoder, rows = open_pair(run, store, device, search)
    others = {str(path): open_pair(path, store, device, search)[0] for path in against}
    if part == "test":  # the documents of no training
        splits = [unseen(rows, each.metadata) for each in (autoencoder, *others.values())]
        rows = min(splits, key=lambda split: split.test_fraction)
    model = load_spliced(autoencoder, rows, pick_device(device))
    splice = Splice.of_store(model, autoencoder, rows, contexts, part, seed)
    kept = measure.faithfulness(autoencoder, rows, splice, (*keep, None), by=by)
    whole = kept[-1]
    less = _less(splice, whole, others)
    result = {
        "run": str(run),
        "store": str(store),
        "by": by,
        "keep": [each.as_dict() for each in kept],
        "positions": {k: v._asdict() for k, v in measure.by_position(whole.tokens).items()},
        "less": {name: {k: asdict(v) for k, v in scores.items()} for name, scores in less.items()},
    }
    rise = whole.tokens.ce_spliced - whole.tokens.ce_original
    worst = rise.topk(min(WORST, len(rise))).indices.tolist()
    _show(result, [measure.record(splice, whole.tokens, index) for index in worst], less)
    if out is not None:
        measure.write_tokens(out, splice, whole.tokens)
    return result


def _less(
    splice: Splice, whole: Kept, others: Mapping[str, Autoencoder]
) -> dict[str, dict[str, Estimate]]:
    """How much less the whole code loses than each of the others, on the same contexts."""
    if not others:
        return {}
    spliced = splice.tokens(list(others.values()))
    return {n: whole.sums.less(splice.sums(t)) for n, t in zip(others, spliced, strict=True)}


def _show(
    result: dict[str, Any], worst: list[dict[str, Any]], less: Mapping[str, Mapping[str, Estimate]]
) -> None:
    from bitlens import show

    whole = result["keep"][-1]
    show.table(
        f"{result['run']} on {result['store']}, latents kept: cross-entropy "
        f"{whole['ce_original']:.3f}, with zeros {whole['ce_zero']:.3f}, with the mean "
        f"{whole['ce_mean']:.3f}",
        {
            "all" if line["k"] is None else str(line["k"]): {name: line[name] for name in SHOWN}
            for line in result["keep"]
        },
    )
    show.table("The whole code, by position in the context", result["positions"])
    show.marked("[bold]The tokens that lose most[/bold]: cross-entropy as it was and as it is")
    for token in worst:
        sentence = show.example(token["before"], token["token"], token["after"])
        losses = f"{token['ce_original']:6.2f} {token['ce_spliced']:6.2f}"
        show.marked(f"{losses}  {sentence}", soft_wrap=True)
    if less:
        lines = [
            {"": name, **{score: signed(e, 4) for score, e in scores.items()}}
            for name, scores in less.items()
        ]
        show.rows(f"{result['run']} less another, on the same contexts", lines)
