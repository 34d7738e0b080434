"""Stop politely: Ctrl-C and SIGTERM finish the step in hand, save and exit with a sentence."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

from bitlens import processes, terminal


@contextlib.contextmanager
def stop_on_signals(told: Callable[[], object] | None = None) -> Iterator[SimpleNamespace]:
    """Within the block SIGINT and SIGTERM only set `signal`, to their name; a second one acts as
    usual, but where there are many processes: torchrun may send each of them twice.

    told: called at a signal, in a thread, since the main one may hold what it needs to print."""
    request = SimpleNamespace(signal=None)
    # Only the main thread may handle signals.
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    terminal.interrupt.check()
    former: dict[int, Any] = {}

    def handle(number: int, frame: Any) -> None:
        request.signal = signal.Signals(number).name
        if processes.world_size() == 1:
            signal.signal(number, former[number])
        if told is not None:
            threading.Thread(target=told).start()

    for number in (signal.SIGINT, signal.SIGTERM):
        former[number] = signal.signal(number, handle)
    try:
        yield request
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
