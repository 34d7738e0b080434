"""The explorer in a browser: what a user does, against a server started as a user starts it."""

import http.server
import json
import math
import re
import shutil
import signal
import threading
from functools import partial
from pathlib import Path

import pytest
import torch

from bitlens.autoencoders import Autoencoder
from bitlens.causal.intervene import intervene
from bitlens.encode import encode_store
from bitlens.explorer import FILES
from bitlens.hidden import Corpus, LanguageModel
from bitlens.hidden.harvest import harvest
from bitlens.hidden.text import ContextReader
from bitlens.training import TrainConfig, train
from command import Command

playwright = pytest.importorskip(
    "playwright.sync_api", reason="needs playwright, a browser's remote"
)
expect = playwright.expect
CHROMIUM = shutil.which("chromium")
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]

HOOK, LATENTS = "layers.2", 96
TEXT = "The old sailor watched a quiet river"
HOSTILE = "</style><script>window.hacked=1</script><img src=x onerror=window.hacked=1>"
RUN = "<img src=x onerror=window.hacked=1>"  # a folder may be named so


@pytest.fixture(scope="module")
def chromium():
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def folder(chromium, tmp_path_factory, text_folder) -> Path:
    """A run of the bundled model on text with markup in it, and explanations that are markup."""
    folder = tmp_path_factory.mktemp("page")
    lines = [
        {"text": f"{HOSTILE} said the {word}.\n{HOSTILE}"} for word in ("cat", "king", "old man")
    ]
    (folder / "markup.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines * 20))
    model = LanguageModel.load("bundled", [HOOK], device="cpu")
    corpus = Corpus((str(text_folder), str(folder / "markup.jsonl")))
    (store,) = harvest(
        model, ContextReader(corpus, model.tokenizer, 64, packed=False), folder / "store"
    )
    common = {"n_latents": LATENTS, "steps": 60, "batch_size": 128, "device": "cpu"}
    train(store, TrainConfig(**common), folder / RUN)
    train(store, TrainConfig(architecture="topk", k=6, **common), folder / "topk")
    encode_store(Autoencoder.from_pretrained(folder / RUN), store, folder / "codes")
    score = {"explanation": HOSTILE, "balanced_accuracy": 0.75, "balanced_accuracy_low": 0.5}
    (folder / "meanings").mkdir()
    (folder / "meanings" / "scores.jsonl").write_text(
        "".join(json.dumps({"latent": i, **score}) + "\n" for i in range(10))
    )
    return folder


@pytest.fixture(scope="module")
def explore(folder) -> list[str]:
    arguments = [
        "explore",
        RUN,
        "--codes",
        "codes",
        "--explanations",
        "meanings",
        "--beside",
        "topk",
    ]
    return [str(folder / one) if (folder / one).exists() else one for one in arguments]


@pytest.fixture(scope="module")
def site(folder, explore):
    """The address of a running server."""
    server = Command([*explore, "--port", "0", "--no-browser"], folder / "log")
    address = re.compile(r"http://127\.0\.0\.1:\d+/")
    server.wait_until(lambda: bool(address.search(server.output)))
    yield address.findall(server.output)[0]
    server.send(signal.SIGINT)
    server.wait()


@pytest.fixture
def open_page(chromium):
    """Opens an address. At the end, nothing was asked of another host, nothing complained, and no
    script of a text ran."""
    opened = []

    def open_one(address: str, answers: dict | None = None, **options):
        page = chromium.new_page(**{"viewport": {"width": 1280, "height": 800}, **options})
        page.set_default_timeout(20_000)
        asked, complaints = [], []
        page.on("request", lambda request: asked.append(request.url))
        refused = any("sentence" in answer for answer in (answers or {}).values())
        page.on("console", lambda line: refused or complaints.append(line.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        opened.append((page, address.split("#")[0], asked, complaints))
        for path, answer in (answers or {}).items():
            page.route(f"**/{path}", partial(_fulfil, answer))
        page.goto(address)
        return page

    yield open_one
    for page, address, asked, complaints in opened:
        assert page.evaluate("window.hacked") is None
        assert page.evaluate("document.querySelectorAll('script').length") == 2
        assert [url for url in asked if not url.startswith(address)] == []
        assert complaints == []
        page.close()


def _fulfil(answer: dict, route) -> None:
    route.fulfill(json=answer, status=503 if "sentence" in answer else 200)


def table_of(page) -> dict:
    return page.evaluate("fetch('api/latents.json').then((answer) => answer.json())")["data"]


def address_of(page) -> str:
    return page.evaluate("location.href")


def shown(page) -> list[int]:
    """Latents in the table, from the top."""
    rows = page.locator(".grid-row:visible").all()
    found = [
        (row.bounding_box()["y"], int(row.locator("[data-key=latent]").inner_text()))
        for row in rows
    ]
    return [latent for _, latent in sorted(found)]


def test_the_page_parses_no_markup_and_names_no_other_host():
    files = [*FILES.values()]
    assert {"index.html", "app.js", "base.css", "palette.css", "icon.svg"} <= FILES.keys()
    for file in files:
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", text)
        assert not re.search(r"https?:|<style|style=|javascript:|\son\w+=", text), file.name


@pytest.mark.slow
def test_latents_are_sorted_searched_and_selected_and_the_address_keeps_it(site, open_page):
    page = open_page(site)
    page.wait_for_selector(".grid-row")
    data = table_of(page)
    assert page.title().endswith("bitlens")
    assert page.locator("output.count").inner_text() == f"{len(data['latent'])} latents"
    assert shown(page)[:5] == [0, 1, 2, 3, 4]
    assert page.locator(".grid-row:visible").count() < 40  # only those in sight, and a few

    page.click(".grid-head [data-key=rate] button")
    by_rate = sorted(data["latent"], key=lambda i: (-data["rate"][i], i))
    assert shown(page)[:10] == by_rate[:10]
    assert page.locator(".grid-head [data-key=rate]").get_attribute("aria-sort") == "descending"

    word = data["tokens"][by_rate[3]][0].strip().lower()
    page.fill("#search", word)
    expect(page.locator("output.count")).to_contain_text(" of ")
    words = [[*data["tokens"][i], data["explanation"][i]] for i in data["latent"]]
    having = [i for i in by_rate if any(word in text.lower() for text in words[i])]
    assert 0 < len(having) < len(by_rate)
    assert shown(page) == having[: len(shown(page))]

    page.fill("#search", "rate>1%")
    above = [i for i in by_rate if data["rate"][i] > 0.01]
    expect(page.locator("output.count")).to_contain_text(f"{len(above)} of ")
    assert "sort=-rate" in address_of(page)
    assert "q=rate" in address_of(page)
    again = open_page(address_of(page))
    again.wait_for_selector(".grid-row")
    assert again.locator("output.count").inner_text().startswith(f"{len(above)} of")
    assert shown(again)[:10] == above[:10]


@pytest.mark.slow
def test_dragging_over_a_plot_selects_rows(site, open_page):
    page = open_page(site)
    page.wait_for_selector(".grid-row")
    data = table_of(page)
    box = page.locator(".plot canvas").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] + 20, box["y"] + 60, steps=4)
    page.mouse.up()
    chip = page.locator(".chips .chip[aria-label^=Remove]")
    expect(chip).to_be_visible()
    low = float(re.search(r"range=rate(?:%3A|:)([\d.e-]+)", address_of(page))[1])
    above = [i for i in data["latent"] if data["rate"][i] >= low]
    assert 0 < len(above) < len(data["latent"])
    assert page.locator("output.count").inner_text().startswith(f"{len(above)} of")
    chip.click()
    assert page.locator("output.count").inner_text() == f"{len(data['latent'])} latents"


@pytest.mark.slow
def test_a_latent_is_opened_by_keyboard_and_left_again(site, open_page):
    page = open_page(f"{site}#/latents?sort=-rate")
    page.wait_for_selector(".grid-row")
    order = shown(page)
    for key in ("j", "ArrowDown", "k", "j", "Enter"):
        page.keyboard.press(key)
    page.wait_for_selector("h1 b")
    assert page.locator("h1 b").inner_text() == str(order[1])
    answer = page.evaluate(f"fetch('api/latents/{order[1]}.json').then((answer) => answer.json())")
    assert page.locator(".examples li").count() == len(answer["examples"]) > 0
    first, mark = answer["examples"][0], page.locator(".examples li mark").first
    assert mark.inner_text() == first["tokens"][first["at"]]["t"].strip()
    assert page.locator(".near a").count() > 0

    page.keyboard.press("ArrowRight")
    expect(page.locator("h1 b")).to_have_text(str(order[2]))
    page.keyboard.press("?")
    assert page.locator("dialog h2").inner_text() == "Keys"
    page.keyboard.press("Escape")
    expect(page.locator("dialog")).to_have_count(0)
    page.keyboard.press("Escape")
    page.wait_for_selector(".grid-row.active")
    assert page.locator(".grid-row.active [data-key=latent]").inner_text() == str(order[2])
    assert "sort=-rate" in address_of(page)
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"
    page.keyboard.press("Escape")
    page.keyboard.press("t")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.keyboard.press("g")
    page.keyboard.type("7")
    page.keyboard.press("Enter")
    page.wait_for_selector("h1 b")
    assert page.locator("h1 b").inner_text() == "7"


def percentages(page, side: str) -> dict[str, float]:
    rows = page.locator(".paired li").all()
    return {
        row.get_attribute("data-token"): float(row.locator(side).inner_text().removesuffix(" %"))
        / 100
        for row in rows
    }


@pytest.mark.slow
def test_a_held_bit_changes_what_the_model_says_as_in_python(site, folder, open_page):
    page = open_page(f"{site}#/text")
    page.fill("textarea", TEXT)
    words = ["<|bos|>", "The", "·old", "·sailor", "·watched", "·a", "·quiet", "·river"]
    tokens = page.locator(".token-cell .token")
    expect(tokens.nth(1)).to_have_text("The")
    expect(tokens.last).to_have_text("·river")
    assert "".join(tokens.all_inner_texts()) == "".join(words)
    page.locator(".token-cell").last.locator(".bit").first.click()
    row = page.locator(".bit-list li.chosen")
    latent = int(row.locator("a").inner_text())
    row.get_by_role("button", name=f"Hold latent {latent} off").click()
    page.wait_for_selector(".paired")
    assert page.locator(".held-chip").get_attribute("data-latent") == str(latent)
    off = row.get_by_role("button", name=f"Hold latent {latent} off")
    assert off.get_attribute("aria-pressed") == "true"

    model = LanguageModel.load("bundled", [HOOK], device="cpu", causal=True)
    ids = [
        model.tokenizer.bos_token_id,
        *model.tokenizer(TEXT, add_special_tokens=False)["input_ids"],
    ]
    row_of = torch.tensor([ids])
    autoencoder = Autoencoder.from_pretrained(folder / RUN)
    with torch.no_grad():
        before = model.model(input_ids=row_of).logits[0, -1].log_softmax(-1)
        with intervene(model, autoencoder, {latent: 0}):
            after = model.model(input_ids=row_of).logits[0, -1].log_softmax(-1)
    for side, logs in ((".p-before", before), (".p-after", after)):
        for token, share in percentages(page, side).items():
            (number,) = model.tokenizer(token, add_special_tokens=False)["input_ids"]
            assert share == pytest.approx(math.exp(logs[number]), rel=0.051)
    kl_div = float((before.exp() * (before - after)).sum())
    said = re.search(r"KL divergence ([\d.]+) nats", page.locator(".held-result").inner_text())
    assert float(said[1]) == pytest.approx(kl_div, rel=0.01)
    assert page.locator(".continued blockquote").count() == 2

    for label, name, value in (
        ("chosen tokens", "positions", [len(ids) - 1]),
        ("searched anew", "others", "searched"),
    ):
        with page.expect_response("**/api/hold") as answer:
            page.get_by_label(label, exact=True).check()
        assert answer.value.ok
        assert answer.value.request.post_data_json[name] == value
    page.locator(".held-chip button[title]").click()  # the other way round
    expect(page.locator(".held-chip .flip")).to_have_text("on")
    assert re.search(rf"hold={latent}(?:%3A|:)1", address_of(page))
    page.get_by_role("button", name=f"Let go of latent {latent}").click()
    page.wait_for_selector(".held-result .note")
    assert page.locator(".held-chip").count() == 0


@pytest.mark.slow
def test_the_text_view_by_keyboard_and_what_is_near(site, open_page):
    page = open_page(f"{site}#/text?t={TEXT.replace(' ', '+')}")
    page.wait_for_selector(".token-cell.chosen")
    page.locator(".token-cell.chosen .token").focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator(".token-cell.chosen .token").inner_text() == "·quiet"
    page.keyboard.press("j")
    chosen = page.locator(".bit-list li.chosen a").inner_text()
    assert chosen == page.locator(".bit-list li a").nth(1).inner_text()
    page.keyboard.press("+")
    page.wait_for_selector(".paired")
    assert page.locator(".held-chip a").all_inner_texts() == [chosen]
    page.keyboard.press("Backspace")
    assert page.locator(".held-chip").count() == 0
    page.click(".near-card summary")
    page.wait_for_selector(".near-card .examples li")
    assert page.locator(".near-card mark").first.inner_text() != ""
    page.locator(".token-cell.chosen .token").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("h1 b")
    assert page.locator("h1 b").inner_text() == chosen
    page.keyboard.press("Escape")  # back to where one came from
    expect(page.locator(".token-cell.chosen .token")).to_have_text("·quiet")


@pytest.mark.slow
def test_markup_is_shown_as_text(site, open_page):
    page = open_page(site)
    page.wait_for_selector(".grid-row")
    assert page.locator(".what b").inner_text() == RUN
    assert page.locator(".grid-row [data-key=explanation]").first.inner_text() == HOSTILE
    page.fill("#search", "script")
    expect(page.locator("output.count")).to_contain_text(" of ")
    page.goto(f"{site}#/latent/3")
    page.wait_for_selector(".said-of-it")
    assert page.locator(".said-of-it").inner_text() == HOSTILE
    page.goto(f"{site}#/text")
    page.fill("textarea", HOSTILE)
    texts = page.locator(".token-cell .token:not(.out)")
    expect(texts.nth(20)).to_be_visible()
    assert "".join(texts.all_inner_texts()).replace("·", " ").strip() == HOSTILE
    page.click(".near-card summary")
    page.wait_for_selector(".near-card .examples li")
    page.locator(".bit-list .holds button").first.click()
    page.wait_for_selector(".paired")


@pytest.mark.slow
def test_the_run_and_another_beside_it(site, open_page):
    page = open_page(f"{site}#/run")
    page.wait_for_selector(".curve svg path")
    assert page.locator("h1").inner_text() == RUN
    assert any(
        line.startswith("bitlens train") for line in page.locator(".command pre").all_inner_texts()
    )
    page.keyboard.press("4")
    page.wait_for_selector(".grid-row")
    page.keyboard.press("j")
    page.wait_for_selector(".pair-panel .card h2")
    assert page.locator(".pair-panel .card").count() == 2
    bars = page.locator(".pair-panel .card").first.locator(".bars .bar").all()
    assert len({bar.bounding_box()["x"] for bar in bars}) == 1  # so that lengths compare
    pairs = page.evaluate("fetch('api/compare.json').then((answer) => answer.json())")
    category, count = max(pairs["counts"].items(), key=lambda item: item[1])
    page.locator(".chips .chip", has_text=category).first.click()
    assert page.locator("output.count").inner_text().startswith(f"{count} of {len(pairs['rows'])}")


@pytest.mark.slow
def test_what_is_not_known_says_how_to_know_it(site, folder, open_page):
    page = open_page(f"{site}#/run")
    expect(page.locator(".note code")).to_have_text(
        f"bitlens evaluate '{folder / RUN}' {folder / 'store'}"
    )
    page.goto(f"{site}#/compare")
    page.wait_for_selector(".grid-row")
    for chip in page.locator(".chips .chip").all():
        category = chip.inner_text().split()[0]
        meaning = page.locator(f".pair-panel dt:text-is('{category}') + dd").inner_text()
        assert chip.get_attribute("title") == meaning


@pytest.mark.slow
@pytest.mark.parametrize("view", ["latents", "compare"])
def test_the_heads_of_columns_stand_above_them(site, open_page, view):
    page = open_page(f"{site}#/{view}")
    page.wait_for_selector(".grid-row")
    left, right = (
        "[...document.querySelectorAll('.grid-head .cell')]",
        "[...document.querySelector('.grid-row').children]",
    )
    boxes = ".map((cell) => cell.getBoundingClientRect().right)"
    assert page.evaluate(left + boxes) == pytest.approx(page.evaluate(right + boxes), abs=0.5)


@pytest.mark.slow
def test_a_token_that_falls_least_is_not_said_to_rise(site, open_page):
    tokens = [{"token": i, "text": f" t{i}", "logp": logp} for i, logp in enumerate((2, -1, -3))]
    effect = {"rows": 3, "kl_div": 1, "loss": 0.5, "raises": tokens[:2], "lowers": tokens[::-1]}
    latent = {"latent": 1, "rate": 0.1, "surprisal": 3.3, "bits": 0.5, "effect": effect}
    page = open_page(f"{site}#/latent/1", answers={"api/latents/1.json": latent})
    card = page.locator(".card", has_text="Measured effect")
    for name, texts in (("raises", ["·t0"]), ("lowers", ["·t2", "·t1"])):
        column = card.locator(".two > div", has=page.get_by_role("heading", name=name))
        expect(column.locator(".tok")).to_have_text(texts)


@pytest.mark.slow
def test_floats_count_beside_the_gaussian_bound(site, open_page):
    entropy = {"bits_joint": 20.0, "bits_magnitudes": 30.0, "bits_gaussian": 100.0}
    run = {"title": "r", "n_latents": 3, "d_in": 2, "model": "m", "commands": [], "bits": False}
    page = open_page(f"{site}#/run", answers={"api/run.json": run | {"entropy": entropy}})
    expect(page.locator(".entropy .number")).to_have_text(["50.0 bits", "100.0 bits"])
    ours, bound = (bar.bounding_box()["width"] for bar in page.locator(".measure > i").all())
    assert ours / bound == pytest.approx(0.5, rel=0.02)


@pytest.mark.slow
def test_a_curve_has_a_scale(site, open_page):
    curves = {"step": [1, 2, 3], "price": [0.021, 0.053, 0.033], "l0": [23, 22.999, 23]}
    run = {"curves": curves}
    whole = {"title": "r", "n_latents": 3, "d_in": 2, "model": "m", "commands": [], **run}
    page = open_page(f"{site}#/run", answers={"api/run.json": whole})
    price, flat = page.locator(".curve", has_text="price"), page.locator(".curve", has_text="l0")
    expect(price.locator("svg")).to_be_visible()
    assert price.locator("line").count() >= 2
    assert flat.locator("path").bounding_box()["height"] < 3


@pytest.mark.slow
def test_what_is_wrong_is_said_in_a_sentence(site, open_page):
    page = open_page(f"{site}#/latent/5000")
    page.wait_for_selector("h1")
    assert "0 to" in page.locator("main").inner_text()
    page.goto(f"{site}#/nowhere")
    page.wait_for_selector("main a")
    assert page.locator("main a").inner_text() == "Latents"
    gone = {"api/latents/3.json": {"sentence": "The store has gone."}}
    page = open_page(f"{site}#/latent/3", answers=gone)
    expect(page.locator(".problem")).to_contain_text("The store has gone.")
    page.unroute("**/api/latents/3.json")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("h1 b")).to_have_text("3")


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("view", ["latents", "latent/1", "text?t=The+king", "run", "compare"])
def test_every_view_fits_its_window(site, open_page, view, width):
    page = open_page(f"{site}#/{view}", viewport={"width": width, "height": 800})
    page.wait_for_selector(".grid-row, .card")
    page.wait_for_load_state("networkidle")
    outside = """width => [...document.querySelectorAll('main *')]
        .filter((node) => node.getBoundingClientRect().right > width + 0.5)
        .map((node) => node.outerHTML)"""
    if page.evaluate("document.documentElement.scrollWidth") > width:
        assert page.evaluate(outside, width) == []
    unnamed = """[...document.querySelectorAll('button, a, input, select, textarea, canvas')]
        .filter(
        (node) => !(node.innerText || node.labels?.length || node.title || node.ariaLabel
                    || node.getAttribute('aria-label') || node.value))"""
    assert page.evaluate(f"{unnamed}.map((node) => node.outerHTML)") == []


