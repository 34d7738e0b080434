"""The command that shows what latents are on for."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bitlens.cli.common import CodesFolder, open_run
from bitlens.errors import BitlensError

if TYPE_CHECKING:
    from torch import Tensor

    from bitlens.features.profiles import Profile

TOKENS = 4  # shown of each latent in the table


def features(
    codes: CodesFolder,
    run: Path | None = None,
    promotes: bool = False,
    top: int = 20,
    sort: Literal["clear", "rate", "rare", "again", "dispersion", "index"] = "clear",
    latents: tuple[int, ...] = (),
    examples: int = 5,
    out: Path | None = None,
) -> dict[str, Any]:
    """Profile every latent: how often, where and on which tokens it is on, with examples.

    "On" is a latent's rare state; F1 says how well the best set of tokens predicts it in other
    documents than those it was chosen in. Rows of outlying norm are left out.

    Args:
        run: the autoencoder that made them: also name the latents with similar decoder rows.
        promotes: also load the language model: whose logits does each decoder row of --run raise?
        top: latents in the table.
        sort: clear: highest F1 first, those of one token at most every other one; rate, rare: on
            most or least; again, dispersion: on in bursts within, or among, documents; index.
        latents: show these, each on a page of its own.
        examples: examples of each latent, from as many documents.
        out: also write all profiles to this file, .jsonl or .parquet.
    """
    from bitlens import show
    from bitlens.bits.codes import Codes
    from bitlens.causal.direct import direct_effect
    from bitlens.features.on_rows import refuse_unknown
    from bitlens.features.profiles import arranged, profiles, require_ending, write_profiles
    from bitlens.labels.sources import load_tokenizer

    corpus = Codes(codes)
    refuse_unknown(latents, corpus.n_latents)
    if out is not None:
        require_ending(out)
    if examples < 1:
        raise BitlensError(f"--examples must be at least 1, not {examples}.")
    if promotes and run is None:
        raise BitlensError("--promotes needs the decoder; name the autoencoder with --run.")
    W_dec, hook = (None, None) if run is None else _decoder(run, corpus)
    effect = direct_effect(corpus, hook) if promotes else None
    show.left_out(corpus.outliers)
    tokenizer = load_tokenizer(corpus)
    every = profiles(corpus, tokenizer=tokenizer, W_dec=W_dec, effect=effect, examples=examples)
    chosen = [every[i] for i in latents] or arranged(every, sort)[:top]
    rows = len(corpus) - corpus.outliers
    if latents:
        for profile in chosen:
            _page(profile)
    else:
        show.rows(f"{codes}: {rows:,} rows", [_line(profile) for profile in chosen])
    show.out.print(show.SIGNS, style="dim")
    if out is not None:
        write_profiles(out, every)
    about = {"codes": str(codes), "rows": rows, "outliers": corpus.outliers}
    return about | {"profiles": [asdict(profile) for profile in chosen]}


def _decoder(run: Path, codes: Any) -> tuple[Tensor, str | None]:
    """The decoder in the model's own units, and the hook point to which it writes."""
    model = open_run(run, codes)
    return model.W_dec.detach() * model.output_scale, model.output_hook


def _line(profile: Profile) -> dict[str, Any]:
    from bitlens import show
    from bitlens.files import finite

    return {
        "latent": profile.latent,
        "on %": 100 * profile.rate,
        "F1": finite(profile.token_f1),
        "again": finite(profile.again),
        "tokens": " ".join(show.token(p.text) for p in profile.tokens[:TOKENS]),
        "example": profile.examples[0] if profile.examples else "",
    }


def _page(profile: Profile) -> None:
    """All that is known of one latent."""
    from rich.table import Table

    from bitlens import show

    p, grid = profile, Table.grid(padding=(0, 2))
    for name, text in p.described().items():
        grid.add_row(f"  {name}", text)
    for example in p.examples:
        grid.add_row("", example)
    show.marked(f"[bold]Latent {p.latent}[/bold]{', on is 0 in the codes' if p.flipped else ''}")
    show.out.print(grid)
