"""Everything that is known of a run, ready to be asked for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from bitlens import terminal
from bitlens.autoencoders import Autoencoder
from bitlens.autoencoders.formats.registry import folder_of
from bitlens.devices import pick_device
from bitlens.errors import BitlensError
from bitlens.evaluation.numbers import first_rows
from bitlens.explorer import history
from bitlens.explorer.answers import LatentAnswers, rounded
from bitlens.explorer.comparing import comparison
from bitlens.explorer.encoding import codes_of
from bitlens.explorer.evidence import Explanations, read_records
from bitlens.explorer.keeping import FOLDER, Record, kept, origin
from bitlens.explorer.live import TEXT_LIMIT, Live
from bitlens.explorer.subject import Subject
from bitlens.explorer.worker import Worker
from bitlens.hidden import ActivationStore
from bitlens.remote import copy_folder, is_remote
from bitlens.report.contents import ARCHITECTURES

if TYPE_CHECKING:  # a static copy needs no server
    from bitlens.explorer.asked import FindAsked, HoldAsked, NearAsked, TextAsked

VALUES = 4096  # rows that show how high values are


@dataclass(frozen=True)
class Sources:
    """Where everything lies."""

    run: Path
    """an autoencoder"""
    codes: Path | None = None
    """its codes; by default they are made of the first rows of its store"""
    store: Path | None = None
    """hidden states of its hook point; by default those it was trained on"""
    explanations: Path | None = None
    """folder of `bitlens interpret`"""
    effects: Path | None = None
    """file of `bitlens effects`"""
    beside: Path | None = None
    """another run, to compare"""
    beside_codes: Path | None = None
    """of that run"""
    model: bool = True
    """load the language model, for what is live"""


class Explorer:
    """The answers to all questions of the page."""

    def __init__(self, sources: Sources) -> None:
        self.sources, self.device = sources, pick_device("auto")
        self._copies = TemporaryDirectory(prefix="bitlens-")  # of remote runs
        self.subject = self._subject(sources.run, sources.codes, "codes")
        explanations, effects = None, None
        if sources.explanations is not None:
            explanations = Explanations(sources.explanations, self.subject.codes.path)
        if sources.effects is not None:
            way = "name the file that `bitlens effects` wrote, with `effects`"
            effects = read_records(sources.effects, "effects", way)
        self.answers = LatentAnswers(self.subject, explanations, effects)
        self.other: LatentAnswers | None = None
        self._comparison: Record = {}
        if sources.beside is not None:
            self._compare(self._subject(sources.beside, sources.beside_codes, "beside_codes"))
        self.worker = Worker()
        self.live = self._live() if sources.model else None

    def _subject(self, run: Path, codes: Path | None, flag: str) -> Subject:
        run = folder_of(run)
        if is_remote(run):  # what is found out is kept in the folder: in a copy of it
            here = Path(self._copies.name, flag, run.name)
            copy_folder(run, here)
            run = here
        autoencoder = Autoencoder.from_pretrained(run, self.device)
        found = codes_of(run, autoencoder, codes, self.sources.store, flag)
        return Subject(run, found, autoencoder, self.sources.model)

    def _compare(self, other: Subject) -> None:
        subject = self.subject
        self.other = LatentAnswers(other)
        file = subject.run / FOLDER / f"beside-{other.run.resolve().name}.jsonl"
        origins = [origin(each.run, each.codes) for each in (subject, other)]
        self._comparison = kept(file, origins, lambda: [comparison(subject, other)])[0]

    def _live(self) -> Live | None:
        try:
            live = Live(self.subject, self.worker)
        except BitlensError as error:
            terminal.say(f"Without live text: {error}")
            return None
        # browsing does not wait for these; the first view comes first
        for loading in (lambda: self.latents, self.subject.words, live.load):
            self.worker.ask(loading)
        return live

    # --- what a static copy has, too --------------------------------------------------------------

    def run(self, live: bool = True) -> Record:
        """What the whole page needs to know, and the view of the run."""
        subject, run = self.subject, self.sources.run
        metadata, manifest = subject.autoencoder.metadata, subject.codes.manifest
        marginal = sum(record["bits"] for record in subject.records)
        answer = {
            **about(subject),
            "bits": subject.autoencoder.binary,
            "searched": getattr(subject.autoencoder, "coding", None) == "descent",
            "hold_max": self._usual_highest,
            "model": manifest.get("model"),
            "hook": (metadata.get("hook") or {}).get("module"),
            "d_in": subject.autoencoder.d_in,
            "rows": len(subject.codes),
            "live": live and self.live is not None,
            "text_limit": TEXT_LIMIT,
            "explanations": self.answers.explanations is not None,
            "effects": bool(self.answers.effects),
            "beside": about(self.other.subject) if self.other else None,
            **history.told(run, marginal),
            "commands": history.commands(run, metadata, manifest),
        }
        return rounded(answer)

    @cached_property
    def _usual_highest(self) -> float | None:
        """Of a sparse autoencoder, the value that one in a thousand on-states is above."""
        autoencoder = self.subject.autoencoder
        place = self.sources.store or autoencoder.metadata.get("store")
        if autoencoder.binary or not place:
            return None
        try:
            rows = first_rows(ActivationStore(place), "all", VALUES).to(self.device)
            codes = autoencoder.encode(rows).detach()
        except BitlensError:
            return None
        on = codes[codes > 0].flatten()[: 1 << 20].double()
        return float(torch.quantile(on, 0.999)) if len(on) else None

    @cached_property
    def latents(self) -> bytes:
        """The table of all latents, encoded once."""
        return encoded(self.answers.table())

    def latent(self, latent: int) -> Record:
        """All of one latent."""
        return self.answers.latent(latent)

    @cached_property
    def compare(self) -> bytes:
        """Both runs' latents, matched."""
        both = {"a": about(self.subject), "b": about(self._other().subject)}
        return encoded(both | rounded(self._comparison))

    def beside(self, latent: int) -> Record:
        """All of one latent of the other run."""
        return self._other().latent(latent)

    def _other(self) -> LatentAnswers:
        if self.other is None:
            raise BitlensError("There is no other run to compare; name one with `beside`.")
        return self.other

    # --- live: in the worker's thread -------------------------------------------------------------

    def _model(self) -> Live:
        if self.live is None:
            raise BitlensError("The language model is not loaded, so no text can be read.")
        return self.live

    def text(self, asked: TextAsked) -> Record:
        """Every token with its bits and the next tokens."""
        return rounded(self._model().text(asked.text))

    def hold(self, asked: HoldAsked) -> Record:
        """What comes next before and after holding latents."""
        return self._model().hold(asked)

    def near(self, asked: NearAsked) -> Record:
        """Contexts of the corpus like a token of a text."""
        bits = self._model().packed(asked.text, asked.position)
        return self.subject.near(bits, asked.limit)

    def find(self, asked: FindAsked) -> Record:
        """Contexts of the corpus with latents on and off."""
        return self.subject.find(asked.on, asked.off, asked.limit)


def about(subject: Subject) -> Record:
    """A run in a few words."""
    architecture = subject.autoencoder.architecture
    return {
        "title": subject.run.resolve().name,
        "run": str(subject.run),
        "architecture": architecture,
        "kind": ARCHITECTURES.get(architecture, architecture),
        "n_latents": subject.n_latents,
    }


def encoded(answer: Any) -> bytes:
    """As it is sent: compact, without NaN, and of what is no character a question mark."""
    text = json.dumps(answer, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")
