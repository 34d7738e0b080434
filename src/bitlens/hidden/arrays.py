"""Make a store of hidden states from elsewhere: vision and protein models, other harvesters."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitlens import memory, terminal
from bitlens.errors import BitlensError
from bitlens.files import prepare_output, read_tensors, sha256
from bitlens.hidden.store import KIND, MANIFEST, OUTLIER_MULTIPLE, ActivationStore
from bitlens.hidden.writer import StoreWriter
from bitlens.remote import said
from bitlens.writing import holding

SHARD_ROWS_BYTES = 1 << 27
MOST_PACKED = 4096  # numbers that a byte of a file can stand for; zlib comes to 1,032
SLACK = 1 << 12  # bytes, above what a file's size says


@terminal.shown("import")
@holding()
def import_arrays(
    files: list[Path],
    out: Path,
    *,
    hidden: str | None = None,
    tokens: str | None = None,
    documents: str | None = None,
    positions: str | None = None,
    name: str = "imported",
    outlier_multiple: float = OUTLIER_MULTIPLE,
    overwrite: bool = False,
) -> ActivationStore:
    """Store the arrays of `files`, in this order, as one store.

    hidden: name of the array of hidden states, `[rows, d]` or `[items, positions, d]` (an item is
    then a document). tokens, documents, positions: names of integer arrays of the same rows;
    without documents every row is its own, without positions they count up within a document.
    """
    if not files:
        raise BitlensError("Nothing to import: name at least one file.")
    files = [file.expanduser() for file in files]
    for file in files:
        if not file.is_file():
            raise BitlensError(f"There is no file {file}.")
    names = {"token": tokens, "document": documents, "position": positions}
    writer: StoreWriter | None = None
    next_document = 0
    for file in files:
        with _reading(file):
            arrays = _open(file)
            states = _hidden_states(arrays, hidden, file)
            _refuse_more_than_there_is(states.shape, file)
            columns = {k: _column(arrays, name, states, file) for k, name in names.items() if name}
        if "document" not in columns:
            columns["document"] = _per_row(np.arange(len(states)) + next_document, states)
            next_document += len(states)
        columns.setdefault("position", _running_index(columns["document"]))
        columns.setdefault("token", np.full(len(columns["document"]), -1))
        if writer is None:
            prepare_output(out, resume=None, overwrite=overwrite, marker=MANIFEST, kind=KIND)
            with _reading(file):
                about = _about(name, files, states)
            writer = StoreWriter(out, about, outlier_multiple)
        if writer.about["d_in"] != states.shape[-1]:
            raise BitlensError(
                f"{file} has hidden states of width {states.shape[-1]}, the files before it "
                f"{writer.about['d_in']}."
            )
        first = 0
        for block in _blocks(states, file):
            rows = slice(first, first + len(block))
            writer.add(block, {k: torch.from_numpy(v[rows]) for k, v in columns.items()})
            first += len(block)
    assert writer is not None
    return writer.finish()


def _about(name: str, files: list[Path], states: Any) -> dict[str, Any]:
    """The origin, for the manifest; what the files hold stands for the text."""
    contents = repr([sha256(file) for file in files])
    return {
        "model": name,
        "revision": None,
        "hook": {"module": name},
        "d_in": states.shape[-1],
        "context_length": None,
        "dtype": str(next(_blocks(states[:1], files[0])).dtype).removeprefix("torch."),
        "corpus": hashlib.sha256(contents.encode()).hexdigest(),
        "text": [file.name for file in files],
    }


# --- files ----------------------------------------------------------------------------------------


def _open(file: Path) -> dict[str, Any]:
    """Arrays by name, lazily where the format allows; nothing is unpickled."""
    readers = {
        ".npy": lambda file: {"hidden": np.load(file, mmap_mode="r", allow_pickle=False)},
        ".npz": lambda file: dict(np.load(file, allow_pickle=False)),
        ".safetensors": read_tensors,
        ".parquet": _open_parquet,
        ".h5": _open_hdf5,
        ".hdf5": _open_hdf5,
    }
    if (suffix := file.suffix.lower()) not in readers:
        raise BitlensError(f"{file} has none of the known endings: {', '.join(readers)}.")
    arrays = readers[suffix](file)
    if strange := [name for name, array in arrays.items() if not hasattr(array, "ndim")]:
        raise BitlensError(f"{file} holds '{strange[0]}', which is no array of numbers.")
    return arrays


@contextlib.contextmanager
def _reading(file: Path) -> Iterator[None]:
    """What libraries raise where a file is damaged is of any kind."""
    try:
        yield
    except BitlensError:
        raise
    except Exception as error:
        memory.refuse(error, file)
        if "filter returned failure" in str(error):
            raise BitlensError(
                f"Memory ran out while {file} was unpacked, or the file is damaged: HDF5 does not "
                "say which."
            ) from error
        raise BitlensError(f"{file} could not be read: {said(error)}.") from error


def _refuse_more_than_there_is(shape: tuple[Any, ...], file: Path) -> None:
    """A file of a few bytes may say that it holds an array of any size."""
    numbers = math.prod(n for n in shape if n != "?")
    if numbers > MOST_PACKED * (file.stat().st_size + SLACK):
        raise BitlensError(
            f"{file} says that it holds an array of {list(shape)}, for which it is too "
            "small; write it again."
        )


def _open_hdf5(file: Path) -> dict[str, Any]:
    try:
        import h5py
    except ImportError:
        raise BitlensError(f"Reading {file.suffix} needs a library: pip install h5py.") from None
    nodes: list[Any] = []
    handle = h5py.File(file)
    handle.visit(nodes.append)
    arrays: dict[str, Any] = {
        name: handle[name] for name in nodes if isinstance(handle[name], h5py.Dataset)
    }
    for name, array in arrays.items():
        if array.external or array.is_virtual:
            raise BitlensError(
                f"The array '{name}' of {file} is kept in other files, which are not read; copy it "
                "into one file, with h5repack."
            )
    return {name: array for name, array in arrays.items() if array.shape is not None}


def _open_parquet(file: Path) -> dict[str, Any]:
    """Columns of lists and of integers."""
    import pyarrow.parquet as parquet

    with parquet.ParquetFile(file) as opened:
        groups = [opened.metadata.row_group(i) for i in range(opened.metadata.num_row_groups)]
        numbers = [g.column(i).num_values for g in groups for i in range(g.num_columns)]
        _refuse_more_than_there_is((sum(numbers),), file)
        table = opened.read()
    columns = {
        name: _ParquetColumn(column.combine_chunks(), f"the column '{name}' of {file}")
        for name, column in zip(table.column_names, table.columns, strict=True)
    }
    return {k: v for k, v in columns.items() if v.ndim > 1 or v.dtype.kind in "iu"}


class _ParquetColumn:
    """Numbers, or lists of them (of one length, which is only known once it is read)."""

    def __init__(self, values: Any, where: str) -> None:
        import pyarrow as arrow

        self.values, self.where = values, where
        kind = values.type
        self.shape: tuple[Any, ...] = (len(values),)
        while _is_list(kind):
            kind = kind.value_type
            self.shape += ("?",)
        self.ndim = len(self.shape)
        self.dtype = np.dtype(kind.to_pandas_dtype() if arrow.types.is_primitive(kind) else object)

    def read(self) -> np.ndarray:
        """An array `[rows, ...]`; the first row that does not fit one is refused."""
        values, shape = self.values, [len(self.values)]
        rows = np.arange(len(values))  # the row that each list is of
        while _is_list(values.type):
            lengths = values.value_lengths().fill_null(-1).to_numpy(zero_copy_only=False)
            wrong = np.flatnonzero((lengths != lengths[:1]) | (lengths < 1))
            if len(wrong):
                at = wrong[0]
                length = f"{lengths[at]} long" if lengths[at] >= 0 else "null"
                first = f" and in row {rows[0]} {lengths[0]} long" if at else ""
                raise BitlensError(
                    f"Row {rows[at]} of {self.where} is {length}{first}; a list of one length is "
                    "needed in every row."
                )
            width = int(lengths[0]) if len(lengths) else 0
            shape, rows = [*shape, width], rows.repeat(width)
            values = values.flatten()
        if values.null_count:
            null = values.is_null().to_numpy(zero_copy_only=False)
            raise BitlensError(
                f"Row {rows[null][0]} of {self.where} holds a null; a number is needed at every "
                "place."
            )
        return values.to_numpy(zero_copy_only=False).reshape(shape)


def _is_list(kind: Any) -> bool:
    from pyarrow import types

    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


# --- arrays ---------------------------------------------------------------------------------------


def _hidden_states(arrays: dict[str, Any], name: str | None, file: Path) -> Any:
    """The array of this name, or the only one that can be meant, `[rows, d]` or `[n, m, d]`."""
    if name is None:
        matrices = [k for k, array in arrays.items() if array.ndim in (2, 3) and _is_float(array)]
        if "hidden" not in matrices and len(matrices) != 1:
            raise BitlensError(
                f"{file} has {len(matrices)} matrices of floats ({_names(arrays)}); name one with "
                "`hidden`."
            )
        name = "hidden" if "hidden" in matrices else matrices[0]
    array = _named(arrays, name, file)
    if not all(array.shape):
        raise BitlensError(
            f"The array '{name}' of {file} has no rows or no width: it is {list(array.shape)}."
        )
    if array.ndim not in (2, 3) or not _is_float(array):
        raise BitlensError(
            f"The array '{name}' of {file} is not a matrix of floats but {list(array.shape)}."
        )
    return array


def _column(arrays: dict[str, Any], name: str, states: Any, file: Path) -> np.ndarray:
    """An integer for every row, or for every item."""
    column = np.asarray(_named(arrays, name, file))
    if states.ndim == 3 and column.shape == states.shape[:1]:
        column = _per_row(column, states)
    rows = int(np.prod(states.shape[:-1]))
    if column.size != rows or column.dtype.kind not in "iu":
        raise BitlensError(
            f"The array '{name}' of {file} must hold {rows} integers, one for each row."
        )
    return column.reshape(-1).astype(np.int64)


def _named(arrays: dict[str, Any], name: str, file: Path) -> Any:
    if name not in arrays:
        raise BitlensError(f"{file} has no array '{name}', only: {_names(arrays)}.")
    array = arrays[name]
    return array.read() if isinstance(array, _ParquetColumn) else array


def _per_row(of_items: np.ndarray, states: Any) -> np.ndarray:
    return np.repeat(of_items, states.shape[1]) if states.ndim == 3 else of_items


def _running_index(documents: np.ndarray) -> np.ndarray:
    """0, 1, 2, ... within each run of equal documents."""
    begins = np.r_[True, documents[1:] != documents[:-1]]
    starts = np.maximum.accumulate(np.where(begins, np.arange(len(documents)), 0))
    return np.arange(len(documents)) - starts


def _blocks(states: Any, file: Path) -> Iterator[Tensor]:
    """The rows `[n, d]` in half or single precision, in blocks of a shard's size."""
    width, per_item = states.shape[-1], states.shape[1] if states.ndim == 3 else 1
    step = max(1, SHARD_ROWS_BYTES // (4 * width * per_item))
    for start in range(0, len(states), step):
        with _reading(file):
            block = states[start : start + step]
        if not isinstance(block, Tensor):
            dtype = np.float16 if block.dtype == np.float16 else np.float32
            block = torch.from_numpy(np.array(block, dtype))  # copied to this machine's byte order
        if block.dtype == torch.float64:
            block = block.float()
        yield block.reshape(-1, width).contiguous()


def _is_float(array: Any) -> bool:
    if isinstance(array, Tensor):
        return array.dtype.is_floating_point
    return np.dtype(array.dtype).kind == "f"


def _names(arrays: dict[str, Any]) -> str:
    return ", ".join(f"{k} {list(v.shape)}" for k, v in arrays.items()) or "nothing"
