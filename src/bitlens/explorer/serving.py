"""The explorer's server, on this computer only."""

from __future__ import annotations

import asyncio
import socket

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from bitlens.errors import BitlensError
from bitlens.explorer.app import create_app
from bitlens.explorer.explorer import Explorer

HOST = "127.0.0.1"
PATIENCE = 2  # seconds in which open answers are finished at the end
SLOWEST = 10  # seconds in which a request has to be there


def listen(port: int) -> socket.socket:
    """A socket on this port, or on a free one if that is taken. 0: any free port."""
    if not 0 <= port < 1 << 16:
        raise BitlensError(f"`port` must be from 0 to 65535, not {port}.")
    for tried in (port, 0):
        # named as TCP, so that asyncio lets small packets go at once: 40 ms an answer otherwise
        one = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((HOST, tried))
            one.listen()
            return one
        except OSError:  # taken, or for others only
            one.close()
    raise BitlensError(f"No port of {HOST} can be opened.")


def serve(explorer: Explorer, listening: socket.socket) -> None:
    """Answer until Ctrl-C, a KeyboardInterrupt once all has ended."""
    server(explorer, listening.getsockname()[1]).run(sockets=[listening])


class _Protocol(H11Protocol):
    """Hangs up on who does not send a whole request in some seconds, however little it sends at a
    time: a browser keeps connections without a word, and each is a file of this process."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def on_response_complete(self) -> None:
        self._wait()  # for the next request
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._timer is not None:
            self._timer.cancel()

    def _wait(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(SLOWEST, self._hang_up)

    def _hang_up(self) -> None:
        whole = self.cycle is not None and not self.cycle.more_body
        if not whole or self.cycle.response_complete:  # else it waits for our answer
            self.transport.close()


class _Server(uvicorn.Server):
    """Gives up the questions under way before it waits for all answers."""

    def __init__(self, config: uvicorn.Config, explorer: Explorer) -> None:
        super().__init__(config)
        self._worker = explorer.worker

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._worker.stop()
        await super().shutdown(sockets)


def server(explorer: Explorer, port: int) -> uvicorn.Server:
    """A server that answers requests for this port; `run(sockets=[...])` runs it."""
    config = uvicorn.Config(
        create_app(explorer, port),
        http=_Protocol,
        log_level="critical",  # what goes wrong is said by the guard
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        timeout_graceful_shutdown=PATIENCE,
    )
    return _Server(config, explorer)
