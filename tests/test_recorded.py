"""A store, codes and a run say of which model they are, from anywhere, and another model is never
taken for it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from bitlens.autoencoders import BinaryAutoencoder
from bitlens.causal.splice import load_spliced
from bitlens.errors import BitlensError
from bitlens.hidden import ActivationStore, Corpus, LanguageModel
from bitlens.hidden.harvest import harvest
from bitlens.hidden.live import LiveSource
from bitlens.hidden.named import digest, recorded_model
from bitlens.hidden.text import ContextReader
from bitlens.labels.sources import load_tokenizer
from conftest import WIDTH

AUTOENCODER = BinaryAutoencoder(WIDTH, 8)


@pytest.fixture
def made(tiny_llama, text_folder, tmp_path, monkeypatch):
    """A store harvested from a folder that was named relative to the current one."""
    shutil.copytree(tiny_llama, tmp_path / "here" / "model")
    monkeypatch.chdir(tmp_path / "here")
    model = LanguageModel.load("model", ["layers.1"], device="cpu")
    reader = ContextReader(Corpus((str(text_folder),)), model.tokenizer, 32)
    return harvest(model, reader, tmp_path / "store")[0], model, reader


def change_one_number(folder):
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.3.mlp.up_proj.weight"][5, 7] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_folder_is_found_from_elsewhere(made, tmp_path, monkeypatch):
    store, model, reader = made
    assert store.manifest["model"] == str(tmp_path / "here" / "model") == model.name
    assert (
        store.about["model_digest"]
        == digest("model")
        == LiveSource(model, reader).about["model_digest"]
    )
    shutil.copytree(tmp_path / "here" / "model", tmp_path / "there" / "model")
    change_one_number(tmp_path / "there" / "model")
    monkeypatch.chdir(tmp_path / "there")
    again = load_spliced(AUTOENCODER, store, "cpu")
    assert again.record["model_digest"] == store.manifest["model_digest"]


@pytest.mark.parametrize(
    "load",
    [lambda s: load_spliced(AUTOENCODER, s, "cpu"), load_tokenizer],
    ids=["splice", "tokenizer"],
)
def test_other_weights_of_the_same_shape_are_refused(made, load):
    store, model, _ = made
    load(store)
    change_one_number(Path(model.name))
    with pytest.raises(
        BitlensError,
        match=r"is another one than when .* was made: its configuration or weights differ",
    ):
        load(store)
    shutil.rmtree(model.name)
    with pytest.raises(
        BitlensError,
        match=r'is gone; put it back, or write the path of the right one as "model" into .*json',
    ):
        load(store)


def test_a_harvest_is_not_resumed_with_another_model(made):
    store, model, reader = made
    change_one_number(Path(model.name))
    other = LanguageModel.load("model", ["layers.1"], device="cpu")
    with pytest.raises(BitlensError, match=r"other settings .*model_digest"):
        harvest(other, reader, store.path, resume=True)


def test_the_way_out_works_and_former_manifests_load(made, tmp_path):
    store, model, _ = made
    Path(model.name).rename(tmp_path / "moved")
    file = store.path / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model": str(tmp_path / "moved")}))
    assert load_spliced(AUTOENCODER, ActivationStore(store.path), "cpu").hooks[0].name == "layers.1"
    former = {k: v for k, v in json.loads(file.read_text()).items() if k != "model_digest"}
    assert recorded_model(former, store.path) == (str(tmp_path / "moved"), None)


def test_a_folder_is_not_taken_for_a_model_of_the_hub(tiny_llama, monkeypatch):
    monkeypatch.chdir(tiny_llama.parent)
    with pytest.raises(BitlensError, match="from the Hugging Face Hub, but here that is a folder"):
        recorded_model({"model": tiny_llama.name, "revision": "0" * 40}, "store")


def test_the_bundled_model_stays_bundled(tmp_path, monkeypatch):
    (tmp_path / "bundled").mkdir()
    monkeypatch.chdir(tmp_path)
    model = LanguageModel.load("bundled", ["layers.1"], device="cpu")
    assert model.record["model"] == "bundled"
    assert model.revision is None
    assert recorded_model(model.record, "store") == ("bundled", None)


def test_what_cannot_be_harvested_is_refused_in_a_sentence(made, tmp_path):
    _, model, reader = made
    with pytest.raises(BitlensError, match="`batch_size` must be at least 1"):
        harvest(model, reader, tmp_path / "none", batch_size=0)
    with pytest.raises(BitlensError, match="`batch_size` must be at least 1"):
        LiveSource(model, reader, batch_size=0)
    model.hooks = []
    with pytest.raises(BitlensError, match="without a hook point"):
        harvest(model, reader, tmp_path / "none")


def test_a_harvest_goes_on_from_where_its_model_was_moved(made, tmp_path, text_folder):
    store, model, reader = made
    part = {"complete": False, "shards": [], "rows": 0}
    file = store.path / "manifest.json"
    file.write_text(json.dumps(store.manifest | part))
    Path(model.name).rename(tmp_path / "moved")
    moved = LanguageModel.load(str(tmp_path / "moved"), ["layers.1"], device="cpu")
    again = harvest(moved, reader, store.path, resume=True)[0]
    assert again.manifest == store.manifest | {"model": str(tmp_path / "moved")}


@pytest.mark.slow
def test_a_folder_is_found_by_any_of_its_paths(made, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(tmp_path / "here" / "model")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("~/here/model", "~/link", "./model/", "../link", "../here/model"):
        model = LanguageModel.load(name, ["layers.1"], device="cpu")
        assert model.record == {
            k: made[0].manifest[k] for k in ("model", "revision", "model_digest")
        }


def test_a_file_is_no_model(made):
    with pytest.raises(BitlensError, match=r"model/config.json is a file; name the folder"):
        LanguageModel.load("model/config.json", ["layers.1"])
