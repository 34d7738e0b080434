"""The OpenAI client with an account: each sending is on record, and what came of it."""

from __future__ import annotations

import contextlib
import importlib
import json
import threading
import time
from collections.abc import Sequence
from multiprocessing.pool import ThreadPool
from typing import Any

import openai

from bitlens import terminal
from bitlens.comsem.calls import Calls
from bitlens.comsem.openai_replies import (
    UNREADABLE,
    Unreadable,
    exhausted,
    explained,
    read_completion,
    refused_fields,
)
from bitlens.comsem.openai_server import LIMITS, OpenAIServer, Prompt, size
from bitlens.errors import BitlensError, Interrupted

OURS = {"max_tokens", "temperature"}  # fields that are left out where a server refuses them
TOO_MANY = {400, 413, 422}  # statuses of a limit of tokens that is more than the model can write
LONGEST = 4 << 20  # bytes of an answer
PATIENCE = 10  # time-outs that an answer may take, however it comes
AGAIN = {408, 409, 429}  # statuses below 500 after which the client tries again


def send_all(server: OpenAIServer, calls: Calls, prompts: Sequence[Prompt]) -> None:
    """Send prompts until each has its answer, or was cut off by the largest limit, on record."""
    sender = _Sender(server, calls)
    # The threads of a ThreadPool are daemons: a process that is stopped by Ctrl-C ends at once,
    # where an executor would wait for the last answer.
    with ThreadPool(min(server.concurrency, len(prompts))) as pool:
        try:
            for done, _ in enumerate(pool.imap_unordered(sender.send, prompts), 1):
                terminal.at(done, total=len(prompts))
        except Exception:
            sender.account.stop()
            sender.account.wait()
            raise
        finally:
            sender.account.stop()


class _Stopped(Exception):
    """Nothing more is sent."""


