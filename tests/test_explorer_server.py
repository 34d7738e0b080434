"""The explorer's server: real requests to a real server, against the same in Python."""

import contextlib
import gzip
import json
import shutil
import socket
import sys
import threading
import time
from pathlib import Path

import httpx2
import pytest
import torch

from bitlens.autoencoders import Autoencoder
from bitlens.bits.codes import Codes
from bitlens.bits.packed import PackedBits
from bitlens.causal.intervene import intervene
from bitlens.comsem.calls import Calls, Judgement
from bitlens.comsem.judges import Verdict
from bitlens.encode import encode_store
from bitlens.errors import BitlensError
from bitlens.evaluation import evaluate
from bitlens.explorer import encoding, gathering, serving, worker
from bitlens.explorer.explorer import Explorer, Sources
from bitlens.explorer.export import export
from bitlens.explorer.guard import DRAINED, LARGEST
from bitlens.features.profiles import profiles
from bitlens.features.search import matching, nearest
from bitlens.files import finite
from bitlens.hidden import ActivationStore, Corpus, LanguageModel, PairedStore
from bitlens.hidden.harvest import harvest
from bitlens.hidden.text import ContextReader
from bitlens.labels.sources import load_tokenizer
from bitlens.report.kept import keep_evaluation
from bitlens.training import TrainConfig, train

HOOK, LATENTS = "layers.2", 96
TEXT = "The old sailor watched a quiet river in the morning"


class Made:
    """A folder with a store of the bundled model, a run of bits and one of TopK, and their
    codes."""

    def __init__(self, folder: Path, text: Path) -> None:
        model = LanguageModel.load("bundled", [HOOK], device="cpu")
        reader = ContextReader(Corpus((str(text),)), model.tokenizer, 64, packed=False)
        (store,) = harvest(model, reader, folder / "store")
        self.store, self.bae, self.topk = folder / "store", folder / "bae", folder / "topk"
        common = {"n_latents": LATENTS, "steps": 60, "batch_size": 128, "device": "cpu"}
        train(store, TrainConfig(**common), self.bae)
        train(store, TrainConfig(architecture="topk", k=6, **common), self.topk)
        self.codes = folder / "codes-bae"
        encode_store(Autoencoder.from_pretrained(self.bae), store, self.codes)


@pytest.fixture(scope="session")
def made(tmp_path_factory, text_folder) -> Made:
    return Made(tmp_path_factory.mktemp("explored"), text_folder)


@contextlib.contextmanager
def served(explorer: Explorer):
    """A server in a thread, on a port of its own."""
    listening = serving.listen(0)
    port = listening.getsockname()[1]
    server = serving.server(explorer, port)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            client.get("/api/run.json")
            yield client
    finally:
        server.should_exit = True
        thread.join(20)
        listening.close()
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def explorer(made) -> Explorer:
    return Explorer(Sources(made.bae, made.codes, beside=made.topk))


@pytest.fixture(scope="module")
def site(explorer):
    with served(explorer) as client:
        yield client


@pytest.fixture(scope="module")
def model():
    return LanguageModel.load("bundled", [HOOK], device="cpu", causal=True)


@pytest.fixture(scope="module")
def autoencoder(made):
    return Autoencoder.from_pretrained(made.bae)


def ask(site, question: str, **asked):
    return site.post(f"/api/{question}", json=asked)


# --- what a static copy has, too ------------------------------------------------------------------


def test_the_page_and_its_files_are_sent_with_a_policy_that_allows_nothing_foreign(site):
    answer = site.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert "server" not in answer.headers
    assert "access-control-allow-origin" not in answer.headers
    assert site.get("/app.js").headers["content-type"].startswith("text/javascript")


