"""A judge and an explainer behind any server that speaks OpenAI's chat completions."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from bitlens.comsem.calls import Call, Calls, Cost
from bitlens.comsem.judges import Question, Verdict, explain_prompt, judge_prompt
from bitlens.comsem.openai_server import OpenAIServer, Prompt, size
from bitlens.comsem.settings import LanguageModelSettings
from bitlens.comsem.verdicts import parse_explanation, parse_verdicts
from bitlens.errors import BitlensError

VERDICT_TOKENS, EXPLANATION_TOKENS = 16, 60


class OpenAIJudge:
    """Asks for several verdicts at once, and again one by one for those that could not be read.

    Texts of one explanation and group are asked together, in an order that does not depend on the
    explanation or on which of them are positives.
    """

    def __init__(self, server: OpenAIServer, calls: Calls, batch: int = 10) -> None:
        if batch < 1:
            raise BitlensError(f"A batch has at least 1 question, not {batch}.")
        self.server, self.calls, self.batch = server, calls, batch
        self.name = f"{server.name}, {batch} at once, {json.dumps(server.settings, sort_keys=True)}"

    def answer(self, questions: Sequence[Question]) -> list[Verdict]:
        """A verdict for each question, from the record of calls where it has been asked before."""
        verdicts = self._ask(self._batches(questions))
        unread = [question for question, verdict in verdicts.items() if verdict.yes is None]
        verdicts |= self._ask([[question] for question in unread])
        return [verdicts[question] for question in questions]

    def estimate(self, questions: Sequence[Question]) -> Cost:
        """What `answer` will cost, beside what is on record."""
        prompts = [_judge_prompt(batch) for batch in self._batches(questions)]
        return _estimate(self.server, self.calls, prompts)

    def _batches(self, questions: Sequence[Question]) -> list[list[Question]]:
        groups: dict[tuple[str, int], set[Question]] = {}
        for question in questions:
            groups.setdefault((question.explanation, question.group), set()).add(question)
        batches = []
        for group in groups.values():
            shuffled = sorted(group, key=lambda question: _hash(question.text))
            starts = range(0, len(shuffled), self.batch)
            batches += [shuffled[start : start + self.batch] for start in starts]
        return batches

    def _ask(self, batches: list[list[Question]]) -> dict[Question, Verdict]:
        verdicts: dict[Question, Verdict] = {}
        answers = _ask(self.server, self.calls, [_judge_prompt(batch) for batch in batches])
        for batch, call in zip(batches, answers, strict=True):
            if call is None:
                verdicts |= dict.fromkeys(batch, Verdict(None, finished=False))
                continue
            for question, yes in zip(batch, parse_verdicts(call.answer, len(batch)), strict=True):
                verdicts[question] = Verdict(yes, None, call.id)
        return verdicts


class OpenAIExplainer:
    """Asks for one explanation a call."""

    def __init__(self, server: OpenAIServer, calls: Calls) -> None:
        self.server, self.calls = server, calls
        self.name = f"{server.name}, {json.dumps(server.settings, sort_keys=True)}"

    def explain(self, examples: Sequence[Sequence[str]]) -> list[str]:
        """One short explanation for each latent's marked texts; empty where none was finished."""
        answers = _ask(self.server, self.calls, [_explain_prompt(texts) for texts in examples])
        return [parse_explanation(call.answer) if call else "" for call in answers]

    def estimate(self, examples: Sequence[Sequence[str]]) -> Cost:
        """What `explain` will cost, beside what is on record."""
        return _estimate(self.server, self.calls, [_explain_prompt(texts) for texts in examples])


def _estimate(server: OpenAIServer, calls: Calls, prompts: Sequence[Prompt]) -> Cost:
    """What these prompts will cost, beside those on record, at four characters a token."""
    missing = _missing(server, calls, prompts)
    read = sum(size(prompt.messages) for prompt in missing)
    written = sum(prompt.expected for prompt in missing)
    return Cost(len(missing), read, written, server.price(read, written))


def _ask(server: OpenAIServer, calls: Calls, prompts: Sequence[Prompt]) -> list[Call | None]:
    """The whole answer to each prompt; None where even the largest limit of tokens cut it off.

    Prompts on record are not sent. After a failure only what is under way is awaited and recorded.
    """
    if missing := _missing(server, calls, prompts):
        if server.prices is None and calls.max_cost < math.inf:
            raise BitlensError("max_cost needs prices, of a million input and output tokens.")
        from bitlens.comsem.openai_client import send_all  # imports the client, which takes a while

        send_all(server, calls, missing)
    return [calls.get(server.key_of(prompt.messages)) for prompt in prompts]


def _missing(server: OpenAIServer, calls: Calls, prompts: Sequence[Prompt]) -> list[Prompt]:
    """Those without an answer on record, unless the largest limit cut it off before."""
    distinct = {server.key_of(prompt.messages): prompt for prompt in prompts}
    return [
        prompt
        for key, prompt in distinct.items()
        if calls.get(key) is None and calls.cut(key) < server.limits(prompt.max_tokens)[-1]
    ]


def _judge_prompt(batch: Sequence[Question]) -> Prompt:
    messages = judge_prompt(batch[0].explanation, [question.text for question in batch])
    return Prompt(messages, max(VERDICT_TOKENS, 8 * len(batch)), 4 * len(batch))


def _explain_prompt(texts: Sequence[str]) -> Prompt:
    return Prompt(explain_prompt(texts), EXPLANATION_TOKENS, EXPLANATION_TOKENS // 3)


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="replace")).digest()


@dataclass(frozen=True)
class OpenAISettings(LanguageModelSettings):
    """The server, what it charges, and the limits on what is spent."""

    who = "a server with OpenAI's chat completions"

    base_url: str = "https://api.openai.com/v1"
    """address of the server"""
    key_variable: str = "OPENAI_API_KEY"
    """environment variable that holds the server's key; unset for a server that needs none"""
    prices: tuple[float, float] | None = None
    """of a million input and a million output tokens"""
    max_cost: float | None = None
    """never spend more, in the currency of --prices; all calls recorded in the folder count"""
    max_calls: int | None = None
    """never make more calls"""
    concurrency: int = 8
    """calls under way at once"""
    timeout: float = 60.0
    """seconds of silence after which a call is given up; more for answers above 512 tokens"""

    priced = True

    def record(self, path: Path) -> Calls:
        """Where questions and answers are kept, within the limits."""
        limits = (math.inf if limit is None else limit for limit in (self.max_cost, self.max_calls))
        return Calls(path, *limits)

    def pair(self, calls: Calls) -> tuple[OpenAIExplainer, OpenAIJudge]:
        """-> explainer and judge"""
        settings = {
            field.name: getattr(self, field.name)
            for field in fields(OpenAIServer)
            if field.name != "model" and hasattr(self, field.name)
        }
        explaining = OpenAIServer(self.explainer_model or self.model, **settings)
        judging = OpenAIServer(self.model, **settings)
        return OpenAIExplainer(explaining, calls), OpenAIJudge(judging, calls, self.batch)
