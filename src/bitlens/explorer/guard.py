"""Who may ask: only the page itself, from this computer.

A page of another site can send requests to 127.0.0.1 and, after DNS rebinding, read the answers.
So the Host header must be this server's own, and what browsers say of a request's origin must be
this page.
"""

from __future__ import annotations

import asyncio
import json

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bitlens import terminal

HEADERS = {
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; object-src 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}
LARGEST = 1 << 18  # bytes of a request
DRAINED = 1 << 25  # bytes of a larger one that are read, so that its sender hears why it is refused


class Guard:
    """ASGI middleware that refuses what is not the page's own, adds headers to all answers, and
    answers where the application fails."""

    def __init__(self, app: ASGIApp, port: int) -> None:
        self.app = app
        names = ("127.0.0.1", "localhost")
        self.hosts = {f"{name}:{port}" for name in names} | (set(names) if port == 80 else set())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return

        answer = _Answer(send)
        try:
            if refused := self._refused(scope):
                await _say(answer, *refused)
                return
            body = await _read(receive) if scope["method"] == "POST" else b""
            if body is None:
                await _say(
                    answer, 413, f"That is too long: a request has at most {LARGEST:,} bytes."
                )
                return
            await self.app(scope, _again(body, receive), answer)
        except asyncio.CancelledError:  # at the end, when patience is over
            if not answer.started:
                await _say(answer, 503, "The server has ended.")
        except Exception as error:  # of any library: the server goes on
            terminal.say(f"{scope['path']!r}: {type(error).__name__}: {error}")
            if answer.started:
                raise
            await _say(answer, 500, f"The server failed at this ({type(error).__name__}).")

    def _refused(self, scope: Scope) -> tuple[int, str] | None:
        """Status and sentence, or None for a request of the page's own."""
        headers = Headers(scope=scope)

        def one(name: str) -> str | None:
            return ", ".join(headers.getlist(name)) if name in headers else None

        host, origin, site = one("host"), one("origin"), one("sec-fetch-site")
        if host is None or host.lower() not in self.hosts:
            return 421, "This server answers only as 127.0.0.1 or localhost, on its own port."
        if origin is not None and origin.lower() != f"http://{host.lower()}":
            return 403, "Another page's question is not answered."
        # A link elsewhere may lead here, but only to the page itself.
        visit = scope["path"] == "/" and one("sec-fetch-dest") == "document"
        if site not in (None, "same-origin", "none") and not visit:
            return 403, "Another page's question is not answered."
        if scope["method"] not in ("GET", "POST"):
            return 405, "Only GET and POST are answered."
        kind = (one("content-type") or "").partition(";")[0].strip().lower()
        if scope["method"] == "POST" and kind != "application/json":
            return 415, "A question is JSON, with Content-Type: application/json."
        return None


class _Answer:
    """Sends an answer, with the headers of all, and knows whether it has begun."""

    def __init__(self, send: Send) -> None:
        self.send, self.started = send, False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            own = {name.encode(): value.encode() for name, value in HEADERS.items()}
            rest = [pair for pair in message["headers"] if pair[0].lower() not in own]
            message["headers"] = [*rest, *own.items()]
        await self.send(message)


def _again(body: bytes, receive: Receive) -> Receive:
    """What gives a body that has been read, and then what comes after it."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _read(receive: Receive) -> bytes | None:
    """The body of a request; None if it is too long."""
    parts, size = [], 0
    while size <= DRAINED:
        message = await receive()
        if message["type"] != "http.request":
            return None
        size += len(message.get("body", b""))
        if size <= LARGEST:
            parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts) if size <= LARGEST else None
    return None


async def _say(send: Send, status: int, sentence: str) -> None:
    body = json.dumps({"sentence": sentence}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
