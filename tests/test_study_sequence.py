"""The study `sequence`: a cell is of one position, all have as many rows, and it can go on."""

from __future__ import annotations

import dataclasses
import json

import pyarrow.parquet
import pytest
import torch
import transformers

from bitlens.errors import BitlensError
from bitlens.hidden import ActivationStore, Corpus, LanguageModel
from bitlens.hidden.harvest import harvest
from bitlens.hidden.text import ContextReader
from bitlens.studies.cells import Study
from bitlens.studies.sequence import study as sequence
from bitlens.studies.sequence.config import SequenceConfig
from bitlens.studies.sequence.study import (
    RowCounts,
    common_rows,
    rows_at,
    run,
    summary,
    text_positions,
)

TINY = SequenceConfig(
    hooks=("layers.0", "hidden_states[3]"),
    context=16,
    positions=(1, 8),
    autoencoders=("cell", "shared"),
    max_tokens=3000,
    test_fraction=0.3,
    n_latents=64,
    steps=100,
    device="cpu",
)


def refusal(out, **changes):
    """The one sentence with which the tiny study, changed so, is refused."""
    with pytest.raises(BitlensError) as error:
        run(dataclasses.replace(TINY, **changes), Study(out))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """(folder, rows) of the tiny study; not to be changed."""
    out = tmp_path_factory.mktemp("sequence") / "study"
    return out, run(TINY, Study(out))


@pytest.fixture(scope="module")
def store(tmp_path_factory, tiny_llama, text_folder):
    """Contexts of 8 tokens of `tiny_llama` at layers.1, half of the documents held out."""
    model = LanguageModel.load(str(tiny_llama), ["layers.1"], device="cpu")
    out = tmp_path_factory.mktemp("rows") / "store"
    harvest(
        model,
        ContextReader(Corpus((str(text_folder),)), model.tokenizer, 8, test_fraction=0.5),
        out,
    )
    return ActivationStore(out, test_fraction=0.5)


# --- the rows of a cell


