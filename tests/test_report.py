"""The page about a run: what is on it, that all of it is text, and how a browser shows it."""

from __future__ import annotations

import base64
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bitlens import markup
from bitlens.autoencoders import Autoencoder
from bitlens.bits.codes import Codes
from bitlens.bits.statistics import rate_histogram
from bitlens.cli import main
from bitlens.encode import encode_store
from bitlens.errors import BitlensError
from bitlens.evaluation import Evaluation, evaluate
from bitlens.features.profiles import profiles
from bitlens.hidden import ActivationStore
from bitlens.report import charts, write_report
from bitlens.report.contents import made as how_made
from bitlens.report.contents import measured_on
from bitlens.results import numbers_of
from bitlens.training import TrainConfig, train

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--no-first-run"),
)
HOSTILE = "<script>alert(1)</script>'\"&<img src=//evil.example/x onerror=alert(2)>"


class Page(HTMLParser):
    """A page's text, its tags, and whatever its attributes hold."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.tags, self.attributes = "", [], []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def made(harvested: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run on the tiny model's text, its numbers and codes; not to be changed."""
    folder, store = tmp_path_factory.mktemp("report"), ActivationStore(harvested)
    config = TrainConfig(n_latents=24, steps=60, batch_size=128, log_every=5)
    run = train(store, config, folder / "run")
    codes = encode_store(run, store, folder / "codes")
    return {"run": folder / "run", "store": store, "codes": codes, "numbers": evaluate(run, store)}


@pytest.fixture
def run(made: dict[str, Any], tmp_path: Path) -> Path:
    """A copy of the run's folder."""
    return shutil.copytree(made["run"], tmp_path / "run")