def test_the_run_is_described(site, made):
    run = site.get("/api/run.json").json()
    store = ActivationStore(made.store)
    assert (run["title"], run["architecture"], run["bits"]) == ("bae", "bae", True)
    assert (run["model"], run["hook"], run["rows"]) == ("bundled", HOOK, len(store))
    assert run["live"] is True
    assert run["beside"]["title"] == "topk"
    lines = (made.bae / "metrics.jsonl").read_text().splitlines()
    assert run["curves"]["step"] == [json.loads(line)["step"] for line in lines]
    mse = [json.loads(line)["mse"] for line in lines]
    assert run["curves"]["mse"] == pytest.approx(mse, rel=1e-4)
    assert set(run["curves_meaning"]) == set(run["curves"]) - {"step"}
    assert dict(run["made"])["hook point"].startswith(HOOK)
    assert dict(run["made"])["rows"] == f"{len(store):,}"
    train_again = next(line for line in run["commands"] if line.startswith("bitlens train"))
    assert f"--n-latents {LATENTS} --steps 60 --batch-size 128" in train_again
    assert f"bitlens evaluate {made.bae} {made.store}" in run["commands"]
    assert (run["kind"], run["beside"]["kind"]) == ("Binary autoencoder", "TopK autoencoder")


def test_the_table_and_the_pages_are_the_profiles(site, made):
    codes = Codes(made.codes)
    expected = profiles(codes, tokenizer=load_tokenizer(codes), examples=0, progress=False)
    table = site.get("/api/latents.json").json()["data"]
    assert table["latent"] == list(range(codes.n_latents))
    assert table["rate"] == pytest.approx([p.rate for p in expected], rel=1e-4)
    assert table["tokens"] == [[t.text for t in p.tokens[:5]] for p in expected]
    best = max(expected, key=lambda p: p.rate)
    page = site.get(f"/api/latents/{best.latent}.json").json()
    assert page["surprisal"] == pytest.approx(best.surprisal, rel=1e-4)
    assert [p["text"] for p in page["preferred"]] == [t.text for t in best.tokens]
    assert page["next"][0]["lift"] == pytest.approx(best.next_tokens[0].lift, rel=1e-4)
    assert [n["latent"] for n in page["tree"]] == best.tree
    assert len(page["promotes"]) == len(page["suppresses"]) == 8
    logits = [one["logit"] for one in page["promotes"] + page["suppresses"]]
    assert min(logits[:8]) > max(logits[8:])
    assert f"column({best.latent})" in page["python"]


def test_examples_have_the_marked_token_and_shaded_neighbours(site, made):
    codes = Codes(made.codes)
    tokenizer = load_tokenizer(codes)
    latent = int(codes.bits.column_counts().argmax())
    column, examples = codes.bits.column(latent), []
    for example in site.get(f"/api/latents/{latent}.json").json()["examples"]:
        first = example["row"] - example["at"]
        rows = slice(first, first + len(example["tokens"]))
        examples.append(example["document"])
        assert codes.document[rows].tolist() == [example["document"]] * len(example["tokens"])
        assert [t["v"] for t in example["tokens"]] == column[rows].tolist()
        assert example["tokens"][example["at"]]["v"] == 1
        text = "".join(t["t"] for t in example["tokens"])
        assert text == tokenizer.decode(codes.token[rows].tolist())
    assert len(examples) == len(set(examples)) > 10


def test_latents_that_are_on_together(made, explorer):
    bits = Codes(made.codes).bits
    on = bits.unpack().double()
    n, both = len(on), on.T @ on
    counts = on.sum(0)
    for latent, near in enumerate(gathering.together(bits, 3)[:20]):
        union = counts[latent] + counts - both[latent]
        p, q = counts[latent] / n, counts / n
        by_chance = p * q / (p + q - p * q).clamp_min(1e-300)
        score = (both[latent] / union.clamp_min(1) - by_chance) / (1 - by_chance)
        score[latent] = 0
        best = score.sort(descending=True).values[:3]
        values = [one["value"] for one in near]
        assert values == pytest.approx([v for v in best.tolist() if v > 0], abs=1e-9)


def test_two_runs_are_matched_on_rows_of_both(site, explorer):
    answer = site.get("/api/compare.json").json()
    assert (answer["a"]["title"], answer["b"]["title"]) == ("bae", "topk")
    assert sum(answer["counts"].values()) == len(answer["rows"]) == explorer.subject.n_latents
    line = max(answer["rows"], key=lambda row: row["jaccard"])
    other = site.get(f"/api/beside/{line['b']}.json").json()
    assert other["rate"] == pytest.approx(line["b_rate"], rel=1e-4)
    W_a, W_b = (s.autoencoder.W_dec for s in (explorer.subject, explorer.other.subject))
    cosine = torch.nn.functional.cosine_similarity(W_a[line["a"]], W_b[line["b"]], 0)
    assert line["cosine"] == pytest.approx(cosine.item(), abs=1e-4)


