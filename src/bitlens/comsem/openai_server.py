"""A server that speaks OpenAI's chat completions: settings, prices, prompts put to it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from bitlens.comsem.calls import key_of
from bitlens.comsem.judges import Messages
from bitlens.errors import BitlensError

MORE = (512, 4096, 32_768)
"""tokens for an answer that was cut off: the next two above those that it had"""
LIMITS = ("max_tokens", "max_completion_tokens")
"""names of the field; the first is sent, as most servers know it"""
PROMPT_OVERHEAD = 32  # tokens that a chat template may put around a prompt


class Prompt(NamedTuple):
    """What is asked, and how long the answer may be."""

    messages: Messages
    max_tokens: int
    """that the answer may have; if it is cut off, it is asked for again with more"""
    expected: int
    """tokens that it will have, for estimates"""


@dataclass(frozen=True)
class OpenAIServer:
    """A server, what it charges, and how it is asked. The key stays in the environment."""

    model: str
    base_url: str = "https://api.openai.com/v1"
    key_variable: str = "OPENAI_API_KEY"
    """environment variable that holds the key; may be unset for a server that needs none"""
    prices: tuple[float, float] | None = None
    """of a million input tokens and of a million output tokens"""
    concurrency: int = 8
    """calls under way at once"""
    timeout: float = 60.0
    """seconds of silence after which a call is given up; more for answers above 512 tokens"""
    attempts: int = 6
    """sendings of one prompt before giving up"""
    answer_tokens: int = 0
    """that every answer may have at least, for models that think before they answer"""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """further fields of the request; None leaves out a default, as in `{"temperature": None}`"""

    def __post_init__(self) -> None:
        url = urlsplit(self.base_url)
        wrong = url.scheme not in ("http", "https") or not url.hostname
        if wrong or url.username or url.query:
            raise BitlensError(
                "base_url is an address such as http://localhost:8000/v1, without a user, a key or "
                "a query; keys come from the environment."
            )
        if not set(LIMITS) & set(self.request(1)):
            raise BitlensError(
                "parameters must set max_completion_tokens where max_tokens is left out: "
                "costs need a bound."
            )
        if min(self.concurrency, self.attempts) < 1 or self.timeout <= 0 or self.answer_tokens < 0:
            raise BitlensError(
                "concurrency and attempts are at least 1, timeout is above 0, "
                "answer_tokens is not below."
            )

    @property
    def name(self) -> str:
        """Model and address."""
        return f"{self.model} at {self.base_url.rstrip('/')}"

    @property
    def settings(self) -> dict[str, Any]:
        """Fields of a request that a whole answer depends on, beside the messages."""
        fields = {"temperature": 0} | dict(self.parameters)
        return {k: v for k, v in fields.items() if v is not None and k not in LIMITS}

    def request(self, max_tokens: int, without: Set[str] = frozenset()) -> dict[str, Any]:
        """Fields of a request beside model and messages; without: those that the server refuses."""
        name = "max_tokens"
        if "max_tokens" in without or self.parameters.get("max_completion_tokens"):
            name = "max_completion_tokens"
        limit = {name: max_tokens} if self.parameters.get(name, 0) is not None else {}
        return {k: v for k, v in self.settings.items() if k not in without} | limit

    def limits(self, max_tokens: int) -> list[int]:
        """Tokens that an answer may have at first, and each time that it was cut off."""
        given = (self.parameters.get(name) or 0 for name in LIMITS)
        first = max(max_tokens, self.answer_tokens, *given)
        return [first, *([more for more in MORE if more > first][:2] or [4 * first])]

    def seconds(self, max_tokens: int) -> float:
        """The time-out of a call."""
        return self.timeout * max(1.0, max_tokens / MORE[0])

    def price(self, input_tokens: float, output_tokens: float) -> float:
        """Of a call that reads and writes so many tokens."""
        read, written = self.prices or (0.0, 0.0)
        return (read * input_tokens + written * output_tokens) / 1e6

    def at_most(self, messages: Messages, max_tokens: int) -> float:
        """Bound of a call's price: no tokenizer makes more tokens than there are bytes."""
        read = sum(len(message["content"].encode()) for message in messages)
        return self.price(read + PROMPT_OVERHEAD, max_tokens)

    def key(self) -> str:
        """From the environment; "none" where it is unset."""
        key = os.environ.get(self.key_variable, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise BitlensError(
                f"The environment variable {self.key_variable} holds no key: it has odd characters."
            )
        return key or "none"

    def key_of(self, messages: Messages) -> str:
        """By which the record of calls knows this prompt."""
        return key_of(self.name, messages, self.settings)


def size(messages: Messages) -> int:
    """Tokens of English text, roughly."""
    return sum(-(-len(message["content"]) // 4) for message in messages)