def read(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_a_run_that_was_only_trained_shows_curves_and_how_it_was_made(run: Path) -> None:
    page = read(write_report(run))
    about = json.loads((run / "cfg.json").read_text())["metadata"]
    for known in ("Binary autoencoder", about["store"], about["model"], "layers.1", "batch_size"):
        assert known in page.text
    assert "bitlens evaluate" in page.text
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert f"step {records[3]['step']}: {charts.number(records[3]['mse'])}" in page.text
    assert charts.number(records[-1]["l0"]) in page.text
    assert "covariance" not in page.text  # always zero here
    assert "surrogate" not in page.text  # that a descent does not read


def test_all_numbers_meanings_and_rates_are_there_and_stay(made: dict[str, Any], run: Path) -> None:
    numbers: Evaluation = made["numbers"]
    page = read(write_report(run, evaluation=numbers))
    for name, number in numbers_of(Evaluation).items():
        value = getattr(numbers, name)
        assert (number.meaning in page.text and name in page.text) == (value is not None), name
        assert value is None or format(value, number.format) in page.text
    share = 100 * numbers.bits_joint / numbers.bits_gaussian
    assert f"{share:.0f} %" in page.text
    assert f"documents of {made['store'].path.resolve()} that the training held out" in page.text
    assert read(write_report(run)).text == page.text  # made again from the folder alone


def test_intervals_and_codes_that_cost_floats(made: dict[str, Any], run: Path) -> None:
    changed = {"ce_loss_score": 0.9, "ce_loss_score_low": 0.88, "ce_loss_score_high": 0.92}
    values = made["numbers"].as_dict() | changed | {"bits_joint": 10.0, "bits_magnitudes": 30.0}
    values["bits_gaussian"] = 50.0
    page = read(write_report(run, evaluation=Evaluation(**values, about=made["numbers"].about)))
    assert "0.900 ± 0.020" in page.text
    assert "bits_joint + bits_magnitudes: 40.0" in page.text
    assert "80 %" in page.text


def test_the_clearest_latents_are_those_that_tokens_predict(
    made: dict[str, Any], run: Path, tokenizer: Any
) -> None:
    codes, token = planted(made["codes"], run.parent / "planted")
    page = read(write_report(run, codes=codes, tokenizer=tokenizer))
    latents = json.loads((run / "latents.json").read_text())["latents"]
    (found,) = (latent for latent in latents if latent["latent"] == 7)
    assert found["f1"] == 1
    text = tokenizer.decode([token])
    assert found["tokens"] == [text]
    assert len(found["examples"]) == 3
    assert all(f"«{text.strip()}»" in example for example in found["examples"])
    assert page.tags.count("mark") == sum(len(latent["examples"]) for latent in latents)
    assert "Latent 7" in page.text
    assert f"--codes {codes.path}" in page.text


def planted(codes: Codes, folder: Path) -> tuple[Codes, int]:
    """The codes with latent 7 on exactly at one token, and that."""
    bits = codes.bits.unpack().bool()
    tokens, counts = codes.token.unique(return_counts=True)
    rare = tokens[(counts - len(codes) // 12).abs().argmin()]
    bits[:, 7] = codes.token == rare
    columns = {name: getattr(codes, name) for name in ("token", "document", "position", "usual")}
    packed = type(codes.bits).pack(bits.float())
    about = codes.manifest | {"test_fraction": 0.5}  # so that rows enough are held out
    written = Codes.write(folder, [(packed, columns)], codes.n_latents, about)
    return written, int(rare)


def test_codes_of_another_run_are_refused(made: dict[str, Any], run: Path) -> None:
    config = json.loads((run / "cfg.json").read_text())
    (run / "cfg.json").write_text(json.dumps(config | {"d_sae": 3}))
    with pytest.raises(BitlensError, match=r"has 3 latents, but the codes .* have 24"):
        write_report(run, codes=made["codes"])


# --- what was measured ----------------------------------------------------------------------------


TRAINED = {
    "coding": "descent",
    "metadata": {"corpus": "c", "model_digest": "1", "hook": {"module": "a"}},
}
USUAL = {"store": "S", "part": "test", "same_text": True, "coding": "descent", "flips": None}


@pytest.mark.parametrize(
    ("measured", "where", "special"),
    [
        ({}, "training held out", []),
        ({"same_text": False}, "held-out share of S", ["other text"]),
        ({"part": "usual"}, "every document of S", ["not held out"]),
        ({"part": "usual", "same_text": False}, "every document", ["other text"]),
        ({"part": "all", "same_text": False}, "every document", ["other text", "outlying norm"]),
        ({"model_digest": "2"}, "held out", ["another model"]),
        ({"hook": {"module": "b"}}, "held out", ["another hook point"]),
        ({"flips": 8}, "held out", ["at most 8 flips"]),
        ({"coding": "step"}, "held out", ["found by step"]),
    ],
)
def test_the_page_says_of_which_rows_its_numbers_are(
    measured: dict[str, Any], where: str, special: list[str]
) -> None:
    sentence, notes = measured_on(USUAL | measured, TRAINED)
    assert where in sentence
    assert len(notes) == len(special)
    assert all(words in note for words, note in zip(special, notes, strict=True))


def test_of_an_imported_one_it_is_not_said_what_its_training_read() -> None:
    config = {"metadata": {"imported_from": "sae-lens"}}
    sentence, notes = measured_on(USUAL | {"coding": None}, config)
    assert sentence == "Measured on the held-out share of S."
    assert not notes
    assert not measured_on(USUAL | {"coding": None, "same_text": False}, config)[1]


def test_names_of_a_hook_point_that_are_not_known_are_not_shown() -> None:
    names = {"module": "h.2", "transformers": None, "transformer_lens": "blocks.2.hook_resid_post"}
    pairs = dict(how_made({"metadata": {"hook": names}})["Hidden states"])
    assert pairs["hook point"] == "h.2 = blocks.2.hook_resid_post"


def test_another_part_is_a_note_on_the_page(made: dict[str, Any], run: Path) -> None:
    autoencoder = Autoencoder.from_pretrained(run).coded("step")
    numbers = evaluate(autoencoder, made["store"], part="all", joint=False)
    text = read(write_report(run, evaluation=numbers)).text
    assert "most of the rows are not held out" in text
    assert "found by step, the autoencoder's own way is descent" in text
    assert "bits_joint" not in text  # was not measured


# --- text from elsewhere is text ------------------------------------------------------------------


def test_hostile_names_paths_and_tokens_are_text(
    made: dict[str, Any], run: Path, tokenizer: Any
) -> None:
    hostile = run.with_name(HOSTILE.replace("/", "∕"))
    run.rename(hostile)
    write_report(hostile, evaluation=made["numbers"], codes=made["codes"], tokenizer=tokenizer)
    config = json.loads((hostile / "cfg.json").read_text())
    config["metadata"] |= {"store": HOSTILE, "model": HOSTILE, "hook": {"module": HOSTILE}}
    config["metadata"]["training"]["preset"] = HOSTILE
    (hostile / "cfg.json").write_text(json.dumps(config))
    (hostile / f"{HOSTILE.replace('/', '∕')}.txt").write_text("")
    file = hostile / "latents.json"
    latent = {"latent": 1, "rate": 0.1, "f1": 0.5, "more": 0}
    latent |= {"tokens": [HOSTILE], "examples": [f"{HOSTILE}«{HOSTILE}»{HOSTILE}"]}
    file.write_text(
        json.dumps(json.loads(file.read_text()) | {"codes": HOSTILE, "latents": [latent]})
    )
    file = hostile / "evaluation.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"store": HOSTILE}))
    page = read(write_report(hostile))
    assert page.text.count("<script>alert(1)</script>") > 10
    assert not {"script", "iframe", "object", "form", "a"} & set(page.tags)
    assert page.tags.count("img") == 1  # the mark
    names = {name for _, name, _ in page.attributes}
    assert not {name for name in names if name.startswith("on") or name == "style"}


def test_nothing_is_fetched_from_anywhere(made: dict[str, Any], run: Path, tokenizer: Any) -> None:
    path = write_report(run, evaluation=made["numbers"], codes=made["codes"], tokenizer=tokenizer)
    page = path.read_text(encoding="utf-8")
    links = [value for _, name, value in Page(page).attributes if name in ("src", "href", "action")]
    mark = f"data:image/svg+xml;base64,{base64.b64encode(markup.ICON.read_bytes()).decode()}"
    assert links == [mark, mark]
    assert not re.search(r"https?:|url\(|@import|//[a-z]", page.replace(mark, ""))
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert len(page) < 200_000


# --- folders as they are --------------------------------------------------------------------------


def test_an_unfinished_run_says_so(run: Path) -> None:
    (run / "cfg.json").unlink()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 60, "ms')  # killed here
    page = read(write_report(run))
    assert "has not ended" in page.text
    assert "Binary autoencoder · 24 latents" in page.text
    assert "mse" in page.text


@pytest.mark.parametrize("name", ["evaluation.json", "latents.json"])
@pytest.mark.parametrize(
    "content",
    [
        *("", "[]", "{", '{"schema": 99}', '{"schema": 1}', '{"schema": 1, "numbers": 3}'),
        '{"schema":1,"store":"S","part":"test","rates":{},"numbers":{"fvu":"x"},"codes":"c"}',
        '{"schema":1,"store":"S","part":"test","codes":"c","latents":[3]}',
    ],
)
def test_a_damaged_file_is_left_out_in_a_sentence(run: Path, name: str, content: str) -> None:
    (run / name).write_text(content)
    page = read(write_report(run))
    assert "Left out: " in page.text
    assert "mse" in page.text


@pytest.mark.parametrize(
    "lines", ["", "no record\n[1]\nnull\n", '{"step": 1e400, "mse": NaN}\n{"step": 2, "mse": 1}']
)
def test_without_curves_the_page_has_none(run: Path, lines: str) -> None:
    (run / "metrics.jsonl").write_text(lines)
    page = read(write_report(run))
    assert "path" not in page.tags
    assert "How it was made" in page.text
    (run / "metrics.jsonl").unlink()
    (run / "training.json").unlink()
    assert "How it was made" in read(write_report(run)).text


def test_a_folder_from_another_program_has_a_page(run: Path) -> None:
    config = json.loads((run / "cfg.json").read_text())
    for name in ("metrics.jsonl", "training.json"):
        (run / name).unlink()
    (run / "cfg.json").write_text(json.dumps(config | {"metadata": {}, "architecture": "topk"}))
    assert "TopK autoencoder · 24 latents" in read(write_report(run)).text


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BitlensError, match="is not an autoencoder"):
        write_report(tmp_path)


@pytest.mark.slow
def test_the_commands_leave_a_page_and_go_on_where_they_cannot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = np.random.default_rng(0)
    bits = generator.random((3000, 8)) < 0.1
    np.save(tmp_path / "rows.npy", (bits @ generator.normal(size=(8, 12))).astype(np.float32))
    main(["import", str(tmp_path / "rows.npy"), "--out", str(tmp_path / "store")])
    run, store = tmp_path / "run", str(tmp_path / "store")
    main(["train", store, "--out", str(run), "--n-latents", "16", "--steps", "40"])
    assert f"Report: {run}/report.html" in capsys.readouterr().out
    first = (run / "report.html").read_text(encoding="utf-8")
    main(["evaluate", str(run), store, "--no-ce"])
    assert "bits_marginal" not in first
    assert "bits_marginal" in (run / "report.html").read_text(encoding="utf-8")

    (run / "report.html").unlink()
    (run / "report.html").mkdir()
    main(["evaluate", str(run), store, "--no-ce", "--no-joint"])
    said = capsys.readouterr()
    assert "fvu" in said.out
    assert said.err.splitlines()[-1].startswith("Without a report: ")
    (run / ".evaluation.json.tmp").write_text("")  # a folder cannot be made where this is
    main(["evaluate", str(run), store, "--no-ce", "--no-joint"])
    assert f"Without a report: {run} cannot be written to" in capsys.readouterr().err


# --- drawings -------------------------------------------------------------------------------------


def test_latents_are_counted_by_their_rate() -> None:
    rates = torch.tensor([0, 0, 1e-4, 0.01, 0.1, 0.17, 0.178, 0.5, 1.0], dtype=torch.float64)
    found = rate_histogram(rates)
    edges, counts = found["edges"], found["counts"]
    assert counts[0] == 2
    assert sum(counts) == len(rates)
    np_counts, _ = np.histogram(rates[2:], bins=np.array(edges) * (1 - 1e-12))
    assert counts[1:-1] == np_counts[:-1].tolist()
    assert counts[-1] == 1
    assert rate_histogram(torch.zeros(3))["counts"][0] == 3


def test_ticks_are_round_and_enclose_the_range() -> None:
    assert charts.ticks(0, 15) == [0, 5, 10, 15]
    for low, high in ((0, 0.35), (-3, 8), (50, 2000), (0, 1e-5), (7, 7)):
        found = charts.ticks(low, high)
        assert found[0] <= low
        assert found[-1] >= high
        assert len(found) <= 8


def test_a_curve_lies_where_its_values_are() -> None:
    chart = charts.line("mse", "", [0, 50, 100], [4.0, 2.0, 0.0])
    heights = [mark.y for mark in chart.marks]
    assert heights[1] == pytest.approx((heights[0] + heights[2]) / 2)
    assert heights[2] == pytest.approx(charts.HEIGHT - charts.BOTTOM)
    steep = charts.line("mse", "", [0, 1, 2], [1000.0, 10.0, 0.1])
    first, second, third = (mark.y for mark in steep.marks)
    assert second - first == pytest.approx(third - second)  # logarithmic
    long = charts.line("mse", "", range(100_000), np.linspace(1, 2, 100_000).tolist())
    assert long.path.count("L") < charts.POINTS
    assert len(long.marks) <= charts.MARKS + 1


# --- notebooks ------------------------------------------------------------------------------------


def test_numbers_and_latents_have_html_for_notebooks(made: dict[str, Any], tokenizer: Any) -> None:
    table = Page(made["numbers"]._repr_html_())
    assert f"{made['numbers'].fvu:.4f}" in table.text
    assert "fraction of variance unexplained" in table.text
    (latent, *_) = profiles(made["codes"], tokenizer=tokenizer, tree=False)
    object.__setattr__(latent, "examples", [f"a «{HOSTILE}» b"])
    page = Page(latent._repr_html_())
    assert "Latent 0" in page.text
    assert f"{latent.rate:.3%} of rows" in page.text
    assert HOSTILE in page.text
    assert not {"script", "img"} & set(page.tags)


# --- in a browser ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Any:
    api = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM.exists():
        pytest.skip("there is no /usr/bin/chromium")
    with api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=str(CHROMIUM), args=list(FLAGS))
        yield found
        found.close()


@pytest.mark.slow
@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_it_without_complaint(
    browser: Any, made: dict[str, Any], run: Path, tokenizer: Any, scheme: str, width: int
) -> None:
    path = write_report(run, evaluation=made["numbers"], codes=made["codes"], tokenizer=tokenizer)
    said, asked = [], []
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    papers = r"--paper: light-dark\(#(..)(..)(..), #(..)(..)(..)\);"
    parts = re.findall(papers, markup.PALETTE.read_text(encoding="utf-8"))[0]
    paper = [int(part, 16) for part in parts[3 * (scheme == "dark") :][:3]]  # as in the explorer
    assert [int(part) for part in re.findall(r"\d+", background)[:3]] == paper
    assert page.evaluate("document.images[0].naturalWidth") > 0
    assert page.locator("svg").count() >= 6
    page.locator("summary").first.click()
    assert page.get_by_text("batch_size").is_visible()
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    page.close()


@pytest.mark.slow
def test_what_is_hostile_runs_nowhere(browser: Any, run: Path) -> None:
    config = json.loads((run / "cfg.json").read_text())
    config["metadata"] |= {"store": HOSTILE, "model": HOSTILE}
    (run / "cfg.json").write_text(json.dumps(config))
    page, dialogs = browser.new_page(), []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    page.goto(write_report(run).as_uri())
    assert HOSTILE in page.locator("dd", has_text="alert(1)").first.inner_text()
    assert dialogs == []
    # and the policy holds where something slipped in
    refused = page.evaluate(
        """() => new Promise(done => {
            document.addEventListener("securitypolicyviolation", e => done(e.violatedDirective));
            document.body.append(Object.assign(new Image(), {src: "http://evil.example/x"}));
        })"""
    )
    assert refused == "img-src"
    page.close()
