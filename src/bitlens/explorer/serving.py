"""The explorer's server, on this computer only."""

from __future__ import annotations

import socket

import uvicorn

from bitlens.errors import BitlensError
from bitlens.explorer.app import create_app
from bitlens.explorer.explorer import Explorer

HOST = "127.0.0.1"
PATIENCE = 2  # seconds in which open answers are finished at the end


def listen(port: int) -> socket.socket:
    """A socket on this port, or on a free one if that is taken. 0: any free port."""
    for tried in (port, 0):
        one = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((HOST, tried))
            return one
        except (OSError, OverflowError):
            one.close()
    raise BitlensError(f"No port of {HOST} can be opened.")


def server(explorer: Explorer, port: int) -> uvicorn.Server:
    """A server that answers requests for this port; `run(sockets=[...])` runs it."""
    config = uvicorn.Config(
        create_app(explorer, port),
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        timeout_graceful_shutdown=PATIENCE,
    )
    return uvicorn.Server(config)