def test_large_answers_are_sent_compressed(site):
    with site.stream("GET", "/api/latents.json", headers={"accept-encoding": "gzip"}) as answer:
        raw = b"".join(answer.iter_raw())
    assert answer.headers["content-encoding"] == "gzip"
    plain = gzip.decompress(raw)
    assert json.loads(plain) == site.get("/api/latents.json").json()
    assert len(raw) < len(plain) / 2


# --- the language model ---------------------------------------------------------------------------


def test_a_text_has_the_bits_and_predictions_of_the_python_api(site, model, autoencoder, explorer):
    tokens = ask(site, "text", text=TEXT).json()["tokens"]
    ids = model.tokenizer(TEXT)["input_ids"]
    if ids[0] != model.tokenizer.bos_token_id:
        ids = [model.tokenizer.bos_token_id, *ids]
    assert [t["position"] for t in tokens] == list(range(len(ids)))
    assert "".join(t["t"] for t in tokens[1:]) == TEXT
    assert tokens[0]["left_out"]
    assert tokens[0]["bits"] == []
    states = model.hidden_states(torch.tensor([ids]))[HOOK][0]
    on = autoencoder.encode_bits(states).unpack()
    with torch.inference_mode():
        p = model.model(input_ids=torch.tensor([ids])).logits[0].softmax(-1)
    rates = [record["rate"] for record in explorer.subject.records]
    for position, token in enumerate(tokens[1:], 1):
        latents = [bit["latent"] for bit in token["bits"]]
        assert sorted(latents) == on[position].nonzero()[:, 0].tolist()
        assert [rates[i] for i in latents] == sorted(rates[i] for i in latents)
        assert token["on"] == len(latents)
        top = p[position].topk(5).values.tolist()
        assert [n["p"] for n in token["next"]] == pytest.approx(top, rel=1e-4)


@pytest.mark.parametrize(("positions", "others"), [(None, "kept"), ([-1, 3], "searched")])
def test_held_bits_give_the_numbers_of_the_python_api(site, model, autoencoder, positions, others):
    tokens = ask(site, "text", text=TEXT).json()["tokens"]
    held = {tokens[-1]["bits"][0]["latent"]: 0, 7: 1}
    asked = {"holds": {str(k): v for k, v in held.items()}, "positions": positions}
    answer = ask(site, "hold", text=TEXT, others=others, **asked).json()
    ids = [model.tokenizer.bos_token_id]
    ids += model.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        before = model.model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        with intervene(model, autoencoder, held, positions, others):
            after = model.model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    assert answer["kl_div"] == pytest.approx(float((before.exp() * (before - after)).sum()))
    assert answer["kl_div"] > 0
    for side, logs in (("before", before), ("after", after)):
        shown = [one["p"] for one in answer[side]["next"]]
        assert sorted(shown, reverse=True)[:10] == pytest.approx(
            logs.exp().topk(10).values.tolist()
        )
    assert [n["t"] for n in answer["before"]["next"]] == [n["t"] for n in answer["after"]["next"]]
    moved = (after.exp() - before.exp()).abs().topk(10).values.tolist()
    assert [abs(c["after"] - c["before"]) for c in answer["changes"]] == pytest.approx(moved)
    assert "continuation" not in answer["before"]


def test_nothing_held_changes_nothing_and_a_seed_gives_its_continuation_again(site):
    how = {"tokens": 12, "temperature": 0.9, "seed": 5}
    first, again = (ask(site, "hold", text=TEXT, holds={}, **{"continue": how}) for _ in range(2))
    first, again = first.json(), again.json()
    assert first["kl_div"] == 0
    assert first["before"] == first["after"] == again["before"]
    assert first["before"]["continuation"]
    other = ask(site, "hold", text=TEXT, holds={}, **{"continue": how | {"seed": 6}}).json()
    assert other["before"]["continuation"] != first["before"]["continuation"]


