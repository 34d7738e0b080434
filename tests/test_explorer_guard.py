"""The explorer's server against what it must refuse: real requests to a real server."""

import copy
import json
import socket
import threading
import time

import httpx2
import pytest

from bitlens.explorer import worker
from bitlens.explorer.guard import DRAINED, LARGEST
from explored import TEXT, ask, served

# --- who may ask ----------------------------------------------------------------------------------


def raw(site, request: str | bytes) -> tuple[int, str]:
    """Bytes as they are, to the server -> status and body of the answer"""
    data = request if isinstance(request, bytes) else request.encode("latin-1")
    with socket.create_connection((site.base_url.host, site.base_url.port), timeout=20) as line:
        line.sendall(data)
        answer = b""
        while part := line.recv(65536):
            answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body.decode()


def get(site, path: str, *headers: str, host: str | None = None) -> tuple[int, str]:
    host = f"127.0.0.1:{site.base_url.port}" if host is None else host
    lines = [f"GET {path} HTTP/1.1", f"Host: {host}", "Connection: close", *headers, "", ""]
    return raw(site, "\r\n".join(lines))


@pytest.mark.slow
@pytest.mark.parametrize(
    "host",
    [
        "example.org",
        "127.0.0.1",
        "127.0.0.1:1",
        "localhost.example.org:{port}",
        "evil:{port}",
        "127.0.0.1:{port}.example.org",
        "127.0.0.2:{port}",
        "[::1]:{port}",
        "",
        "a@127.0.0.1:{port}",
    ],
)
def test_another_host_is_refused(site, host):
    status, body = get(site, "/api/run.json", host=host.format(port=site.base_url.port))
    assert status in (400, 421)
    assert "bundled" not in body


def test_requests_without_a_host_or_with_two_are_refused(site):
    own = f"Host: 127.0.0.1:{site.base_url.port}"
    assert raw(site, "GET /api/run.json HTTP/1.0\r\n\r\n")[0] in (400, 421)
    two = f"GET /api/run.json HTTP/1.1\r\n{own}\r\nHost: evil.org\r\nConnection: close\r\n\r\n"
    assert raw(site, two)[0] in (400, 421)
    assert get(site, "/api/run.json", host=f"LOCALHOST:{site.base_url.port}")[0] == 200


