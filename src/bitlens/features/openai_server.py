"""Ask any server that speaks OpenAI's chat completions: many prompts at once, none paid for twice, no limit exceeded."""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import json
import os
import random
import textwrap
import threading
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from bitlens.errors import BitlensError, Interrupted
from bitlens.features.calls import Call, Calls, Cost, key_of
from bitlens.features.judges import Messages

LONGEST_WAIT = 600.0  # seconds between two attempts
PROMPT_OVERHEAD = 32  # tokens that a chat template may put around a prompt


class Prompt(NamedTuple):
    messages: Messages
    max_tokens: int
    """that the answer may have"""
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
    """seconds a call may take"""
    attempts: int = 6
    """sendings of one prompt before giving up"""
    backoff: float = 1.0
    """seconds before the second attempt; doubled for each further one"""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """further fields of the request; one that is None leaves out a default, as `{"temperature": None}`"""

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise BitlensError(
                "base_url is the address of a server, such as http://localhost:8000/v1, without a user, a key or a query; keys come from the environment."
            )
        if not {"max_tokens", "max_completion_tokens"} & set(self.request(1)):
            raise BitlensError(
                "parameters must set max_completion_tokens where max_tokens is left out: costs need a bound."
            )
        if min(self.concurrency, self.attempts) < 1 or self.timeout <= 0 or self.backoff < 0:
            raise BitlensError("concurrency and attempts are at least 1, timeout is above 0 and backoff not below.")

    @property
    def name(self) -> str:
        return f"{self.model} at {self.base_url.rstrip('/')}"

    def request(self, max_tokens: int) -> dict[str, Any]:
        """Fields of a request beside model and messages."""
        fields = {"temperature": 0, "max_tokens": max_tokens} | dict(self.parameters)
        return {name: value for name, value in fields.items() if value is not None}

    def price(self, input_tokens: float, output_tokens: float) -> float:
        read, written = self.prices or (0.0, 0.0)
        return (read * input_tokens + written * output_tokens) / 1e6

    def at_most(self, messages: Messages, request: Mapping[str, Any]) -> float:
        """Bound of a call's price: no tokenizer makes more tokens than there are bytes."""
        size = sum(len(message["content"].encode()) for message in messages) + PROMPT_OVERHEAD
        return self.price(size, request.get("max_completion_tokens", request.get("max_tokens")))

    def key(self) -> str:
        key = os.environ.get(self.key_variable, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise BitlensError(f"The environment variable {self.key_variable} holds no key: it has odd characters.")
        return key or "none"


def estimate(server: OpenAIServer, calls: Calls, prompts: Sequence[Prompt]) -> Cost:
    """What these prompts will cost, beside those on record, at four characters a token."""
    missing = _missing(server, calls, prompts).values()
    read = sum(_tokens(prompt.messages) for prompt in missing)
    written = sum(prompt.expected for prompt in missing)
    return Cost(len(missing), read, written, server.price(read, written))


def ask(server: OpenAIServer, calls: Calls, prompts: Sequence[Prompt]) -> list[Call]:
    """The answer to each prompt. Those on record are not sent; each other one is recorded as it arrives.

    After the first failure nothing more is sent, but what is under way is awaited and recorded.
    """
    if missing := _missing(server, calls, prompts):
        if server.prices is None and calls.max_cost < float("inf"):
            raise BitlensError("max_cost needs the prices of a million input and output tokens; give them as prices.")
        _in_thread(_send_all(server, calls, list(missing.values())))
    return [call for prompt in prompts if (call := calls.get(_key(server, prompt)))]


class _Setback(NamedTuple):
    """Why an attempt brought no answer, and the seconds that the server asks to wait."""

    reason: str
    wait: float = 0.0


class _Run:
    """Prompts on their way through a few workers, until all are answered or the first failure."""

    def __init__(self, server: OpenAIServer, calls: Calls) -> None:
        self.server, self.calls, self.client = server, calls, _client(server)
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.under_way: set[asyncio.Future[None]] = set()

    async def send_all(self, prompts: Sequence[Prompt]) -> None:
        waiting = iter(prompts)
        async with self.client:
            await asyncio.gather(*(self.work(waiting) for _ in range(min(self.server.concurrency, len(prompts)))))
        if self.failure.done():
            self.failure.result()

    async def work(self, waiting: Iterator[Prompt]) -> None:
        for prompt in waiting:
            try:
                await self.send(prompt)
            except Exception as error:
                if not self.failure.done():
                    self.failure.set_exception(error)
            if self.failure.done():
                return

    async def send(self, prompt: Prompt) -> None:
        """Send one prompt until it is answered, refused, or was sent too often."""
        server = self.server
        for attempt in range(1, server.attempts + 1):
            number = await self.reserve(prompt)
            if number is None:
                return
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.under_way.add(done)
            try:
                setback = await self.attempt(number, prompt)
            finally:
                self.under_way.remove(done)
                done.set_result(None)
            if setback is None:
                return
            if setback.wait > LONGEST_WAIT or attempt == server.attempts:
                raise BitlensError(
                    f"{server.name} gave no answer in {attempt} attempts ({setback.reason}); all answers so far are kept, so run it again later."
                )
            backoff = server.backoff * 2 ** (attempt - 1) * random.uniform(0.5, 1.5)
            await asyncio.wait([self.failure], timeout=setback.wait + min(backoff, LONGEST_WAIT))

    async def reserve(self, prompt: Prompt) -> int | None:
        """The number of the next call; None after a failure. Near a limit, calls under way show first what they cost."""
        request = self.server.request(prompt.max_tokens)
        at_most = self.server.at_most(prompt.messages, request)
        while not self.failure.done():
            try:
                return self.calls.reserve(self.server.name, prompt.messages, request, at_most)
            except Interrupted:
                if not self.under_way:
                    raise
                await asyncio.wait(self.under_way, return_when=asyncio.FIRST_COMPLETED)
        return None

    async def attempt(self, number: int, prompt: Prompt) -> _Setback | None:
        """Send a call once and record what became of it; None: it was answered."""
        import openai

        server, calls, start = self.server, self.calls, time.monotonic()
        try:
            async with asyncio.timeout(server.timeout):
                response = await self.client.chat.completions.with_raw_response.create(
                    model=server.model, messages=prompt.messages, extra_body=server.request(prompt.max_tokens)
                )
            answer, usage = _read(response.text)
            read, written = usage or (_tokens(prompt.messages), _size(answer))
            calls.settle(number, answer, read, written, server.price(read, written), time.monotonic() - start)
            return None
        except openai.APIStatusError as error:
            status, reason = error.status_code, _explained(error, server)
            if status < 500 and status != 408:
                calls.release(number)
            else:
                calls.lose(number, f"status {status}")
            if status < 500 and status not in (408, 409, 429):
                raise BitlensError(f"{server.name} refused the request: {reason}.") from None
            return _Setback(reason, _retry_after(error.response.headers.get("retry-after")))
        except openai.APIConnectionError as error:
            if type(error.__cause__).__name__ == "ConnectError":  # never sent; httpx or httpx2, by the client's version
                calls.release(number)
                return _Setback("no connection")
            setback = _Setback("the connection was lost")
        except TimeoutError:
            setback = _Setback(f"no answer in {server.timeout:g} s")
        except _Unreadable:
            setback = _Setback("its answer is not a chat completion")
        calls.lose(number, setback.reason)
        return setback


async def _send_all(server: OpenAIServer, calls: Calls, prompts: Sequence[Prompt]) -> None:
    await _Run(server, calls).send_all(prompts)


class _Unreadable(Exception):
    """A response that is no chat completion."""


def _read(body: str) -> tuple[str, tuple[int, int] | None]:
    """A chat completion -> its text (empty where the model refused), and tokens read and written where it says."""
    try:
        completion = json.loads(body)
        answer = completion["choices"][0]["message"].get("content") or ""
        if not isinstance(answer, str):
            raise TypeError
    except (ValueError, LookupError, TypeError, AttributeError):
        raise _Unreadable from None
    usage = completion.get("usage") or {}
    read, written = usage.get("prompt_tokens"), usage.get("completion_tokens")
    counts = (read, written) if isinstance(read, int) and isinstance(written, int) else None
    return answer.encode(errors="replace").decode(), counts


def _client(server: OpenAIServer) -> Any:
    import openai

    # Attempts are made in `_Run.send` alone, where each is counted.
    return openai.AsyncOpenAI(api_key=server.key(), base_url=server.base_url, max_retries=0, timeout=server.timeout)


def _explained(error: Any, server: OpenAIServer) -> str:
    """What the server says, without the key, which some repeat."""
    body = error.body if isinstance(error.body, dict) else {}
    text = str(body.get("message") or body.get("detail") or "").replace(server.key(), "…")
    hint = f"; the key is read from {server.key_variable}" if error.status_code in (401, 403) else ""
    return f"status {error.status_code} {textwrap.shorten(text, 200, placeholder=' …').rstrip('.')}".rstrip() + hint


def _retry_after(value: str | None) -> float:
    """Seconds to wait by a Retry-After header, which gives them or a date."""
    if not value:
        return 0.0
    with contextlib.suppress(ValueError):
        return max(0.0, float(value))
    with contextlib.suppress(ValueError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return 0.0


def _in_thread(work: Coroutine[Any, Any, None]) -> None:
    """Run it in an event loop of its own, since a notebook's thread has one already; Ctrl-C cancels it."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    future = asyncio.run_coroutine_threadsafe(work, loop)
    try:
        future.result()
    finally:
        future.cancel()
        asyncio.run_coroutine_threadsafe(_wind_up(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _wind_up() -> None:
    """Wait for the tasks that were cancelled."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.gather(*others, return_exceptions=True)


def _missing(server: OpenAIServer, calls: Calls, prompts: Sequence[Prompt]) -> dict[str, Prompt]:
    keyed = {_key(server, prompt): prompt for prompt in prompts}
    return {key: prompt for key, prompt in keyed.items() if calls.get(key) is None}


def _key(server: OpenAIServer, prompt: Prompt) -> str:
    return key_of(server.name, prompt.messages, server.request(prompt.max_tokens))


def _tokens(messages: Messages) -> int:
    return sum(_size(message["content"]) for message in messages)


def _size(text: str) -> int:
    """Tokens of English text, roughly."""
    return -(-len(text) // 4)
