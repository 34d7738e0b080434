"""What a server that speaks OpenAI's chat completions says: answers, whether they are whole, and refusals."""

from __future__ import annotations

import contextlib
import email.utils
import json
import re
import textwrap
import time
from collections.abc import Set
from typing import Any, NamedTuple

from bitlens.comsem.judges import unfinished

REFUSED = re.compile(
    r"unsupported|not support|no longer support|deprecated|instead|not permitted|unrecogni[sz]ed|unknown",
    re.I,
)
CUT = {"length", "model_length", "max_tokens", "max_output_tokens"}
EXHAUSTED = re.compile(r"could not finish|output limit was reached", re.I)


LARGEST = 1 << 40  # tokens that a server can have counted


class Unreadable(Exception):
    """A response that is no chat completion, and what is wrong with it."""


class Said(NamedTuple):
    """What a chat completion says."""

    answer: str
    """empty where the model refused"""
    reason: str | None
    """why it ended, if the server says"""
    usage: tuple[int, int] | None
    """tokens read and written, if the server says"""
    only_thoughts: bool = False
    """whether there are thoughts and nothing else"""

    def whole(self, limit: int) -> bool:
        """Whether the answer came to its end within so many tokens, thoughts included."""
        if self.reason is None:  # no token is shorter than a byte
            ended = (self.usage[1] if self.usage else len(self.answer.encode())) < limit
        else:
            ended = self.reason.lower() not in CUT
        return ended and not self.only_thoughts and not unfinished(self.answer)


def read_completion(body: str) -> Said:
    """Of the body of a response; Unreadable if it is no chat completion."""
    completion: Any = None
    try:
        completion = json.loads(body)
        choice = completion["choices"][0]
        reason, message = choice.get("finish_reason"), choice["message"]
        answer = _text(message.get("content"))
        if not isinstance(reason, str | None) or reason in ("abort", "error"):
            raise TypeError
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise Unreadable(_complaint(completion) or "its answer is not a chat completion") from None
    thoughts = message.get("reasoning_content") or message.get("reasoning")
    only_thoughts = bool(thoughts) and not answer.strip() and reason != "content_filter"
    answer = "" if reason == "content_filter" else answer.encode(errors="replace").decode()
    return Said(answer, reason, _counts(completion.get("usage")), only_thoughts)


def _text(content: Any) -> str:
    """Of a message: a string, nothing, or parts, of which some may be thoughts."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content if part["type"] in ("text", "output_text"))
    if not isinstance(content, str | None):
        raise TypeError
    return content or ""


def _counts(usage: Any) -> tuple[int, int] | None:
    """Tokens read and written, if that is what it says."""
    if not isinstance(usage, dict):
        return None
    read: Any = usage.get("prompt_tokens")
    written: Any = usage.get("completion_tokens")
    return (
        (read, written)
        if all(type(n) is int and 0 <= n < LARGEST for n in (read, written))
        else None
    )


def _complaint(completion: Any) -> str:
    """The error that some servers send with a status of 200; empty if it is none."""
    error = completion.get("error") if isinstance(completion, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    return (
        f"it says: {textwrap.shorten(message, 200, placeholder=' …').rstrip('.')}"
        if isinstance(message, str)
        else ""
    )


def refused_fields(error: Any, fields: Set[str]) -> set[str]:
    """Which of these fields of a request the server does not know or does not want, by what it complains of."""
    complaint = error.response.text
    if error.status_code not in (400, 422) or not REFUSED.search(complaint):
        return set()
    return {name for name in fields if re.search(rf"\b{name}\b", complaint)}


def exhausted(error: Any) -> bool:
    """Whether the thoughts of a model of OpenAI's used up the limit of tokens, which is a status of 400 there."""
    return error.status_code == 400 and bool(EXHAUSTED.search(error.response.text))


def explained(error: Any, variable: str, key: str) -> str:
    """What the server says, without the key, which some repeat."""
    body = error.body if isinstance(error.body, dict) else {}
    text = str(body.get("message") or body.get("detail") or "").replace(key, "…")
    hint = f"; the key is read from {variable}" if error.status_code in (401, 403) else ""
    return (
        f"status {error.status_code} {textwrap.shorten(text, 200, placeholder=' …').rstrip('.')}".rstrip()
        + hint
    )


def retry_after(value: str | None) -> float:
    """Seconds to wait by a Retry-After header, which gives them or a date."""
    if not value:
        return 0.0
    with contextlib.suppress(ValueError):
        return max(0.0, float(value))
    with contextlib.suppress(ValueError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return 0.0
