"""The study `survey`: its folder holds what the single commands give, and it goes on where it was
stopped."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex

import pytest
import torch

from bitlens.autoencoders import Autoencoder
from bitlens.bits.codes import Codes
from bitlens.bits.statistics import firing_rates
from bitlens.cli import main
from bitlens.errors import BitlensError
from bitlens.hidden import ActivationStore
from bitlens.studies import measuring
from bitlens.studies.cells import Study
from bitlens.studies.survey.config import SurveyConfig
from bitlens.studies.survey.report import SHOWN, as_text, files_of, read_profiles, store_folder
from bitlens.studies.survey.study import run

TINY = SurveyConfig(
    hooks=("layers.1", "layers.2"),
    context=16,
    test_fraction=0.3,
    n_latents=64,
    steps=25,
    contexts=8,
    device="cpu",
)
TIMES = "rows_per_second"


@pytest.fixture(scope="module")
def config(tiny_llama, text_folder):
    return dataclasses.replace(TINY, model=str(tiny_llama), text=(str(text_folder),))


@pytest.fixture(scope="module")
def survey(tmp_path_factory, config):
    """(folder, rows) of the tiny survey; not to be changed."""
    out = tmp_path_factory.mktemp("survey") / "out"
    return out, run(config, Study(out))


def untimed(rows):
    return [{key: value for key, value in row.items() if key != TIMES} for row in rows]


@pytest.mark.slow
def test_at_every_hook_point_a_rival_has_the_width_and_the_l0_of_the_bae(survey):
    rows = survey[1]
    assert not [row["error"] for row in rows if "error" in row]
    names = [(row["hook"], row["autoencoder"]) for row in rows]
    assert names == [(h, a) for h in ("layers.1", "layers.2") for a in ("BAE", "TopK")]
    for ours, theirs in zip(rows[::2], rows[1::2], strict=True):
        assert theirs["k"] == max(1, round(ours["l0"]))
        assert theirs["n_latents"] == ours["n_latents"] == 64
        assert ours["bits"] == ours["bits_joint"]  # it has no magnitudes
        assert theirs["bits"] == theirs["bits_joint"] + theirs["bits_magnitudes"]


@pytest.mark.slow
def test_every_command_of_the_page_gives_the_numbers_of_its_table(survey, monkeypatch, tmp_path):
    out, rows = survey
    page = (out / "survey.md").read_text()
    commands = [shlex.split(line) for line in re.findall(r"^    bitlens (.*)$", page, re.MULTILINE)]
    assert [c[0] for c in commands] == ["evaluate", "entropy", "features", "interpret"] * 4
    monkeypatch.chdir(out)
    for number, command in enumerate(commands):
        row, file = rows[number // 4], tmp_path / f"{number}.json"
        before = {path: path.read_bytes() for path in files_of(out, row)[2:]}
        main([*command, "--json", str(file)])
        assert {path: path.read_bytes() for path in before} == before
        given = json.loads(file.read_text())
        if command[0] == "evaluate":
            names = [name for name, source in SHOWN.items() if source == "evaluate"]
            assert {name: given[name] for name in names} == {name: row[name] for name in names}
        elif command[0] == "entropy":
            assert given["bits_joint"]["value"] == row["bits_joint"]
            assert given["bits_joint"]["low"] == row["bits_joint_low"]
        elif command[0] == "interpret":
            (summary,) = given["codes"].values()
            assert all(summary[name] == row[name] for name in ("judged", "interpretable"))
    for row in rows:
        assert f"{row['fvu']:.4f}" in page


@pytest.mark.slow
def test_what_is_drawn_and_listed_is_of_the_codes(survey):
    out, rows = survey
    for row in rows:
        codes = Codes(files_of(out, row).codes)
        rates = torch.tensor([profile.rate for profile in read_profiles(out, row)])
        assert torch.allclose(rates, firing_rates(codes.bits[codes.usual]).float(), atol=1e-6)
    for name in ("bits", "rates"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "layers.2" in (out / f"{name}.svg").read_text()


@pytest.mark.slow
def test_what_was_lost_is_made_again_and_is_the_same(survey, config):
    out, rows = survey
    codes = files_of(out, rows[1]).codes
    for cell in (out / "cells").iterdir():
        cell.unlink()
    manifest = codes / "manifest.json"  # as a kill leaves it
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"complete": False}))
    weights = {path: path.read_bytes() for path in out.glob("runs/*/sae_weights.safetensors")}
    assert untimed(run(config, Study(out, resume=True))) == untimed(rows)
    assert {path: path.read_bytes() for path in weights} == weights
    assert Codes(codes).manifest["complete"]


@pytest.mark.slow
def test_other_settings_in_the_same_folder_are_refused(survey, config):
    out, _ = survey
    for changes in ({"max_rows": 500}, {"context": 8}):
        with pytest.raises(BitlensError, match="was begun with other settings"):
            run(dataclasses.replace(config, **changes), Study(out, resume=True))


def test_what_cannot_be_is_refused_before_a_file_is_written(config, tmp_path):
    for changes in ({"seeds": ()}, {"contexts": 1}, {"price": -1.0}):
        with pytest.raises(BitlensError):
            run(dataclasses.replace(config, **changes), Study(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_an_encoder_has_no_loss_and_everything_else(make_model, text_folder, tmp_path):
    config = dataclasses.replace(
        TINY, model=str(make_model("bert")), text=(str(text_folder),), hooks=("layers.1",), steps=5
    )
    rows = run(config, Study(tmp_path / "out"))
    assert all(row["ce_loss_score"] is None and row["judged"] >= 0 for row in rows)
    assert "ce_loss_score" not in (tmp_path / "out" / "survey.md").read_text()
    store = ActivationStore(store_folder(tmp_path / "out", rows[0]["hook"]))
    run_folder = files_of(tmp_path / "out", rows[0]).run
    assert Autoencoder.from_pretrained(run_folder).d_in == store.d_in


def test_without_a_hook_point_it_is_the_layer_in_the_middle():
    assert [list(SurveyConfig().layers(n)) for n in (1, 6, 7)] == [[0], [2], [3]]


def test_text_of_the_page_has_no_markup():
    assert as_text("a|b *c* <d> `e` [f]_\x07") == r"a\|b \*c\* \<d\> \`e\` \[f\]\_·"


@pytest.mark.slow
def test_what_leaves_too_much_unexplained_has_no_entropies(config, tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "MOST_UNEXPLAINED", 0.0)
    said = []
    one = dataclasses.replace(config, hooks=("layers.1",))
    rows = run(one, Study(tmp_path / "out", say=said.append))
    assert [row["left_out"][:4] for row in rows] == ["fvu ", "fvu "]
    for row in rows:
        assert not [n for n, x in row.items() if n.startswith("bits") and x and "gaussian" not in n]
    assert any("2 of 2 rows are without entropies" in sentence for sentence in said)
    assert (tmp_path / "out/survey.md").read_text().count(": no entropies, as fvu ") == 2