@pytest.mark.slow
def test_the_rows_of_a_cell_are_the_models_own_hidden_states_at_its_position(
    store, tiny_llama, text_folder
):
    full = transformers.AutoModel.from_pretrained(tiny_llama).eval()
    reader = ContextReader(
        Corpus((str(text_folder),)),
        transformers.AutoTokenizer.from_pretrained(tiny_llama),
        8,
        test_fraction=0.5,
    )
    special = set(reader.special.tolist())
    expected, documents = [], []
    for tokens, owners in reader.contexts():
        if len(tokens) > 5 and tokens[5] not in special:
            with torch.no_grad():
                expected.append(
                    full(torch.tensor([tokens]), output_hidden_states=True).hidden_states[2][0, 5]
                )
            documents.append(owners[5])
    test = store.is_test(torch.tensor(documents))
    hidden, document, held_out = rows_at(store, 5, RowCounts(int((~test).sum()), int(test.sum())))
    assert document.tolist() == documents
    assert torch.equal(held_out, test)
    torch.testing.assert_close(hidden, torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_fewer_rows_are_spread_over_the_text_without_repeats(store):
    whole, _, whole_test = rows_at(store, 5, common_rows(store, [5]))
    some, document, test = rows_at(store, 5, RowCounts(20, 9))
    for part, n in ((~whole_test, 20), (whole_test, 9)):
        indices = torch.arange(n) * int(part.sum()) // n
        assert len(set(indices.tolist())) == n
        assert torch.equal(some[test if n == 9 else ~test], whole[part][indices])
    assert document.tolist() == sorted(document.tolist())


def test_every_position_gets_the_rows_of_the_poorest(store):
    alone = {position: common_rows(store, [position]) for position in range(8)}
    assert len(set(alone.values())) > 1
    rows = common_rows(store, list(alone))
    assert rows == RowCounts(
        min(r.training for r in alone.values()), min(r.test for r in alone.values())
    )
    fewer = common_rows(store, list(alone), max_rows=90)
    assert sum(fewer) == 90
    assert fewer.test / 90 == pytest.approx(rows.test / sum(rows), abs=0.01)


def test_rows_of_outlying_norm_belong_to_their_position(tiny_llama, text_folder, tmp_path):
    model = LanguageModel.load(str(tiny_llama), ["layers.1"], device="cpu")
    reader = ContextReader(Corpus((str(text_folder),)), model.tokenizer, 8, test_fraction=0.5)
    harvest(
        model, reader, tmp_path / "store", outlier_multiple=1.0
    )  # now half of the rows are outliers
    store = ActivationStore(tmp_path / "store", test_fraction=0.5)
    usual = sum(len(train) + len(test) for train, test in store.splits())
    assert sum(sum(common_rows(store, [p])) for p in range(8)) == len(store) > 1.5 * usual


# --- the whole study


@pytest.mark.slow
def test_the_whole_study_has_a_row_a_cell_all_of_as_many_rows_and_its_figures(study):
    out, table = study
    cells = [(r["autoencoder"], r["layer"], r["position"], r["seed"]) for r in table]
    layers = ("layers.0", "layers.2")  # hidden_states[3] is what comes out of layers.2
    assert cells == [
        (kind, layer, p, 0) for layer in layers for p in (1, 8) for kind in ("cell", "shared")
    ]
    assert len({row["rows"] for row in table}) == 1
    for row in table:
        assert "error" not in row
        assert 0 < row["fvu"] < 2
        assert (row["bits_joint"] is None) == (row["fvu"] > 0.5) == bool(row["left_out"])
        if not row["left_out"]:
            assert row["bits_joint_low"] < row["bits_joint"] < row["bits_joint_high"]
        if row["bits_gaussian"] and row["bits_joint"]:
            assert row["joint_over_gaussian"] == row["bits_joint"] / row["bits_gaussian"]
    assert [row["autoencoder"] for row in table if row["bits_joint"]].count("shared") >= 2
    assert pyarrow.parquet.read_table(out / "table.parquet").to_pylist() == table
    lines = summary(table)
    assert [line["layer"] for line in lines] == [
        f"{layer}, {kind}" for layer in layers for kind in ("cell", "shared")
    ]
    for line, cell in zip(lines, (table[0], table[1], table[4], table[5]), strict=True):
        assert list(line) == ["layer", "1", "8"]
        bits = "-" if cell["bits_joint"] is None else f"{cell['bits_joint']:.0f}"
        assert line["1"] == f"{bits} ({cell['fvu']:.2f})"
    across = summary(
        [row for row in table if row["layer"] == layers[0] and row["autoencoder"] == "cell"]
    )
    assert [list(line) for line in across] == [["position", layers[0]]] * 2
    for name in ("bits", "fvu", "layers"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "one autoencoder for all positions" in (out / f"{name}.svg").read_text()
    assert json.loads((out / "study.json").read_text())["settings"]["positions"] == [1, 8]


@pytest.mark.slow
def test_cells_that_were_lost_are_measured_again_and_are_the_same(study):
    out, table = study
    kept = {path: path.read_bytes() for path in (out / "cells").iterdir()}
    lost = sorted(kept)[::2]
    for path in lost:
        path.unlink()
    told = []
    again = run(TINY, Study(out, resume=True, report=lambda *now: told.append(now[:2])))
    assert again == table
    assert {path: path.read_bytes() for path in (out / "cells").iterdir()} == kept
    assert 0 < len(told) <= len(lost)
    assert told[-1] == (len(table) + 2, len(table) + 2)  # with two shared trainings


@pytest.mark.slow
def test_a_resumed_study_may_have_more_steps_and_keeps_its_stores(study):
    out, table = study
    stores = {path: path.stat().st_mtime_ns for path in (out / "stores").rglob("*.safetensors")}
    changed = dataclasses.replace(TINY, steps=60, positions=(8,), autoencoders=("shared",))
    rows = run(changed, Study(out, resume=True))
    assert [(row["layer"], row["position"]) for row in rows] == [("layers.0", 8), ("layers.2", 8)]
    assert rows[0]["fvu"] not in [row["fvu"] for row in table]
    assert {
        path: path.stat().st_mtime_ns for path in (out / "stores").rglob("*.safetensors")
    } == stores


@pytest.mark.slow
def test_a_layer_that_cannot_be_trained_on_is_named_and_does_not_end_the_study(
    tmp_path, monkeypatch
):
    def diverges(*arguments):
        raise BitlensError("The loss is not finite.")

    monkeypatch.setattr(sequence, "train_shared", diverges)
    one, said = dataclasses.replace(TINY, hooks=("layers.0",), autoencoders=("shared",)), []
    rows = run(one, Study(tmp_path / "out", say=said.append))
    assert "layers.0 could not be trained on: The loss is not finite." in said
    assert len(rows) == 2
    assert all("it was not trained" in row["error"] for row in rows)


# --- what is refused


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"hooks": ("layers.9",)}, "There is no hook point 'layers.9' in this model of 6 layers"),
        ({"positions": (1, 16)}, "the text's own are at 1 to 15"),
        ({"positions": (0,)}, "no rows at position 0: "),
        ({"context": 1000}, "reads at most 256 tokens at once, not 1000"),
        ({"autoencoders": ()}, "autoencoders of the kinds 'cell', 'shared' or both"),
        ({"seeds": ()}, "at least one seed"),
        ({"max_rows": 10}, "`max_rows` must be at least 72, not 10"),
        ({"steps": 0}, "`steps` must be at least 1"),
        ({"preset": "best"}, "There is no preset 'best'"),
        ({"text": ("/nowhere/text.txt",)}, "There is no text at /nowhere/text.txt"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence_before_anything_is_written(
    tmp_path, changes, sentence
):
    assert sentence in refusal(tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_too_few_rows_name_the_position(tmp_path):
    sentence = refusal(tmp_path / "out", max_tokens=400)
    assert sentence.startswith("Position 1 has ")
    assert "give more text, or leave the position out" in sentence


@pytest.mark.parametrize(
    ("bos", "expected"), [(None, [0, 1, 2, 4, 8, 16, 20]), (True, [1, 2, 4, 8, 16, 20])]
)
def test_positions_are_by_default_powers_of_two_and_the_ends_of_the_text(
    tokenizer, text_folder, bos, expected
):
    reader = ContextReader(Corpus((str(text_folder),)), tokenizer, 21, bos=bos)
    assert text_positions(SequenceConfig(), reader) == expected
