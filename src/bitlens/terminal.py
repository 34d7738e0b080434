"""What a person sees of work under way, on standard error.

In a terminal long work shows a bar. Elsewhere it says a line once it has taken two seconds, and
then ever more rarely, so that a log stays short. Bars nest: what a step calls shows below it, and a
line names them all.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 120  # where there is no terminal to ask
FIRST = 2.0  # seconds before the first line, where there is no terminal
RAREST = 20.0  # seconds between two lines, at most

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


def open_console(stderr: bool) -> Console:
    """A console that prints text as it is, and goes on in silence when its reader has gone: what is
    written to files is not lost then."""
    from rich.console import Console

    class Lasting(Console):
        def on_broken_pipe(self) -> None:
            silence(self.file)

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else WIDTH
    return Lasting(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)


def silence(stream: Any) -> None:
    """From here on what is written to this stream goes nowhere."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _later(seconds: float, call: Callable[..., Any], *args: Any) -> threading.Timer:
    timer = threading.Timer(seconds, call, args)
    timer.daemon = True
    timer.start()
    return timer


@functools.cache
def console() -> Console:
    """Standard error."""
    return open_console(stderr=True)


class Bar:
    """One piece of work: how much of it is done, and what is said beside it."""

    def __init__(self, title: str, total: int | None) -> None:
        self.title, self.done, self.total, self.note = title, 0, total, ""
        self._first: tuple[float, int] | None = None  # when it first was how far

    def at(self, done: int, note: str = "", total: int | None = None) -> None:
        """done: of `total`; note: what to say beside it."""
        self.done, self.note = done, note
        if done and self._first is None:
            self._first = (time.monotonic(), done)
        self.total = self.total if total is None else max(total, done)
        _screen.changed(self)

    def __str__(self) -> str:
        total = f" of {self.total:,}" if self.total is not None else ""
        count = f"{self.done:,}{total}" if self.done else ""
        said = "  ".join(filter(None, (count, self.note, self._left())))
        return f"{self.title}: {said}".rstrip(" :")

    def _left(self) -> str:
        """The time left at the speed so far, once there is one."""
        if self._first is None or self.total is None or self.done <= self._first[1]:
            return ""
        begun, before = self._first
        left = (time.monotonic() - begun) / (self.done - before) * (self.total - self.done)
        return f"{timedelta(seconds=round(left))} left"


class _Screen:
    """All bars that are open, shown together."""

    def __init__(self) -> None:
        self.bars: list[Bar] = []
        self.hidden = 0
        self._progress: Any = None
        self._tasks: dict[Bar, Any] = {}
        self._timer: threading.Timer | None = None

    def open(self, bar: Bar) -> None:
        self.bars.append(bar)
        if len(self.bars) == 1:
            if console().is_terminal:
                self._progress = _rich_progress()
                self._progress.start()
            else:
                self._wait(FIRST)
        if self._progress is not None:
            self._tasks[bar] = self._progress.add_task(bar.title, total=bar.total, note="")

    def close(self, bar: Bar) -> None:
        if bar not in self.bars:
            return  # dismissed
        self.bars.remove(bar)
        if self._progress is not None and self.bars:
            self._progress.remove_task(self._tasks.pop(bar))
        elif self._progress is not None:
            self._progress.stop()
            self._progress, self._tasks = None, {}
        elif self._timer is not None and not self.bars:
            self._timer.cancel()

    def changed(self, bar: Bar) -> None:
        if bar in self._tasks:
            task = self._tasks[bar]
            self._progress.update(task, completed=bar.done, note=bar.note, total=bar.total)

    def _wait(self, seconds: float) -> None:
        self._timer = _later(seconds, self._say, seconds)

    def _say(self, waited: float) -> None:
        if bars := [str(bar) for bar in self.bars]:
            self._wait(min(2 * waited, RAREST))
            if not self.bars and self._timer is not None:  # closed meanwhile, by another thread
                self._timer.cancel()
            say("; ".join(bars))


_screen = _Screen()


def _rich_progress() -> Any:
    from rich import progress as rich

    return rich.Progress(
        rich.TextColumn("{task.description}", markup=False),
        rich.BarColumn(bar_width=24),
        rich.MofNCompleteColumn(),
        rich.TimeElapsedColumn(),
        rich.TimeRemainingColumn(),
        rich.TextColumn("{task.fields[note]}", markup=False),
        console=console(),
        speed_estimate_period=600,  # a batch of a large model takes long
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
    )


