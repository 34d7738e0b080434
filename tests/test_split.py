"""One split: what is called held out was never trained on, in Python and on the command line."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from bitlens.autoencoders import Autoencoder
from bitlens.causal.splice import Splice
from bitlens.cli import main
from bitlens.encode import encode_store
from bitlens.errors import BitlensError
from bitlens.evaluation import evaluate
from bitlens.hidden import ActivationStore, Corpus, LanguageModel, TensorSource
from bitlens.hidden.arrays import import_arrays
from bitlens.hidden.harvest import harvest
from bitlens.hidden.live import LiveSource
from bitlens.hidden.source import held_out
from bitlens.hidden.text import ContextReader
from bitlens.training import TrainConfig, train

D, DOCUMENTS = 6, 120


def settings(**changed) -> TrainConfig:
    return TrainConfig(
        **{"preset": "step", "n_latents": 12, "steps": 3, "batch_size": 32, "device": "cpu"}
        | changed
    )


def imported(folder: Path, name: str = "store", seed: int = 0) -> Path:
    """A store whose first component is the number of the document."""
    hidden = np.random.default_rng(seed).normal(size=(DOCUMENTS * 5, D)).astype(np.float32)
    hidden[:, 0] = np.repeat(np.arange(DOCUMENTS), 5)
    np.savez(folder / f"{name}.npz", hidden=hidden, document=np.repeat(np.arange(DOCUMENTS), 5))
    import_arrays([folder / f"{name}.npz"], folder / name, documents="document")
    return folder / name


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return imported(tmp_path_factory.mktemp("split"))


def expected(fraction: float) -> set[int]:
    return set(np.flatnonzero(held_out(np.arange(DOCUMENTS), fraction)).tolist())


def test_a_fraction_of_the_config_is_what_is_held_out(path, monkeypatch):
    seen: set[int] = set()
    window = ActivationStore.window
    monkeypatch.setattr(
        ActivationStore,
        "window",
        lambda self, key: seen.update(map(int, (rows := window(self, key))[:, 0].tolist())) or rows,
    )
    store = ActivationStore(path)
    model = train(store, settings(test_fraction=0.3))
    assert seen == set(range(DOCUMENTS)) - expected(0.3)
    assert model.metadata["training"]["test_fraction"] == 0.3
    assert store.test_fraction == 0.1  # the caller's own is left as it was


@pytest.mark.parametrize("fraction", [None, 0.1, 0.3])
def test_measured_are_only_documents_that_were_not_trained_on(path, fraction, tmp_path):
    """fraction: as the store is opened for measuring"""
    model = train(ActivationStore(path), settings(test_fraction=0.3))
    store = ActivationStore(path, fraction)
    numbers = evaluate(model, store, joint=False)
    assert numbers.rows == 5 * len(expected(fraction or 0.3))
    codes = encode_store(model, store, tmp_path / "codes")
    assert codes.manifest["test_fraction"] == (fraction or 0.3)


def test_a_larger_fraction_than_that_of_the_training_is_refused(path, tmp_path):
    model = train(ActivationStore(path, 0.05), settings())
    for measure in (
        lambda s: evaluate(model, s),
        lambda s: encode_store(model, s, tmp_path / "codes"),
    ):
        with pytest.raises(BitlensError, match=r"test_fraction=0\.05") as error:
            measure(ActivationStore(path, 0.5))
        assert "\n" not in str(error.value)
    assert (
        evaluate(model, ActivationStore(path, 0.5), part="all", joint=False).rows == 5 * DOCUMENTS
    )


def test_nothing_held_out_leaves_nothing_to_measure(path):
    model = train(ActivationStore(path), settings(test_fraction=0.0))
    with pytest.raises(BitlensError, match="0 held-out rows"):
        evaluate(model, ActivationStore(path))


def test_other_text_is_no_conflict(path, tmp_path):
    model = train(ActivationStore(path, 0.05), settings())
    hidden = np.random.default_rng(1).normal(size=(40, D)).astype(np.float32)
    np.savez(tmp_path / "other.npz", hidden=hidden, document=np.arange(40) // 2)
    other = import_arrays([tmp_path / "other.npz"], tmp_path / "other", documents="document")
    assert evaluate(model, ActivationStore(other.path, 0.5), joint=False).rows > 0.2 * 40


def test_rows_in_memory_have_no_documents(path):
    rows = torch.randn(100, D, generator=torch.Generator().manual_seed(0))
    with pytest.raises(BitlensError, match="rows to train on"):
        train(TensorSource(rows), settings(test_fraction=0.3))
    model = train(TensorSource(rows), settings())
    assert model.metadata["training"]["test_fraction"] is None
    assert evaluate(model, ActivationStore(path, 0.2), joint=False).rows == 5 * len(expected(0.2))


def test_an_autoencoder_loaded_again_remembers(path, tmp_path):
    train(ActivationStore(path), settings(test_fraction=0.3), tmp_path / "run")
    model = Autoencoder.from_pretrained(tmp_path / "run")
    assert evaluate(model, ActivationStore(path), joint=False).rows == 5 * len(expected(0.3))
    with pytest.raises(BitlensError, match=r"test_fraction=0\.3"):
        evaluate(model, ActivationStore(path, 0.31))


@pytest.fixture
def reader(tiny_llama, text_folder):
    """`reader(...)`: contexts of 16 tokens of `text_folder`"""
    model = LanguageModel.load(str(tiny_llama), ["layers.1"], device="cpu", causal=True)
    return lambda **how: (
        model,
        ContextReader(Corpus((str(text_folder),), **how), model.tokenizer, 16, packed=False),
    )


def test_a_live_source_holds_out_what_a_store_of_the_same_text_calls_held_out(reader, tmp_path):
    model, mixed = reader(shuffle_seed=3)
    mixed = ContextReader(mixed.corpus, model.tokenizer, 16, packed=False, test_fraction=0.3)
    source = LiveSource(model, mixed, batch_size=4)
    with pytest.raises(BitlensError, match="make it anew"):
        train(source, settings(test_fraction=0.2))
    trained = train(source, settings())
    (store,) = harvest(*reader(), tmp_path / "store", batch_size=4)
    assert evaluate(trained, store, joint=False).rows == len(store.split(0.3).splits()[0][1])
    with pytest.raises(BitlensError, match=r"test_fraction=0\.3"):
        evaluate(trained, store.split(0.5))
    with pytest.raises(BitlensError, match=r"test_fraction=0\.3"):
        Splice.of_store(model, trained, store.split(0.5))


@pytest.mark.parametrize("inside", [False, True])
def test_the_same_text_cut_into_other_documents_is_refused(reader, text_folder, tmp_path, inside):
    model, plain = reader(unit="paragraph")
    (store,) = harvest(model, plain, tmp_path / "store", batch_size=4)
    trained = train(store, settings())
    texts = (str(sorted(text_folder.iterdir())[0]),) if inside else (str(text_folder),)
    other = ContextReader(Corpus(texts, unit="line"), model.tokenizer, 16, packed=False)
    (lines,) = harvest(model, other, tmp_path / "lines", batch_size=4)
    with pytest.raises(BitlensError, match="other documents") as error:
        evaluate(trained, lines)
    assert "\n" not in str(error.value)
    assert evaluate(trained, lines, part="all", joint=False).rows == len(lines)
    assert encode_store(trained, lines, tmp_path / "codes").manifest["test_fraction"] is None


@pytest.mark.slow
def test_commands_keep_to_the_split_of_the_training(path, tmp_path, capsys):
    def run(*arguments: object) -> int:
        try:
            main([str(a) for a in arguments])
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    how = ("--n-latents", 12, "--steps", 3, "--preset", "step")
    for name, fraction in (("a", 0.3), ("b", 0.2)):
        assert run("train", path, "--out", tmp_path / name, "--test-fraction", fraction, *how) == 0
    rows = {}
    assert run("evaluate", tmp_path / "a", path, "--json", tmp_path / "e.json") == 0
    rows["evaluate"] = json.loads((tmp_path / "e.json").read_text())["rows"]
    assert run("match", tmp_path / "a", tmp_path / "b", path, "--json", tmp_path / "m.json") == 0
    rows["match"] = json.loads((tmp_path / "m.json").read_text())["rows"]
    assert run("encode", tmp_path / "a", path, "--out", tmp_path / "codes") == 0
    assert rows == {"evaluate": 5 * len(expected(0.3)), "match": 5 * len(expected(0.2))}
    assert json.loads((tmp_path / "codes" / "manifest.json").read_text())["test_fraction"] == 0.3
    assert run("train", path, "--out", tmp_path / "none", "--test-fraction", 0, *how) == 0
    capsys.readouterr()
    assert run("evaluate", tmp_path / "none", path) == 2
    assert "0 held-out rows" in capsys.readouterr().err
