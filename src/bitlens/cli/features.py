"""The command that shows what latents are on for."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bitlens.cli.common import CodesFolder, Json, write_result
from bitlens.errors import BitlensError

if TYPE_CHECKING:
    from torch import Tensor

    from bitlens.features.profiles import Preference, Profile

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
    json: Json = None,
) -> None:
    """Profile every latent: how often, where and on which tokens it is on, with examples in context.

    Shows a table of the latents that are clearest from their tokens, or a page on each of those named. "On" is a latent's
    rare state; F1 says how well the best set of tokens predicts it in other documents than those it was chosen in. Rows of
    outlying norm are left out.

    Args:
        codes: folder of codes, from `bitlens encode`.
        run: the autoencoder that made them: also name the latents with like decoder rows.
        promotes: also load the language model: the tokens whose logits each decoder row raises (with --run).
        top: latents in the table.
        sort: clear: of highest F1 first, of a single token at most every other; rate, rare: on most or least; again,
            dispersion: on in bursts, within a document or in few documents; index.
        latents: show these, each on a page of its own.
        examples: examples of each latent, from as many documents.
        out: also write all profiles to this file, .jsonl or .parquet.
        json: also write the profiles that are shown to this file.
    """
    from dataclasses import asdict

    from bitlens import show
    from bitlens.bits.codes import Codes
    from bitlens.causal.direct import direct_effect
    from bitlens.features.profiles import arranged, profiles, require_ending, write_profiles
    from bitlens.labels.sources import load_tokenizer

    corpus = Codes(codes)
    if out is not None:
        require_ending(out)
    if examples < 1:
        raise BitlensError(f"--examples must be at least 1, not {examples}.")
    if wrong := [latent for latent in latents if not 0 <= latent < corpus.n_latents]:
        raise BitlensError(
            f"There is no latent {wrong[0]}; these codes have latents 0 to {corpus.n_latents - 1}."
        )
    if promotes and run is None:
        raise BitlensError("--promotes needs the decoder; name the autoencoder with --run.")
    W_dec, hook = _decoder(run, corpus)
    effect = direct_effect(corpus, hook) if promotes else None
    show.left_out(corpus.outliers)
    found = profiles(
        corpus, tokenizer=load_tokenizer(corpus), W_dec=W_dec, effect=effect, examples=examples
    )
    rows = len(corpus) - corpus.outliers
    shown = [found[i] for i in latents] or arranged(found, sort)[:top]
    if latents:
        for profile in shown:
            _page(profile)
    else:
        show.rows(f"{codes}: {rows:,} rows", [_line(profile) for profile in shown])
    show.out.print(show.SIGNS, style="dim")
    if out is not None:
        write_profiles(out, found)
    numbers = {"rows": rows, "outliers": corpus.outliers}
    write_result(
        json, {"codes": str(codes), **numbers, "profiles": [asdict(profile) for profile in shown]}
    )


def _decoder(run: Path | None, codes: Any) -> tuple[Tensor | None, str | None]:
    """The decoder of the autoencoder, which must be as wide as the codes, in the model's own units, and where it writes."""
    if run is None:
        return None, None
    from bitlens.autoencoders import Autoencoder

    model = Autoencoder.from_pretrained(run)
    if model.n_latents != codes.n_latents:
        raise BitlensError(
            f"{run} has {model.n_latents} latents, but the codes {codes.path} have {codes.n_latents}; name their own run."
        )
    scale, hook = ("scale_out", "target_hook") if model.transcodes else ("scale", "hook")
    return model.W_dec.detach() * model.get_buffer(scale), (model.metadata.get(hook) or {}).get(
        "module"
    )


def _line(profile: Profile) -> dict[str, Any]:
    return {
        "latent": profile.latent, "on %": 100 * profile.rate, "F1": _known(profile.token_f1), "again": _known(profile.again),
        "tokens": _tokens(profile.tokens), "example": profile.examples[0] if profile.examples else "",
    }  # fmt: skip


def _known(number: float) -> float | None:
    return None if math.isnan(number) else number


def _tokens(preferred: list[Preference]) -> str:
    from bitlens import show

    return " ".join(show.token(p.text) for p in preferred[:TOKENS])


def _page(profile: Profile) -> None:
    """All that is known of one latent."""
    from rich.table import Table

    from bitlens import show

    grid = Table.grid(padding=(0, 2))

    def say(name: str, text: str) -> None:
        grid.add_row(f"  {name}", text)

    def preferred(tokens: list[Preference]) -> str:
        return (
            "  ".join(f"{show.token(t.text)} {t.share:.0%} (x{t.lift:.3g})" for t in tokens)
            or "none"
        )

    show.marked(
        f"[bold]Latent {profile.latent}[/bold]{', on is 0 in the codes' if profile.flipped else ''}"
    )
    say(
        "on",
        f"{profile.rate:.3%} of rows, {profile.surprisal:.2f} bits each time; entropy {profile.bits:.4f} bits a row",
    )
    say(
        "clustering",
        f"burstiness {profile.burstiness:.4f}, dispersion {profile.dispersion:.3g}, again {profile.again:.3g}",
    )
    say("positions", "  ".join(f"{name}: x{lift:.2f}" for name, lift in profile.positions.items()))
    if not math.isnan(profile.token_f1):
        say("clarity", f"F1 {profile.token_f1:.3f} from a set of {profile.token_set:,} tokens")
    say("tokens", preferred(profile.tokens))
    say("next tokens", preferred(profile.next_tokens))
    say("tree", " ".join(map(str, profile.tree)) or "none")
    if profile.similar:
        say("decoder", "  ".join(f"{near.latent} ({near.value:.2f})" for near in profile.similar))
    if profile.promotes:
        say("promotes", "  ".join(f"{show.token(p.text)} {p.logit:+.2f}" for p in profile.promotes))
    for example in profile.examples:
        say("", example)
    show.out.print(grid)
