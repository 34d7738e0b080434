"""A causal language model that answers prompts: odds of the next token, and what it writes."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteriaList

from bitlens.comsem.judges import COMPLETION, Messages
from bitlens.comsem.verdicts import is_tag, parse_explanation, unfinished, without_thought
from bitlens.hidden.models import LanguageModel


class AnsweringModel:
    """Any model that `LanguageModel.load(name, [], causal=True)` reads."""

    def __init__(self, model: LanguageModel) -> None:
        self.model, self.tokenizer = model, model.tokenizer

    @property
    def name(self) -> str:
        """Everything that its answers depend on."""
        revision = f"@{self.model.revision}" if self.model.revision else ""
        return f"{self.model.name}{revision} in {str(self.model.dtype).removeprefix('torch.')}"

    def first_tokens(self, words: Sequence[str]) -> set[int]:
        """The first token of each of these words."""
        encoded = (self.tokenizer.encode(word, add_special_tokens=False) for word in words)
        return {ids[0] for ids in encoded if ids}

    def tokens(self, prompt: Messages) -> list[int]:
        """Token ids up to where the answer begins; chat models are told not to think."""
        if prompt[0]["role"] == COMPLETION:
            return self.tokenizer.encode(prompt[0]["content"])
        if getattr(self.tokenizer, "chat_template", None):
            text = self.tokenizer.apply_chat_template(
                prompt,
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=False,
                thinking=False,
            )
            return self.tokenizer.encode(without_thought(text), add_special_tokens=False)
        text = "\n\n".join(message["content"] for message in prompt)
        return self.tokenizer.encode(text + "\nAnswer:")

    @torch.inference_mode()
    def log_odds(
        self, prompts: Sequence[list[int]], yes: Sequence[int], no: Sequence[int]
    ) -> list[float]:
        """Of prompts as token ids: the log-odds that a token of `yes` comes next, not of `no`."""
        ids, mask = self._padded(prompts)
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        options: dict[str, Any] = {"position_ids": positions, "logits_to_keep": 1}
        accepted = inspect.signature(self.model.model.forward).parameters
        options = {name: value for name, value in options.items() if name in accepted}
        model: Any = self.model.model
        logits = model(input_ids=ids, attention_mask=mask, **options).logits[:, -1].float()
        return (logits[:, yes].logsumexp(1) - logits[:, no].logsumexp(1)).tolist()

    @torch.inference_mode()
    def write(self, prompt: list[int], limit: int) -> str | None:
        """The likeliest words up to the end of a line that says something, or None if there is none
        within `limit` tokens, thoughts included."""

        def enough(ids: Tensor, scores: Any, **options: Any) -> Tensor:
            lines = self._readable(ids[0, len(prompt) :].tolist()).rpartition("\n")[0]
            return torch.tensor([bool(parse_explanation(lines))], device=ids.device)

        ids, mask = self._padded([prompt])
        model: Any = self.model.model
        written = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=limit,
            do_sample=False,
            num_beams=1,
            use_cache=True,
            pad_token_id=self._padding,
            stopping_criteria=StoppingCriteriaList([enough]),
        )
        ended = written.shape[1] < len(prompt) + limit or bool(enough(written, None))
        answer = self._readable(written[0, len(prompt) :].tolist())
        return answer if ended and not unfinished(answer) else None

    def _readable(self, ids: list[int]) -> str:
        """What these tokens say, without special ones, but for those around thoughts."""
        names = self.tokenizer.all_special_tokens
        special = {self.tokenizer.convert_tokens_to_ids(name): name for name in names}
        kept = [i for i in ids if i not in special or is_tag(special[i])]
        return self.tokenizer.decode(kept, skip_special_tokens=False)

    def _padded(self, prompts: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
        """Prompts that end at the same place -> ids and mask, int64 `[prompts, longest]`"""
        longest = max(len(prompt) for prompt in prompts)
        self.model.require_context(longest, "`window` or `examples`")
        ids = torch.full((len(prompts), longest), self._padding)
        mask = torch.zeros_like(ids)
        for i, prompt in enumerate(prompts):
            ids[i, longest - len(prompt) :] = torch.tensor(prompt)
            mask[i, longest - len(prompt) :] = 1
        return ids.to(self.model.device), mask.to(self.model.device)

    @property
    def _padding(self) -> int:
        """Any token does that the model has an embedding for: it is masked."""
        padding = self.tokenizer.pad_token_id or 0
        return padding if padding < (self.model.vocabulary or padding + 1) else 0