@pytest.mark.slow
def test_a_static_copy_on_any_web_server(folder, explore, open_page):
    copy = folder / "copy"
    export = Command([*explore, "--export", str(copy)], folder / "export.log")
    assert export.wait() == 0, export.output

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(copy)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    page = open_page(f"http://127.0.0.1:{server.server_port}/#/latents?sort=-rate")
    page.wait_for_selector(".grid-row")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    page.wait_for_selector(".examples mark")
    page.click("#tabs a:has-text('Text')")
    page.wait_for_selector("main code")
    assert "bitlens explore" in page.locator("main").inner_text()
    page.click("#tabs a:has-text('Compare')")
    page.wait_for_selector(".grid-row")
    page.keyboard.press("j")
    page.wait_for_selector(".pair-panel .examples mark")
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_scrolling_shows_each_row_of_many_where_it_belongs(site, open_page):
    """Eight thousand latents, of which a few dozen rows are on the page at a time."""
    many = 8192
    columns = [
        {"key": key, "label": key, "meaning": "", "kind": kind, "format": ""}
        for key, kind in (("latent", "number"), ("rate", "number"), ("tokens", "text"))
    ]
    data = {
        "latent": [*range(many)],
        "rate": [1 / (i + 2) for i in range(many)],
        "tokens": [[f" t{i}"] for i in range(many)],
    }
    table = {"columns": columns, "data": data}
    page = open_page(site, answers={"api/latents.json": table})
    page.wait_for_selector(".grid-row")
    for share in (0.5, 0.999, 0.25):
        page.evaluate(
            "share => { const body = document.querySelector('.grid-body');"
            " body.scrollTop = body.scrollHeight * share; }",
            share,
        )
        for row in range(int(share * many) + 1, int(share * many) + 5):
            tokens = page.locator(f"[aria-rowindex='{row + 2}'] [data-key=tokens]")
            expect(tokens).to_have_text(f"·t{row}")
        assert page.locator(".grid-row").count() < 60
    page.keyboard.press("End")
    assert page.locator(".grid-row.active [data-key=latent]").inner_text() == str(many - 1)


@pytest.mark.slow
@pytest.mark.parametrize("searched", [True, False])
def test_other_bits_are_searched_anew_only_where_a_run_says_so(site, open_page, searched):
    page = open_page(f"{site}#/run")

    def told(route):
        answer = route.fetch()
        route.fulfill(response=answer, json=answer.json() | {"searched": searched})

    page.route("**/api/run.json", told)
    page.goto("about:blank")
    with page.expect_response("**/api/hold") as answer:
        page.goto(f"{site}#/text?t=a+river&hold=1%3A1&others=searched")
    assert answer.value.request.post_data_json["others"] == ("searched" if searched else "kept")
    assert page.get_by_label("searched anew", exact=True).count() == searched
