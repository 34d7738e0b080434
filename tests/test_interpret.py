"""`bitlens interpret`: planted meanings are found, empty ones are not, and nothing is asked or paid
for twice."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import sys
import time
from collections import Counter
from pathlib import Path
from types import ModuleType

import pyarrow.parquet
import pytest
import torch
from transformers import AutoTokenizer

import bitlens.cli.interpret
from bitlens.bits import Codes, PackedBits
from bitlens.cli import main
from bitlens.comsem import registry
from bitlens.comsem.calls import Calls
from bitlens.comsem.examples import Examples
from bitlens.hidden import Corpus
from bitlens.hidden.named import bundled_folder
from bitlens.labels.sources import load_tokenizer
from bitlens.options import BUNDLED
from language_model_server import LanguageModelServer

LETTERS = "taws"
LATENTS = len(LETTERS) + 2  # and two that are independent of the text
KEY = "sk-a-key-that-must-stay-secret"
OPENAI = ("--judge", "openai", "--model", "rule")


@pytest.fixture(scope="module")
def codes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 bundled documents; a latent for each letter, on at tokens that begin with it, with 1 % of
    all bits turned over."""
    tokenizer = AutoTokenizer.from_pretrained(bundled_folder())
    texts = [text for _, text in list(Corpus((BUNDLED,)).documents())[:300]]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"][:60] for text in texts]
    token = torch.tensor([i for document in ids for i in document])
    document = torch.tensor([number for number, tokens in enumerate(ids) for _ in tokens])
    first = [tokenizer.decode([i]).strip()[:1].lower() for i in token.tolist()]
    random = torch.Generator().manual_seed(0)
    planted = torch.stack([torch.tensor([f == letter for f in first]) for letter in LETTERS], 1)
    bits = torch.cat([planted, torch.rand(len(token), 2, generator=random) < 0.1], 1)
    bits ^= torch.rand(bits.shape, generator=random) < 0.01
    columns = {
        "token": token.int(),
        "document": document,
        "position": torch.zeros(len(token)).int(),
    }
    folder = tmp_path_factory.mktemp("interpreted") / "codes"
    Codes.write(
        folder, [(PackedBits.pack(bits), columns)], LATENTS, {"model": BUNDLED, "revision": None}
    )
    return folder


def letters(prompt: str) -> list[str]:
    texts = [json.loads(text) for text in re.findall(r'^(?:Text:|\d+\.) (".*")$', prompt, re.M)]
    return [found[1].lower() if (found := re.search("«(.)", text)) else "" for text in texts]


def by_first_letter(prompt: str) -> str:
    """Explains by the commonest first letter, and judges by it."""
    explanation = re.search(r"^Explanation: (.*)$", prompt, re.M)
    if not explanation:
        return f"tokens that begin with {Counter(letters(prompt)).most_common(1)[0][0]}"
    answers = [
        "yes" if letter and json.loads(explanation[1]).endswith(f" {letter}") else "no"
        for letter in letters(prompt)
    ]
    return (
        answers[0]
        if len(answers) == 1
        else "\n".join(f"{i}. {a}" for i, a in enumerate(answers, 1))
    )


def anything(prompt: str) -> str:
    """An explanation that fits every token, and a judge who agrees."""
    if "Explanation:" not in prompt:
        return f"any token of a text ({len(prompt)})"
    return "\n".join(f"{i}. yes" for i in range(1, len(letters(prompt)) + 1))


def interpret(codes: Path, out: Path, *more: str) -> None:
    main(["interpret", str(codes), "--out", str(out), *more])


