"""Progress: long work says what it is doing, short work and hidden work say nothing."""

import contextlib
import inspect
import os
import pty
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

import bitlens
from bitlens import terminal
from bitlens.hidden import TensorSource
from bitlens.training import TrainConfig
from bitlens.training.signals import stop_on_signals


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "FIRST", 0.02)


def until_said(capsys: pytest.CaptureFixture[str], words: str) -> str:
    """Waits for the words on standard error -> all that was said"""
    said = ""
    while words not in said:
        time.sleep(0.005)
        said += capsys.readouterr().err
    return said


def test_long_work_says_where_it_is_and_ever_more_rarely(
    soon: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with terminal.bar("outer", 5) as outer:
        outer.at(3, "a note with [brackets]")
        for _ in terminal.track([1, 2], "inner", 2):
            said = until_said(capsys, "outer: 3 of 5  a note with [brackets]; inner")
    assert said.count("\n") < 4
    assert not terminal._screen.bars


def test_a_line_tells_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter((10.0, 16.0, 100.0))
    monkeypatch.setattr(terminal, "time", SimpleNamespace(monotonic=lambda: next(now)))
    bar = terminal.Bar("harvest", 50)
    bar.at(20, "7 rows/s")  # what was there before, and the first batch
    assert str(bar) == "harvest: 20 of 50  7 rows/s"
    bar.at(30, "7 rows/s")
    assert str(bar) == "harvest: 30 of 50  7 rows/s  0:00:12 left"
    bar.at(50)
    assert str(bar) == "harvest: 50 of 50  0:00:00 left"


def test_short_work_says_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal, "FIRST", 600.0)
    train = TrainConfig(n_latents=16, steps=20)
    bitlens.train(TensorSource(torch.randn(400, 8)), train)
    assert "train" not in capsys.readouterr().err


def test_hidden_work_says_nothing_nor_does_what_it_calls(
    soon: None, capsys: pytest.CaptureFixture[str]
) -> None:
    @terminal.shown("public")
    def public(progress: bool = True) -> None:
        with terminal.bar("inner"):
            terminal.say("a sentence")
            terminal.at(1, "note")
            time.sleep(0.1)

    public(progress=False)
    assert capsys.readouterr().err == ""
    public()
    assert "public; inner" in capsys.readouterr().err


def test_bars_that_are_dismissed_say_nothing_more(
    soon: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with terminal.bar("outer"), terminal.bar("inner"):
        terminal.dismiss()
        assert not terminal._screen.bars
        capsys.readouterr()
        with terminal.bar("later"):
            assert "outer" not in until_said(capsys, "later")
    assert not terminal._screen.bars


def test_work_that_fails_leaves_no_bar(soon: None) -> None:
    with pytest.raises(ValueError), terminal.bar("one"), terminal.bar("two"):
        raise ValueError
    assert not terminal._screen.bars


AT_ONCE = ("to_pandas", "intervene", "nearest")  # nobody waits for these


@pytest.mark.parametrize(
    "name",
    [n for n in bitlens.__all__ if inspect.isfunction(getattr(bitlens, n)) and n not in AT_ONCE],
)
def test_every_public_function_shows_progress_unless_told_not_to(name: str) -> None:
    function = getattr(bitlens, name)
    assert inspect.signature(function).parameters["progress"].default is True
    assert function.__wrapped__, "terminal.shown"


def test_a_terminal_sees_a_bar_and_results_go_to_standard_output() -> None:
    code = (
        "from bitlens import terminal, show\n"
        "with terminal.bar('work [x]', 4) as bar:\n"
        "    bar.at(4, 'done [y]')\n"
        "    print('result')\n"
    )
    reader, writer = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=writer, env=environment
    )
    os.close(writer)
    seen = os.read(reader, 1 << 16).decode()
    os.close(reader)
    assert done.stdout == b"result\n"
    assert "work [x]" in seen
    assert "4/4" in seen
    assert "done [y]" in seen


class Dropping:
    """What is raised while it is deleted, Python drops, as in every callback of a weak reference or
    of C."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


def drop_and_wait() -> None:
    Dropping()
    time.sleep(20)


def test_an_interrupt_that_python_drops_is_raised_again() -> None:
    former, hook = signal.getsignal(signal.SIGINT), sys.unraisablehook
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    try:
        terminal.interrupt.listen()
        with pytest.raises(KeyboardInterrupt):
            drop_and_wait()
        terminal.interrupt.listen()
        Dropping()
        with pytest.raises(KeyboardInterrupt):
            terminal.at(1)
        time.sleep(0.2)  # it was heard, so that no other one comes
        for work in (lambda: terminal.at(1), stop_on_signals().__enter__):
            terminal.interrupt.listen()
            with contextlib.suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)  # as by a library that clears whatever is raised
            with pytest.raises(KeyboardInterrupt):
                work()
    finally:
        terminal.interrupt.ignore()
        signal.signal(signal.SIGINT, former)
        sys.unraisablehook = hook


def test_an_interrupt_in_code_from_a_string_is_an_exit_status_too() -> None:
    code = (
        "from bitlens import cli\n"
        "cli._call = lambda arguments: exec('raise KeyboardInterrupt')\n"
        "cli.main(['--version'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 130
    assert done.stderr == "Stopped.\n"
