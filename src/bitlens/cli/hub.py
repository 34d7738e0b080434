"""`bitlens push`: an autoencoder on the hub."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import tyro

from bitlens.cli.common import On, RunFolder
from bitlens.ecosystem.about import About


def push(
    run: RunFolder,
    repository: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OWNER/NAME")],
    about: Annotated[About, tyro.conf.arg(name="")] = About(),  # noqa: B008
    private: bool = False,
    revision: str | None = None,
    latents: bool = False,
    card: On = True,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Send a run to the Hugging Face Hub, with a card that says what it is.

    Weights, settings, evaluation, curves, report and card go there in one commit, without paths of
    this machine; nothing else in the folder does. The token is that of `hf auth login` or HF_TOKEN.

    Args:
        repository: where to, on the hub; it is made if need be.
        private: make a repository that others cannot see.
        revision: a branch other than main; it is made if need be.
        latents: also the clearest latents of its report, with examples of the text.
        card: leave the README.md there as it is.
        dry_run: print the card and the files, and send nothing.
    """
    from bitlens import show
    from bitlens.ecosystem.hub import push_to_hub
    from bitlens.report.page import size

    options = {"private": private, "revision": revision, "latents": latents}
    pushed = push_to_hub(run, repository, about, keep_card=not card, dry_run=dry_run, **options)
    if dry_run:
        show.say(pushed.card)
    if card and "evaluation.json" not in pushed.files:
        show.warn("The card has no numbers: `bitlens evaluate RUN STORE` measures them.")
    lines = [{"file": name, "size": size(n)} for name, n in pushed.files.items()]
    show.rows(f"{repository}: {'what would be sent' if dry_run else 'sent'}", lines)
    if pushed.commit:
        show.say(f"{run}: {pushed.commit}")
    return asdict(pushed)