class _Account(openai.DefaultHttpxClient):
    """Enters each sending, the client's own retries included, into the record of calls, within the
    limits on cost and calls: what failed or timed out may be charged for, too."""

    def __init__(self, server: OpenAIServer, calls: Calls) -> None:
        # Of what is packed a few bytes may stand for gigabytes; prompts go where they were sent to.
        super().__init__(headers={"Accept-Encoding": "identity"}, follow_redirects=False)
        self.server, self.calls = server, calls
        self.changed = threading.Condition()
        self.under_way, self.stopped = 0, False

    def stop(self) -> None:
        """Send nothing more, not even again what failed."""
        with self.changed:
            self.stopped = True
            self.changed.notify_all()

    def wait(self) -> None:
        """Wait for the calls under way."""
        with self.changed:
            self.changed.wait_for(lambda: not self.under_way)

    def send(self, request: Any, **options: Any) -> Any:
        """One attempt of the client's -> the response. One that is no chat completion gets the
        status of a bad gateway, after which the client tries again."""
        body = json.loads(request.content)
        limit = next(body[name] for name in LIMITS if name in body)
        number, start = self._reserve(body, limit), time.monotonic()
        try:
            response = _whole(super().send(request, **{**options, "stream": True}), request)
            self._record(number, response, body, limit, time.monotonic() - start)
            return response
        except Exception as error:
            if type(error).__name__ == "ConnectError":  # nobody heard it
                self.calls.release(number)
            else:
                self.calls.note(number, failure=type(error).__name__)
            raise
        finally:
            with self.changed:
                self.under_way -= 1
                self.changed.notify_all()

    def _reserve(self, body: dict[str, Any], limit: int) -> int:
        """The number of the next call. Near a limit, calls under way show first what they cost."""
        server, messages = self.server, body["messages"]
        key, at_most = server.key_of(messages), server.at_most(messages, limit)
        fields = {k: v for k, v in body.items() if k not in ("model", "messages")}
        with self.changed:
            while not self.stopped:
                try:
                    number = self.calls.reserve(key, server.name, messages, fields, at_most)
                    self.under_way += 1
                    return number
                except Interrupted:
                    if not self.under_way:
                        raise
                    self.changed.wait()
        raise _Stopped

    def _record(
        self, number: int, response: Any, body: dict[str, Any], limit: int, seconds: float
    ) -> None:
        status = response.status_code
        if exhausted(response):
            self.calls.note(number, failure=f"status {status}", cut=limit)
        elif status >= 500 or status == 408:  # it may be charged for
            self.calls.note(number, failure=f"status {status}")
        elif status >= 300:
            self.calls.release(number)
        else:
            try:
                reply = read_completion(response.text)
            except Unreadable:
                self.calls.note(number, failure="no chat completion")
                response.status_code, response.extensions[UNREADABLE] = 502, True
                return
            read, written = reply.usage or (size(body["messages"]), -(-len(reply.answer) // 4))
            outcome = {"answer": reply.answer} if reply.whole(limit) else {"cut": limit}
            self.calls.note(
                number,
                **outcome,
                input_tokens=read,
                output_tokens=written,
                cost=self.server.price(read, written),
                seconds=seconds,
            )


def _whole(response: Any, request: Any) -> Any:
    """The same with its body, as UTF-8 whatever it says: no more than LONGEST bytes, and no longer
    than PATIENCE times the time-out, in which a server may send something now and then."""
    # httpx, or what other versions of the client have in its place
    http = importlib.import_module(type(response).__module__.partition(".")[0])
    limit = time.monotonic() + PATIENCE * request.extensions["timeout"]["read"]
    body = bytearray()
    with contextlib.closing(response):
        for chunk in response.iter_raw():
            body += chunk
            if len(body) > LONGEST:
                break
            if time.monotonic() > limit:
                raise http.ReadTimeout("its answer comes to no end", request=request)
    headers = {k: v for k, v in response.headers.items() if not k.startswith(("content-", "trans"))}
    headers["content-type"] = "application/json"
    return http.Response(
        response.status_code, headers=headers, content=bytes(body[:LONGEST]), request=request
    )


class _Sender:
    """Sends prompts, from several threads, until their answers are whole."""

    def __init__(self, server: OpenAIServer, calls: Calls) -> None:
        self.server, self.calls = server, calls
        self.account = _Account(server, calls)
        self.client = openai.OpenAI(
            api_key=server.key(),
            base_url=server.base_url,
            max_retries=server.attempts - 1,
            http_client=self.account,
        )
        self.refused: set[str] = set()
        self.enough = 0  # tokens that made an answer whole which fewer cut off

    def send(self, prompt: Prompt) -> None:
        """Send one prompt with more and more tokens until its answer is whole."""
        limits, key = self.server.limits(prompt.max_tokens), self.server.key_of(prompt.messages)
        cut = self.calls.cut(key)
        try:
            for limit in limits:
                if limit <= cut or limit < min(self.enough, limits[-1]):
                    continue
                self._send(prompt, limit)
                if self.calls.get(key):
                    if limit > limits[0]:
                        self.enough = max(self.enough, limit)
                    return
        except _Stopped:
            return
        except BaseException:
            self.account.stop()
            raise

    def _send(self, prompt: Prompt, limit: int) -> None:
        """Send one prompt until it is answered, cut off or refused."""
        server, seconds = self.server, self.server.seconds(limit)
        fields = server.request(limit, self.refused)
        try:
            self.client.chat.completions.with_raw_response.create(
                model=server.model,
                messages=prompt.messages,  # pyright: ignore[reportArgumentType]
                extra_body=fields,
                timeout=seconds,
            )
        except openai.APIStatusError as error:
            if refused := refused_fields(error, OURS & set(fields) - set(server.parameters)):
                self.refused |= refused
                return self._send(prompt, limit)
            status, first = error.status_code, server.limits(prompt.max_tokens)[0]
            if exhausted(error.response) or (status in TOO_MANY and limit > first):
                return None
            reason = explained(error, server.key_variable, server.key())
            if status < 500 and status not in AGAIN:
                raise BitlensError(f"{server.name} refused the request: {reason}.") from None
        except openai.APITimeoutError:
            reason = f"no answer in {seconds:g} s"
        except openai.APIConnectionError as error:
            reached = type(error.__cause__).__name__ != "ConnectError"
            reason = "the connection was lost" if reached else "no connection"
        else:
            return None
        raise BitlensError(
            f"{server.name} gave no answer ({reason}), though it was asked up to "
            f"{server.attempts} times; all answers so far are kept, so run it again later."
        )
