"""A judge and an explainer on this machine: any causal language model that `LanguageModel.load` reads.

The judge writes nothing: it compares the probabilities of yes and no as the next token, so that every question has an
answer, with log-odds. Load the model with `LanguageModel.load(name, [], causal=True)`.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteriaList

from bitlens.comsem.calls import Calls, key_of
from bitlens.comsem.judges import (
    Messages,
    Question,
    Verdict,
    explain_prompt,
    is_tag,
    judge_prompt,
    parse_explanation,
    unfinished,
    without_thought,
)
from bitlens.errors import BitlensError
from bitlens.hidden.models import LanguageModel

YES = ("yes", "Yes", "YES", " yes", " Yes", " YES")
NO = ("no", "No", "NO", " no", " No", " NO")
EXPLANATION_TOKENS = 40


class LocalJudge:
    """Answers by the log-odds `log P(yes) - log P(no)` of the token after the prompt.

    P(yes) sums over the first tokens of Yes, yes and YES with and without a space before; tokens with which a no may
    begin too are left out. calls: where answers are recorded, and read again.
    """

    def __init__(self, model: LanguageModel, calls: Calls | None = None, batch: int = 8) -> None:
        self.model, self.calls, self.batch = model, calls, batch
        self.name = f"log-odds of {_named(model)}"
        yes, no = ({ids[0] for word in words if (ids := _ids(model, word))} for words in (YES, NO))
        self._yes, self._no = sorted(yes - no), sorted(no - yes)
        if not self._yes or not self._no:
            raise BitlensError(
                f"The tokenizer of {model.name} cannot tell yes from no by a token; take another model."
            )

    def answer(self, questions: Sequence[Question]) -> list[Verdict]:
        """A verdict with log-odds for each question, all of them at the batch size given."""
        distinct = list(dict.fromkeys(questions))
        prompts = {
            question: judge_prompt(question.explanation, [question.text]) for question in distinct
        }
        found = {question: self._recorded(prompt) for question, prompt in prompts.items()}
        missing = [question for question in distinct if found[question] is None]
        tokens = {question: prompt_tokens(self.model, prompts[question]) for question in missing}
        missing.sort(
            key=lambda question: len(tokens[question])
        )  # alike in length, so that little is padding
        for start in range(0, len(missing), self.batch):
            chunk = missing[start : start + self.batch]
            began = time.monotonic()
            odds = self.log_odds([tokens[question] for question in chunk]).tolist()
            seconds = (time.monotonic() - began) / len(chunk)
            for question, value in zip(chunk, odds, strict=True):
                found[question] = self._record(prompts[question], value, seconds)
        return [verdict for question in questions if (verdict := found[question])]

    @torch.inference_mode()
    def log_odds(self, prompts: Sequence[list[int]]) -> Tensor:
        """Token ids of prompts -> float32 `[len(prompts)]`: log-odds that yes comes next and not no."""
        ids, mask = padded_left(self.model, prompts)
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        known = inspect.signature(self.model.model.forward).parameters
        options: dict[str, Any] = {"position_ids": positions, "logits_to_keep": 1}
        options = {name: value for name, value in options.items() if name in known}
        logits = (
            self.model.model(input_ids=ids, attention_mask=mask, **options).logits[:, -1].float()
        )
        return (logits[:, self._yes].logsumexp(1) - logits[:, self._no].logsumexp(1)).cpu()

    def _recorded(self, prompt: Messages) -> Verdict | None:
        call = self.calls.get(key_of(self.name, prompt, {})) if self.calls else None
        return _verdict(float(call.answer.split()[1]), call.id) if call else None

    def _record(self, prompt: Messages, log_odds: float, seconds: float) -> Verdict:
        if self.calls is None or math.isnan(log_odds):
            return _verdict(log_odds, None)
        answer = f"{'yes' if log_odds > 0 else 'no'} {log_odds!r}"
        return _verdict(log_odds, self.calls.put(self.name, prompt, {}, answer, seconds).id)


class LocalExplainer:
    """Explains in the likeliest words, one token after the other, up to the end of a line that says something.

    tokens: that an explanation may have, and eight times as many where that cuts it off; calls: where whole explanations
    are recorded, and read again.
    """

    def __init__(
        self, model: LanguageModel, calls: Calls | None = None, tokens: int = EXPLANATION_TOKENS
    ) -> None:
        self.model, self.calls, self.tokens = model, calls, tokens
        self.name = f"greedy {_named(model)}"

    def explain(self, examples: Sequence[Sequence[str]]) -> list[str]:
        """One short explanation for each latent's marked texts; empty where the model had nothing to say, or no end."""
        return [parse_explanation(self._said(explain_prompt(texts))) for texts in examples]

    def _said(self, prompt: Messages) -> str:
        if self.calls and (call := self.calls.get(key_of(self.name, prompt, {}))):
            return call.answer
        ids = prompt_tokens(self.model, prompt)
        self.model.require_context(len(ids) + self.tokens)
        room = (self.model.longest_context() or 10**9) - len(ids)
        for limit in (self.tokens, min(8 * self.tokens, room)):
            began = time.monotonic()
            answer = self._generate(ids, limit)
            if answer is not None:
                if self.calls:
                    self.calls.put(self.name, prompt, {}, answer, time.monotonic() - began)
                return answer
        return ""

    @torch.inference_mode()
    def _generate(self, prompt: list[int], limit: int) -> str | None:
        """What the model says, thoughts included; None if it comes to no end within so many tokens."""

        def said(ids: Tensor) -> str:
            return readable(self.model, ids[0, len(prompt) :].tolist())

        def enough(ids: Tensor, scores: Any, **options: Any) -> Tensor:
            return torch.tensor(
                [bool(parse_explanation(said(ids).rpartition("\n")[0]))], device=ids.device
            )

        ids, mask = padded_left(self.model, [prompt])
        model: Any = self.model.model
        written = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=limit, do_sample=False, num_beams=1,
            use_cache=True, pad_token_id=_padding(self.model), stopping_criteria=StoppingCriteriaList([enough]),
        )  # fmt: skip
        ended = written.shape[1] < len(prompt) + limit or bool(enough(written, None))
        answer = said(written)
        return answer if ended and not unfinished(answer) else None


