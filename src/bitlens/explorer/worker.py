"""One thread that runs the language model, one question after another."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from bitlens.errors import BitlensError

WAITING = 16  # questions, at most

T = TypeVar("T")


class Busy(BitlensError):
    """Too many questions wait already."""


class Worker:
    """A thread of its own, so that the server answers everything else meanwhile. It ends with the
    process, whatever it is doing then."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()
        self._ended = False
        self._now: Future[Any] | None = None
        self._unwanted: Future[Any] | None = None
        threading.Thread(target=self._work, name="model", daemon=True).start()

    def ask(self, call: Callable[[], T]) -> Future[T]:
        """The answer of `call`, once it has had its turn. Refused where many wait."""
        if self._jobs.qsize() >= WAITING:
            raise Busy("The language model has many questions to answer; ask again in a moment.")
        answer: Future[T] = Future()
        self._jobs.put((answer, call))
        return answer

    def give_up(self, answer: Future[Any]) -> None:
        """Nobody waits for this answer any more."""
        if not answer.cancel():
            self._unwanted = answer

    @property
    def unwanted(self) -> bool:
        """Whether nobody waits for what is under way: what takes long may look at it."""
        return self._ended or (self._now is not None and self._now is self._unwanted)

    def stop(self) -> None:
        """Give up what waits, and what is under way."""
        self._ended = True
        while True:
            try:
                self._jobs.get_nowait()[0].cancel()
            except Empty:
                return

    def _work(self) -> None:
        while True:
            answer, call = self._jobs.get()
            if not answer.set_running_or_notify_cancel():
                continue  # who asked has gone
            self._now = answer
            try:
                answer.set_result(call())
            except BaseException as error:  # whatever it is, it is the asker's
                answer.set_exception(error)