def test_a_held_bit_is_held_in_the_continuation_too(site, model, autoencoder):
    how = {"tokens": 8, "temperature": 0}
    held = {"3": 1, "7": 1, "11": 1, "20": 1}
    answer = ask(site, "hold", text=TEXT, holds=held, **{"continue": how}).json()
    ids = torch.tensor(
        [
            [model.tokenizer.bos_token_id]
            + model.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
        ]
    )
    with intervene(model, autoencoder, {int(k): v for k, v in held.items()}), torch.no_grad():
        out = model.model.generate(
            ids,
            max_new_tokens=8,
            do_sample=False,
            use_cache=True,
            attention_mask=torch.ones_like(ids),
        )[0].tolist()
    prompt = model.tokenizer.decode(ids[0].tolist())
    assert prompt + answer["after"]["continuation"] == model.tokenizer.decode(out)


def test_contexts_near_a_token_and_with_bits_on_and_off(site, model, autoencoder, made):
    codes = Codes(made.codes)
    ids = [model.tokenizer.bos_token_id]
    ids += model.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    states = model.hidden_states(torch.tensor([ids]))[HOOK][0]
    hits = nearest(codes, autoencoder.encode_bits(states[4:5]), 10)
    found = ask(site, "near", text=TEXT, position=4).json()["contexts"]
    assert [c["row"] for c in found] == [hit.row for hit in hits]
    assert [c["similarity"] for c in found] == pytest.approx([h.similarity for h in hits], abs=1e-4)
    assert [c["shared"] for c in found] == [hit.shared for hit in hits]
    on, off = found[0]["shared"][:1], [found[0]["shared"][-1]]
    found = ask(site, "find", on=on, off=off, limit=5).json()
    assert found["count"] == matching(codes, on, off, 5).found
    for context in found["contexts"]:
        assert codes.bits.column(on[0])[context["row"]] == 1
        assert codes.bits.column(off[0])[context["row"]] == 0
        assert context["tokens"][context["at"]]["v"] == 1


def test_a_sparse_autoencoder_holds_values(made):
    autoencoder = Autoencoder.from_pretrained(made.topk)
    with served(Explorer(Sources(made.topk))) as site:
        run = site.get("/api/run.json").json()
        assert run["bits"] is False
        assert run["hold_max"] > 0
        tokens = ask(site, "text", text=TEXT).json()["tokens"]
        bit = tokens[-1]["bits"][0]
        assert bit["value"] > 0
        assert len(tokens[-1]["bits"]) <= autoencoder.settings["k"]
        answer = ask(site, "hold", text=TEXT, holds={str(bit["latent"]): 2 * run["hold_max"]})
        assert answer.json()["kl_div"] > 0
        refused = ask(site, "hold", text=TEXT, holds={"1": 1}, others="searched")
        assert refused.status_code == 400
        assert "descent" in refused.json()["sentence"]


@pytest.mark.slow
def test_a_transcoder_is_shown_and_held(tmp_path, text_folder):
    hooks = ["layers.2.mlp:input", "layers.2.mlp"]
    model = LanguageModel.load("bundled", hooks, device="cpu")
    reader = ContextReader(Corpus((str(text_folder),)), model.tokenizer, 64, packed=False)
    stores = harvest(model, reader, tmp_path / "stores")
    config = TrainConfig("transcoder", n_latents=64, k=8, steps=60, batch_size=128, device="cpu")
    train(PairedStore(*(store.path for store in stores)), config, tmp_path / "run")
    with served(Explorer(Sources(tmp_path / "run"))) as site:
        run = site.get("/api/run.json").json()
        assert run["live"]
        assert run["hold_max"] > 0
        tokens = ask(site, "text", text=TEXT).json()["tokens"]
        latent = tokens[-1]["bits"][0]["latent"]
        assert len(site.get(f"/api/latents/{latent}.json").json()["promotes"]) == 8
        assert ask(site, "hold", text=TEXT, holds={str(latent): 0}).json()["kl_div"] > 0
        assert ask(site, "near", text=TEXT, position=3).json()["contexts"]


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


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "HELLO"])
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


# --- what is kept, and what is missing ------------------------------------------------------------


@pytest.fixture
def copy(made, tmp_path) -> Sources:
    """A run and codes that a test may change."""
    shutil.copytree(made.bae, tmp_path / "run", ignore=shutil.ignore_patterns("explorer"))
    shutil.copytree(made.codes, tmp_path / "codes")
    return Sources(tmp_path / "run", tmp_path / "codes", model=False)


