"""A judge's server that hangs, lies, floods or closes half-way; and that nothing secret is kept."""

from __future__ import annotations

import functools
import gzip
import itertools
import json
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard

from bitlens.comsem.calls import Calls
from bitlens.comsem.judges import Question
from bitlens.errors import BitlensError
from language_model_server import LanguageModelServer, Reply, by_letter
from test_openai_judge import KEY, QUESTIONS, TRUTH, judge_of, verdicts

MIB = 1 << 20
COMPLETION = {"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]}


def head(*lines: str) -> bytes:
    """Of a response that is fine so far."""
    return "\r\n".join(["HTTP/1.1 200 OK", *lines, "", ""]).encode()


def slowly(piece: bytes) -> Iterator[bytes]:
    """Without an end, and never silent for long."""
    for _ in range(2000):
        yield piece
        time.sleep(0.01)


@functools.cache
def bomb(pack: Callable[[bytes], bytes]) -> bytes:
    """A few kilobytes that stand for a hundred megabytes."""
    return pack(b" " * 100 * MIB)


LIES = "is not a chat completion"
LOST = "the connection was lost"
LATE = "no answer in"
TROUBLE = {  # what is sent, and what is said of it
    "hangs": (lambda: [head(), b"", *itertools.islice(slowly(b""), 200)], LATE),
    "trickles": (lambda: itertools.chain([head()], slowly(b" ")), LATE),
    "floods": (lambda: itertools.chain([head()], itertools.repeat(b"x" * MIB, 400)), LIES),
    "floods in pieces": (
        lambda: itertools.chain(
            [head("Transfer-Encoding: chunked")],
            itertools.repeat(b"100000\r\n" + b" " * MIB + b"\r\n", 400),
        ),
        LIES,
    ),
    "floods with headers": (
        lambda: itertools.chain([head()[:-2]], itertools.repeat(b"A: b\r\n" * 1000, 400)),
        LOST,
    ),
    "packs gigabytes": (lambda: [head("Content-Encoding: gzip"), bomb(gzip.compress)], LIES),
    "packs them otherwise": (
        lambda: [head("Content-Encoding: zstd"), bomb(zstandard.compress)],
        LIES,
    ),
    "closes half-way": (lambda: [head("Content-Length: 900"), b'{"choices": [{"mess'], LOST),
    "closes at once": (list, LOST),
    "speaks no HTTP": (lambda: [b"SSH-2.0-OpenSSH_9.6\r\n"], LOST),
    "answers in HTML": (lambda: [head("Content-Type: text/html"), b"<html>Log in</html>"], LIES),
    "nests": (lambda: [head(), b'{"choices": ' + b"[" * 10**6], LIES),
    "is no text": (lambda: [head(), b"\xff\xfe\0" * 99], LIES),
}


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried again soon, and an answer has no more than a second."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr("bitlens.comsem.openai_client.PATIENCE", 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", TROUBLE)
def test_a_server_in_trouble_gets_a_sentence_and_the_work_goes_on(
    name: str, tmp_path: Path
) -> None:
    pieces, sentence = TROUBLE[name]
    asked = iter(range(3))
    with Calls(tmp_path / "calls.sqlite") as calls, LanguageModelServer(by_letter) as server:
        server.rule = lambda prompt: (
            Reply(raw=pieces()) if next(asked, None) is None else by_letter(prompt)
        )
        judge = judge_of(server, calls, concurrency=1, attempts=2, timeout=0.5)
        for pack in (gzip.compress, zstandard.compress):
            bomb(pack)
        tracemalloc.start()
        with pytest.raises(BitlensError, match=sentence) as caught:
            judge.answer(QUESTIONS)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert str(caught.value).isprintable()
        assert peak < 40 * MIB
        server.rule, before = by_letter, len(server.requests)
        assert verdicts(judge_of(server, calls)) == TRUTH
        assert len(server.requests) - before == 3, "what it said before is kept"


@pytest.mark.parametrize("kind", ["text/html", "application/json; charset=zlib", "x; charset=no"])
def test_an_answer_is_one_whatever_the_server_calls_it(kind: str, tmp_path: Path) -> None:
    answer = Reply(body=json.dumps(COMPLETION), headers={"Content-Type": kind})
    with (
        Calls(tmp_path / "calls.sqlite") as calls,
        LanguageModelServer(lambda prompt: answer) as server,
    ):
        assert verdicts(judge_of(server, calls, 1), QUESTIONS[:2]) == [True, True]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_neither_key_nor_prompt_follows_to_another_server(
    status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with (
        Calls(tmp_path / "calls.sqlite") as calls,
        LanguageModelServer(by_letter) as other,
        LanguageModelServer(by_letter) as server,
    ):
        there = {"Location": f"{other.url}/chat/completions"}
        server.rule = lambda prompt: Reply(status=status, headers=there)
        with pytest.raises(BitlensError, match=r"another address, which is not followed"):
            judge_of(server, calls).answer([Question("a", "«new»")])
        assert server.keys == {f"Bearer {KEY}"}
        assert (other.requests, other.keys) == ([], set())
        assert calls.spent().calls == 0
