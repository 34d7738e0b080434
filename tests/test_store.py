"""Stores: standardisation without outliers, restartable shuffling, a fixed split, damage."""

from __future__ import annotations

import itertools
import json
import shutil

import numpy as np
import pytest
import torch

import bitlens.hidden.store as store_module
import bitlens.hidden.writer as writer_module
from bitlens.errors import BitlensError
from bitlens.files import read_tensors, sha256, write_json, write_tensors
from bitlens.hidden import ActivationStore, PairedStore, TensorSource
from bitlens.hidden.arrays import import_arrays
from bitlens.hidden.source import Position, held_out
from bitlens.hidden.writer import StoreWriter
from bitlens.seeding import generator

ABOUT = {
    "model": "made up",
    "revision": None,
    "hook": {"module": "here"},
    "d_in": 6,
    "context_length": None,
}


def write_store(path, hidden, documents, shard_rows=50):
    """A store of these rows; the tokens are the numbers of the rows."""
    path.mkdir(parents=True, exist_ok=True)
    writer = StoreWriter(path, ABOUT | {"d_in": hidden.shape[1]})
    for rows in torch.arange(len(hidden)).split(shard_rows):
        columns = {"token": rows, "document": documents[rows], "position": torch.zeros_like(rows)}
        writer.add(hidden[rows], columns)
    return writer.finish()


def numbered_rows(n, width=6):
    """Random rows whose first number is the number of the row."""
    rows = torch.randn(n, width, generator=generator("numbered", n)) + n
    rows[:, 0] = torch.arange(n)
    return rows


