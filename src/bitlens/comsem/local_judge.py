"""A judge and an explainer on this machine, made of a causal language model.

The judge writes nothing: it compares the probabilities of yes and no as the next token, so that
every question has an answer. Load the model with `LanguageModel.load(name, [], causal=True)`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bitlens.comsem.calls import Calls, key_of
from bitlens.comsem.judges import Messages, Question, Verdict, explain_prompt, judge_prompt
from bitlens.comsem.settings import LanguageModelSettings
from bitlens.comsem.verdicts import parse_explanation
from bitlens.errors import BitlensError

if TYPE_CHECKING:
    from bitlens.hidden.models import LanguageModel

YES = ("yes", "Yes", "YES", " yes", " Yes", " YES")
NO = ("no", "No", "NO", " no", " No", " NO")
EXPLANATION_TOKENS = 40


class LocalJudge:
    """Answers by the log-odds `log P(yes) - log P(no)` of the token after the prompt.

    P(yes) sums over the first tokens of `YES` but those with which a no may begin. calls: where
    answers are recorded, and read again; batch: prompts that the model reads at once.
    """

    def __init__(self, model: LanguageModel, calls: Calls | None = None, batch: int = 8) -> None:
        from bitlens.comsem.local_model import AnsweringModel

        self.model, self.batch = AnsweringModel(model), batch
        self.calls = calls or Calls(":memory:")
        self.name = f"log-odds of {self.model.name}"
        yes, no = self.model.first_tokens(YES), self.model.first_tokens(NO)
        self._yes, self._no = sorted(yes - no), sorted(no - yes)
        if not self._yes or not self._no:
            raise BitlensError(
                f"The tokenizer of {model.name} cannot tell yes from no by a token; "
                "take another model."
            )

    def answer(self, questions: Sequence[Question]) -> list[Verdict]:
        """A verdict with log-odds for each question."""
        prompts = {q: judge_prompt(q.explanation, [q.text]) for q in questions}
        verdicts: dict[Question, Verdict] = {}
        tokens: dict[Question, list[int]] = {}
        for question, prompt in prompts.items():
            if call := self.calls.get(key_of(self.name, prompt, {})):
                verdicts[question] = _verdict(float(call.answer.split()[1]), call.id)
            else:
                tokens[question] = self.model.tokens(prompt)
        # Prompts of a like length are read together, so that little is padding.
        missing = sorted(tokens, key=lambda question: len(tokens[question]))
        for start in range(0, len(missing), self.batch):
            batch, began = missing[start : start + self.batch], time.monotonic()
            ids = [tokens[question] for question in batch]
            log_odds = self.model.log_odds(ids, self._yes, self._no)
            seconds = (time.monotonic() - began) / len(batch)
            for question, value in zip(batch, log_odds, strict=True):
                verdicts[question] = self._recorded(prompts[question], value, seconds)
        return [verdicts[question] for question in questions]

    def _recorded(self, prompt: Messages, log_odds: float, seconds: float) -> Verdict:
        if math.isnan(log_odds):
            return _verdict(log_odds, None)
        answer = f"{'yes' if log_odds > 0 else 'no'} {log_odds!r}"
        key = key_of(self.name, prompt, {})
        return _verdict(log_odds, self.calls.put(key, self.name, prompt, answer, seconds).id)


class LocalExplainer:
    """Explains in the likeliest words, up to the end of a line; calls: as for the judge.

    tokens: that an explanation may have, and eight times as many where that cuts it off.
    """

    def __init__(
        self, model: LanguageModel, calls: Calls | None = None, tokens: int = EXPLANATION_TOKENS
    ) -> None:
        from bitlens.comsem.local_model import AnsweringModel

        self.model, self.tokens = AnsweringModel(model), tokens
        self.calls = calls or Calls(":memory:")
        self.name = f"greedy {self.model.name}"

    def explain(self, examples: Sequence[Sequence[str]]) -> list[str]:
        """One short explanation for each latent's marked texts; empty where it came to no end."""
        return [parse_explanation(self._answer(explain_prompt(texts))) for texts in examples]

    def _answer(self, prompt: Messages) -> str:
        key = key_of(self.name, prompt, {})
        if call := self.calls.get(key):
            return call.answer
        ids, model = self.model.tokens(prompt), self.model.model
        model.require_context(len(ids) + self.tokens)
        room = (model.longest_context() or 10**9) - len(ids)
        for limit in (self.tokens, min(8 * self.tokens, room)):
            began = time.monotonic()
            answer = self.model.write(ids, limit)
            if answer is not None:
                self.calls.put(key, self.name, prompt, answer, time.monotonic() - began)
                return answer
        return ""


def _verdict(log_odds: float, call: int | None) -> Verdict:
    return Verdict(None if math.isnan(log_odds) else log_odds > 0, log_odds, call)


@dataclass(frozen=True)
class LocalSettings(LanguageModelSettings):
    """Where the models are run."""

    who = "a Hugging Face model on this machine"

    device: str = "auto"
    """auto, cpu, cuda; for --judge local"""

    def pair(self, calls: Calls) -> tuple[LocalExplainer, LocalJudge]:
        """-> explainer and judge"""
        from bitlens.devices import pick_device
        from bitlens.hidden import LanguageModel

        device = pick_device(self.device)
        judge = LanguageModel.load(self.model, [], causal=True, device=device)
        explainer = judge
        if self.explainer_model not in ("", self.model):
            name = self.explainer_model
            explainer = LanguageModel.load(name, [], causal=True, device=device)
        tokens = max(self.answer_tokens, EXPLANATION_TOKENS)
        return LocalExplainer(explainer, calls, tokens), LocalJudge(judge, calls, self.batch)
