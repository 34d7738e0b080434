"""The command that measures what each latent does to what a language model says."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bitlens.cli.common import On, RunFolder, Search, SearchFlags, StoreFolder, open_pair, signed
from bitlens.devices import pick_device
from bitlens.errors import BitlensError

if TYPE_CHECKING:
    from bitlens.autoencoders import Autoencoder
    from bitlens.causal.effects import Effect

TOKENS, MOVED = 4, 3  # shown of each latent


def effects(
    run: RunFolder,
    store: StoreFolder,
    latents: tuple[int, ...] = (),
    contexts: int = 100,
    rows: int = 32,
    following: int = 4,
    switch: Literal["off", "on"] = "off",
    downstream: Path | None = None,
    control: On = True,
    top: int = 20,
    part: Literal["test", "all"] = "test",
    seed: int = 0,
    out: Path | None = None,
    resume: bool = False,
    search: SearchFlags = Search(),  # noqa: B008
    device: str = "auto",
) -> dict[str, Any]:
    """Switch each latent where it is on, and measure what the language model then says.

    One latent is switched at one token; the others stay. For each latent: the KL divergence of the
    next token's distribution, the rise of the cross-entropy of the tokens that follow, and the
    tokens that the latent raises and lowers. The table is sorted by the lower end of the KL
    divergence's interval, so that few tokens make no latent seem strong; those of tokens in a
    single document have no interval and come last. A stopped measurement with --out goes on,
    bit-exactly, with --resume.

    Args:
        latents: measure these; by default all.
        contexts: contexts that the language model reads, drawn at random.
        rows: switch each latent at up to so many tokens, drawn at random.
        following: tokens after a switch whose cross-entropy counts.
        switch: off, where a latent is on; on, where it is off.
        downstream: an autoencoder of a later hook point of this model: also measure which of its
            latents go on or off.
        control: leave out the control: as long steps along the decoder rows of other latents.
        top: latents in the table.
        part: test: the held-out documents; all: every row, of text it was not trained on.
        seed: seed of the contexts and tokens.
        out: also write the effects to this file, .jsonl or .parquet; what is measured so far is
            kept beside it.
        resume: continue a measurement that was stopped.
    """
    from bitlens.causal import effects as measure
    from bitlens.causal.splice import load_spliced
    from bitlens.features.profiles import require_ending, write_records

    if out is not None:
        require_ending(out)
    elif resume:
        raise BitlensError("--resume needs --out: name the file of the stopped measurement.")
    if top < 1:
        raise BitlensError(f"--top must be at least 1, not {top}.")
    autoencoder, opened = open_pair(run, store, device, search)
    later = None if downstream is None else _later(downstream, device)
    unfinished = None if out is None else out.with_name(f"{out.name}.unfinished")
    more: Any = () if later is None else later.hooks[:1]
    found = measure.effects(
        load_spliced(autoencoder, opened, pick_device(device), more),
        autoencoder,
        opened,
        latents or None,
        contexts=contexts,
        rows=rows,
        following=following,
        switch=switch,
        control=control,
        downstream=later,
        part=part,
        seed=seed,
        unfinished=unfinished,
        resume=resume,
    )
    order = _show(found, f"{run} on {store}: each latent switched {switch}", top)
    if out is not None and unfinished is not None:
        write_records(out, [asdict(effect) for effect in found])
        shutil.rmtree(unfinished)
    about = {"run": str(run), "store": str(store), "switch": switch, "latents": len(found)}
    return about | {"effects": [asdict(effect) for effect in order]}


def _show(found: list[Effect], title: str, top: int) -> list[Effect]:
    """The table -> what is in it"""
    from bitlens import show

    known = [effect for effect in found if effect.rows]
    order = sorted(known, key=_clear, reverse=True)[:top]
    show.rows(title, [_line(effect) for effect in order])
    show.marked(
        "[dim]KL: of the next token, nats; effect: the lower end of its interval; control: of as "
        "long a step along another latent; loss: rise of the cross-entropy of the following tokens,"
        " * is clearly not 0; rises, falls: log-probability with the latent on less that with it "
        "off.[/dim]"
    )
    if len(known) < len(found):
        show.warn(f"{len(found) - len(known):,} latents have no row at which to be switched.")
    return order


def _later(downstream: Path, device: str) -> Autoencoder:
    from bitlens.autoencoders import Autoencoder

    later = Autoencoder.from_pretrained(downstream, pick_device(device))
    if not later.hooks[0]:
        raise BitlensError(f"{downstream} names no hook point, so it cannot be --downstream.")
    return later


def _clear(effect: Effect) -> tuple[bool, float]:
    """By the lower end of the interval; without one, after all that have one, by the mean."""
    known = effect.kl_div_low == effect.kl_div_low
    return known, effect.kl_div_low if known else effect.kl_div


def _line(effect: Effect) -> dict[str, Any]:
    from bitlens import show
    from bitlens.information.intervals import Estimate

    def named(tokens: list[Any]) -> str:
        return "  ".join(f"{show.token(t.text)} {t.logp:+.1f}" for t in tokens[:TOKENS])

    kl = Estimate(effect.kl_div, effect.kl_div_low, effect.kl_div_high)
    loss = Estimate(effect.loss, effect.loss_low, effect.loss_high)
    line: dict[str, Any] = {
        "latent": effect.latent,
        "on %": 100 * effect.rate,
        "rows": effect.rows,
        "effect": kl.low if kl.known else None,
        "KL": f"{kl.value:.3f}" + (f" ± {kl.half:.3f}" if kl.known else ""),
        "control": None if effect.kl_control != effect.kl_control else effect.kl_control,
        "loss": signed(loss, 3),
        "rises": named(effect.raises),
        "falls": named(effect.lowers),
    }
    if effect.downstream:
        moved = (f"{each.latent} {each.value:+.2f}" for each in effect.downstream[:MOVED])
        line["downstream"] = "  ".join(moved)
    return line
