"""A judge and an explainer on this machine, made of a causal language model.

The judge writes nothing: it compares the probabilities of yes and no as the next token, so that
every question has an answer. Load the model with `LanguageModel.load(name, [], causal=True)`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

from bitlens.comsem.calls import Calls, key_of
from bitlens.comsem.examples import Examples
from bitlens.comsem.judges import (
    Messages,
    Question,
    Verdict,
    completion_prompt,
    explain_prompt,
    judge_prompt,
)
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

    P(yes) sums over the first tokens of `YES` but those with which a no may begin. Where examples
    explain, the threshold lies midway between the mean log-odds of these and of the
    counterexamples, each asked about by all others. calls: where
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
        """A verdict with log-odds for each question, above the threshold of its examples if these
        are the explanation."""
        sides = {q.explanation: Examples.of(q.explanation) for q in questions}
        left_out = {said: _each_left_out(sides[said]) for said in sides}
        calibrating = [question for pair in left_out.values() for one in pair for question in one]
        answers = self._answers([*questions, *calibrating])
        thresholds = {
            said: sum(fmean(answers[q].log_odds for q in one) for one in pair) / 2 if pair else 0.0
            for said, pair in left_out.items()
        }
        return [
            _verdict(answers[q].log_odds - thresholds[q.explanation], answers[q].call)
            for q in questions
        ]

    def _answers(self, questions: Sequence[Question]) -> dict[Question, _Answer]:
        prompts = {q: _prompt(q) for q in questions}
        answers: dict[Question, _Answer] = {}
        tokens: dict[Question, list[int]] = {}
        for question, prompt in prompts.items():
            if call := self.calls.get(key_of(self.name, prompt, {})):
                answers[question] = _Answer(float(call.answer.split()[1]), call.id)
            else:
                tokens[question] = self.model.tokens(prompt)
        for batch in self._batches(tokens):
            began = time.monotonic()
            ids = [tokens[question] for question in batch]
            log_odds = self.model.log_odds(ids, self._yes, self._no)
            seconds = (time.monotonic() - began) / len(batch)
            for question, value in zip(batch, log_odds, strict=True):
                answers[question] = self._recorded(prompts[question], value, seconds)
        return answers

    def _batches(self, tokens: dict[Question, list[int]]) -> Iterator[list[Question]]:
        """Questions to read together: those about one explanation, as they begin alike, and what is
        single by length, so that little is padding."""
        groups: dict[str, list[Question]] = {}
        for question in sorted(tokens, key=lambda question: len(tokens[question])):
            groups.setdefault(question.explanation, []).append(question)
        single = [group[0] for group in groups.values() if len(group) == 1]
        for group in [*(group for group in groups.values() if len(group) > 1), single]:
            for start in range(0, len(group), self.batch):
                yield group[start : start + self.batch]

    def _recorded(self, prompt: Messages, log_odds: float, seconds: float) -> _Answer:
        if math.isnan(log_odds):
            return _Answer(log_odds, None)
        answer = f"{'yes' if log_odds > 0 else 'no'} {log_odds!r}"
        key = key_of(self.name, prompt, {})
        return _Answer(log_odds, self.calls.put(key, self.name, prompt, answer, seconds).id)


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
        model.require_context(len(ids) + self.tokens, "`window` or `examples`")
        room = (model.longest_context() or 10**9) - len(ids)
        for limit in (self.tokens, min(8 * self.tokens, room)):
            began = time.monotonic()
            answer = self.model.write(ids, limit)
            if answer is not None:
                self.calls.put(key, self.name, prompt, answer, time.monotonic() - began)
                return answer
        return ""


class _Answer(NamedTuple):
    """What the model says."""

    log_odds: float
    """of yes"""
    call: int | None


def _prompt(question: Question) -> Messages:
    """A question about a phrase, or a text of examples to go on with."""
    if examples := Examples.of(question.explanation):
        return completion_prompt(examples, question.text)
    return judge_prompt(question.explanation, [question.text])


def _each_left_out(examples: Examples | None) -> tuple[list[Question], ...]:
    """Questions about each example and about each counterexample by the others; nothing of a
    phrase, or of one text only."""
    if examples is None or min(len(examples.like), len(examples.unlike)) < 2:
        return ()
    like, unlike = examples
    of_like = [
        Question(Examples(like[:i] + like[i + 1 :], unlike).explanation, text)
        for i, text in enumerate(like)
    ]
    of_unlike = [
        Question(Examples(like, unlike[:i] + unlike[i + 1 :]).explanation, text)
        for i, text in enumerate(unlike)
    ]
    return of_like, of_unlike


def _verdict(log_odds: float, call: int | None) -> Verdict:
    return Verdict(None if math.isnan(log_odds) else log_odds > 0, log_odds, call)


@dataclass(frozen=True)
class LocalSettings(LanguageModelSettings):
    """Where the models are run."""

    who = "a Hugging Face model on this machine"

    device: str = "auto"
    """auto, cpu, cuda; for judges on this machine"""

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