def prompt_tokens(model: LanguageModel, prompt: Messages) -> list[int]:
    """Token ids up to where the answer begins: in the tokenizer's chat template, or as plain text if it has none.

    Models that think before they answer are told not to, by the names that templates have for it.
    """
    tokenizer = model.tokenizer
    if getattr(tokenizer, "chat_template", None):
        text = tokenizer.apply_chat_template(
            prompt,
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,
            thinking=False,
        )
        return tokenizer.encode(without_thought(text), add_special_tokens=False)
    return tokenizer.encode("\n\n".join(message["content"] for message in prompt) + "\nAnswer:")


def readable(model: LanguageModel, ids: list[int]) -> str:
    """What these tokens say, without special ones, but for those around thoughts."""
    special = {
        model.tokenizer.convert_tokens_to_ids(token): token
        for token in model.tokenizer.all_special_tokens
    }
    kept = [i for i in ids if i not in special or is_tag(special[i])]
    return model.tokenizer.decode(kept, skip_special_tokens=False)


def padded_left(model: LanguageModel, prompts: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    """Prompts that end at the same place -> token ids and mask, int64 `[len(prompts), longest]`, on the model's device"""
    longest = max(len(prompt) for prompt in prompts)
    model.require_context(longest)
    ids = torch.full((len(prompts), longest), _padding(model))
    mask = torch.zeros_like(ids)
    for i, prompt in enumerate(prompts):
        ids[i, longest - len(prompt) :] = torch.tensor(prompt)
        mask[i, longest - len(prompt) :] = 1
    return ids.to(model.device), mask.to(model.device)


def _verdict(log_odds: float, call: int | None) -> Verdict:
    return Verdict(None if math.isnan(log_odds) else log_odds > 0, log_odds, call)


def _padding(model: LanguageModel) -> int:
    """Any token does that the model has an embedding for: it is masked."""
    padding = model.tokenizer.pad_token_id or 0
    return padding if padding < (model.vocabulary or padding + 1) else 0


def _ids(model: LanguageModel, word: str) -> list[int]:
    return model.tokenizer.encode(word, add_special_tokens=False)


def _named(model: LanguageModel) -> str:
    revision = f"@{model.revision}" if model.revision else ""
    return f"{model.name}{revision} in {str(model.dtype).removeprefix('torch.')}"