class _Interrupt:
    """Ctrl-C that cannot be lost, and SIGTERM, which is the same from elsewhere.

    Python drops what is raised in a callback (of a weak reference, an import's lock, C), and some
    libraries clear any exception: it is raised again where work says how far it is.
    """

    def __init__(self) -> None:
        self.pending = False
        self.signal = signal.SIGINT
        """the last that came"""

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Until `listen` is called in the block, a signal ends the process with a word: raised in
        the middle of an import, it could become anything. Another's handler is left alone."""
        usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
        former = {n: handler for n, handler in usual.items() if signal.getsignal(n) == handler}
        for number in former:
            signal.signal(number, self._end_process)
        try:
            yield
        finally:
            self.ignore()
            for number, handler in former.items():
                signal.signal(number, handler)

    def listen(self) -> None:
        """From here on SIGINT and, of a command, SIGTERM is a KeyboardInterrupt until the process
        has ended by it."""
        own = (self._end_process, self._raise)
        for number, more in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, None)):
            if signal.getsignal(number) in (*own, more):
                self.pending = False
                signal.signal(number, self._raise)
                sys.unraisablehook = self._dropped

    def ignore(self) -> None:
        """Forget an interrupt that was not heard, and raise none again."""
        self.pending = False
        sys.unraisablehook = sys.__unraisablehook__

    def check(self) -> None:
        """Raise the interrupt that was not heard, if there is one."""
        if self.pending and threading.current_thread() is threading.main_thread():
            self.pending = False
            raise KeyboardInterrupt

    def _end_process(self, number: int, frame: Any) -> None:
        cursor = b"\x1b[?25h" if os.isatty(2) else b""  # it may be hidden
        os.write(2, cursor + b"Stopped.\n")
        os._exit(128 + number)

    def _raise(self, number: int, frame: Any) -> None:
        self.pending, self.signal = True, signal.Signals(number)
        raise KeyboardInterrupt

    def _dropped(self, what: Any) -> None:
        if not issubclass(what.exc_type, KeyboardInterrupt):
            sys.__unraisablehook__(what)
            return
        _later(0.05, self._again)  # outside of the callback

    def _again(self) -> None:
        if self.pending:  # else it was heard meanwhile, and the process may be at its very end
            os.kill(os.getpid(), self.signal)


interrupt = _Interrupt()


@contextlib.contextmanager
def bar(title: str, total: int | None = None, shown: bool = True) -> Iterator[Bar]:
    """Show this work while the block runs; `shown` False: neither this nor any work within it."""
    one = Bar(title, total)
    if not shown:
        _screen.hidden += 1
        try:
            yield one
        finally:
            _screen.hidden -= 1
        return
    if _screen.hidden or threading.current_thread() is not threading.main_thread():
        yield one
        return
    if _screen.bars and _screen.bars[-1].title == title:
        yield _screen.bars[-1]  # of a command, for the function that does its work
        return
    _screen.open(one)
    try:
        yield one
    finally:
        _screen.close(one)


def shown(title: str) -> Callable[[F], F]:
    """Decorator: calls show that they are under way, unless their keyword `progress` is False."""

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with bar(title, shown=bool(kwargs.get("progress", True))):
                return function(*args, **kwargs)

        return cast("F", call)

    return decorate


def hide() -> None:
    """From here on this process shows nothing: of several that work at once, one speaks."""
    _screen.hidden += 1


def dismiss() -> None:
    """Close every bar that is open: what follows is no work that comes to an end."""
    for one in reversed(list(_screen.bars)):
        _screen.close(one)


def at(done: int, note: str = "", total: int | None = None) -> None:
    """How far the innermost work is; see `Bar.at`."""
    interrupt.check()
    if _screen.bars and not _screen.hidden:
        _screen.bars[-1].at(done, note, total)


def stage(note: str) -> None:
    """What the innermost work does now, of work that is not counted."""
    at(0, note)


def track(
    items: Iterable[T],
    title: str,
    total: int | None = None,
    size: Callable[[T], int] = lambda item: 1,
) -> Iterator[T]:
    """The items, in a bar that counts those that are done; size: how much an item counts."""
    with bar(title, total) as counted:
        for item in items:
            yield item
            counted.at(counted.done + size(item))


def say(sentence: str) -> bool:
    """Print a sentence, unless progress is hidden -> whether it was."""
    if not _screen.hidden:
        console().print(sentence, soft_wrap=True)
    return not _screen.hidden
