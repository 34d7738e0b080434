"""The judge without words on the command line: which encoder, and where it is run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bitlens.comsem.settings import JudgeSettings
from bitlens.errors import BitlensError

if TYPE_CHECKING:
    from bitlens.bits.codes import Codes
    from bitlens.comsem.calls import Calls
    from bitlens.comsem.interpret import Config, Results


@dataclass(frozen=True)
class EmbeddingSettings(JudgeSettings):
    """Which encoder, and where it is run."""

    who = "nearness to examples in an encoder, without words"

    model: str = ""
    """the judge: a model's name on the server, on the Hub, or a folder"""
    batch: int = 10
    """questions that the judge is asked at once"""
    device: str = "auto"
    """auto, cpu, cuda; for judges on this machine"""

    def check(self) -> None:
        """Refuse what cannot be, before anything is loaded."""
        super().check()
        if not self.model:
            raise BitlensError("This judge needs an encoder; name it with `model`.")

    def interpret(
        self, codes: Codes, latents: Sequence[int], config: Config, calls: Calls
    ) -> Results:
        """Explain and judge these latents."""
        from bitlens.comsem.examples import ExampleExplainer
        from bitlens.comsem.interpret import comsem
        from bitlens.comsem.nearness import EmbeddingJudge, load_encoder
        from bitlens.labels.sources import load_tokenizer

        judge = EmbeddingJudge(load_encoder(self.model, self.device), self.batch)
        tokenizer = load_tokenizer(codes)
        return comsem(codes, latents, ExampleExplainer(), judge, tokenizer, config)
