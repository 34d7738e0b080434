"""The study `compare`: everything at the BAE's l0, resumed where it was killed, not stopped by what diverges."""

from __future__ import annotations

import dataclasses

import pyarrow.parquet
import pytest
import torch

from bitlens.autoencoders import Autoencoder
from bitlens.bits.packed import PackedBits
from bitlens.errors import BitlensError
from bitlens.features.labelled import Labels
from bitlens.hidden import ActivationStore, Corpus, LanguageModel
from bitlens.hidden.harvest import harvest
from bitlens.hidden.text import ContextReader
from bitlens.studies import compare
from bitlens.studies.compare import CompareConfig, run_compare, run_folder
from conftest import english

TINY = CompareConfig(
    architectures=("BAE", "TopK", "random", "PCA"), variants=("BAE, step",), n_latents=(64,), prices=(0.1,),
    seeds=(0, 1), steps=30, contexts=8, test_fraction=0.3,
)  # fmt: skip
TIMES = ("train_seconds", "rows_per_second")


@pytest.fixture(scope="module")
def config(tmp_path_factory, tiny_llama):
    model = LanguageModel.load(str(tiny_llama), ["layers.1"], device="cpu")
    out = tmp_path_factory.mktemp("compared") / "store"
    text = out.parent / "text.txt"
    text.write_text("\n".join(english(seed, 12) for seed in range(80)))
    harvest(model, ContextReader(Corpus((str(text),), unit="line"), model.tokenizer, 16, test_fraction=0.3), out)
    return dataclasses.replace(TINY, store=str(out))


@pytest.fixture(scope="module")
def study(tmp_path_factory, config):
    """(folder, rows) of the tiny study; not to be changed."""
    out = tmp_path_factory.mktemp("compare") / "study"
    return out, run_compare(config, out)


def rows_of(study, name):
    return [row for row in study[1] if row["name"] == name]


def untimed(rows):
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def test_everything_is_measured_with_every_seed(study):
    assert not [row["error"] for row in study[1] if "error" in row]
    counts = {name: len(rows_of(study, name)) for name in ("BAE", "TopK", "random", "PCA", "BAE, step")}
    assert counts == {"BAE": 2, "TopK": 2, "random": 2, "PCA": 1, "BAE, step": 1}
    for row in study[1]:
        assert 0 < row["fvu"] < 1.5
        assert 0 <= row["latents_f1"] <= 64
        assert row["ce_loss_score"] is not None
        assert (row["bits_joint"] is None) == (row["seed"] == 1)
    assert all(0 <= row["stability"] <= 1 for name in ("BAE", "TopK") for row in rows_of(study, name))


def test_baselines_are_led_to_the_l0_of_the_bae(study):
    k = round(sum(row["l0"] for row in rows_of(study, "BAE")) / 2)
    assert {row["k"] for name in ("TopK", "PCA") for row in rows_of(study, name)} == {k}
    assert all(row["l0"] == pytest.approx(k, abs=0.5) for name in ("TopK", "PCA") for row in rows_of(study, name))


def test_the_random_autoencoder_fires_as_the_bae_does(study, config):
    store = ActivationStore(config.store, config.test_fraction)
    x = torch.cat([rows.hidden for rows in store.read("train")])
    rates = [
        Autoencoder.from_pretrained(run_folder(study[0], {**TINY.cells(name, 64)[0]})).encode(x).mean(0).sort().values
        for name in ("BAE", "random")
    ]
    middle = [float(rate[len(rate) // 2]) for rate in rates]
    assert middle[1] == pytest.approx(middle[0], rel=0.35)


def test_the_table_the_page_and_the_figures_are_there(study):
    out, rows = study
    assert pyarrow.parquet.read_table(out / "table.parquet").num_rows == len(rows)
    page = (out / "compare.md").read_text()
    assert "## 64 latents, price 0.1\n" in page
    assert "binary autoencoders of other kinds" in page
    for heading in ("`fvu`", "`ce_loss_score`", "dense", "stability", "latents of one label, any value"):
        assert f"| {heading} |" in page
    assert {path.name for path in out.glob("*.svg")} == {"compare.svg", "variants.svg"}


@pytest.mark.slow
def test_a_killed_comparison_goes_on_where_it_was(study, config, tmp_path, bitlens_command):
    out = tmp_path / "study"
    arguments = ["study", "compare", "--out", str(out), "--store", config.store, "--resume"]
    for name in ("architectures", "variants", "n_latents", "prices", "seeds", "steps", "contexts", "test_fraction"):
        value = getattr(config, name)
        values = value if isinstance(value, tuple) else (value,)
        arguments += [f"--{name.replace('_', '-')}", *map(str, values)]
    command = bitlens_command(*arguments)
    command.wait_until(lambda: len(list(out.glob("cells/*.json"))) >= 3)
    command.kill()
    kept = {path: path.stat().st_mtime_ns for path in out.glob("cells/*.json")}
    assert 3 <= len(kept) < 8
    rows = run_compare(config, out, resume=True)
    assert untimed(rows) == untimed(study[1])
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())


def test_what_diverges_is_reported_and_stops_nothing(config, tmp_path, monkeypatch):
    monkeypatch.setitem(compare.ARCHITECTURES, "ReLU", {"architecture": "relu", "lr": 1e30})
    small = dataclasses.replace(config, architectures=("BAE", "ReLU", "TopK"), variants=(), seeds=(0,))
    rows = run_compare(small, tmp_path / "study")
    assert [("error" in row, row["name"]) for row in rows] == [(False, "BAE"), (True, "ReLU"), (False, "TopK")]
    assert "diverged" in rows[1]["error"]
    assert "* ReLU, price 0.1, seed 0: The loss is not finite" in (tmp_path / "study" / "compare.md").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ("BAE", "Perceptron")}, "no architecture 'Perceptron'; choose from: BAE, ReLU"),
        ({"variants": ("quaternary",)}, "no variant 'quaternary'; choose from: BAE, step"),
        ({"architectures": ("TopK",)}, "needs 'BAE' among its architectures"),
        ({"seeds": ()}, "at least one price and one seed"),
    ],
    ids=str,
)
def test_what_cannot_be_compared_is_refused(config, tmp_path, changes, message):
    with pytest.raises(BitlensError, match=message):
        run_compare(dataclasses.replace(config, **changes), tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_a_latent_counts_as_on_above_the_threshold_that_suits_a_label():
    torch.manual_seed(0)
    label = torch.rand(4000) < 0.2
    loose, tight = torch.rand(4000) < 0.5, label ^ (torch.rand(4000) < 0.02)
    codes = [PackedBits.pack(torch.stack(pair, 1)) for pair in ((loose, label), (tight, loose))]
    labels = [Labels("planted", ["no", "yes"], label.long())]
    best = compare._best_cuts(codes, labels, torch.arange(4000) < 2000)
    assert torch.equal(best.unpack().bool(), torch.stack([tight, label], 1))
