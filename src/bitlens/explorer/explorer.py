"""Everything that is known of a run, ready to be asked for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitlens.autoencoders import Autoencoder
from bitlens.bits.codes import Codes
from bitlens.errors import BitlensError
from bitlens.explorer import history
from bitlens.explorer.answers import LatentAnswers, rounded
from bitlens.explorer.evidence import Explanations, read_records
from bitlens.explorer.gathering import FOLDER, Record
from bitlens.explorer.subject import Subject
from bitlens.files import finite


@dataclass(frozen=True)
class Sources:
    """Where everything lies."""

    run: Path
    """an autoencoder"""
    codes: Path | None = None
    """its codes; by default they are made of the run's store"""
    store: Path | None = None
    """where the run's own store has gone, another of its hook point"""
    explanations: Path | None = None
    """folder of `bitlens interpret`"""
    effects: Path | None = None
    """file of `bitlens effects`"""
    beside: Path | None = None
    """another run, to compare"""
    beside_codes: Path | None = None
    model: bool = True
    """load the language model, for what is live"""


class Explorer:
    """The answers to all questions of the page."""

    def __init__(self, sources: Sources) -> None:
        self.sources = sources
        autoencoder = Autoencoder.from_pretrained(sources.run)
        codes = Codes(sources.codes, verify=False)
        self.subject = Subject(sources.run, codes, autoencoder, sources.model)
        explanations, effects = None, None
        if sources.explanations is not None:
            explanations = Explanations(sources.explanations, codes.path)
        if sources.effects is not None:
            way = "name the file that `bitlens effects` wrote, with `effects`"
            effects = read_records(sources.effects, "effects", way)
        self.answers = LatentAnswers(self.subject, explanations, effects)
        self._latents = encoded(self.answers.table())
        self.live = None

    def run(self) -> Record:
        """What the whole page needs to know, and the view of the run."""
        subject, sources = self.subject, self.sources
        metadata, manifest = subject.autoencoder.metadata, subject.codes.manifest
        found = history.evaluation(sources.run)
        curves = history.curves(sources.run)
        marginal = sum(record["bits"] for record in subject.records)
        answer = {
            "title": sources.run.resolve().name,
            "run": str(sources.run),
            "architecture": subject.autoencoder.architecture,
            "bits": subject.autoencoder.binary,
            "hold_max": None,
            "model": manifest.get("model"),
            "hook": (metadata.get("hook") or {}).get("module"),
            "n_latents": subject.n_latents,
            "d_in": subject.autoencoder.d_in,
            "rows": len(subject.codes),
            "live": self.live is not None,
            "explanations": self.answers.explanations is not None,
            "effects": bool(self.answers.effects),
            "beside": None,
            "numbers": history.numbers(found),
            "curves": curves,
            "curves_meaning": history.meanings(curves),
            "entropy": history.entropies(found, marginal),
            "made": history.made(metadata, manifest),
            "commands": history.commands(sources.run, metadata, manifest),
        }
        return rounded(finite(answer))

    def latents(self) -> bytes:
        """The table of all latents, encoded once."""
        return self._latents

    def latent(self, latent: int) -> Record:
        """All of one latent."""
        return self.answers.latent(latent)


def encoded(answer: Any) -> bytes:
    """As it is sent: compact, and without NaN."""
    text = json.dumps(answer, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")
