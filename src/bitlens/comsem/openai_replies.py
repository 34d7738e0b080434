"""What a server answers: whether it is a chat completion, whether it is whole, refusals."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Set
from typing import Any, NamedTuple

from bitlens.comsem.verdicts import unfinished

REFUSED = re.compile(
    r"unsupported|not support|no longer support|deprecated|instead|not permitted"
    r"|unrecogni[sz]ed|unknown",
    re.I,
)
CUT = {"length", "model_length", "max_tokens", "max_output_tokens"}
EXHAUSTED = re.compile(r"could not finish|output limit was reached", re.I)
LARGEST = 1 << 40  # tokens that a server can have counted
UNREADABLE = "unreadable"  # marks a response with status 200 that is no chat completion


class Unreadable(Exception):
    """A response is no chat completion."""


class Reply(NamedTuple):
    """What a chat completion says."""

    answer: str
    """empty where the model refused"""
    finish_reason: str | None
    """why it ended, if the server says"""
    usage: tuple[int, int] | None
    """tokens read and written, if the server says"""
    only_thoughts: bool = False
    """whether there are thoughts and nothing else"""

    def whole(self, limit: int) -> bool:
        """Whether the answer came to its end within so many tokens, thoughts included."""
        if self.finish_reason is None:  # no token is shorter than a byte
            ended = (self.usage[1] if self.usage else len(self.answer.encode())) < limit
        else:
            ended = self.finish_reason.lower() not in CUT
        return ended and not self.only_thoughts and not unfinished(self.answer)


def read_completion(body: str) -> Reply:
    """Of the body of a response; Unreadable if it is no chat completion, which the client's own
    types do not check."""
    try:
        completion = json.loads(body)
        choice = completion["choices"][0]
        reason, message = choice.get("finish_reason"), choice["message"]
        answer = _text(message.get("content"))
        thoughts = message.get("reasoning_content") or message.get("reasoning")
        usage = _usage(completion.get("usage"))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise Unreadable from None
    if not isinstance(reason, str | None) or reason in ("abort", "error"):
        raise Unreadable
    if reason == "content_filter":
        return Reply("", reason, usage)
    answer = answer.encode(errors="replace").decode()  # a lone surrogate cannot be recorded
    return Reply(answer, reason, usage, bool(thoughts) and not answer.strip())


def _text(content: Any) -> str:
    """Of a message: a string, nothing, or parts, of which some may be thoughts."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content if part["type"] in ("text", "output_text"))
    if not isinstance(content, str | None):
        raise TypeError
    return content or ""


def _usage(usage: Any) -> tuple[int, int] | None:
    """Tokens read and written, if that is what it says."""
    if not isinstance(usage, dict):
        return None
    read, written = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if type(read) is int and type(written) is int:
        return (read, written) if 0 <= min(read, written) <= max(read, written) < LARGEST else None
    return None


def refused_fields(error: Any, fields: Set[str]) -> set[str]:
    """Which of these fields of a request the server refuses, by what it complains of."""
    complaint = error.response.text
    if error.status_code not in (400, 422) or not REFUSED.search(complaint):
        return set()
    return {name for name in fields if re.search(rf"\b{name}\b", complaint)}


def exhausted(response: Any) -> bool:
    """Whether a model's thoughts used up the limit of tokens: a status of 400 at OpenAI."""
    return response.status_code == 400 and bool(EXHAUSTED.search(response.text))


def explained(error: Any, key_variable: str, key: str) -> str:
    """What the server says, in a line and without the key, which some repeat."""
    body = error.body
    if isinstance(body, dict):
        body = body.get("message") or body.get("detail")
    text = body.replace(key, "…") if isinstance(body, str) else ""
    text = textwrap.shorten(text, 200, placeholder=" …").rstrip(".")
    reason = f"status {error.status_code}"
    if UNREADABLE in error.response.extensions:
        reason = "its answer is not a chat completion"
    hint = f"; the key is read from {key_variable}" if error.status_code in (401, 403) else ""
    if 300 <= error.status_code < 400:
        hint = "; it leads to another address, which is not followed: give that one as base_url"
    return f"{reason} {text}".rstrip() + hint