@pytest.mark.parametrize(
    "header",
    [
        "Origin: http://example.org",
        "Origin: null",
        "Origin: https://127.0.0.1:{port}",
        "Origin: http://127.0.0.1:1",
        "Origin: http://localhost:{port}",
        "Sec-Fetch-Site: cross-site",
        "Sec-Fetch-Site: same-site",
    ],
)
def test_another_origin_is_refused(site, header):
    header = header.format(port=site.base_url.port)
    status, body = get(site, "/api/run.json", header)
    assert status == 403
    assert set(json.loads(body)) == {"sentence"}
    with_body = f"POST /api/text HTTP/1.1\r\nHost: 127.0.0.1:{site.base_url.port}\r\n{header}\r\n"
    with_body += 'Content-Type: application/json\r\nContent-Length: 12\r\n\r\n{"text":"a"}'
    assert raw(site, with_body.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n", 1))[0] == 403


def test_a_link_elsewhere_leads_to_the_page_alone(site):
    headers = ["Sec-Fetch-Site: cross-site", "Sec-Fetch-Dest: document"]
    assert get(site, "/", *headers)[0] == 200
    assert get(site, "/api/latents.json", *headers)[0] == 403
    assert get(site, "/", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Dest: iframe")[0] == 403
    own = f"Origin: http://127.0.0.1:{site.base_url.port}"
    assert get(site, "/api/run.json", own, "Sec-Fetch-Site: same-origin")[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/../app.py",
        "/..%2fapp.py",
        "/%2e%2e/app.py",
        "/%2e%2e%2fapp.py",
        "//etc/passwd",
        "/..\\app.py",
        "/%5c..%5capp.py",
        "/app.js%00.html",
        "/%00",
        "/page/index.html",
        "/app.py",
        "/./index.html",
        "/index.html/",
        "/api/",
        "/api/latents/..%2f..%2fapp.py",
        "/%252e%252e/app.py",
        "/api/latents/1",
        "/api/latents/-1.json",
        "/api/latents/1e3.json",
        "/.git",
        "/INDEX.HTML",
        "/docs",
        "/openapi.json",
        "/etc/passwd",
        "/file:///etc/passwd",
        "/index.html;.js",
        "/\xff.js",
        "/api/latents/99999999999999999999999.json",
        "/api/latents/96.json",
        "/api/text",
    ],
)
def test_no_path_leads_anywhere_else(site, path):
    status, body = get(site, path)
    assert status in (400, 404, 405)
    if status != 400:
        assert set(json.loads(body)) == {"sentence"}


def test_absolute_addresses_of_others_are_not_fetched(site):
    status, _ = get(site, "http://example.org/api/run.json", host="example.org")
    assert status in (400, 421)
    assert get(site, "*")[0] in (400, 404)


@pytest.mark.parametrize("method", ["HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "HELLO"])
def test_other_methods_are_refused(site, method):
    answer = site.request(method, "/api/run.json")
    assert answer.status_code == 405
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("text/plain", b'{"text": "a"}'),
        ("application/x-www-form-urlencoded", b"text=a"),
        (None, b"{}"),
        ("multipart/form-data; boundary=x", b"--x--"),
    ],
)
def test_forms_of_other_pages_are_refused(site, kind, body):
    headers = {} if kind is None else {"content-type": kind}
    assert site.post("/api/text", content=body, headers=headers).status_code == 415


# --- questions that make no sense -----------------------------------------------------------------


HOLD = '{"text": "a", "holds": %s}'


@pytest.mark.parametrize(
    ("question", "body", "status"),
    [
        ("text", b"", 422),
        ("text", b"{", 422),
        ("text", b"\xff\xfe", 422),
        ("text", b"[" * 100_000, 400),
        ("text", b"null", 422),
        ("text", b"[]", 422),
        ("text", b'"text"', 422),
        ("text", b'{"text": null}', 422),
        ("text", b'{"text": 5}', 422),
        ("text", b'{"text": ["a"]}', 422),
        ("text", b'{"text": "a", "more": 1}', 422),
        ("text", b'{"text": ""}', 400),
        ("text", b'{"text": NaN}', 422),
        ("hold", HOLD % '{"1": NaN}', 422),
        ("hold", HOLD % '{"1": Infinity}', 422),
        ("hold", HOLD % '{"1": -Infinity}', 422),
        ("hold", HOLD % '{"1": 1e999}', 422),
        ("hold", HOLD % '{"1": 1e300}', 422),
        ("hold", HOLD % '{"1": -1}', 422),
        ("hold", HOLD % '{"1": 0.5}', 400),
        ("hold", HOLD % '{"1": "1"}', 422),
        ("hold", HOLD % '{"1": true}', 422),
        ("hold", HOLD % '{"-1": 1}', 422),
        ("hold", HOLD % '{"one": 1}', 422),
        ("hold", HOLD % '{"99999": 1}', 400),
        ("hold", HOLD % ('{"' + "9" * 5000 + '": 1}'), 422),
        ("hold", HOLD % ("9" * 6000), 400),
        ("hold", HOLD % json.dumps({str(i): 1 for i in range(300)}), 422),
        ("hold", '{"text": "a", "holds": {}, "positions": [5]}', 400),
        ("hold", '{"text": "a", "holds": {}, "positions": "all"}', 422),
        ("hold", '{"text": "a", "holds": {}, "positions": [0.5]}', 422),
        ("hold", '{"text": "a", "holds": {}, "others": "dropped"}', 422),
        ("hold", '{"text": "a", "holds": {}, "continue": {"tokens": 100000}}', 422),
        ("hold", '{"text": "a", "holds": {}, "continue": {"temperature": NaN}}', 422),
        ("hold", '{"text": "a", "holds": {}, "continue": {"seed": -1}}', 422),
        ("near", '{"text": "a", "position": 0}', 400),
        ("near", '{"text": "a", "position": 99}', 400),
        ("near", '{"text": "a", "position": 1, "limit": 0}', 422),
        ("near", '{"text": "a"}', 422),
        ("find", '{"on": [], "off": []}', 400),
        ("find", '{"on": [1], "off": [1]}', 400),
        ("find", '{"on": [99999]}', 400),
        ("find", '{"on": [1], "limit": 1000000}', 422),
        ("find", '{"on": 1}', 422),
    ],
)
def test_what_makes_no_sense_gets_a_sentence_and_the_server_goes_on(site, question, body, status):
    content = body if isinstance(body, bytes) else body.encode()
    headers = {"content-type": "application/json"}
    answer = site.post(f"/api/{question}", content=content, headers=headers)
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"sentence"}
    sentence = answer.json()["sentence"]
    assert sentence.endswith(".")
    assert len(sentence) < 400
    assert "`" not in sentence
    assert ask(site, "text", text="a").status_code == 200


def test_a_text_of_a_million_characters_gets_a_sentence(site):
    for text in ("a" * 1_000_000, "a" * (DRAINED + 1), "\u2603" * 20_001, "ab " * 6000):
        try:
            answer = ask(site, "text", text=text)
        except httpx2.WriteError:  # hung up on before all was sent
            assert len(text) > DRAINED
            continue
        assert answer.status_code == (400 if len(text) < LARGEST / 3 else 413)
        assert set(answer.json()) == {"sentence"}
    assert ask(site, "text", text="a").status_code == 200


def test_a_body_in_pieces_without_its_length_is_limited_too(site):
    def pieces():
        yield b'{"text": "'
        for _ in range(40):
            yield b"a" * 10_000
        yield b'"}'

    headers = {"content-type": "application/json"}
    assert site.post("/api/text", content=pieces(), headers=headers).status_code == 413