@pytest.fixture
def numbered(tmp_path, monkeypatch):
    """430 numbered rows of 43 documents in 9 shards, read in windows of about two shards."""
    store = write_store(tmp_path / "numbered", numbered_rows(430), torch.arange(430) // 10)
    monkeypatch.setattr(store_module, "WINDOW_BYTES", int(2.5 * store.shards[0]["bytes"]))
    return store


def first_batches(source, n, size, seed=0, start=None):
    return list(itertools.islice(source.batches(size, seed, start or Position()), n))


def test_a_sample_is_in_random_order(numbered):
    """Whoever takes its first rows has some from everywhere."""
    rows = numbered.sample(200, generator("order"))
    numbers = rows[:, 0].long()
    assert len(numbers.unique()) == 200
    assert torch.equal(rows, numbered_rows(430)[numbers])
    halves = [float(numbers[part].float().mean()) for part in (slice(100), slice(100, None))]
    assert abs(halves[0] - halves[1]) < 60  # in the order of the text it would be about 200
    assert torch.equal(rows, numbered.sample(200, generator("order")))


@pytest.mark.parametrize("share", [-0.1, 1.0, 1.5])
def test_a_share_that_is_none_is_refused(numbered, share):
    assert "must be in [0, 1)" in refusal(lambda: numbered.split(share))


def test_of_a_large_store_some_shards_are_read_whole_for_a_sample(numbered, monkeypatch):
    whole = numbered.sample(1000, generator("x"))
    monkeypatch.setattr(store_module, "WHOLE_BYTES", int(3.5 * numbered.shards[0]["bytes"]))
    large = store_module.ActivationStore(numbered.path)
    few = large.sample(1000, generator("x"))
    assert not large._verified ^ {numbered.shards[i]["file"] for i in large._sampled()}
    assert len(large._verified) == 3
    assert {*few[:, 0].tolist()} < {*whole[:, 0].tolist()}
    assert len(few) == sum(len(large.splits()[i].train) for i in large._sampled())
    other = large.sample(20, generator("y"))  # from the same shards
    assert {*other[:, 0].tolist()} < {*few[:, 0].tolist()}
    changed = numbered.path / next(
        shard["file"] for shard in numbered.shards if shard["file"] not in large._verified
    )
    changed.write_bytes(changed.read_bytes()[:-1] + b"!")
    with pytest.raises(BitlensError, match="truncated or altered"):
        list(store_module.ActivationStore(numbered.path).read())


# --- standardisation ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("outliers", [[], [3, 77, 199]])
def test_mean_and_std_are_those_of_the_rows_without_outliers(tmp_path, dtype, outliers):
    hidden = 5 + torch.randn(200, 6, generator=generator("rows")) * torch.tensor(
        [1, 2, 3, 0.1, 0.01, 0]
    )
    hidden[outliers] *= 1000
    hidden = hidden.to(dtype)
    store = write_store(tmp_path / "store", hidden, torch.arange(200), shard_rows=64)

    exact = hidden.double()
    norms = exact.norm(dim=1)
    usual = exact[norms <= 10 * norms.sort().values[99]]  # the lower of the two middle norms
    assert len(usual) == 200 - len(outliers)
    mean = usual.mean(0)
    torch.testing.assert_close(
        torch.tensor(store.manifest["mean"]).double(), mean, rtol=1e-6, atol=1e-7
    )
    assert np.allclose(store.manifest["mean"], mean.numpy(), rtol=1e-12)
    assert store.manifest["std"] == pytest.approx(
        float((usual - mean).square().mean().sqrt()), rel=1e-9
    )
    assert store.manifest["outliers"] == len(outliers)
    assert torch.equal(store.mean, mean.float())


def test_outliers_are_read_but_neither_trained_nor_tested_on(tmp_path):
    hidden = numbered_rows(300)
    hidden[40:45, 1] = 1e6
    store = write_store(tmp_path / "store", hidden, torch.arange(300) // 10)
    read = {
        part: torch.cat([rows.hidden for rows in store.read(part)])
        for part in ("all", "train", "test")
    }
    assert torch.equal(read["all"], hidden)
    parts = torch.cat([read["train"], read["test"]])[:, 0].sort().values.tolist()
    assert parts == [i for i in range(300) if not 40 <= i < 45]
    assert not set(first_rows(store, 600)) & set(range(40, 45))
    assert store.sample(1000, generator(0)).abs().max() < 1e6


def usual_rows(n=400, width=6):
    return 2 + torch.randn(n, width, generator=generator("usual", n))


def with_fill(rows, value, every):
    """The rows with every so many-th one filled with a value."""
    return torch.where(
        (torch.arange(len(rows)) % every == every - 1)[:, None], torch.tensor(value), rows
    )


ODD_ROWS = {
    "a huge fill value": (with_fill(usual_rows(), 1e30, 200), lambda rows: rows[rows[:, 0] < 1e29]),
    "a fill value beyond float32's squares": (
        with_fill(usual_rows(), -3e38, 400),
        lambda rows: rows[rows[:, 0] > -1e29],
    ),
    "sinks in a quarter": (
        with_fill(usual_rows(), 3000.0, 4),
        lambda rows: rows[rows[:, 0] < 2999],
    ),
    "more than half zeros": (torch.cat([torch.zeros(700, 6), usual_rows()]), lambda rows: rows),
    "zeros, and a huge one": (
        torch.cat([torch.zeros(700, 6), with_fill(usual_rows(), 1e30, 400)]),
        lambda rows: rows[rows[:, 0] < 1e29],
    ),
    "a large mean": (1e6 + usual_rows(), lambda rows: rows),
    "a very large mean": (1e9 + 1e3 * usual_rows(), lambda rows: rows),
    "small numbers": (1e-15 * usual_rows(), lambda rows: rows),
}


@pytest.mark.parametrize("kind", ["store", "imported", "tensor", "pair"])
@pytest.mark.parametrize("name", ODD_ROWS)
def test_the_standardisation_is_that_of_the_usual_rows(tmp_path, name, kind):
    hidden, usual = ODD_ROWS[name]
    expected = usual(hidden).double()
    documents = torch.arange(len(hidden))
    if kind == "tensor":
        if "huge" in name or "beyond" in name:
            with pytest.raises(
                BitlensError, match=r"Row \d+ has a norm of .*leave rows of fill values out"
            ):
                TensorSource(hidden)
            return
        expected = hidden.double()
        source = TensorSource(hidden)
        mean, std = source.mean, source.scale
    elif kind == "pair":
        inputs = write_store(tmp_path / "in", usual_rows(len(hidden), 3), documents, 64)
        pairs = PairedStore(
            inputs.path,
            write_store(tmp_path / "out", hidden, documents, 64).path,
            test_fraction=0.2,
        )
        parts = torch.cat([rows.hidden for part in ("train", "test") for rows in pairs.read(part)])
        assert len(parts) == len(expected)
        mean, std = pairs.mean_out, pairs.scale_out
    else:
        if kind == "store":
            store = write_store(tmp_path / "store", hidden, documents, 64)
        else:
            np.save(tmp_path / "a.npy", hidden.numpy())
            store = import_arrays([tmp_path / "a.npy"], tmp_path / "store")
        assert store.manifest["outliers"] == len(hidden) - len(expected)
        assert store.manifest["zeros"] == int((hidden == 0).all(1).sum())
        assert sum(
            len(rows.hidden) for part in ("train", "test") for rows in store.read(part)
        ) == len(expected)
        assert np.allclose(store.manifest["mean"], expected.mean(0), rtol=1e-12)
        mean, std = store.mean, store.scale
    torch.testing.assert_close(mean, expected.mean(0).float())
    assert std == pytest.approx(
        float((expected - expected.mean(0)).square().mean().sqrt()), rel=1e-9
    )


@pytest.mark.parametrize(
    ("value", "share"),
    [
        (1e30, 0.2),
        (1e30, 0.7),
        (1e-12, 0.2),
        (1e-12, 0.7),
        (65504.0, 0.7),
        (-1000.0, 0.6),
        (1e-3, 0.6),
    ],
)
def test_a_fill_value_that_is_not_rare_is_refused(tmp_path, value, share):
    n = int(share * 400)
    hidden = torch.cat([usual_rows(400 - n), torch.full((n, 6), value)])
    sentence = refusal(lambda: write_store(tmp_path / "store", hidden, torch.arange(400)))
    least = min(n, 400 - n)
    assert f"{least} of 400 rows have norms far above or below the median" in sentence
    assert "take the rows of fill values out" in sentence
    assert sentence == refusal(lambda: TensorSource(hidden))


def test_constant_rows_have_no_spread(tmp_path):
    store = write_store(tmp_path / "store", torch.full((300, 6), 0.1), torch.arange(300), 64)
    assert store.scale < 1e-15
    zeros = write_store(tmp_path / "zeros", torch.zeros(300, 6), torch.arange(300), 64)
    assert (zeros.scale, zeros.manifest["outliers"], zeros.manifest["zeros"]) == (0.0, 0, 300)


def test_documents_are_counted_not_numbered(tmp_path):
    documents = torch.tensor([7, 7, 900, 900, -3, 12]).repeat_interleave(20)
    store = write_store(tmp_path / "store", numbered_rows(120), documents, 50)
    assert store.manifest["documents"] == 4
    assert "from 4 documents" in repr(store)
    assert any("Only 4 documents" in warning for warning in store.warnings())
    many = write_store(tmp_path / "many", numbered_rows(120), torch.arange(120), 50)
    assert many.warnings() == []
    zeros = write_store(
        tmp_path / "zeros",
        torch.cat([numbered_rows(120), torch.zeros(3, 6)]),
        torch.arange(123),
        50,
    )
    assert zeros.warnings() == ["3 of 123 rows are all zeros; if they are padding, take them out."]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_name_row_and_document(tmp_path, value):
    hidden = numbered_rows(100)
    hidden[73, 2] = value
    with pytest.raises(BitlensError, match=r"Row 73 \(document 7, position .*has a.* hidden state"):
        write_store(tmp_path / "store", hidden, torch.arange(100) // 10, shard_rows=40)


# --- shuffling ------------------------------------------------------------------------------------


def first_rows(source, n, size=8, seed=0):
    """Numbers of the first n rows that a source of numbered rows gives."""
    batches = first_batches(source, -(-n // size), size, seed)
    return torch.cat([rows[:, 0] for rows, _ in batches])[:n].long().tolist()


@pytest.mark.parametrize("shards_a_window", [0.1, 1, 2.5, 100])
@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_every_epoch_visits_every_training_row_once(tmp_path, monkeypatch, size, shards_a_window):
    store = write_store(tmp_path / "store", numbered_rows(430), torch.arange(430) // 10)
    monkeypatch.setattr(
        store_module, "WINDOW_BYTES", int(shards_a_window * store.shards[0]["bytes"])
    )
    assert len(store.windows(0, 0)) == {0.1: 9, 1: 9, 2.5: 5, 100: 1}[shards_a_window]
    training = [int(i) for rows in store.read("train") for i in rows.hidden[:, 0]]
    assert 0 < len(training) < 430
    seen = first_rows(store, 3 * len(training), size)
    epochs = [seen[start : start + len(training)] for start in range(0, len(seen), len(training))]
    assert all(sorted(epoch) == training for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_batches_are_those_of_their_seed(numbered):
    assert first_rows(numbered, 800, seed=1) == first_rows(
        ActivationStore(numbered.path), 800, seed=1
    )
    assert first_rows(numbered, 800, seed=1) != first_rows(numbered, 800, seed=2)


def test_rows_of_different_shards_meet_in_a_batch(numbered):
    shards = [{int(i) // 50 for i in rows[:, 0]} for rows, _ in first_batches(numbered, 10, 32)]
    assert all(len(found) > 1 for found in shards)


def test_rows_are_those_that_were_stored(numbered):
    hidden = numbered_rows(430)
    for rows, _ in first_batches(numbered, 20, 32):
        assert torch.equal(rows, hidden[rows[:, 0].long()])


@pytest.mark.parametrize("size", [1, 7, 64, 120, 1000])
def test_restarting_anywhere_gives_the_same_batches(numbered, size):
    whole = first_batches(numbered, max(6, 900 // size), size, seed=5)
    again = ActivationStore(numbered.path)
    for index in range(0, len(whole) - 3, max(1, len(whole) // 40)):
        restarted = first_batches(again, 3, size, seed=5, start=whole[index][1])
        for (rows, position), (expected, place) in zip(
            restarted, whole[index + 1 : index + 4], strict=True
        ):
            assert torch.equal(rows, expected)
            assert position == place


@pytest.mark.parametrize("size", [3, 50, 333])
def test_rows_in_memory_are_shuffled_and_restarted_alike(size):
    source = TensorSource(numbered_rows(100))
    seen = first_rows(source, 300, size)
    assert all(sorted(seen[start : start + 100]) == list(range(100)) for start in (0, 100, 200))
    whole = first_batches(source, 12, size)
    for index, (_, place) in enumerate(whole[:-1]):
        ((rows, _),) = first_batches(source, 1, size, start=place)
        assert torch.equal(rows, whole[index + 1][0])


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (torch.zeros(1, 4), "at least two rows"),
        (torch.zeros(4), "at least two rows"),
        (torch.tensor([[1.0], [float("nan")]]), "Row 1 has a NaN"),
    ],
)
def test_rows_in_memory_that_cannot_be_trained_on(rows, sentence):
    with pytest.raises(BitlensError, match=sentence):
        TensorSource(rows)


@pytest.mark.parametrize("n", [0, 1, 100, 387, 5000])
def test_a_sample_has_different_training_rows(numbered, n):
    training = {int(i) for rows in numbered.read("train") for i in rows.hidden[:, 0]}
    sample = numbered.sample(n, generator(3))
    found = sample[:, 0].long().tolist()
    assert sample.shape == (min(n, len(training)), 6)
    assert len(set(found)) == len(found)
    assert set(found) <= training
    assert torch.equal(sample, numbered_rows(430)[found])
    assert torch.equal(sample, numbered.sample(n, generator(3)))


# --- training and test ----------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.1, 0.5])
def test_training_and_test_share_no_document(numbered, fraction):
    store = ActivationStore(numbered.path, test_fraction=fraction)
    parts = {
        part: [rows.columns["document"] for rows in store.read(part)] for part in ("train", "test")
    }
    train, test = (set(torch.cat(parts[part]).tolist()) for part in ("train", "test"))
    assert not train & test
    assert train | test == set(range(43))
    assert bool(test) == (fraction > 0)
    drawn = {row // 10 for row in first_rows(store, 900)} | {
        int(i) // 10 for i in store.sample(900, generator(0))[:, 0]
    }
    assert drawn == train


def test_the_split_is_a_fixed_choice_of_documents():
    chosen = held_out(np.arange(100_000), 0.1)
    assert chosen[:60].nonzero()[0].tolist() == held_out(np.arange(60), 0.1).nonzero()[0].tolist()
    assert 0.095 < chosen.mean() < 0.105
    assert (chosen <= held_out(np.arange(100_000), 0.2)).all()  # more held out: those, and others


def test_packed_contexts_can_be_split_only_as_they_were_packed(tiny_store):
    assert tiny_store.manifest["test_fraction"] == tiny_store.test_fraction == 0.1
    assert ActivationStore(tiny_store.path, 0.1).test_fraction == 0.1
    assert (
        ActivationStore(tiny_store.path, 0.0).test_fraction == 0.0
    )  # nothing is held out, nothing is mixed
    sentence = refusal(lambda: ActivationStore(tiny_store.path, 0.3))
    assert (
        "packed for a test fraction of 0.1; with 0.3 some would hold training and held-out text"
        in sentence
    )
    assert "harvest with `test_fraction=0.3`" in sentence


def test_a_store_of_before_is_read_as_it_was(copied):
    change_manifest(copied, test_fraction=None, zeros=None)
    assert ActivationStore(copied).test_fraction == 0.1
    assert ActivationStore(copied, 0.3).test_fraction == 0.3


def test_no_held_out_row_follows_a_training_row_in_its_context(tiny_store):
    for _, columns in tiny_store.contexts():
        for context in columns["context"].unique():
            assert (
                len(tiny_store.is_test(columns["document"][columns["context"] == context]).unique())
                == 1
            )


def test_rows_are_read_in_the_order_of_the_text(numbered):
    for block in (7, 50, 1000):
        rows = list(numbered.read("all", block))
        assert torch.equal(torch.cat([r.hidden for r in rows]), numbered_rows(430))
        assert torch.cat([r.columns["token"] for r in rows]).tolist() == list(range(430))
        assert max(len(r.hidden) for r in rows) == min(block, 50)


# --- what is on disk ------------------------------------------------------------------------------


def test_manifest_and_shards_of_a_harvested_store(tiny_store):
    assert set(tiny_store.manifest) == {
        "schema",
        "kind",
        "complete",
        "rows",
        "model",
        "revision",
        "model_digest",
        "model_dtype",
        "hook",
        "d_in",
        "dtype",
        "corpus",
        "documents_of",
        "text",
        "context_length",
        "packed",
        "prepend_bos",
        "max_rows",
        "batch_size",
        "outlier_multiple",
        "documents",
        "mean",
        "std",
        "outlier_norm",
        "outliers",
        "zeros",
        "test_fraction",
        "shards",
    }
    assert tiny_store.manifest["schema"] == 1
    assert tiny_store.manifest["hook"] == {
        "module": "layers.1",
        "transformers": "hidden_states[2]",
        "transformer_lens": "blocks.1.hook_resid_post",
    }
    for index, entry in enumerate(tiny_store.shards):
        assert set(entry) == {"file", "rows", "contexts", "bytes", "sha256"}
        assert entry["sha256"] == sha256(tiny_store.path / entry["file"])
        assert entry["bytes"] == (tiny_store.path / entry["file"]).stat().st_size
        shapes = {name: (list(t.shape), t.dtype) for name, t in tiny_store.shard(index).items()}
        n, d = entry["rows"], tiny_store.d_in
        assert shapes == {
            "hidden": ([n, d], torch.float32),
            "norm": ([n], torch.float32),
            "token": ([n], torch.int32),
            "document": ([n], torch.int64),
            "position": ([n], torch.int32),
            "context": ([n], torch.int32),
            "context_tokens": ([entry["contexts"], 32], torch.int32),
            "mean": ([d], torch.float64),
            "squares": ([], torch.float64),
        }
    assert len(tiny_store) == sum(entry["rows"] for entry in tiny_store.shards)
    assert repr(tiny_store).startswith(
        f"ActivationStore({tiny_store.path}: {len(tiny_store):,} rows of 32 from 20 documents, "
    )


def test_no_temporary_file_stays(harvested):
    assert sorted(p.name for p in harvested.iterdir()) == [
        "manifest.json",
        "shard-00000.safetensors",
    ]


def test_whoever_may_read_the_folder_may_read_its_shards(tmp_path):
    for mode, expected in ((0o755, 0o644), (0o700, 0o600)):
        tmp_path.chmod(mode)
        write_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(3)})
        assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == expected


def test_json_has_no_nan(tmp_path):
    write_json(
        tmp_path / "a.json", {"a": float("nan"), "b": [1.5, float("inf")], "c": {"d": ("x", None)}}
    )
    assert json.loads((tmp_path / "a.json").read_text()) == {
        "a": None,
        "b": [1.5, None],
        "c": {"d": ["x", None]},
    }


@pytest.fixture
def copied(harvested, tmp_path):
    """A copy of the harvested store, to be damaged."""
    return shutil.copytree(harvested, tmp_path / "copied")


def change_manifest(folder, **changes):
    file = folder / "manifest.json"
    manifest = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in manifest.items() if v is not None}))


def refusal(work):
    """The one sentence with which something is refused."""
    with pytest.raises(BitlensError) as error:
        work()
    assert "\n" not in str(error.value)
    return str(error.value)


def truncate(file):
    file.write_bytes(file.read_bytes()[:-100])


def flip_a_bit(file):
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)


@pytest.mark.parametrize("damage", [truncate, flip_a_bit])
@pytest.mark.parametrize(
    "use",
    [
        lambda store: next(store.batches(4, 0)),
        lambda store: list(store.read()),
        lambda store: list(store.contexts()),
        lambda store: store.sample(5, generator(0)),
    ],
    ids=["batches", "read", "contexts", "sample"],
)
def test_a_damaged_shard_is_named_with_its_checksum(copied, damage, use):
    shard = copied / "shard-00000.safetensors"
    recorded = sha256(shard)
    damage(shard)
    sentence = refusal(lambda: use(ActivationStore(copied)))
    assert f"Shard {shard} is truncated or altered" in sentence
    assert sha256(shard)[:16] in sentence
    assert recorded[:16] in sentence


def test_a_missing_shard_is_named(copied):
    (copied / "shard-00000.safetensors").unlink()
    assert "shard-00000.safetensors is missing" in refusal(
        lambda: next(ActivationStore(copied).batches(4, 0))
    )


def test_a_tensor_that_a_shard_lacks_is_named(copied):
    assert "nonsense" in refusal(
        lambda: read_tensors(copied / "shard-00000.safetensors", ["nonsense"])
    )


def test_a_newer_schema_is_refused(copied):
    change_manifest(copied, schema=2)
    assert "has schema 2, but this bitlens reads up to 1; upgrade bitlens" in refusal(
        lambda: ActivationStore(copied)
    )


def test_an_unfinished_store_is_refused(copied):
    change_manifest(copied, complete=False)
    assert "is unfinished; go on with its harvest" in refusal(lambda: ActivationStore(copied))


@pytest.mark.parametrize("key", ["schema", "shards", "rows", "d_in", "mean", "std"])
def test_a_manifest_without_a_needed_key_is_refused(copied, key):
    change_manifest(copied, **{key: None})
    assert f"'{key}'" in refusal(lambda: ActivationStore(copied))


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00\xff"])
def test_a_damaged_manifest_is_refused(copied, text):
    (copied / "manifest.json").write_bytes(text.encode("latin-1"))
    assert str(copied / "manifest.json") in refusal(lambda: ActivationStore(copied))


def test_a_folder_of_another_kind_is_refused(copied):
    change_manifest(copied, kind="bitlens.codes")
    assert "belongs to a folder of another kind" in refusal(lambda: ActivationStore(copied))


def test_a_folder_without_a_store_is_refused(tmp_path):
    assert "is not a store of hidden states" in refusal(lambda: ActivationStore(tmp_path))
    assert "is not a store of hidden states" in refusal(
        lambda: ActivationStore(tmp_path / "nowhere")
    )


def test_a_folder_of_several_stores_names_them(copied):
    sentence = refusal(lambda: ActivationStore(copied.parent))
    assert f"holds a store for each hook point; name one of them: {copied}" in sentence


def test_an_autoencoder_of_another_width_is_refused(tiny_store):
    tiny_store.require_width(32)
    sentence = refusal(lambda: tiny_store.require_width(64))
    assert "holds hidden states of width 32, the autoencoder takes 64" in sentence


def test_a_store_without_text_has_no_contexts(numbered):
    assert "was imported without its text" in refusal(lambda: list(numbered.contexts()))


def test_a_store_with_no_training_rows_is_refused(tmp_path):
    store = write_store(tmp_path / "store", numbered_rows(20), torch.zeros(20).long())
    assert "There are no training rows" in refusal(lambda: next(store.batches(4, 0)))


def test_a_store_without_rows_is_refused(tmp_path):
    assert "no usable tokens" in refusal(lambda: StoreWriter(tmp_path, ABOUT).finish())


def test_a_shard_that_is_made_again_is_not_there_until_it_is_told(tmp_path, monkeypatch):
    """As where a process is killed in between, and a GPU gives other bits."""
    rows, place = numbered_rows(20), torch.arange(20)
    columns = {"token": place, "document": place, "position": place}
    StoreWriter(tmp_path, ABOUT).add(rows, columns, number=0)
    again = StoreWriter(tmp_path, ABOUT)
    assert list(again.shards) == [0]
    with monkeypatch.context() as patched:
        patched.setattr(writer_module, "write_sealed", killed)
        with pytest.raises(KeyboardInterrupt):
            again.add(rows + 1, columns, number=0)
    assert not StoreWriter(tmp_path, ABOUT).shards


def killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_store_is_continued_with_the_same_settings_only(tmp_path):
    StoreWriter(tmp_path, ABOUT)
    StoreWriter(tmp_path, ABOUT)
    sentence = refusal(lambda: StoreWriter(tmp_path, ABOUT | {"model": "another", "d_in": 7}))
    assert "was begun with other settings (model, d_in differ)" in sentence


def test_a_store_of_an_earlier_version_is_continued_without_what_it_did_not_say(tmp_path):
    StoreWriter(tmp_path, ABOUT)
    again = StoreWriter(tmp_path, ABOUT | {"model_dtype": "bfloat16"})
    assert "model_dtype" not in again.about
    (tmp_path / "new").mkdir()
    StoreWriter(tmp_path / "new", ABOUT | {"model_dtype": "bfloat16"})
    sentence = refusal(lambda: StoreWriter(tmp_path / "new", ABOUT | {"model_dtype": "float32"}))
    assert "(model_dtype differ)" in sentence
