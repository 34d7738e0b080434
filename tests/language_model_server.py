"""A real HTTP server that speaks OpenAI's chat completions, and answers by a rule instead of a
model."""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


class Reply(NamedTuple):
    """What the server sends. body: None for a chat completion with `text`; status 0: hang up
    without a word."""

    text: str = ""
    status: int = 200
    headers: dict[str, str] = {}  # noqa: RUF012
    body: str | None = None
    delay: float = 0.0
    usage: bool = True
    raw: Iterable[bytes] | None = None
    """pieces that are written instead of any response, before the connection is closed"""
    finish: str | None = "stop"
    """why it ends, unless its words are more than the request allows: the rest is cut off, and the
    reason "length" """


class LanguageModelServer(ThreadingHTTPServer):
    """Listens on a free port of this machine, within a `with` block.

    rule: from the text of a prompt to the reply. first: replies to the first requests, instead of
    the rule's. refuses:
    fields of a request that are refused as OpenAI does it. longest: the largest limit of tokens
    that it takes.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(
        self,
        rule: Callable[[str], str | Reply],
        first: Iterable[Reply] = (),
        refuses: Iterable[str] = (),
        longest: float = math.inf,
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.refuses, self.longest = frozenset(refuses), longest
        self.rule, self.first = rule, iter(first)
        self.requests: list[dict[str, Any]] = []
        self.keys: set[str] = set()
        self.tokens = [0, 0]
        self.under_way = self.most_under_way = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    @property
    def limits(self) -> list[int]:
        return [_limit(request) for request in self.requests]

    @property
    def prompts(self) -> list[str]:
        return [request["messages"][-1]["content"] for request in self.requests]

    def __enter__(self) -> LanguageModelServer:
        threading.Thread(
            target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        ).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    server: Any  # a LanguageModelServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        server = self.server
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.requests.append(request)
            server.keys.add(self.headers["Authorization"])
            server.under_way += 1
            server.most_under_way = max(server.most_under_way, server.under_way)
            reply = next(server.first, None)
        prompt = request["messages"][-1]["content"]
        if self.path != "/v1/chat/completions":
            reply = Reply(status=404, body="{}")
        for name in sorted(server.refuses & set(request)):
            reply = _refusal(REFUSALS[name])
        if _limit(request) > server.longest:
            reply = _refusal(
                f"max_tokens is too large: {_limit(request)}. "
                f"This model supports at most {server.longest}."
            )
        if reply is None:
            found = server.rule(prompt)
            reply = found if isinstance(found, Reply) else Reply(found)
        time.sleep(reply.delay)
        with server.lock:
            server.under_way -= 1
        self.send(reply, prompt, _limit(request))

    def send(self, reply: Reply, prompt: str, limit: int) -> None:
        if reply.status == 0:
            self.close_connection = True
            return
        if reply.raw is not None:
            self.close_connection = True
            for piece in reply.raw:
                self.wfile.write(piece)
            return
        body = self.completion(reply, prompt, limit) if reply.body is None else reply.body
        self.send_response(reply.status)
        for name, value in ({"Content-Type": "application/json"} | reply.headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body.encode())))
        self.end_headers()
        self.wfile.write(body.encode())

    def completion(self, reply: Reply, prompt: str, limit: int) -> str:
        words = re.findall(r"\S+\s*|\s+", reply.text)
        finish = "length" if reply.finish and len(words) > limit else reply.finish
        message = {"role": "assistant", "content": "".join(words[:limit])}
        completion = {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": "rule",
            "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        }
        if reply.usage and reply.status == 200:
            read, written = len(prompt.split()), len(words[:limit])
            with self.server.lock:
                self.server.tokens[0] += read
                self.server.tokens[1] += written
            completion["usage"] = {
                "prompt_tokens": read,
                "completion_tokens": written,
                "total_tokens": read + written,
            }
        return json.dumps(completion)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on the terminal."""


REFUSALS = {
    "max_tokens": "Unsupported parameter: 'max_tokens' is not supported with this model. "
    "Use 'max_completion_tokens' instead.",
    "temperature": "Unsupported value: 'temperature' does not support 0 with this model. "
    "Only the default (1) value is supported.",
}


def _refusal(message: str) -> Reply:
    return Reply(
        status=400,
        body=json.dumps({"error": {"message": message, "type": "invalid_request_error"}}),
    )


def _limit(request: dict[str, Any]) -> int:
    return request.get("max_completion_tokens") or request["max_tokens"]


def by_letter(prompt: str) -> str:
    """The explanation is a letter; it fits where the marked token begins with it. Any other prompt
    is explained as "a"."""
    explanation = re.search(r"^Explanation: (.*)$", prompt, re.M)
    if not explanation:
        return "a"
    letter = json.loads(explanation[1])
    texts = [json.loads(text) for text in re.findall(r'^(?:Text:|\d+\.) (".*")$', prompt, re.M)]
    answers = ["yes" if re.search(r"«(.)", text)[1] == letter else "no" for text in texts]  # type: ignore[index]
    return (
        answers[0]
        if len(answers) == 1
        else "\n".join(f"{i}. {answer}" for i, answer in enumerate(answers, 1))
    )
