"""Settings of the study `icl`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from bitlens.errors import BitlensError
from bitlens.studies.options import ModelStudyConfig

Condition = Literal["correct", "shuffled", "unrelated"]
NO_DEMONSTRATIONS = "none"  # the condition of k = 0, which all others share
FEWEST_PROMPTS = 50


@dataclass(frozen=True)
class IclConfig(ModelStudyConfig):
    """Settings of the study `icl`."""

    data: str
    """labelled texts: JSON lines, also .gz, or a dataset (NAME, NAME:CONFIG or a saved folder)"""
    text_column: str = "text"
    """column of the text"""
    label_column: str = "label"
    """column of the label, whose name is the word that the model is to answer"""
    split: str = "train"
    """split of a dataset"""
    template: str = "{text}\nAnswer: {label}\n\n"
    """how a demonstration is written; the query is this up to the space before its label"""
    ks: tuple[int, ...] = (0, 1, 2, 4, 8, 16)
    """numbers of demonstrations"""
    conditions: tuple[Condition, ...] = ("correct", "shuffled", "unrelated")
    """labels of demonstrations as given, or dealt anew; or other texts under the labels"""
    balanced: bool = False
    """every label equally often in a prompt, to within one; otherwise as often as they come"""
    unrelated: str | None = None
    """text or dataset of whose sentences unrelated ones are taken; None: a salad of all words"""
    n_prompts: int = 4000
    """prompts of each condition and k, with the same queries; the last fifth is held out"""
    max_tokens: int | None = None
    """leave out texts with more tokens, label included; None: as many as the largest k allows"""
    text: tuple[str, ...] = ()
    """ordinary text to train on as well: files, folders, datasets or 'bundled'. Empty: prompts
    alone, whose states are then explained better"""
    text_tokens: int = 100_000
    """tokens of it, at most"""
    prompt_share: float = 0.9
    """share of prompts' states in the training rows where there is text"""

    def refuse_nonsense(self) -> None:
        """Raise BitlensError for what is wrong before any file is read."""
        if not self.ks or min(self.ks) < 0:
            raise BitlensError(f"`ks` must be numbers from 0, not {list(self.ks)}.")
        known = get_args(Condition)
        if not self.seeds or not self.conditions or not set(self.conditions) <= set(known):
            raise BitlensError(f"Name at least one seed, and conditions among {', '.join(known)}.")
        if self.n_prompts < FEWEST_PROMPTS:
            raise BitlensError(f"{self.n_prompts} prompts are too few; take {FEWEST_PROMPTS}.")
        if not 0 < self.prompt_share < 1:
            raise BitlensError(f"`prompt_share` must be between 0 and 1, not {self.prompt_share}.")
        if self.text_tokens < 1:
            raise BitlensError(f"`text_tokens` must be at least 1, not {self.text_tokens}.")

    def sets_of_prompts(self) -> list[tuple[str, int, int]]:
        """(condition, k, seed) of every set; without demonstrations the conditions are one."""
        conditions = tuple(dict.fromkeys(self.conditions))
        return [
            (condition, k, seed)
            for seed in dict.fromkeys(self.seeds)
            for k in sorted(set(self.ks))
            for condition in (conditions if k else (NO_DEMONSTRATIONS,))
        ]