@pytest.mark.parametrize(
    "text", ["\ud800", "a\x00b", "<script>alert(1)</script>", "\u202e\u0301", "🙂" * 9]
)
def test_odd_texts_come_back_as_text(site, text):
    body = json.dumps({"text": text})
    headers = {"content-type": "application/json"}
    answer = site.post("/api/text", content=body.encode(), headers=headers)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    joined = "".join(token["t"] for token in answer.json()["tokens"][1:])
    assert joined == text.replace("\ud800", "\ufffd")


# --- one question after another -------------------------------------------------------------------


def test_while_the_model_works_all_else_is_answered_and_few_wait(site, explorer):
    until = threading.Event()
    explorer.worker.ask(until.wait)
    try:
        assert site.get("/api/latents/3.json").status_code == 200
        while explorer.worker._jobs.qsize() < worker.WAITING:
            explorer.worker.ask(lambda: None)
        refused = ask(site, "text", text="a")
        assert refused.status_code == 503
        assert "again" in refused.json()["sentence"]
    finally:
        until.set()
    deadline = time.monotonic() + 20
    while ask(site, "text", text="a").status_code == 503:
        assert time.monotonic() < deadline


def test_what_fails_unforeseen_is_said_and_the_server_goes_on(site, explorer, monkeypatch):
    def fails(*_):
        raise RuntimeError("secret")

    monkeypatch.setattr(explorer, "text", fails)
    monkeypatch.setattr(explorer, "latent", fails)
    for answer in (ask(site, "text", text="a"), site.get("/api/latents/3.json")):
        assert answer.status_code == 500
        assert "secret" not in answer.text
        assert answer.headers["x-content-type-options"] == "nosniff"
    monkeypatch.undo()
    assert ask(site, "text", text="a").status_code == 200


def hold_for_long(site) -> socket.socket:
    """A question that takes long, asked -> its connection"""
    asked = {"text": TEXT, "holds": {}, "continue": {"tokens": 200}}
    body = json.dumps(asked).encode()
    head = f"POST /api/hold HTTP/1.1\r\nHost: 127.0.0.1:{site.base_url.port}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    line = socket.create_connection((site.base_url.host, site.base_url.port), timeout=60)
    line.sendall(head.encode() + body)
    return line


def gone_on_with(explorer, monkeypatch) -> tuple[list[int], threading.Event]:
    """Lengths of the texts as the model goes on with them, and whether it has begun to."""
    lengths, begun = [], threading.Event()
    original = explorer.live._stopped

    def stopped(tokens):
        lengths.append(tokens.shape[1])
        begun.set()
        time.sleep(0.01)  # a larger model
        return original(tokens)

    monkeypatch.setattr(explorer.live, "_stopped", stopped)
    return lengths, begun


@pytest.mark.slow
def test_what_nobody_waits_for_any_more_is_given_up(site, explorer, monkeypatch):
    assert ask(site, "text", text="a").status_code == 200
    lengths, begun = gone_on_with(explorer, monkeypatch)
    lines = [hold_for_long(site) for _ in range(worker.WAITING)]
    assert begun.wait(30)
    for line in lines:
        line.close()
    assert ask(site, "text", text="a").status_code == 200
    assert len(lengths) < 400  # one of the questions alone takes as many steps
    monkeypatch.undo()
    how = {"tokens": 20, "temperature": 0}
    assert ask(site, "hold", text=TEXT, holds={}, **{"continue": how}).status_code == 200


@pytest.mark.slow
def test_the_end_does_not_wait_for_questions(explorer, monkeypatch, capfd):
    lengths, begun = gone_on_with(explorer, monkeypatch)
    own = copy.copy(explorer)
    own.worker = explorer.live.worker = worker.Worker()
    try:
        with served(own) as site:
            silent = socket.create_connection((site.base_url.host, site.base_url.port), timeout=60)
            silent.sendall(
                f"POST /api/text HTTP/1.1\r\nHost: 127.0.0.1:{site.base_url.port}\r\n"
                "Content-Type: application/json\r\nContent-Length: 99\r\n\r\n{".encode()
            )
            line = hold_for_long(site)
            assert begun.wait(30)
    finally:
        explorer.live.worker = explorer.worker
    assert len(lengths) < 400
    assert line.recv(100).split()[1] in (b"200", b"503")
    assert silent.recv(100).split()[1] == b"503"
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.slow
def test_temperatures_near_zero_draw_the_likeliest(site):
    drawn = set()
    for temperature in (0, 5e-324, 1e-300, 1e-30, 1e-6):
        how = {"tokens": 5, "temperature": temperature}
        answer = ask(site, "hold", text=TEXT, holds={}, **{"continue": how})
        assert answer.status_code == 200
        drawn.add(answer.json()["before"]["continuation"])
    assert len(drawn) == 1