def test_what_was_counted_is_kept_until_codes_or_weights_change(copy, monkeypatch):
    counted = []
    original = gathering._measure

    def measure(*arguments):
        counted.append(1)
        return original(*arguments)

    monkeypatch.setattr(gathering, "_measure", measure)
    first = Explorer(copy).latents
    assert Explorer(copy).latents == first
    assert len(counted) == 1
    file = copy.run / "explorer" / "codes.jsonl"
    whole = file.read_text()
    file.write_text(whole[: len(whole) // 2])  # damaged
    assert Explorer(copy).latents == first
    assert len(counted) == 2
    assert file.read_text() == whole
    bits = Codes(copy.codes)
    columns = {name: getattr(bits, name) for name in ("token", "document", "position", "usual")}
    other = PackedBits.pack(bits.bits.unpack().roll(1, 1))
    about = {k: bits.manifest[k] for k in ("model", "revision", "model_digest", "hook")}
    shutil.rmtree(copy.codes)
    Codes.write(copy.codes, [(other, columns)], bits.n_latents, about)
    changed = json.loads(Explorer(copy).latents)["data"]
    assert len(counted) == 3
    assert changed["rate"][1:] == json.loads(first)["data"]["rate"][:-1]
    autoencoder = Autoencoder.from_pretrained(copy.run)
    autoencoder.b_enc.data += 1
    autoencoder.save(copy.run)
    Explorer(copy)
    assert len(counted) == 4


def test_damaged_codes_are_refused(copy):
    shard = next(copy.codes.glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(BitlensError, match="altered"):
        Explorer(copy)


def test_where_nothing_can_be_kept_the_page_is_served_all_the_same(copy, capsys):
    (copy.run / "explorer").write_text("a file")
    assert json.loads(Explorer(copy).latents)["data"]["rate"]
    assert "not kept" in capsys.readouterr().err


def test_without_codes_the_first_rows_of_the_store_are_encoded_and_kept(made, copy, monkeypatch):
    monkeypatch.setattr(encoding, "ROWS", 500)
    sources = Sources(copy.run, model=False)
    codes = Explorer(sources).subject.codes
    assert len(codes) == 500
    assert torch.equal(codes.bits.words, Codes(made.codes).bits.words[:500])
    monkeypatch.setattr(encoding, "encode_store", lambda *_, **__: pytest.fail("encoded again"))
    assert len(Explorer(sources).subject.codes) == 500
    both = Explorer(Sources(made.bae, made.codes, beside=copy.run, model=False))
    assert json.loads(both.compare)["measured"] <= 500


def test_what_is_missing_is_named(made, copy, tmp_path):
    nowhere = tmp_path / "nowhere"
    for sources, words in [
        (Sources(nowhere), "not an autoencoder"),
        (Sources(made.bae, nowhere), "not a folder of codes"),
        (Sources(made.bae, made.codes, explanations=nowhere), "explanations"),
        (Sources(made.bae, made.codes, effects=nowhere), "effects"),
        (Sources(made.topk, made.codes), "are of a bae"),
    ]:
        with pytest.raises(BitlensError, match=words):
            Explorer(sources)
    autoencoder = Autoencoder.from_pretrained(copy.run)
    autoencoder.metadata["store"] = str(nowhere)
    autoencoder.save(copy.run)
    with pytest.raises(BitlensError, match="bitlens encode"):
        Explorer(Sources(copy.run))


def test_a_folder_that_vanishes_leaves_a_server_that_answers(made, copy):
    with served(Explorer(copy)) as site:
        shutil.rmtree(copy.codes)
        shutil.rmtree(copy.run)
        assert site.get("/api/run.json").status_code == 200
        for latent in range(5):
            answer = site.get(f"/api/latents/{latent}.json")
            assert answer.status_code in (200, 404, 500)
            assert answer.status_code == 200 or set(answer.json()) == {"sentence"}
        assert ask(site, "text", text="a").json() == {
            "sentence": "The language model is not loaded, so no text can be read."
        }


def test_codes_of_a_model_that_is_another_one_now_are_refused(copy):
    manifest = json.loads((copy.codes / "manifest.json").read_text())
    manifest["model_digest"] = "0" * 64
    (copy.codes / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BitlensError, match="another one"):
        Explorer(Sources(copy.run, copy.codes))


def test_codes_of_imported_hidden_states_have_no_texts(copy, tmp_path):
    bits = Codes(copy.codes)
    unknown = torch.full_like(bits.token, -1)
    columns = {"token": unknown, "document": bits.document, "position": bits.position}
    Codes.write(tmp_path / "imported", [(bits.bits, columns)], bits.n_latents, {"model": None})
    explorer = Explorer(Sources(copy.run, tmp_path / "imported"))
    assert explorer.run()["live"] is False
    page = explorer.latent(3)
    assert page["examples"] == page["preferred"] == page["promotes"] == []
    assert page["similar"]
    table = json.loads(explorer.latents)["data"]
    assert set(table["f1"]) == {None}
    with served(explorer) as site:
        assert ask(site, "text", text="a").status_code == 400
        found = ask(site, "find", on=[int(bits.bits.column_counts().argmax())]).json()
        assert found["count"] > 0


@pytest.mark.parametrize("training", [None, {}, {"architecture": "of tomorrow"}, {"k": [1]}])
def test_a_run_that_does_not_say_how_it_was_trained_is_shown(copy, training):
    autoencoder = Autoencoder.from_pretrained(copy.run)
    autoencoder.metadata = {} if training is None else {"training": training}
    autoencoder.save(copy.run)
    (copy.run / "metrics.jsonl").unlink()
    run = Explorer(copy).run()
    assert run["curves"] == {}
    assert [line.split()[1] for line in run["commands"]] == ["encode"]


def test_the_numbers_of_an_evaluation_are_shown(copy, made):
    store = ActivationStore(made.store)
    evaluation = evaluate(Autoencoder.from_pretrained(copy.run), store, joint=False)
    keep_evaluation(copy.run, evaluation)
    explorer = Explorer(copy)
    run = explorer.run()
    numbers = {line["name"]: line for line in run["numbers"]}
    assert numbers["fvu"]["value"] == pytest.approx(evaluation.fvu, rel=1e-4)
    assert numbers["fvu"]["shown"] == f"{evaluation.fvu:.4f}"
    assert "variance" in numbers["fvu"]["meaning"]
    assert run["entropy"]["bits_marginal"] == pytest.approx(evaluation.bits_marginal, rel=1e-4)
    assert run["measured"]
    (copy.run / "evaluation.json").write_text("{")
    assert explorer.run()["numbers"] == []
    assert explorer.run()["made"] == run["made"]


def test_explanations_come_with_their_verdicts(made, tmp_path):
    estimate = {"balanced_accuracy": 0.9, "balanced_accuracy_low": 0.7, "interpretable": True}
    record = {"latent": 3, "explanation": "<b>rivers</b>", "balanced_accuracy_high": 0.97}
    other = {"latent": 4, "explanation": ""}
    lines = [json.dumps(finite(each)) for each in (record | estimate, other)]
    (tmp_path / "scores.jsonl").write_text("\n".join(lines) + "\n")
    with Calls(tmp_path / "calls.sqlite") as calls:
        judgements = [
            Judgement(3, "<b>rivers</b>", "a «river» flows", 10, "positive", Verdict(True)),
            Judgement(3, "<b>rivers</b>", "a «lamp» burns", 20, "hard", Verdict(True)),
            Judgement(3, "of another latent", "a «lamp» burns", 20, "hard", Verdict(False)),
        ]
        calls.record(made.codes.name, "judge", judgements)
    explorer = Explorer(Sources(made.bae, made.codes, explanations=tmp_path, model=False))
    table = json.loads(explorer.latents)["data"]
    assert (table["explanation"][3], table["score"][3]) == ("<b>rivers</b>", 0.9)
    assert (table["explanation"][4], table["score"][4]) == ("", None)
    found = explorer.latent(3)["explanation"]
    assert (found["low"], found["high"], found["judge"]) == (0.7, 0.97, "judge")
    assert found["verdicts"] == [
        {
            "before": "a ",
            "token": "lamp",
            "after": " burns",
            "row": 20,
            "on": False,
            "said": True,
            "kind": "hard",
        },
        {
            "before": "a ",
            "token": "river",
            "after": " flows",
            "row": 10,
            "on": True,
            "said": True,
            "kind": "positive",
        },
    ]
    assert explorer.latent(4)["explanation"] is None


def test_effects_are_shown(made, tmp_path):
    effects = tmp_path / "effects.jsonl"
    effects.write_text(json.dumps({"latent": 5, "kl_div": 0.25, "raises": []}) + "\n")
    explorer = Explorer(Sources(made.bae, made.codes, effects=effects, model=False))
    assert json.loads(explorer.latents)["data"]["effect"][5] == 0.25
    assert explorer.latent(5)["effect"]["kl_div"] == 0.25
    assert explorer.latent(6)["effect"] is None
    assert explorer.run()["effects"] is True


# --- static copies and the command ----------------------------------------------------------------


def test_a_static_copy_has_what_the_server_answers(explorer, site, tmp_path):
    written = export(explorer, tmp_path / "site")
    files = [path for path in (tmp_path / "site").rglob("*") if path.is_file()]
    assert written == (len(files), sum(path.stat().st_size for path in files))
    assert [path.name for path in tmp_path.iterdir()] == ["site"]
    for name in ("latents.json", "latents/7.json", "compare.json", "beside/0.json"):
        content = json.loads((tmp_path / "site" / "api" / name).read_text(encoding="utf-8"))
        assert content == site.get(f"/api/{name}").json()
    run = json.loads((tmp_path / "site" / "api" / "run.json").read_text())
    assert run["live"] is False
    assert site.get("/").text == (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    with pytest.raises(BitlensError, match="overwrite=True"):
        export(explorer, tmp_path / "site")
    (tmp_path / "site" / "old.html").write_text("")
    export(explorer, tmp_path / "site", overwrite=True)
    assert not (tmp_path / "site" / "old.html").exists()


def test_a_copy_is_written_whole_or_not_at_all(explorer, tmp_path, monkeypatch):
    other = tmp_path / "mine"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(BitlensError, match="no copy"):
        export(explorer, other, overwrite=True)
    former = export(explorer, tmp_path / "site")
    original = explorer.latent

    def fails(latent: int):
        if latent == 40:
            raise OSError(28, "No space left on device")
        return original(latent)

    monkeypatch.setattr(explorer, "latent", fails)
    for out in (tmp_path / "new", tmp_path / "site"):
        with pytest.raises(BitlensError, match="No space left"):
            export(explorer, out, overwrite=True)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"mine", "site"}
    assert sum(1 for path in (tmp_path / "site").rglob("*") if path.is_file()) == former.files


def test_a_port_that_is_taken_is_replaced_by_a_free_one():
    with serving.listen(0) as first:
        port = first.getsockname()[1]
        assert first.getsockname()[0] == "127.0.0.1"
        with serving.listen(port) as second:
            assert second.getsockname()[1] not in (0, port)
    with pytest.raises(BitlensError, match="65535"):
        serving.listen(70_000)


def test_a_missing_extra_is_named(made, monkeypatch):
    from bitlens.cli.explore import explore

    for name in [name for name in sys.modules if name.startswith("bitlens.explorer")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(BitlensError, match=r"\[explore\]"):
        explore(made.bae, made.codes)


@pytest.mark.slow
def test_the_command_serves_until_it_is_interrupted_and_ends_quietly(made, bitlens_command):
    with serving.listen(0) as taken:
        port = taken.getsockname()[1]
        command = bitlens_command(
            "explore", made.bae, "--codes", made.codes, "--port", port, "--no-browser"
        )
        command.wait_until(lambda: "http://" in command.output and "Ctrl-C" in command.output)
        assert f"Port {port} is taken" in command.output
        address = next(w for w in command.output.split() if w.startswith("http://"))
        assert httpx2.get(f"{address}api/latents/0.json").json()["latent"] == 0
        answer = httpx2.post(f"{address}api/text", json={"text": TEXT}, timeout=60)
        assert answer.json()["tokens"]
        command.send(2)
        assert command.wait() == 0, command.output
    assert "Traceback" not in command.output


@pytest.mark.slow
def test_the_command_writes_a_copy(made, bitlens_command, tmp_path):
    out = tmp_path / "site"
    arguments = ("explore", made.bae, "--codes", made.codes, "--no-model", "--export", out)
    command = bitlens_command(*arguments)
    assert command.wait() == 0, command.output
    assert (out / "index.html").is_file()
    assert "files" in command.output
    again = bitlens_command(*arguments)
    assert again.wait() == 2
    assert "--overwrite" in again.output
