"""Training rows straight from the model: the interface of a store, without one."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch

import bitlens.hidden.harvest as harvest_module
import bitlens.hidden.live as live_module
from bitlens.errors import BitlensError
from bitlens.hidden import Corpus, LanguageModel
from bitlens.hidden.harvest import harvest
from bitlens.hidden.live import LiveSource
from bitlens.hidden.source import Position, held_out
from bitlens.hidden.text import ContextReader
from bitlens.seeding import generator


@pytest.fixture(scope="module")
def model(tiny_llama):
    return LanguageModel.load(str(tiny_llama), ["layers.1"], device="cpu")


@pytest.fixture
def live(model, text_folder):
    """`live(...)`: rows of `tiny_llama` at layers.1 on `text_folder`, in windows of four batches of
    four contexts."""

    def make(shuffle_seed=None, **settings):
        corpus = Corpus((str(text_folder),), shuffle_seed=shuffle_seed)
        reader = ContextReader(corpus, model.tokenizer, 16, test_fraction=0.2)
        return LiveSource(model, reader, **{"batch_size": 4, "window_contexts": 16} | settings)

    return make


@pytest.fixture
def store(live, model, tmp_path, monkeypatch):
    """The same rows as a store, whose shards are the windows."""
    monkeypatch.setattr(harvest_module, "SHARD_BYTES", 16 * 16 * model.widths()["layers.1"] * 4)
    (stored,) = harvest(model, live().reader, tmp_path / "store", batch_size=4)
    return stored


def batches(source, n, size=32, seed=0, start=None):
    return list(itertools.islice(source.batches(size, seed, start or Position()), n))


def counted(rows):
    """How often each row occurs."""
    return Counter(tuple(row) for row in rows.tolist())


def training_rows(store):
    return torch.cat([rows.hidden for rows in store.read("train")])


@pytest.mark.slow
def test_an_epoch_has_the_training_rows_of_a_store_each_once(live, store):
    expected = training_rows(store)
    assert 0 < len(expected) < len(store)
    drawn = torch.cat([rows for rows, _ in batches(live(), -(-2 * len(expected) // 32))])
    for epoch in drawn[: len(expected)], drawn[len(expected) : 2 * len(expected)]:
        assert counted(epoch) == counted(expected)


@pytest.mark.slow
def test_rows_of_a_window_are_shuffled_by_the_seed(live):
    one, same, other = (
        torch.cat([rows for rows, _ in batches(live(), 6, seed=seed)]) for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.slow
def test_documents_are_mixed_by_the_seed_of_the_corpus(live, store):
    first = [counted(batches(live(shuffle_seed=seed), 1)[0][0]) for seed in (None, 1, 2)]
    assert not first[0] & first[1]
    assert not first[1] & first[2]
    # rows depend on what stands before them in a packed context, the documents they are of do not
    documents = {int(d) for rows in store.read("train") for d in rows.columns["document"]}
    reader = live(shuffle_seed=1).reader
    assert documents < {d for _, owners in reader.contexts() for d in owners}


@pytest.mark.slow
@pytest.mark.parametrize("size", [7, 32, 150, 1000])
def test_restarting_anywhere_gives_the_same_batches(live, size):
    whole = batches(live(), max(5, 3000 // size), size, seed=4)
    again = live()
    for index in range(0, len(whole) - 2, max(1, len(whole) // 8)):
        restarted = batches(again, 2, size, seed=4, start=whole[index][1])
        for (rows, position), (expected, place) in zip(
            restarted, whole[index + 1 : index + 3], strict=True
        ):
            assert torch.equal(rows, expected)
            assert position == place


@pytest.mark.slow
def test_standardisation_is_that_of_the_training_rows(live, store):
    rows = training_rows(store).double()
    source = live()
    assert source.d_in == store.d_in
    torch.testing.assert_close(source.mean, rows.mean(0).float())
    assert source.scale == pytest.approx(
        float((rows - rows.mean(0)).square().mean().sqrt()), rel=1e-9
    )


@pytest.mark.slow
def test_outliers_are_left_out(live, store):
    norms = training_rows(store).norm(dim=1)
    multiple = float(norms.quantile(0.9) / norms.median())
    source = live(outlier_multiple=multiple)
    drawn = torch.cat([rows for rows, _ in batches(source, 40)])
    assert drawn.norm(dim=1).max() <= multiple * norms.median() * (1 + 1e-5) < norms.max()
    assert source.sample(10_000, generator(0)).norm(dim=1).max() <= multiple * norms.median() * (
        1 + 1e-5
    )


@pytest.mark.parametrize(
    "factors",
    [{5: 0.0, 6: 0.0, 7: 0.0, 8: 0.0, 9: 0.0, 0: 0.0}, {3: 1e30}, {}],
    ids=["zeros", "a huge fill value", "a large mean"],
)
def test_the_standardisation_is_that_of_the_usual_rows(live, monkeypatch, factors):
    """factors: of the rows of a position in its context."""
    rows_of = live_module.hidden_rows
    made = []

    def changed(model, batch):
        rows, documents = rows_of(model, batch)
        if not factors:
            rows = rows + 1e5
        for place, factor in factors.items():
            if not factor:
                rows[place::16] = 0
            elif (
                not torch.cat([torch.zeros(1), *(former[:, 0] for former, _ in made)]).abs().max()
                > 1e10
            ):
                rows[place] *= (
                    1 if held_out(documents[place : place + 1].numpy(), 0.2)[0] else factor
                )
        made.append((rows, documents))
        return rows, documents

    monkeypatch.setattr(live_module, "hidden_rows", changed)
    source = live()
    rows = torch.cat(
        [rows[torch.from_numpy(~held_out(d.numpy(), 0.2))] for rows, d in made]
    ).double()
    usual = rows[rows.norm(dim=1) < 1e10]
    assert (len(usual) < len(rows)) == (3 in factors)
    torch.testing.assert_close(source.mean, usual.mean(0).float())
    assert source.scale == pytest.approx(
        float((usual - usual.mean(0)).square().mean().sqrt()), rel=1e-9
    )


@pytest.mark.slow
def test_a_sample_has_different_training_rows(live, store):
    sample = live().sample(100, generator(1))
    assert len(sample) == 100
    assert counted(sample) <= counted(training_rows(store))
    assert torch.equal(sample, live().sample(100, generator(1)))


@pytest.mark.slow
def test_the_reservoir_stops_at_its_size(live, store, monkeypatch):
    monkeypatch.setattr(live_module, "RESERVOIR_ROWS", 300)
    source = live()
    sample = source.sample(10_000, generator(0))
    assert 300 <= len(sample) < 600
    expected = training_rows(store)
    ((drawn, _),) = batches(source, 1, size=len(expected))
    assert counted(drawn) == counted(expected)  # the batches go on all the same


@pytest.mark.slow
def test_what_it_says_of_its_origin(live, store):
    about = live().about
    assert about["store"] is None
    for key in ("model", "revision", "hook", "corpus", "context_length", "prepend_bos", "d_in"):
        assert about[key] == store.about[key], key
    assert about["outlier_norm"] == pytest.approx(store.outlier_norm, rel=0.5)


def test_one_hook_point_only(tiny_llama, live):
    several = LanguageModel.load(str(tiny_llama), ["layers.0", "layers.1"], device="cpu")
    with pytest.raises(BitlensError, match="takes exactly one hook point"):
        LiveSource(several, live().reader)


@pytest.mark.parametrize(("text", "fraction"), [("", 0.1), ("<|eos|>", 0.1), ("The lamp.", 0.9)])
def test_text_without_training_tokens_is_refused(model, tmp_path, text, fraction):
    (tmp_path / "text.txt").write_text(text)
    reader = ContextReader(
        Corpus((str(tmp_path / "text.txt"),)), model.tokenizer, 16, test_fraction=fraction
    )
    with pytest.raises(BitlensError, match="no usable training tokens"):
        LiveSource(model, reader)
