"""Settings of the study `judges`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from bitlens.errors import BitlensError
from bitlens.options import BUNDLED
from bitlens.studies.options import refuse_unknown

KINDS = ("labels", "embedding", "words", "examples")
"""Known labels, nearness in an encoder, and a language model that reads phrases, or examples."""


class Who(NamedTuple):
    """A judge, as it is named among the settings: `kind` or `kind=of`."""

    kind: str
    of: str
    """a language model, or, of `labels`, the labelling"""

    @classmethod
    def named(cls, name: str) -> Who:
        """Of a setting."""
        kind, _, of = name.partition("=")
        refuse_unknown("judge", [kind], KINDS)
        if kind != "labels" and not of:
            raise BitlensError(f"The judge '{kind}' needs a model; name it as {kind}=MODEL.")
        return cls(kind, of)

    def __str__(self) -> str:
        return f"{self.kind}, {Path(self.of).name}" if self.of else self.kind


@dataclass(frozen=True)
class JudgesConfig:
    """Settings of the study `judges`."""

    judges: tuple[str, ...] = ("labels", f"words={BUNDLED}")
    """labels or labels=LABELLING, embedding=MODEL, words=MODEL or examples=MODEL"""
    tagged: Path | None = None
    """sentences with parts of speech, of which meanings are planted: JSON lines (also .gz) of
    `tokens` and Brown's `tags`; by default sentences of `text`, without parts of speech"""
    text: str = BUNDLED
    """text whose sentences are used where none are tagged"""
    judged: int = 40
    """words that each judge is asked about where a meaning holds, and as many where it does not"""
    codes: tuple[str, ...] = ()
    """dictionaries whose interpretable latents are counted: NAME=FOLDER of codes, or of runs"""
    store: str = ""
    """hidden states that runs among `codes` are encoded on"""
    sample: int = 200
    """latents of every dictionary that are judged, drawn at random of all"""
    examples: int = 10
    """texts that an explanation is made from, and as many that it is not to fit"""
    window: int = 10
    """words or tokens shown on each side"""
    shuffles: int = 3
    """explanations of other latents to judge each latent with"""
    passing: float = 0.8
    """accuracy on planted meanings from which a judge is believed about latents"""
    batch: int = 32
    """questions that a model reads at once"""
    device: str = "auto"
    """auto: the GPU if there is one"""
    seeds: tuple[int, ...] = (0,)
    """each draws everything again"""

    def refuse_nonsense(self) -> None:
        """Raise BitlensError for what is wrong before anything is read."""
        if not self.judges or not self.seeds:
            raise BitlensError("Name at least one judge and one seed.")
        for judge in self.judges:
            Who.named(judge)
        for name, low in (("judged", 20), ("examples", 5), ("sample", 1), ("shuffles", 1)):
            if getattr(self, name) < low:
                raise BitlensError(f"`{name}` must be at least {low}, not {getattr(self, name)}.")
        for folder in self.codes:
            name, _, path = folder.partition("=")
            if not name or not Path(path).is_dir() or not path:
                raise BitlensError(
                    f"'{folder}' names no dictionary; `codes` are written as NAME=FOLDER."
                )
        if len(self.dictionaries()) < len(self.codes):
            raise BitlensError("Two of `codes` have one name; give each its own.")

    def dictionaries(self) -> dict[str, Path]:
        """Folders of codes and of runs by their names."""
        pairs = (folder.partition("=") for folder in self.codes)
        return {name: Path(path) for name, _, path in pairs}
