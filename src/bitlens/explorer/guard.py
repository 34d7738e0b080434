"""Who may ask: only the page itself, from this computer.

A page of another site can send requests to 127.0.0.1 and, after DNS rebinding, read the answers.
So the Host header must be this server's own, and what browsers say of a request's origin must be
this page.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from bitlens import terminal

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

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

    def __init__(self, app: Any, port: int) -> None:
        self.app = app
        names = ("127.0.0.1", "localhost")
        self.hosts = {f"{name}:{port}" for name in names} | (set(names) if port == 80 else set())

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return

        started = False

        async def guarded(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                own = {name.encode(): value.encode() for name, value in HEADERS.items()}
                rest = [pair for pair in message["headers"] if pair[0].lower() not in own]
                message["headers"] = [*rest, *own.items()]
            await send(message)

        if refused := self._refused(scope):
            await _answer(guarded, *refused)
            return
        body = b""
        if scope["method"] == "POST":
            whole = await _read(receive)
            if whole is None:
                sentence = f"That is too long: a request has at most {LARGEST:,} bytes."
                await _answer(guarded, 413, sentence)
                return
            body = whole
        given = False

        async def again() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        try:
            await self.app(scope, again, guarded)
        except Exception as error:  # of any library: the server goes on
            terminal.say(f"{scope['path']!r}: {type(error).__name__}: {error}")
            if started:
                raise
            await _answer(guarded, 500, f"The server failed at this ({type(error).__name__}).")

    def _refused(self, scope: Any) -> tuple[int, str] | None:
        """Status and sentence, or None for a request of the page's own."""
        headers: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))

        def one(name: str) -> str | None:
            values = headers.get(name, [])
            return values[0] if len(values) == 1 else ", ".join(values) or None

        host, origin, site = one("host"), one("origin"), one("sec-fetch-site")
        if host is None or host.lower() not in self.hosts:
            return 421, "This server answers only as 127.0.0.1 or localhost, on its own port."
        if origin is not None and origin.lower() != f"http://{host.lower()}":
            return 403, "Another page's question is not answered."
        # A link elsewhere may lead here, but only to the page itself.
        visit = scope["path"] == "/" and one("sec-fetch-dest") == "document"
        if site not in (None, "same-origin", "none") and not visit:
            return 403, "Another page's question is not answered."
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return 405, "Only GET and POST are answered."
        kind = (one("content-type") or "").partition(";")[0].strip().lower()
        if scope["method"] == "POST" and kind != "application/json":
            return 415, "A question is JSON, with Content-Type: application/json."
        return None


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


async def _answer(send: Send, status: int, sentence: str) -> None:
    body = json.dumps({"sentence": sentence}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
