"""The command line: what it prints, what it writes, and what bad input gets."""

import json
from pathlib import Path

import numpy as np
import pytest

from bitlens.cli import main


def run(*arguments: object) -> int:
    """Exit status of `bitlens ARGUMENTS`, in this process."""
    try:
        main([str(a) for a in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    generator = np.random.default_rng(0)
    bits = generator.random((4000, 12)) < 0.1
    np.save(folder / "rows.npy", (bits @ generator.normal(size=(12, 16)) + 3).astype(np.float32))
    assert run("import", folder / "rows.npy", "--out", folder / "store") == 0
    return folder / "store"


@pytest.fixture(scope="module")
def trained(store: Path) -> Path:
    out = store.parent / "run"
    line = f"train {store} --out {out} --n-latents 32 --steps 60 --json {store.parent}/train.json"
    assert run(*line.split()) == 0
    return out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from bitlens import __version__

    assert run("--version") == 0
    assert __version__ in capsys.readouterr().out


@pytest.mark.slow
def test_train_encode_evaluate(
    store: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = store.parent
    assert json.loads((folder / "train.json").read_text())["step"] == 60
    line = f"encode {trained} {store} --out {folder}/codes --json {folder}/encode.json"
    assert run(*line.split()) == 0
    assert json.loads((folder / "encode.json").read_text())["rows"] == 4000
    assert run("evaluate", trained, store, "--json", folder / "evaluate.json") == 0
    numbers = json.loads((folder / "evaluate.json").read_text())
    shown = capsys.readouterr().out
    assert 0 < numbers["fvu"] < 1
    assert numbers["ce_original"] is None
    assert f"{numbers['fvu']:.4f}" in shown
    assert "fraction of variance unexplained" in shown


def test_a_topk_run_is_evaluated_by_the_same_command(store: Path) -> None:
    out, numbers = store.parent / "topk", store.parent / "topk.json"
    line = f"train {store} --out {out} --architecture topk --k 4 --n-latents 32 --steps 30"
    assert run(*line.split()) == 0
    assert run("evaluate", out, store, "--json", numbers, "--no-joint") == 0
    assert json.loads(numbers.read_text())["l0"] <= 4


HARVEST = "harvest {model} --text {text} --hook {hook} --out {tmp}/o"
USUAL = {"model": "bundled", "text": "bundled", "hook": "layers.0"}
BAD = {  # a command, what is changed of the usual names in it, and a part of the sentence
    "no model": (HARVEST, {"model": "/no/model"}, "/no/model"),
    "no hook point": (HARVEST, {"hook": "layers.99"}, "nearest"),
    "no text": (HARVEST, {"text": "/no/text.txt"}, "/no/text.txt"),
    "no usable tokens": (HARVEST, {"text": "{tmp}/blank.txt"}, "usable"),
    "no store": ("train {tmp}/none --out {tmp}/o", {}, "not a store"),
    "a GPU that is not there": ("encode {run} {store} --out {tmp}/o --device cuda:9", {}, "cuda:9"),
    "output not empty": ("train {store} --out {tmp}/full", {}, "--overwrite"),
    "output of something else": (
        "train {store} --out {tmp}/full --overwrite",
        {},
        "not written by this command",
    ),
    "other width": ("evaluate {run} {tmp}/narrow", {}, "width 5"),
    "not a run": ("evaluate {tmp} {store}", {}, "cfg.json"),
    "--stream without text": ("train bundled --stream --out {tmp}/o", {}, "--text"),
    "no latents": ("train {store} --out {tmp}/o --n-latents -3", {}, "--n-latents"),
    "not numbers": ("import {tmp}/blank.txt --out {tmp}/o", {}, "blank.txt"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_sentence(
    case: str, store: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line, changed, clue = BAD[case]
    (tmp_path / "blank.txt").write_text(" \n \n")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious.txt").write_text("keep me")
    narrow = np.random.default_rng(0).normal(size=(50, 5)).astype(np.float32)
    np.save(tmp_path / "narrow.npy", narrow)
    assert run("import", tmp_path / "narrow.npy", "--out", tmp_path / "narrow") == 0
    capsys.readouterr()
    places = {"tmp": tmp_path, "store": store, "run": trained, **USUAL}
    places |= {name: value.format(tmp=tmp_path) for name, value in changed.items()}
    assert run(*line.format(**places).split()) == 2
    said = capsys.readouterr().err.strip()
    sentence = said.splitlines()[-1]
    assert clue in sentence
    assert sentence.endswith(".")
    assert "Traceback" not in said
    assert (tmp_path / "full" / "precious.txt").read_text() == "keep me"


def test_a_finished_run_resumed_is_left_as_it_is(store: Path, trained: Path) -> None:
    before = (trained / "sae_weights.safetensors").read_bytes()
    line = f"train {store} --out {trained} --n-latents 32 --steps 60 --resume"
    assert run(*line.split()) == 0
    assert (trained / "sae_weights.safetensors").read_bytes() == before


def test_names_of_numbers_are_whole_beside_many_columns(capsys: pytest.CaptureFixture[str]) -> None:
    from bitlens import show

    numbers = {
        "ce_loss_score": 0.5,
        "ce_loss_score_low": 0.4,
        "ce_loss_score_high": 0.6,
        "ce_loss_score_mean": 0.5,
    }
    show.table("Many", {str(k): numbers for k in (1, 2, 4, 8, 16, 32, 64, "all")})
    shown = capsys.readouterr().out
    assert "│ ce_loss_score      │" in shown
    assert "│ ce_loss_score_mean │" in shown
    assert "1: nothing lost, 0: as bad as zeros" in shown
