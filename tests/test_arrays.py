"""Hidden states from elsewhere become a store, whatever file they are in."""

from __future__ import annotations

import pickle
from pathlib import Path

import h5py
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import save_file

import bitlens.hidden.arrays as arrays_module
from bitlens.errors import BitlensError
from bitlens.hidden import ActivationStore
from bitlens.hidden.arrays import import_arrays

ROWS, WIDTH = 60, 8


def save_h5(path, arrays):
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array


def save_parquet(path, arrays):
    pyarrow.parquet.write_table(
        pyarrow.table({k: v.tolist() if v.ndim > 1 else v for k, v in arrays.items()}), path
    )


SAVE = {
    ".npz": lambda path, arrays: np.savez(path, **arrays),
    ".safetensors": lambda path, arrays: save_file(
        {k: torch.from_numpy(v) for k, v in arrays.items()}, path
    ),
    ".parquet": save_parquet,
    ".h5": save_h5,
    ".hdf5": save_h5,
}


def states(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def saved(path, **arrays):
    with path.open("wb") as file:  # numpy would add an ending of its own
        SAVE[path.suffix.lower()](file if path.suffix.lower() == ".npz" else path, arrays)
    return path


def saved_npy(path, array):
    np.save(path, array)
    return path


def all_rows(store):
    parts = list(store.read())
    hidden = torch.cat([rows.hidden for rows in parts])
    return hidden, {
        name: torch.cat([rows.columns[name] for rows in parts]).tolist()
        for name in parts[0].columns
    }


def refusal(*files, out, **settings):
    """The one sentence with which an import is refused."""
    with pytest.raises(BitlensError) as error:
        import_arrays(list(files), out, **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


# --- what is imported -----------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SAVE)
def test_every_format_with_its_columns(tmp_path, suffix):
    hidden = states(ROWS, WIDTH)
    columns = {
        "ids": np.arange(ROWS) * 3,
        "text": np.arange(ROWS) // 7,
        "place": np.arange(ROWS)[::-1].copy(),
    }
    file = saved(tmp_path / f"a{suffix}", hidden=hidden, **columns)
    names = {"tokens": "ids", "documents": "text", "positions": "place"}
    store = import_arrays([file], tmp_path / "out", **names, name="protein model")
    found, others = all_rows(store)
    assert np.array_equal(found.numpy(), hidden)
    assert others == {
        "token": list(columns["ids"]),
        "document": list(columns["text"]),
        "position": list(columns["place"]),
    }
    assert store.manifest["model"] == "protein model"
    assert (len(store), store.d_in, store.manifest["documents"]) == (ROWS, WIDTH, 9)
    assert np.allclose(store.manifest["mean"], hidden.astype(np.float64).mean(0), rtol=1e-12)


@pytest.mark.parametrize("documents", [None, "text"])
def test_rows_without_columns(tmp_path, documents):
    file = saved(tmp_path / "a.npz", hidden=states(6, WIDTH), text=np.array([4, 4, 4, 9, 9, 4]))
    _, columns = all_rows(import_arrays([file], tmp_path / "out", documents=documents))
    assert columns == {
        "token": [-1] * 6,
        "document": [4, 4, 4, 9, 9, 4] if documents else [0, 1, 2, 3, 4, 5],
        "position": [0, 1, 2, 0, 1, 0] if documents else [0] * 6,
    }


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors", ".h5"])
def test_items_with_positions_are_documents(tmp_path, suffix):
    hidden = states(5, 4, WIDTH)
    file = tmp_path / f"a{suffix}"
    saved_npy(file, hidden) if suffix == ".npy" else saved(file, hidden=hidden)
    found, columns = all_rows(import_arrays([file], tmp_path / "out"))
    assert np.array_equal(found.numpy(), hidden.reshape(20, WIDTH))
    assert columns == {
        "token": [-1] * 20,
        "document": [i // 4 for i in range(20)],
        "position": [0, 1, 2, 3] * 5,
    }


def test_columns_of_items_may_be_of_the_item_or_of_each_position(tmp_path):
    arrays = {
        "hidden": states(3, 2, WIDTH),
        "text": np.array([7, 8, 9]),
        "ids": np.arange(6).reshape(3, 2),
    }
    file = saved(tmp_path / "a.npz", **arrays)
    _, columns = all_rows(import_arrays([file], tmp_path / "out", tokens="ids", documents="text"))
    assert columns == {
        "token": [0, 1, 2, 3, 4, 5],
        "document": [7, 7, 8, 8, 9, 9],
        "position": [0, 1] * 3,
    }


@pytest.mark.parametrize("shape", [(ROWS, WIDTH), (15, 4, WIDTH)])
def test_files_follow_one_another_in_shards(tmp_path, monkeypatch, shape):
    monkeypatch.setattr(arrays_module, "SHARD_ROWS_BYTES", 16 * WIDTH * 4)
    parts = [states(*shape, seed=seed) for seed in (0, 1)]
    files = [saved_npy(tmp_path / "b.npy", parts[0]), saved(tmp_path / "a.h5", x=parts[1])]
    store = import_arrays(files, tmp_path / "out")
    found, columns = all_rows(store)
    assert [shard["rows"] for shard in store.shards] == [16, 16, 16, 12] * 2
    assert np.array_equal(
        found.numpy(), np.concatenate([part.reshape(-1, WIDTH) for part in parts])
    )
    assert columns["document"] == [i // (ROWS // shape[0]) for i in range(2 * ROWS)]


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [
        ("<f2", torch.float16),
        ("<f4", torch.float32),
        ("<f8", torch.float32),
        (">f4", torch.float32),
        (">f8", torch.float32),
    ],
)
def test_precisions_and_byte_orders(tmp_path, dtype, stored):
    hidden = states(ROWS, WIDTH).astype(dtype)
    found, _ = all_rows(import_arrays([saved_npy(tmp_path / "a.npy", hidden)], tmp_path / "out"))
    assert found.dtype == stored
    assert np.array_equal(found.numpy(), hidden.astype("<f4"))


def test_bfloat16(tmp_path):
    hidden = torch.from_numpy(states(ROWS, WIDTH)).bfloat16()
    save_file({"hidden": hidden}, tmp_path / "a.safetensors")
    assert torch.equal(
        all_rows(import_arrays([tmp_path / "a.safetensors"], tmp_path / "out"))[0], hidden
    )


def test_columns_in_fortran_order(tmp_path):
    hidden = np.asfortranarray(states(ROWS, WIDTH))
    found, _ = all_rows(import_arrays([saved_npy(tmp_path / "a.npy", hidden)], tmp_path / "out"))
    assert np.array_equal(found.numpy(), hidden)


def test_the_array_is_found_or_named(tmp_path):
    arrays = {"first": states(ROWS, WIDTH), "second": states(ROWS, 4), "flags": np.arange(ROWS)}
    file = saved(tmp_path / "a.npz", **arrays)
    assert "has 2 matrices of floats" in refusal(file, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    store = import_arrays([file], tmp_path / "out", hidden="second")
    assert np.array_equal(all_rows(store)[0].numpy(), arrays["second"])
    nested = saved(
        tmp_path / "b.h5", **{"layer/7/hidden": arrays["first"], "layer/7/flags": arrays["flags"]}
    )
    assert np.array_equal(
        all_rows(import_arrays([nested], tmp_path / "nested"))[0].numpy(), arrays["first"]
    )


def test_an_imported_store_is_trained_on_like_any_other(tmp_path):
    hidden = states(ROWS, WIDTH)
    store = import_arrays([saved_npy(tmp_path / "a.npy", hidden)], tmp_path / "out")
    rows, _ = next(store.batches(1000, 0))
    assert {tuple(row) for row in rows.tolist()} < {tuple(row) for row in hidden.tolist()}


@pytest.mark.parametrize(
    "kind", [pyarrow.list_, pyarrow.large_list, lambda item: pyarrow.list_(item, WIDTH)]
)
@pytest.mark.parametrize("item", [pyarrow.float32(), pyarrow.float64(), pyarrow.float16()])
def test_lists_of_one_length_in_chunks_and_slices(tmp_path, kind, item):
    hidden = states(ROWS, WIDTH).astype(np.float16)
    column = pyarrow.chunked_array(
        [pyarrow.array(list(part), kind(item)) for part in (hidden[:7], hidden[7:])]
    )
    pyarrow.parquet.write_table(
        pyarrow.table({"hidden": column.slice(3)}), tmp_path / "a.parquet", row_group_size=9
    )
    found, _ = all_rows(import_arrays([tmp_path / "a.parquet"], tmp_path / "out"))
    assert np.array_equal(found.float().numpy(), hidden[3:].astype(np.float32))


def test_lists_of_lists_are_items_with_positions(tmp_path):
    hidden = states(5, 4, WIDTH)
    pyarrow.parquet.write_table(pyarrow.table({"hidden": hidden.tolist()}), tmp_path / "a.parquet")
    found, columns = all_rows(import_arrays([tmp_path / "a.parquet"], tmp_path / "out"))
    assert np.array_equal(found.numpy(), hidden.reshape(20, WIDTH))
    assert columns["document"] == [i // 4 for i in range(20)]


def test_a_file_is_known_by_what_it_holds(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    first, same, other = (
        saved(tmp_path / f"{i}.NPZ", hidden=states(6, 4, seed=i // 2)) for i in range(3)
    )
    stores = [import_arrays([file], tmp_path / f"out-{file.stem}") for file in (first, same, other)]
    stores.append(import_arrays([Path("~/0.NPZ")], tmp_path / "home"))
    corpora = [store.manifest["corpus"] for store in stores]
    assert other.stat().st_size == first.stat().st_size
    assert corpora[0] == corpora[1] == corpora[3] != corpora[2]


# --- what is refused ------------------------------------------------------------------------------


class Trap:
    """Something that leaves a mark when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (open, (str(self.mark), "w"))


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_pickled_objects_are_never_loaded(tmp_path, suffix):
    array = np.array([Trap(tmp_path / "mark")], dtype=object)
    file = tmp_path / f"a{suffix}"
    np.save(file, array) if suffix == ".npy" else np.savez(file, hidden=array)
    assert f"{file} could not be read" in refusal(file, out=tmp_path / "out")
    assert not (tmp_path / "mark").exists()
    pickle.loads(pickle.dumps(array))  # noqa: S301 - the trap works
    assert (tmp_path / "mark").exists()


def test_a_plain_pickle_is_never_loaded(tmp_path):
    (tmp_path / "a.npy").write_bytes(pickle.dumps(Trap(tmp_path / "mark")))
    assert "could not be read" in refusal(tmp_path / "a.npy", out=tmp_path / "out")
    assert not (tmp_path / "mark").exists()


def test_mixed_widths(tmp_path):
    files = [saved_npy(tmp_path / f"{width}.npy", states(ROWS, width)) for width in (8, 9)]
    assert f"{files[1]} has hidden states of width 9, the files before it 8" in refusal(
        *files, out=tmp_path / "out"
    )


@pytest.mark.parametrize(
    ("arrays", "settings", "sentence"),
    [
        ({"hidden": states(4)}, {}, "has 0 matrices of floats (hidden [4])"),
        ({"hidden": np.ones((4, 8), int)}, {}, "has 0 matrices of floats"),
        (
            {"hidden": states(4, 8)},
            {"hidden": "other"},
            "has no array 'other', only: hidden [4, 8]",
        ),
        (
            {"hidden": states(4, 8), "x": states(4)},
            {"hidden": "x"},
            "is not a matrix of floats but [4]",
        ),
        ({"hidden": states(4, 8)}, {"tokens": "ids"}, "has no array 'ids'"),
        ({"hidden": states(4, 8), "ids": np.arange(5)}, {"tokens": "ids"}, "must hold 4 integers"),
        ({"hidden": states(4, 8), "ids": states(4)}, {"documents": "ids"}, "must hold 4 integers"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path, arrays, settings, sentence):
    assert sentence in refusal(
        saved(tmp_path / "a.npz", **arrays), out=tmp_path / "out", **settings
    )
    assert not (tmp_path / "out").exists()


def without(row, column):
    return [*row[:column], None, *row[column + 1 :]]


IRREGULAR = {
    "a null row": (lambda r: without(r, 3), "Row 3 of {column} is null and in row 0 8 long"),
    "a null at first": (lambda r: without(r, 0), "Row 0 of {column} is null"),
    "an empty row": (
        lambda r: [*r[:3], [], r[4]],
        "Row 3 of {column} is 0 long and in row 0 8 long",
    ),
    "ragged rows": (
        lambda r: [r[0][:4], r[1] + r[0][4:]],
        "Row 1 of {column} is 12 long and in row 0 4",
    ),
    "a null number": (lambda r: [*r[:3], without(r[3], 2), r[4]], "Row 3 of {column} holds a null"),
    "only empty rows": (lambda r: [[] for _ in r], "Row 0 of {column} is 0 long"),
    "no rows": (lambda r: [], "has no rows or no width"),
    "a ragged item": (lambda r: [r[:2], r[2:3]], "Row 1 of {column} is 1 long and in row 0 2 long"),
    "a ragged row of an item": (lambda r: [r[:2], [r[2], r[3][:5]]], "Row 1 of {column} is 5 long"),
}


@pytest.mark.parametrize("name", IRREGULAR)
@pytest.mark.parametrize("named", [True, False])
def test_lists_that_are_no_matrix_are_refused_with_their_row(tmp_path, name, named):
    change, sentence = IRREGULAR[name]
    rows = change(states(6, WIDTH).tolist())
    kind = pyarrow.list_(pyarrow.float32())
    column = pyarrow.array(rows, pyarrow.list_(kind) if "item" in name else kind)
    file = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"hidden": column}), file)
    found = refusal(file, out=tmp_path / "out", hidden="hidden" if named else None)
    assert sentence.format(column=f"the column 'hidden' of {file}") in found
    assert not (tmp_path / "out").exists()


def test_lists_that_are_not_asked_for_may_be_as_they_are(tmp_path):
    hidden = states(3, WIDTH)
    table = {
        "hidden": hidden.tolist(),
        "tokens": [[1], None, [2, 3]],
        "words": [["a"], [], None],
        "odd": [[{"a": 1}], [], []],
    }
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "a.parquet")
    assert np.array_equal(
        all_rows(import_arrays([tmp_path / "a.parquet"], tmp_path / "out"))[0].numpy(), hidden
    )
    assert "Row 1 of the column 'tokens'" in refusal(
        tmp_path / "a.parquet", out=tmp_path / "two", tokens="tokens"
    )


@pytest.mark.parametrize("shape", [(0, 8), (4, 0), (0, 3, 8), (4, 0, 8)])
def test_arrays_of_no_rows(tmp_path, shape):
    sentence = refusal(
        saved_npy(tmp_path / "a.npy", np.zeros(shape, np.float32)), out=tmp_path / "out"
    )
    assert (
        f"The array 'hidden' of {tmp_path / 'a.npy'} has no rows or no width: it is {list(shape)}"
        in sentence
    )


@pytest.mark.parametrize("suffix", [".npy", *SAVE])
@pytest.mark.parametrize(
    "damage",
    [lambda raw: raw[: len(raw) // 2], lambda raw: b"nonsense", lambda raw: b""],
    ids=["truncated", "nonsense", "empty"],
)
def test_damaged_files(tmp_path, suffix, damage):
    file = tmp_path / f"a{suffix}"
    hidden = states(ROWS, WIDTH)
    saved_npy(file, hidden) if suffix == ".npy" else saved(file, hidden=hidden)
    file.write_bytes(damage(file.read_bytes()))
    fault = "is damaged" if suffix == ".safetensors" else "could not be read"
    assert f"{file} {fault}" in refusal(file, out=tmp_path / "out")


def test_files_that_are_not_there_or_of_another_kind(tmp_path):
    (tmp_path / "a.pt").write_bytes(b"")
    assert "There is no file" in refusal(tmp_path / "nowhere.npy", out=tmp_path / "out")
    assert "has none of the known endings" in refusal(tmp_path / "a.pt", out=tmp_path / "out")
    assert "name at least one file" in refusal(out=tmp_path / "out")


def test_values_that_are_not_finite_name_row_and_document(tmp_path):
    hidden = states(ROWS, WIDTH)
    hidden[41, 3] = np.nan
    file = saved(tmp_path / "a.npz", hidden=hidden, text=np.arange(ROWS) // 10)
    assert "Row 41 (document 4, position 1) has a NaN" in refusal(
        file, out=tmp_path / "out", documents="text"
    )


def test_a_folder_that_is_not_empty_is_refused_and_replaced_when_asked(tmp_path):
    file = saved_npy(tmp_path / "a.npy", states(ROWS, WIDTH))
    import_arrays([file], tmp_path / "out")
    assert "is not empty" in refusal(file, out=tmp_path / "out")
    other = saved_npy(tmp_path / "b.npy", states(5, 3))
    assert len(import_arrays([other], tmp_path / "out", overwrite=True)) == 5
    (tmp_path / "link").symlink_to(tmp_path / "out")
    assert "is not empty" in refusal(file, out=tmp_path / "link")
    assert len(import_arrays([file], tmp_path / "link", overwrite=True)) == ROWS
    assert (tmp_path / "link").is_symlink()
    assert len(ActivationStore(tmp_path / "out")) == ROWS
    (tmp_path / "to nothing").symlink_to(tmp_path / "new")
    assert (
        len(import_arrays([file], tmp_path / "to nothing"))
        == len(ActivationStore(tmp_path / "new"))
        == ROWS
    )
    assert "was not written by this command" in refusal(file, out=tmp_path, overwrite=True)
    assert file.exists()


def test_of_packed_hdf5_both_that_may_have_happened_are_said(tmp_path):
    """Its library says no more where memory ran out."""
    h5py = pytest.importorskip("h5py")
    path, rows = tmp_path / "a.h5", states(64, WIDTH)
    with h5py.File(path, "w") as file:
        data = file.create_dataset("hidden", data=rows, chunks=True, compression="gzip")
        place = data.id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[place.byte_offset + 2 : place.byte_offset + place.size] = b"\xff" * (place.size - 2)
    path.write_bytes(content)
    said = refusal(path, out=tmp_path / "out")
    assert said.startswith(f"Memory ran out while {path} was unpacked, or the file is damaged")
