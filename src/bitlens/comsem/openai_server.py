"""Ask any server that speaks OpenAI's chat completions: many prompts at once, none paid for twice, no limit exceeded."""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from bitlens.comsem.calls import Call, Calls, Cost, key_of
from bitlens.comsem.judges import Messages
from bitlens.comsem.openai_replies import (
    Unreadable,
    exhausted,
    explained,
    read_completion,
    refused_fields,
    retry_after,
)
from bitlens.errors import BitlensError, Interrupted

LONGEST_WAIT = 600.0  # seconds between two attempts
MORE = (
    512,
    4096,
    32_768,
)  # tokens for an answer that was cut off: the next two above those that it had
LIMITS = (
    "max_tokens",
    "max_completion_tokens",
)  # names of the field; the first is sent, as most servers know it
PROMPT_OVERHEAD = 32  # tokens that a chat template may put around a prompt


class Prompt(NamedTuple):
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
    """seconds a call may take, and the more the more tokens above 512 it may write"""
    attempts: int = 6
    """sendings of one prompt before giving up"""
    answer_tokens: int = 0
    """that every answer may have at least: more than it needs itself, for models that think before they answer"""
    backoff: float = 1.0
    """seconds before the second attempt; doubled for each further one"""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """further fields of the request; one that is None leaves out a default, as `{"temperature": None}`"""

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        if (
            parts.scheme not in ("http", "https")
            or not parts.hostname
            or parts.username
            or parts.query
        ):
            raise BitlensError(
                "base_url is the address of a server, such as http://localhost:8000/v1, without a user, a key or a query; keys come from the environment."
            )
        if not set(LIMITS) & set(self.request(1)):
            raise BitlensError(
                "parameters must set max_completion_tokens where max_tokens is left out: costs need a bound."
            )
        if (
            min(self.concurrency, self.attempts) < 1
            or self.timeout <= 0
            or min(self.backoff, self.answer_tokens) < 0
        ):
            raise BitlensError(
                "concurrency and attempts are at least 1, timeout is above 0, backoff and answer_tokens are not below."
            )

    @property
    def name(self) -> str:
        return f"{self.model} at {self.base_url.rstrip('/')}"

    @property
    def settings(self) -> dict[str, Any]:
        """Fields of a request that a whole answer depends on: all beside model, messages and the limit of tokens."""
        fields = {"temperature": 0} | dict(self.parameters)
        return {
            name: value
            for name, value in fields.items()
            if value is not None and name not in LIMITS
        }

    def request(self, max_tokens: int, without: Set[str] = frozenset()) -> dict[str, Any]:
        """Fields of a request beside model and messages. without: those of ours that the server turned out to refuse"""
        name = LIMITS["max_tokens" in without or bool(self.parameters.get("max_completion_tokens"))]
        limit = {name: max_tokens} if self.parameters.get(name, 0) is not None else {}
        return {name: value for name, value in self.settings.items() if name not in without} | limit

    def limits(self, max_tokens: int) -> list[int]:
        """Tokens that an answer may have at first, and each time that it was cut off."""
        given = (self.parameters.get(name) or 0 for name in LIMITS)
        first = max(max_tokens, self.answer_tokens, *given)
        return [first, *([more for more in MORE if more > first][:2] or [4 * first])]

    def seconds(self, max_tokens: int) -> float:
        """That a call may take."""
        return self.timeout * max(1.0, max_tokens / MORE[0])

    def price(self, input_tokens: float, output_tokens: float) -> float:
        read, written = self.prices or (0.0, 0.0)
        return (read * input_tokens + written * output_tokens) / 1e6

    def at_most(self, messages: Messages, max_tokens: int) -> float:
        """Bound of a call's price: no tokenizer makes more tokens than there are bytes."""
        return self.price(
            sum(len(message["content"].encode()) for message in messages) + PROMPT_OVERHEAD,
            max_tokens,
        )

    def key(self) -> str:
        key = os.environ.get(self.key_variable, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise BitlensError(
                f"The environment variable {self.key_variable} holds no key: it has odd characters."
            )
        return key or "none"


def estimate(server: OpenAIServer, calls: Calls, prompts: Sequence[Prompt]) -> Cost:
    """What these prompts will cost, beside those on record, at four characters a token."""
    missing = _missing(server, calls, prompts)
    read = sum(_tokens(prompt.messages) for prompt in missing)
    written = sum(prompt.expected for prompt in missing)
    return Cost(len(missing), read, written, server.price(read, written))


def ask(server: OpenAIServer, calls: Calls, prompts: Sequence[Prompt]) -> list[Call | None]:
    """The whole answer to each prompt; None where even the largest limit of tokens cut it off.

    Prompts on record are not sent; each other one is recorded as it is answered. After the first failure nothing more is
    sent, but what is under way is awaited and recorded.
    """
    if missing := _missing(server, calls, prompts):
        if server.prices is None and calls.max_cost < float("inf"):
            raise BitlensError(
                "max_cost needs the prices of a million input and output tokens; give them as prices."
            )
        _in_thread(_send_all(server, calls, missing))
    return [calls.get(_key(server, prompt)) for prompt in prompts]


class _Setback(NamedTuple):
    """Why an attempt brought no answer, and the seconds that the server asks to wait."""

    reason: str
    wait: float = 0.0
    mended: bool = False
    """the next attempt leaves out what the server refused"""


class _Run:
    """Prompts on their way through a few workers, until all are answered or the first failure."""

    def __init__(self, server: OpenAIServer, calls: Calls) -> None:
        self.server, self.calls, self.client = server, calls, _client(server)
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.under_way: set[asyncio.Future[None]] = set()
        self.without: set[str] = set()
        self.enough = 0  # tokens that made an answer whole which fewer cut off

    async def send_all(self, prompts: Sequence[Prompt]) -> None:
        waiting = iter(prompts)
        async with self.client:
            await asyncio.gather(
                *(self.work(waiting) for _ in range(min(self.server.concurrency, len(prompts))))
            )
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
        """Send one prompt with more and more tokens until its answer is whole."""
        limits = self.server.limits(prompt.max_tokens)
        cut = self.calls.cut(_key(self.server, prompt))
        for limit in limits:
            if (
                limit > cut
                and limit >= min(self.enough, limits[-1])
                and await self.whole(prompt, limit)
            ):
                self.enough = max(self.enough, limit if limit > limits[0] else 0)
                return

    async def whole(self, prompt: Prompt, limit: int) -> bool:
        """Send one prompt until it is answered, refused, or was sent too often -> whether nothing is left to do."""
        server, attempt = self.server, 0
        while True:
            request = server.request(limit, self.without)
            number = await self.reserve(prompt, limit, request)
            if number is None:
                return True
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.under_way.add(done)
            try:
                outcome = await self.attempt(number, prompt, limit, request)
            finally:
                self.under_way.remove(done)
                done.set_result(None)
            if isinstance(outcome, bool):
                return outcome
            if outcome.mended:
                continue
            attempt += 1
            if outcome.wait > LONGEST_WAIT or attempt == server.attempts:
                raise BitlensError(
                    f"{server.name} gave no answer in {attempt} attempts ({outcome.reason}); all answers so far are kept, so run it again later."
                )
            backoff = server.backoff * 2 ** (attempt - 1) * random.uniform(0.5, 1.5)
            await asyncio.wait([self.failure], timeout=outcome.wait + min(backoff, LONGEST_WAIT))

    async def reserve(self, prompt: Prompt, limit: int, request: Mapping[str, Any]) -> int | None:
        """The number of the next call; None after a failure. Near a limit, calls under way show first what they cost."""
        server, at_most = self.server, self.server.at_most(prompt.messages, limit)
        while not self.failure.done():
            try:
                return self.calls.reserve(
                    server.name, prompt.messages, server.settings, at_most, request
                )
            except Interrupted:
                if not self.under_way:
                    raise
                await asyncio.wait(self.under_way, return_when=asyncio.FIRST_COMPLETED)
        return None

    async def attempt(
        self, number: int, prompt: Prompt, limit: int, request: dict[str, Any]
    ) -> bool | _Setback:
        """Send a call once and record what became of it -> whether its answer is whole."""
        import openai

        server, calls, start, seconds = (
            self.server,
            self.calls,
            time.monotonic(),
            self.server.seconds(limit),
        )
        try:
            async with asyncio.timeout(seconds):
                response = await self.client.chat.completions.with_raw_response.create(
                    model=server.model,
                    messages=prompt.messages,
                    extra_body=request,
                    timeout=seconds,
                )
            said = read_completion(response.text)
            read, written = said.usage or (_tokens(prompt.messages), _size(said.answer))
            values = (read, written, server.price(read, written), time.monotonic() - start)
            if whole := said.whole(limit):
                calls.settle(number, said.answer, *values)
            else:
                calls.settle(number, None, *values, cut=limit)
            return whole
        except openai.APIStatusError as error:
            status, reason = error.status_code, explained(error, server.key_variable, server.key())
            if exhausted(error):
                calls.lose(number, reason, cut=limit)
                return False
            if status < 500 and status != 408:
                calls.release(number)
            else:
                calls.lose(number, f"status {status}")
            if self.mend(error, request):
                return _Setback(reason, mended=True)
            if status in (400, 413, 422) and limit > server.limits(prompt.max_tokens)[0]:
                return False  # so many tokens are more than the model can write
            if status < 500 and status not in (408, 409, 429):
                raise BitlensError(f"{server.name} refused the request: {reason}.") from None
            return _Setback(reason, retry_after(error.response.headers.get("retry-after")))
        except openai.APIConnectionError as error:
            if (
                type(error.__cause__).__name__ == "ConnectError"
            ):  # never sent; httpx or httpx2, by the client's version
                calls.release(number)
                return _Setback("no connection")
            setback = _Setback("the connection was lost")
        except TimeoutError:
            setback = _Setback(f"no answer in {seconds:g} s")
        except Unreadable as error:
            setback = _Setback(str(error).replace(server.key(), "…"))
        calls.lose(number, setback.reason)
        return setback

    def mend(self, error: Any, request: Mapping[str, Any]) -> bool:
        """Leave out fields of ours that the server refuses, as OpenAI's models that think do -> whether there were any."""
        ours = {"max_tokens", "temperature"} & set(request) - set(self.server.parameters)
        refused = refused_fields(error, ours)
        self.without |= refused
        return bool(refused)


async def _send_all(server: OpenAIServer, calls: Calls, prompts: Sequence[Prompt]) -> None:
    await _Run(server, calls).send_all(prompts)


def _client(server: OpenAIServer) -> Any:
    import openai

    # Attempts are made in `_Run.send` alone, where each is counted.
    return openai.AsyncOpenAI(api_key=server.key(), base_url=server.base_url, max_retries=0)


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


def _missing(server: OpenAIServer, calls: Calls, prompts: Sequence[Prompt]) -> list[Prompt]:
    """Those without an answer on record, but for those that the largest limit has cut off before."""
    keyed = {_key(server, prompt): prompt for prompt in prompts}
    unanswered = {key: prompt for key, prompt in keyed.items() if calls.get(key) is None}
    return [
        prompt
        for key, prompt in unanswered.items()
        if calls.cut(key) < server.limits(prompt.max_tokens)[-1]
    ]


def _key(server: OpenAIServer, prompt: Prompt) -> str:
    return key_of(server.name, prompt.messages, server.settings)


def _tokens(messages: Messages) -> int:
    return sum(_size(message["content"]) for message in messages)


def _size(text: str) -> int:
    """Tokens of English text, roughly."""
    return -(-len(text) // 4)
