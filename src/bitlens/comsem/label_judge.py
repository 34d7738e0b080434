"""The judge that needs no language model: known labels explain a latent, and judge its rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bitlens.comsem.settings import JudgeSettings
from bitlens.errors import BitlensError

if TYPE_CHECKING:
    from bitlens.bits.codes import Codes
    from bitlens.comsem.calls import Calls
    from bitlens.comsem.interpret import Config, Results


@dataclass(frozen=True)
class LabelSettings(JudgeSettings):
    """Where the labels come from."""

    who = "known labels, offline"

    labels: Path | None = None
    """for --judge labels: a file as for `bitlens labels`; by default the codes' own labels"""
    labelling: str = "token"
    """for --judge labels: which of the labellings"""

    def interpret(
        self, codes: Codes, latents: Sequence[int], config: Config, calls: Calls
    ) -> Results:
        """Explain and judge these latents."""
        from bitlens.comsem.interpret import comsem_by_labels
        from bitlens.labels.sources import load_tokenizer, own_labels, read_labels

        tokenizer = load_tokenizer(codes)
        if self.labels is None:
            labellings = own_labels(codes, tokenizer)
        else:
            labellings = read_labels(self.labels, codes, tokenizer)
        by_name = {labels.name: labels for labels in labellings}
        if self.labelling not in by_name:
            raise BitlensError(
                f"There is no labelling '{self.labelling}'; choose from: {', '.join(by_name)}."
            )
        return comsem_by_labels(codes, latents, by_name[self.labelling], config)
