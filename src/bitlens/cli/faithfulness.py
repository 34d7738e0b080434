"""The command that asks what a language model does with reconstructions."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bitlens.cli.common import (
    Device,
    Json,
    RunFolder,
    Search,
    SearchFlags,
    StoreFolder,
    open_pair,
    pick_device,
    write_result,
)

if TYPE_CHECKING:
    from bitlens.information.intervals import Estimate

COLUMNS = (
    "l0",
    "surprisal",
    "fvu",
    "ce_spliced",
    "ce_loss_score",
    "ce_loss_score_mean",
    "kl_div",
    "top1",
)
ENDS = tuple(
    f"{name}_{end}"
    for name in ("ce_loss_score", "ce_loss_score_mean", "kl_div")
    for end in ("low", "high")
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
    device: Device = "auto",
    json: Json = None,
) -> None:
    """Print what the language model loses when only the k most surprising bits of every hidden state are kept.

    For each k and for the whole code: what is left of the hidden states and of the predictions. For the whole code also
    how that depends on the position, and the ten tokens that lose most. Intervals are over contexts.

    Args:
        run: an autoencoder.
        store: hidden states of its hook point.
        keep: latents to keep of every row; the whole code is always measured, too.
        contexts: contexts that the language model reads, drawn at random.
        by: keep the rarest latents, or those of the largest magnitude times decoder norm.
        part: test: the held-out documents; all: every row, for text that the autoencoder was not trained on.
        against: other autoencoders of the hook point: what they lose less on the same contexts, by their whole codes.
        seed: seed of the contexts.
        out: also write every token's numbers under the whole code, with its text in context, to this file (.jsonl).
        search: how the codes are found.
        device: auto, cpu, cuda.
        json: also write the tables to this file.
    """
    from bitlens import show
    from bitlens.causal import faithfulness as measure
    from bitlens.causal.splice import Splice, load_spliced
    from bitlens.hidden.split import unseen

    autoencoder, rows = open_pair(run, store, device, search)
    others = {str(path): open_pair(path, store, device, search)[0] for path in against}
    if part == "test":  # of no training
        rows = min(
            (unseen(rows, a.metadata) for a in (autoencoder, *others.values())),
            key=lambda s: s.test_fraction,
        )
    model = load_spliced(autoencoder, rows, pick_device(device))
    splice = Splice.of_store(model, autoencoder, rows, contexts, part, seed)
    results = measure.faithfulness(autoencoder, rows, splice, (*keep, None), by=by)
    tokens, lines = results[-1].tokens, [result.as_dict() for result in results]
    positions = {name: means._asdict() for name, means in measure.by_position(tokens).items()}
    show.table(
        f"{run} on {store}, latents kept: cross-entropy {lines[0]['ce_original']:.3f}, "
        f"with zeros {lines[0]['ce_zero']:.3f}, with the mean {lines[0]['ce_mean']:.3f}",
        {
            "all" if line["k"] is None else str(line["k"]): {
                name: line[name] for name in (*COLUMNS, *ENDS)
            }
            for line in lines
        },
    )
    show.table("The whole code, by position in the context", positions)
    show.marked("[bold]The tokens that lose most[/bold]: cross-entropy as it was and as it is")
    for index in measure.worst(tokens):
        one = measure.record(splice, tokens, index)
        sentence = show.example(one["before"], one["token"], one["after"])
        show.marked(
            f"{one['ce_original']:6.2f} {one['ce_spliced']:6.2f}  {sentence}", soft_wrap=True
        )
    found = measure.differences(results[-1].sums, splice, others)
    if found:
        show.rows(
            f"{run} less another, on the same contexts",
            [_line(name, of) for name, of in found.items()],
        )
    if out is not None:
        measure.write_tokens(out, splice, tokens)
    numbers = {name: {k: asdict(e) for k, e in of.items()} for name, of in found.items()}
    write_result(
        json,
        {
            "run": str(run),
            "store": str(store),
            "by": by,
            "keep": lines,
            "positions": positions,
            "less": numbers,
        },
    )


def _line(name: str, differences: dict[str, Estimate]) -> dict[str, str]:
    """What differs for sure is marked with a star."""
    ends = {
        k: f"{e.value:+.4f}" + (f" ± {e.half:.4f}" if e.known else "") + (" *" if e.differs else "")
        for k, e in differences.items()
    }
    return {"": name, **ends}
