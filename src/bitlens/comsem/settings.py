"""What a judge brings to `bitlens interpret`: its settings, each a flag, and how it is run.

A new judge is a file with a class of settings and a line in `registry.py`. Such a file imports
nothing heavy before the judge is run, so that `--help` comes at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from bitlens import terminal
from bitlens.comsem.calls import Calls, Cost
from bitlens.errors import BitlensError

if TYPE_CHECKING:
    from bitlens.bits.codes import Codes
    from bitlens.comsem.interpret import Config, Results


@dataclass(frozen=True)
class JudgeSettings:
    """Fields are flags of the command line; judges that need the same setting share its name."""

    estimate: bool = False
    """say what the run would cost, and stop"""

    who: ClassVar[str] = "a judge of your own"
    """who judges, in the help of the command"""
    priced: ClassVar[bool] = False
    """whether the judge has to be paid: it can estimate what questions will cost"""

    def check(self) -> None:
        """Refuse what cannot be, before anything is loaded."""
        if self.estimate and not self.priced:
            raise BitlensError("`estimate` is for a judge that has to be paid; this costs nothing.")

    def record(self, path: Path) -> Calls:
        """Where questions and answers are kept; nowhere by default."""
        return Calls(":memory:")

    def interpret(
        self, codes: Codes, latents: Sequence[int], config: Config, calls: Calls
    ) -> Results | None:
        """Explain and judge these latents; None where only an estimate was asked for."""
        raise NotImplementedError


@dataclass(frozen=True)
class LanguageModelSettings(JudgeSettings):
    """Of explainers and judges that read and write words."""

    model: str = ""
    """the judge: a model's name on the server, on the Hub, or a folder"""
    explainer_model: str = ""
    """the explainer, on the same server or machine; by default the judge"""
    explanations: Literal["words", "examples"] = "words"
    """examples: no explainer is asked; the judge reads the texts that it would have been shown"""
    batch: int = 10
    """questions that the judge is asked at once"""
    answer_tokens: int = 0
    """room for thoughts: tokens that every answer may have from the start, not only if cut off"""

    def check(self) -> None:
        """Refuse what cannot be, before anything is loaded."""
        super().check()
        if not self.model:
            raise BitlensError("This judge needs a language model; name it with `model`.")
        if self.explanations == "examples" and self.explainer_model:
            raise BitlensError(
                "No explainer is asked with `explanations=examples`; leave out `explainer_model`."
            )

    def record(self, path: Path) -> Calls:
        """Where questions and answers are kept."""
        return Calls(path)

    def pair(self, calls: Calls) -> tuple[Any, Any]:
        """-> explainer and judge, as in `judges.py`"""
        raise NotImplementedError

    def interpret(
        self, codes: Codes, latents: Sequence[int], config: Config, calls: Calls
    ) -> Results | None:
        """Explain and judge these latents; None where only an estimate was asked for."""
        from bitlens.comsem.examples import ExampleExplainer
        from bitlens.comsem.interpret import comsem, planned
        from bitlens.labels.sources import load_tokenizer

        explainer, judge = self.pair(calls)
        by_examples = ExampleExplainer() if self.explanations == "examples" else None
        tokenizer = load_tokenizer(codes)
        if self.priced:
            texts, questions = planned(codes, latents, tokenizer, config, by_examples)
            costs = explainer.estimate(texts), judge.estimate(questions)
            total = Cost(*(sum(parts) for parts in zip(*costs, strict=True)))
            hint = "" if total.cost else " (name prices for the cost)"
            terminal.say(
                f"About {total.calls:,} calls, {total.input_tokens:,} tokens to read, "
                f"{total.output_tokens:,} to write; cost {total.cost:.4f}{hint}"
            )
        if self.estimate:
            return None
        run = str(codes.path)
        explainer = by_examples or explainer
        return comsem(codes, latents, explainer, judge, tokenizer, config, calls=calls, run=run)
