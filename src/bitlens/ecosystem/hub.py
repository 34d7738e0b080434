"""An autoencoder on the hub: what is published of it, and its card, in one commit."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitlens import hub, terminal
from bitlens.autoencoders import Autoencoder
from bitlens.ecosystem import card
from bitlens.ecosystem.about import About
from bitlens.ecosystem.published import CARD, FILES, lay_out
from bitlens.errors import BitlensError
from bitlens.remote import place
from bitlens.results import plain
from bitlens.version import __version__


@dataclass(frozen=True)
class Pushed:
    """What was sent, or would be."""

    repository: str
    files: dict[str, int]
    """bytes, by name"""
    card: str
    """the text of its README.md"""
    commit: str | None = None
    """its address on the hub; None of a dry run"""


@terminal.shown("push")
def push_to_hub(
    source: Autoencoder | Path | str,
    repository: str,
    about: About = About(),  # noqa: B008
    *,
    private: bool = False,
    revision: str | None = None,
    latents: bool = False,
    keep_card: bool = False,
    dry_run: bool = False,
    progress: bool = True,
) -> Pushed:
    """Send an autoencoder to the repository `owner/name` of the hub, which is made if need be: its
    weights, settings, evaluation, curves, report, and a card that says what they are.

    source: a run's folder; or an autoencoder, or what else `from_pretrained` takes, of which there
    are weights, settings and a card alone. private: make a repository that others cannot see.
    revision: a branch other than main. latents: with its clearest latents and examples of them,
    which quote the text. keep_card: leave the card there as it is. dry_run: nothing is sent, no
    network is used. progress: show it on standard error.
    """
    from huggingface_hub import get_token

    if not hub.is_name(repository):
        raise BitlensError(
            f"'{plain(repository)}' is no name of a repository on the hub, which is owner/name."
        )
    if not dry_run and get_token() is None:
        raise BitlensError(
            "To write to the hub takes a token that may: `hf auth login`, or set HF_TOKEN."
        )
    run = None
    if isinstance(source, Autoencoder):
        autoencoder = source
    else:
        autoencoder, run = Autoencoder.from_pretrained(source), place(source)
    licence = card.licence_of(autoencoder.metadata.get("model"))
    with tempfile.TemporaryDirectory() as folder:
        there = Path(folder)
        shown = lay_out(autoencoder, run, there, repository, latents=latents)
        text = card.write(shown, there, repository, about, licence)
        (there / CARD).write_text(text, encoding="utf-8")
        files = {name: (there / name).stat().st_size for name in FILES if (there / name).exists()}
        pushed = Pushed(repository, files, text)
        if dry_run:
            return pushed
        leave = {CARD} if keep_card else set()
        bar, saying = (
            terminal.bar(f"push {repository}"),
            hub.saying(repository, revision, sent=True),
        )
        with bar, hub.quiet(), saying:
            commit = _send(there, pushed, leave, private, revision or "main")
        return Pushed(repository, files, text, commit)


def _send(there: Path, pushed: Pushed, leave: set[str], private: bool, branch: str) -> str:
    """One commit that adds, replaces and removes the files that are ours -> its address."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api, name = HfApi(library_name="bitlens", library_version=__version__), pushed.repository
    hub.patiently(lambda: api.create_repo(name, private=private, exist_ok=True))
    if branch != "main":
        hub.patiently(lambda: api.create_branch(name, branch=branch, exist_ok=True))

    def commit() -> str:
        there_now = set(api.list_repo_files(name, revision=branch))
        adds = [CommitOperationAdd(file, there / file) for file in pushed.files]
        adds = [one for one in adds if one.path_in_repo not in leave & there_now]
        former = [file for file in FILES if file in there_now and file not in pushed.files]
        operations: list[Any] = [*adds, *map(CommitOperationDelete, former)]
        message = f"Upload an autoencoder with bitlens {__version__}"
        done = api.create_commit(name, operations, commit_message=message, revision=branch)
        return done.commit_url

    return hub.patiently(commit)