def asked(codes: Path, out: Path, server: LanguageModelServer, *more: str) -> int:
    """-> exit status"""
    try:
        interpret(codes, out, *OPENAI, "--base-url", server.url, *more)
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def scores(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_planted_meanings_are_found_and_nothing_is_asked_twice(
    codes, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    out = tmp_path / "out"
    with LanguageModelServer(by_first_letter) as server:
        assert asked(codes, out, server, "--json", str(tmp_path / "summary.json")) == 0
        first, found = len(server.requests), scores(out)
        assert asked(codes, out, server) == 0
        assert len(server.requests) == first, "everything is on record"
    for score, letter in zip(found, LETTERS, strict=False):
        assert score["explanation"] == f"tokens that begin with {letter}"
        assert score["balanced_accuracy"] > 0.9
        assert score["interpretable"]
        assert score["shuffled"] < 0.6
    assert not any(score["interpretable"] for score in found[len(LETTERS) :])
    assert json.loads((tmp_path / "summary.json").read_text())["codes"]["codes"][
        "interpretable"
    ] == len(LETTERS)
    assert pyarrow.parquet.read_table(out / "scores.parquet").num_rows == LATENTS
    assert "tokens that begin with t" in capsys.readouterr().out
    for path in out.iterdir():
        assert KEY.encode() not in path.read_bytes()


@pytest.mark.slow
def test_nearness_in_an_encoder_reads_the_examples_themselves(codes, tmp_path):
    out = tmp_path / "out"
    interpret(codes, out, "--judge", "embedding", "--model", BUNDLED, "--device", "cpu")
    found = scores(out)
    assert len(found) == LATENTS
    for score, letter in zip(found, LETTERS, strict=False):
        examples = Examples.of(score["explanation"])
        assert examples is not None
        starts = [
            [text[text.index("«") + 1].lower() == letter for text in side] for side in examples
        ]
        assert sum(starts[0]) > 5  # bits are turned over now and then
        assert sum(starts[1]) <= 2
    assert not any(score["interpretable"] for score in found[len(LETTERS) :])


@pytest.mark.slow
def test_examples_are_shown_to_a_server_in_place_of_an_explanation(codes, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def by_examples(prompt: str) -> str:
        """Yes where the marked token begins with the commonest letter of those that fit."""
        shown = re.findall(r'^Text: .*\nMarked: "(.).*"\nAnswer: (yes|no)$', prompt, re.M)
        wanted = Counter(letter.lower() for letter, yes in shown if yes == "yes").most_common(1)
        asked = re.findall(r'^\d+\. (".*")$', prompt, re.M)
        asked = asked or [json.dumps("«" + re.findall(r'^Marked: "(.*)"$', prompt, re.M)[-1])]
        first = [json.loads(text).partition("«")[2][:1].lower() for text in asked]
        words = ["yes" if letter == wanted[0][0] else "no" for letter in first]
        return "\n".join(f"{i}. {word}" for i, word in enumerate(words, 1))

    with LanguageModelServer(by_examples) as server:
        more = ("--explanations", "examples", "--latents", "0", "1", "4")
        assert asked(codes, tmp_path / "out", server, *more) == 0
        assert not any("in common?" in str(request) for request in server.requests)
    first, second, random = scores(tmp_path / "out")
    assert first["balanced_accuracy"] > 0.9
    assert second["balanced_accuracy"] > 0.9
    assert not random["interpretable"]


@pytest.mark.slow
def test_every_score_can_be_traced_to_its_sentences(codes, tmp_path):
    out = tmp_path / "out"
    with LanguageModelServer(by_first_letter) as server:
        assert asked(codes, out, server, "--latents", "0", "1") == 0
    (score, _) = scores(out)
    query = "SELECT explanation, kind, yes, text, call, judge FROM judgements WHERE latent = 0"
    with Calls(out / "calls.sqlite") as calls:
        evidence = calls._execute(f"{query} AND run = ?", (str(codes),)).fetchall()
    own = [e for e in evidence if e[:2] == (score["explanation"], "positive")]
    assert sum(yes for _, _, yes, *_ in own) / len(own) == pytest.approx(score["sensitivity"])
    assert all("«" in text and call is not None for _, _, _, text, call, _ in own)
    assert {kind for _, kind, *_ in evidence} == {"positive", "random", "hard"}
    assert all(judge.startswith("rule at ") for *_, judge in evidence)


@pytest.mark.slow
def test_an_explanation_that_fits_everything_is_rejected_though_the_papers_score_is_full(
    codes, tmp_path
):
    with LanguageModelServer(anything) as server:
        assert asked(codes, tmp_path / "out", server) == 0
    for score in scores(tmp_path / "out"):
        assert score["sensitivity"] == 1
        assert score["balanced_accuracy"] == 0.5
        assert not score["interpretable"]


@pytest.mark.slow
def test_the_limit_on_calls_holds_and_a_later_run_goes_on(codes, tmp_path, capsys):
    out = tmp_path / "out"
    with LanguageModelServer(by_first_letter) as server:
        assert asked(codes, out, server, "--max-calls", "9") == 1
        assert len(server.requests) == 9
        assert "max_calls 9" in capsys.readouterr().err
        assert asked(codes, out, server) == 0
        with_limit = len(server.requests)
        assert asked(codes, tmp_path / "other", server) == 0
        assert len(server.requests) == 2 * with_limit


@pytest.mark.slow
def test_a_killed_command_goes_on_and_pays_for_nothing_twice(codes, tmp_path, bitlens_command):
    def slow(prompt: str) -> str:
        time.sleep(0.05)
        return by_first_letter(prompt)

    out = tmp_path / "out"
    with LanguageModelServer(slow) as server:
        command = bitlens_command(
            "interpret", str(codes), "--out", str(out), *OPENAI, "--base-url", server.url
        )
        command.wait_until(lambda: len(server.requests) >= 20)
        command.kill()
        assert not (out / "scores.jsonl").exists()
        assert asked(codes, out, server) == 0
        asked_in_all = len(server.requests)
        assert asked_in_all - len(set(server.prompts)) <= 8, "only those under way are asked again"
        assert asked(codes, out, server) == 0
        assert len(server.requests) == asked_in_all
    assert sum(score["interpretable"] for score in scores(out)) == len(LETTERS)


def test_the_estimate_asks_nothing(codes, tmp_path, capsys):
    with LanguageModelServer(by_first_letter) as server:
        assert asked(codes, tmp_path / "out", server, "--estimate", "--prices", "1", "2") == 0
        assert not server.requests
    assert re.search(r"About \d+ calls, [\d,]+ tokens to read, .* cost \d", capsys.readouterr().err)


@pytest.mark.slow
def test_a_model_that_thinks_and_wants_other_fields_can_be_asked(codes, tmp_path, capsys):
    """As OpenAI's do: no temperature, max_completion_tokens, and thoughts that are longer than any
    answer."""

    def thinking(prompt: str) -> str:
        return "<think>" + "No, 1. yes 2. no. " * 100 + "</think>" + by_first_letter(prompt)

    out = tmp_path / "out"
    with LanguageModelServer(thinking, refuses=("max_tokens", "temperature")) as server:
        assert asked(codes, out, server) == 0
        first = len(server.requests)
        assert asked(codes, out, server) == 0
        assert not [r for r in server.requests[first:] if not server.refuses & set(r)], (
            "everything is on record"
        )
    assert [score["interpretable"] for score in scores(out)] == [True] * len(LETTERS) + [False] * 2
    with LanguageModelServer(lambda prompt: "<think>" + "hm " * 99_000) as server:
        assert asked(codes, tmp_path / "none", server, "--json", str(tmp_path / "s.json")) == 0
        assert set(server.limits) == {60, 512, 4096}, (
            "nobody was asked to judge what was not explained"
        )
    told = capsys.readouterr()
    assert f"{LATENTS} latents without an explanation" in told.err
    assert "unexplained" in told.out
    assert json.loads((tmp_path / "s.json").read_text())["codes"]["codes"]["unexplained"] == LATENTS
    assert [s["untested"] for s in scores(tmp_path / "none")] == ["no explanation"] * LATENTS


@pytest.mark.slow
def test_an_untested_latent_is_not_a_no(codes, tmp_path, capsys):
    more = ("--latents", "0", "--json", str(tmp_path / "s.json"))
    with LanguageModelServer(by_first_letter) as server:
        assert asked(codes, tmp_path / "out", server, *more) == 0
    (score,) = scores(tmp_path / "out")
    assert (score["interpretable"], score["untested"]) == (None, "no other explanation")
    (row,) = pyarrow.parquet.read_table(tmp_path / "out" / "scores.parquet").to_pylist()
    assert (row["interpretable"], row["p_value"]) == (None, None)
    assert json.loads((tmp_path / "s.json").read_text())["codes"]["codes"]["untested"] == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "untested: no other explanation" in shown


def test_labels_judge_without_any_model(codes, tmp_path):
    more = ("--labelling", "spelling", "--json", str(tmp_path / "s.json"))
    interpret(codes, tmp_path / "out", *more)
    told = json.loads((tmp_path / "s.json").read_text())
    assert told["judge"] == "labels"
    assert told["codes"]["codes"]["judged"] == LATENTS
    assert told["codes"]["codes"]["interpretable"] <= 1


@pytest.mark.slow
def test_commands_say_how_many_rows_of_outlying_norm_they_leave_out(codes, tmp_path, capsys):
    whole = Codes(codes)
    columns = {name: getattr(whole, name) for name in ("token", "document", "position")}
    columns["usual"] = torch.arange(len(whole)) % 10 > 0
    about = {"model": BUNDLED, "revision": None}
    some = Codes.write(tmp_path / "codes", [(whole.bits, columns)], LATENTS, about)
    for command in (
        ["features"],
        ["interpret", "--out", str(tmp_path / "out")],
        ["labels", "--no-probes"],
    ):
        main([*command[:1], str(some.path), *command[1:]])
        assert f"{some.outliers:,} rows of outlying norm are left out." in capsys.readouterr().err


def test_several_codes_stand_side_by_side(codes, tmp_path):
    other = tmp_path / "others"
    shutil.copytree(codes, other)
    out = tmp_path / "out"
    json_file = ("--json", str(tmp_path / "s.json"))
    main(
        ["interpret", str(codes), str(other), "--out", str(out), "--latents", "0", "1", *json_file]
    )
    summaries = json.loads((tmp_path / "s.json").read_text())["codes"]
    assert list(summaries) == ["codes", "others"]
    assert summaries["codes"] == summaries["others"]
    assert scores(out / "codes") == scores(out / "others")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--judge", "openai"], "needs a language model; name it with --model"),
        (["--estimate"], "--estimate is for a judge that has to be paid"),
        (
            ["--judge", "local", "--model", "x", "--device", "cuda:9"],
            "There is no device 'cuda:9' here",
        ),
        (["--shuffles", "0"], "--shuffles must be at least 1"),
        (["--labelling", "mood"], "There is no labelling 'mood'; choose from: token"),
        (["--sample", "0"], "--sample must be at least 1"),
        (["--latents", "99"], "There is no latent 99"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_one_sentence(codes, tmp_path, capsys, arguments, sentence):
    with pytest.raises(SystemExit) as stop:
        interpret(codes, tmp_path / "out", *arguments)
    assert stop.value.code == 2
    assert sentence in capsys.readouterr().err


TOY = """
from dataclasses import dataclass

from bitlens.comsem.judges import Verdict
from bitlens.comsem.settings import LanguageModelSettings


@dataclass(frozen=True)
class ToySettings(LanguageModelSettings):
    letter: str = "x"

    who = "nobody"
    name = "toy"

    def check(self):
        pass

    def pair(self, calls):
        return self, self

    def explain(self, examples):
        return [f"{self.letter} or {i}" for i in range(len(examples))]

    def answer(self, questions):
        return [Verdict(self.letter in q.text.partition("«")[2][:1].lower()) for q in questions]
"""


def test_a_judge_is_one_file_and_one_line_in_the_registry(codes, tmp_path, monkeypatch):
    module = ModuleType("bitlens.comsem.toy_judge")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(TOY, vars(module))
    monkeypatch.setitem(registry.JUDGES, "toy", "toy_judge:ToySettings")
    try:
        importlib.reload(bitlens.cli.interpret)
        more = ("--judge", "toy", "--letter", "t", "--latents", "0", "1")
        interpret(codes, tmp_path / "out", *more)
    finally:
        monkeypatch.undo()
        importlib.reload(bitlens.cli.interpret)
    first, second = scores(tmp_path / "out")
    assert first["balanced_accuracy"] > 0.9 > second["balanced_accuracy"]
    assert first["explanation"] == "t or 0"


def test_flags_of_other_judges_are_named(codes, tmp_path, capsys):
    interpret(codes, tmp_path / "out", "--latents", "0", "--model", "m", "--labelling", "token")
    assert "Without effect with --judge labels: --model." in capsys.readouterr().err


def test_codes_must_be_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["interpret", "--out", str(tmp_path / "out")])
    assert "Name one or several folders of codes" in capsys.readouterr().err


def test_the_tokenizer_of_the_codes_is_found(codes):
    assert load_tokenizer(Codes(codes)).decode([1])
