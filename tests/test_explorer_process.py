"""`bitlens explore` as processes: interrupted at any time, several at once, in folders that cannot
be written to, and beside connections that never end."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest

from bitlens.autoencoders import Autoencoder
from bitlens.bits.codes import Codes
from bitlens.encode import encode_store
from bitlens.explorer import serving
from bitlens.explorer.explorer import Explorer, Sources
from bitlens.hidden import ActivationStore
from explored import TEXT, ask, served

CODES = "explorer/codes"
PATIENCE = 120


@pytest.fixture
def run(made, tmp_path) -> Path:
    """A run without codes, that a test may change."""
    shutil.copytree(made.bae, tmp_path / "run", ignore=shutil.ignore_patterns("explorer"))
    return tmp_path / "run"


class Explore:
    """A real `bitlens explore`."""

    def __init__(self, *arguments: object) -> None:
        command = [sys.executable, "-m", "bitlens", "explore", *map(str, arguments)]
        command += ["--port", "0", "--no-browser"]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.said = ""

    def until(self, *words: str) -> str:
        """Read until a line has one of these words -> the line"""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said += line
            if any(word in line for word in words):
                return line
        raise AssertionError(f"ended with {self.process.wait()}: {self.said}")

    def address(self) -> str:
        return self.until("http://").split()[0]

    def interrupted(self) -> int:
        """After a SIGINT -> exit status"""
        self.process.send_signal(signal.SIGINT)
        return self.ended()

    def ended(self) -> int:
        said, _ = self.process.communicate(timeout=PATIENCE)
        self.said += said
        return self.process.returncode


@pytest.fixture
def explore():
    """`explore(...)` starts `bitlens explore ...`."""
    started: list[Explore] = []

    def start(*arguments: object) -> Explore:
        started.append(Explore(*arguments))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.communicate()


def stopped(command: Explore) -> None:
    """It ended by the interrupt, in a word."""
    assert "Traceback" not in command.said, command.said
    assert command.said.splitlines()[-1] == "Stopped.", command.said


def whole(run: Path) -> None:
    """Nothing that was begun is left, and what is there is whole."""
    folder = run / "explorer"
    left = {path.name for path in folder.iterdir()} if folder.exists() else set()
    assert left <= {".lock", "codes", "codes.jsonl"}
    if "codes" in left:
        assert len(Codes(run / CODES)) > 0
        assert json.loads((run / CODES / "made_from.json").read_text())["rows"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.1, 1.0, 2.0, 2.5, 3.0, 3.5, 4.0])
def test_an_interrupt_while_it_starts_ends_it_in_a_word(explore, run, seconds) -> None:
    command = explore(run)
    time.sleep(seconds)
    expected = (130, -signal.SIGINT) if seconds < 0.5 else (130,)
    assert command.interrupted() in expected, command.said
    assert "Traceback" not in command.said or seconds < 0.5  # before there is any code of ours
    whole(run)


@pytest.mark.slow
def test_an_interrupt_while_it_encodes_leaves_nothing_half_written(explore, run) -> None:
    command = explore(run)
    command.until("encoded")
    assert command.interrupted() == 130
    stopped(command)
    whole(run)
    again = explore(run, "--no-model")
    assert httpx2.get(f"{again.address()}api/run.json").json()["rows"] > 0
    whole(run)
    assert "codes" in {path.name for path in (run / "explorer").iterdir()}
    assert again.interrupted() == 130
    stopped(again)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.0, 0.3, 1.0, 3.0])
def test_an_interrupt_while_it_serves_ends_it_in_a_word(explore, made, seconds) -> None:
    """The language model is loaded meanwhile."""
    command = explore(made.bae, "--codes", made.codes)
    address = command.address()
    if seconds > 2:
        assert httpx2.post(f"{address}api/text", json={"text": TEXT}, timeout=60).is_success
    time.sleep(seconds)
    assert command.interrupted() == 130, command.said
    stopped(command)


@pytest.mark.slow
def test_two_of_one_run_make_its_codes_once(explore, made, run) -> None:
    both = [explore(run, "--no-model") for _ in range(2)]
    tables = [httpx2.get(f"{one.address()}api/latents.json").content for one in both]
    assert tables[0] == tables[1]
    assert [one.interrupted() for one in both] == [130, 130]
    assert sum("are encoded" in one.said for one in both) == 1
    assert "Traceback" not in both[0].said + both[1].said
    whole(run)
    expected = encode_store(
        Autoencoder.from_pretrained(run), ActivationStore(made.store), run / "x"
    )
    assert Codes(run / CODES).bits.words.equal(expected.bits.words)


@pytest.mark.slow
def test_one_that_is_killed_while_it_encodes_is_in_nobodys_way(explore, run) -> None:
    first = explore(run, "--no-model")
    first.until("encoded")
    first.process.kill()
    first.ended()
    second = explore(run, "--no-model")
    assert httpx2.get(f"{second.address()}api/latents.json").is_success
    assert second.interrupted() == 130
    whole(run)


@contextlib.contextmanager
def read_only(folder: Path):
    """Nobody can write there; skips where that cannot be had."""
    if os.geteuid():
        modes = {path: path.stat().st_mode for path in (folder, *folder.rglob("*"))}
        for path, mode in modes.items():
            path.chmod(mode & ~0o222)
        yield
        for path, mode in modes.items():
            path.chmod(mode)
        return
    mounted = subprocess.run(["mount", "--bind", folder, folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("root can write everywhere here")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("named", [True, False])
def test_a_run_that_cannot_be_written_to_is_served(made, run, capsys, named) -> None:
    with read_only(run):
        sources = Sources(run, made.codes if named else None, model=False)
        with served(Explorer(sources)) as site:
            assert site.get("/api/latents/3.json").json()["examples"]
            assert ask(site, "find", on=[3]).json()["count"] > 0
        assert {path.name for path in run.iterdir()}.isdisjoint({"explorer"})
    said = capsys.readouterr().err
    assert "not kept" in said
    assert ("for this time alone" in said) is not named


def test_codes_made_before_are_used_where_nothing_can_be_written(run, capsys) -> None:
    first = Explorer(Sources(run, model=False)).latents
    capsys.readouterr()
    with read_only(run):
        assert Explorer(Sources(run, model=False)).latents == first
    assert capsys.readouterr().err == ""


# --- connections that never end -------------------------------------------------------------------


@pytest.mark.slow
def test_slow_connections_are_hung_up_on_and_keep_nobody_out(site, monkeypatch) -> None:
    monkeypatch.setattr(serving, "SLOWEST", 1)
    host = (site.base_url.host, site.base_url.port)
    begun = f"POST /api/text HTTP/1.1\r\nHost: 127.0.0.1:{host[1]}\r\n".encode()
    body = b"Content-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
    lines = []
    for number in range(300):
        lines.append(socket.create_connection(host, timeout=20))
        lines[-1].sendall((b"", begun, begun + body)[number % 3])
    assert ask(site, "text", text=TEXT).status_code == 200  # meanwhile
    open_ones = list(lines)
    while open_ones:  # each sends a little now and then, and is hung up on all the same
        for line in list(open_ones):
            try:
                line.sendall(b"X")
                line.setblocking(False)
                gone = line.recv(4096) == b""
            except BlockingIOError:
                gone = False
            except OSError:
                gone = True
            if gone:
                open_ones.remove(line)
        time.sleep(0.05)
    for line in lines:
        line.close()
    assert ask(site, "text", text=TEXT).status_code == 200


@pytest.mark.slow
def test_a_connection_is_kept_for_more_requests_but_not_for_ever(site, monkeypatch) -> None:
    monkeypatch.setattr(serving, "SLOWEST", 1)
    request = f"GET /api/run.json HTTP/1.1\r\nHost: 127.0.0.1:{site.base_url.port}\r\n\r\n".encode()
    with socket.create_connection((site.base_url.host, site.base_url.port), timeout=20) as line:
        for _ in range(3):
            line.sendall(request)
            answer = b""
            while b"\r\n\r\n" not in answer:
                answer += line.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200")
            length = int(answer.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            while len(answer.partition(b"\r\n\r\n")[2]) < length:
                answer += line.recv(65536)
        line.sendall(request[:9])
        assert line.recv(99) == b""
