"""A causal language model that answers prompts: odds of the next token, and what it writes."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import StoppingCriteriaList
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from bitlens.comsem.judges import COMPLETION, Messages
from bitlens.comsem.verdicts import is_tag, parse_explanation, unfinished, without_thought
from bitlens.hidden.models import LanguageModel

# tokens; to read fewer of them once is not worth a pass of their own
SHORTEST_SHARED = 16


class AnsweringModel:
    """Any model that `LanguageModel.load(name, [], causal=True)` reads."""

    def __init__(self, model: LanguageModel) -> None:
        self.model, self.tokenizer = model, model.tokenizer
        self._can_share = True  # what prompts begin with, as far as is known yet

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
        """Of prompts as token ids: the log-odds that a token of `yes` comes next, not of `no`.

        What all of them begin with, such as instructions and examples, is read once.
        """
        self.model.require_context(max(map(len, prompts)), "`window` or `examples`")
        past, known = self._read_once(_common_start(prompts), len(prompts))
        rests = [torch.tensor(prompt[known:]) for prompt in prompts]
        # What pads comes after the last token, which does not see it.
        ids = pad_sequence(rests, batch_first=True, padding_value=self._padding)
        ends = torch.tensor([len(rest) - 1 for rest in rests], device=self.model.device)
        kept, place = ends.unique(return_inverse=True)
        logits = self._forward(ids, past_key_values=past, logits_to_keep=kept).logits
        if logits.shape[1] == ids.shape[1]:  # of every token, where a model keeps them all
            logits = logits[:, kept]
        logits = logits[torch.arange(len(place), device=place.device), place].float()
        return (logits[:, yes].logsumexp(1) - logits[:, no].logsumexp(1)).tolist()

    def _read_once(self, start: list[int], times: int) -> tuple[Cache | None, int]:
        """-> the attention's keys and values of these tokens, for that many prompts, and the number
        of tokens; nothing where this saves little or the model keeps something else"""
        if times == 1 or len(start) < SHORTEST_SHARED or not self._can_share:
            return None, 0
        past = self._forward(torch.tensor([start]), use_cache=True, logits_to_keep=1).get(
            "past_key_values"
        )
        kinds = {type(layer) for layer in getattr(past, "layers", [object()])}
        self._can_share = kinds <= {DynamicLayer, DynamicSlidingWindowLayer}
        if not self._can_share:
            return None, 0
        past.batch_repeat_interleave(times)
        return past, len(start)

    def _forward(self, ids: Tensor, **options: Any) -> Any:
        """The model's output, of the options that it knows and that are set."""
        model: Any = self.model.model
        known = inspect.signature(model.forward).parameters
        options = {name: it for name, it in options.items() if name in known and it is not None}
        return model(input_ids=ids.to(self.model.device), **options)

    @torch.inference_mode()
    def write(self, prompt: list[int], limit: int) -> str | None:
        """The likeliest words up to the end of a line that says something, or None if there is none
        within `limit` tokens, thoughts included."""

        def enough(ids: Tensor, scores: Any, **options: Any) -> Tensor:
            lines = self._readable(ids[0, len(prompt) :].tolist()).rpartition("\n")[0]
            return torch.tensor([bool(parse_explanation(lines))], device=ids.device)

        self.model.require_context(len(prompt), "`window` or `examples`")
        ids = torch.tensor([prompt], device=self.model.device)
        model: Any = self.model.model
        written = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
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

    @property
    def _padding(self) -> int:
        """Any token does that the model has an embedding for: nothing sees it."""
        padding = self.tokenizer.pad_token_id or 0
        return padding if padding < (self.model.vocabulary or padding + 1) else 0


def _common_start(prompts: Sequence[list[int]]) -> list[int]:
    """The tokens that all prompts begin with, without the last one of the shortest."""
    first, last = min(prompts), max(prompts)
    same = (a == b for a, b in zip(first, last, strict=False))
    length = sum(1 for _ in itertools.takewhile(bool, same))
    return first[: min(length, min(map(len, prompts)) - 1)]
