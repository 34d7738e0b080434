"""Make a store of hidden states from elsewhere: vision and protein models, other harvesters, anything with rows."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bitlens import terminal
from bitlens.errors import BitlensError
from bitlens.files import prepare_output, sha256
from bitlens.hidden.store import MANIFEST, OUTLIER_MULTIPLE, ActivationStore, StoreWriter

SUFFIXES = (".npy", ".npz", ".safetensors", ".parquet", ".h5", ".hdf5")
SHARD_ROWS_BYTES = 1 << 27


@terminal.shown("import")
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

    hidden: name of the array of hidden states inside a file (needed where there are several matrices), `[rows, d]` or
    `[items, positions, d]` (an item is then a document). tokens, documents, positions: names of integer arrays of the
    same rows; without documents every row is its own, without positions they count up within a document.
    """
    files = [file.expanduser() for file in files]
    for file in files:
        if not file.is_file():
            raise BitlensError(f"There is no file {file}.")
    writer: StoreWriter | None = None
    next_document = 0
    for file in files:
        arrays = _open(file)
        states = _pick(arrays, hidden, file)
        columns = {
            column: _column(arrays, key, states, file)
            for column, key in (("token", tokens), ("document", documents), ("position", positions))
        }
        if columns["document"] is None:
            items = np.arange(len(states)) + next_document
            columns["document"] = np.repeat(items, states.shape[1]) if states.ndim == 3 else items
            next_document += len(states)
        if columns["position"] is None:
            columns["position"] = _running_index(columns["document"])
        width = states.shape[-1]
        if writer is None:
            prepare_output(out, resume=None, overwrite=overwrite, marker=MANIFEST)
            about = {
                "model": name,
                "revision": None,
                "hook": {"module": name},
                "d_in": width,
                "context_length": None,
            }
            about["dtype"] = str(next(_blocks(states[:1]))[1].dtype).removeprefix("torch.")
            contents = repr([sha256(f) for f in files])
            about |= {
                "corpus": hashlib.sha256(contents.encode()).hexdigest(),
                "text": [f.name for f in files],
            }
            writer = StoreWriter(out, about, outlier_multiple)
        elif writer.about["d_in"] != width:
            raise BitlensError(
                f"{file} has hidden states of width {width}, the files before it {writer.about['d_in']}."
            )
        for start, block in _blocks(states):
            part = slice(start, start + len(block))
            taken = {
                k: torch.from_numpy(np.ascontiguousarray(v[part]))
                for k, v in columns.items()
                if v is not None
            }
            taken.setdefault("token", torch.full((len(block),), -1))
            writer.add(block, taken)
    if writer is None:
        raise BitlensError("Nothing to import: name at least one file.")
    return writer.finish()


def _open(file: Path) -> dict[str, Any]:
    """Arrays by name, lazily where the format allows; nothing is unpickled."""
    suffix = file.suffix.lower()
    try:
        if suffix == ".npy":
            return {"hidden": np.load(file, mmap_mode="r", allow_pickle=False)}
        if suffix == ".npz":
            return dict(np.load(file, allow_pickle=False))
        if suffix == ".safetensors":
            with safe_open(file, framework="pt") as handle:
                return {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118
        if suffix in (".h5", ".hdf5"):
            import h5py

            found: dict[str, Any] = {}
            h5py.File(file).visititems(
                lambda n, x: found.update({n: x}) if isinstance(x, h5py.Dataset) else None
            )
            return found
        if suffix == ".parquet":
            return _open_parquet(file)
    except ImportError:
        raise BitlensError(f"Reading {suffix} needs a library: pip install h5py.") from None
    except (ValueError, OSError, EOFError, BadZipFile, zlib.error, SafetensorError) as error:
        raise BitlensError(f"{file} could not be read: {str(error).splitlines()[0]}") from error
    raise BitlensError(f"{file} has none of the known endings: {', '.join(SUFFIXES)}.")


def _open_parquet(file: Path) -> dict[str, Any]:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    found: dict[str, Any] = {}
    for column in (table := parquet.read_table(file)).column_names:
        values = table[column].combine_chunks()
        if _is_list(values.type):
            found[column] = _matrix(values, f"the column '{column}' of {file}")
        elif arrow.types.is_integer(values.type):
            found[column] = values.to_numpy(zero_copy_only=False)
    return found


def _is_list(kind: Any) -> bool:
    import pyarrow as arrow

    return (
        arrow.types.is_list(kind)
        or arrow.types.is_large_list(kind)
        or arrow.types.is_fixed_size_list(kind)
    )


class _Irregular(NamedTuple):
    """A column of lists that are no matrix; refused if it is asked for."""

    shape: tuple[int, str]
    dtype: np.dtype
    reason: str
    ndim: int = 2


def _matrix(values: Any, where: str) -> Any:
    """Lists, or lists of lists, all as long as the first -> an array `[rows, ...]`."""
    shape = [len(values)]
    rows = np.arange(len(values))  # the row that each list is of
    while _is_list(values.type):
        lengths = (
            values.value_lengths().to_numpy(zero_copy_only=False).astype(np.float64)
        )  # NaN where it is null
        wrong = (
            np.flatnonzero(~(lengths == lengths[0]) | (lengths == 0))
            if len(lengths)
            else lengths[:0]
        )
        if len(wrong):
            at = int(wrong[0])
            found = "null" if np.isnan(lengths[at]) else f"{lengths[at]:.0f} long"
            expected = (
                ""
                if np.isnan(lengths[0]) or not at
                else f" and in row {rows[0]} {lengths[0]:.0f} long"
            )
            reason = f"Row {rows[at]} of {where} is {found}{expected}; a list of one length is needed in every row."
            return _Irregular((len(rows), "?"), _dtype(values.type), reason)
        width = int(lengths[0]) if len(lengths) else 0
        shape, rows = [*shape, width], rows.repeat(width)
        values = values.flatten()
    if values.null_count:
        at = int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0])
        reason = f"Row {rows[at]} of {where} holds a null; a number is needed at every place."
        return _Irregular((shape[0], "?"), _dtype(values.type), reason)
    return values.to_numpy(zero_copy_only=False).reshape(shape)


def _dtype(kind: Any) -> np.dtype:
    import pyarrow as arrow

    while _is_list(kind):
        kind = kind.value_type
    return np.dtype(kind.to_pandas_dtype() if arrow.types.is_primitive(kind) else object)


def _pick(arrays: dict[str, Any], name: str | None, file: Path) -> Any:
    if name is None:
        matrices = [
            key for key, array in arrays.items() if array.ndim in (2, 3) and _is_float(array)
        ]
        name = "hidden" if "hidden" in matrices else matrices[0] if len(matrices) == 1 else None
        if name is None:
            raise BitlensError(
                f"{file} has {len(matrices)} matrices of floats ({_names(arrays)}); name one with `hidden`."
            )
    if name not in arrays:
        raise BitlensError(f"{file} has no array '{name}', only: {_names(arrays)}.")
    if isinstance(arrays[name], _Irregular):
        raise BitlensError(arrays[name].reason)
    if not all(arrays[name].shape):
        raise BitlensError(
            f"The array '{name}' of {file} has no rows or no width: it is {list(arrays[name].shape)}."
        )
    if arrays[name].ndim not in (2, 3) or not _is_float(arrays[name]):
        raise BitlensError(
            f"The array '{name}' of {file} is not a matrix of floats but {list(arrays[name].shape)}."
        )
    return arrays[name]


def _column(arrays: dict[str, Any], key: str | None, states: Any, file: Path) -> np.ndarray | None:
    if key is None:
        return None
    if key not in arrays:
        raise BitlensError(f"{file} has no array '{key}', only: {_names(arrays)}.")
    if isinstance(arrays[key], _Irregular):
        raise BitlensError(arrays[key].reason)
    column = np.asarray(arrays[key])
    if column.shape == states.shape[:1] and states.ndim == 3:
        column = np.repeat(column, states.shape[1])
    column = column.reshape(-1)
    rows = int(np.prod(states.shape[:-1]))
    if len(column) != rows or column.dtype.kind not in "iu":
        raise BitlensError(
            f"The array '{key}' of {file} must hold {rows} integers, one for each row."
        )
    return column.astype(np.int64)


def _running_index(documents: np.ndarray) -> np.ndarray:
    """0, 1, 2, ... within each run of equal documents"""
    begins = np.r_[True, documents[1:] != documents[:-1]]
    starts = np.maximum.accumulate(np.where(begins, np.arange(len(documents)), 0))
    return np.arange(len(documents)) - starts


def _blocks(states: Any) -> Iterator[tuple[int, Tensor]]:
    """(first row, rows as a tensor of half or single precision), in blocks of a shard's size"""
    per_item = states.shape[1] if states.ndim == 3 else 1
    step = max(1, SHARD_ROWS_BYTES // (4 * states.shape[-1] * per_item))
    for start in range(0, len(states), step):
        block = states[start : start + step]
        if not isinstance(block, Tensor):  # a copy, in this machine's byte order
            block = torch.from_numpy(
                np.array(block, dtype=np.float16 if block.dtype == np.float16 else np.float32)
            )
        rows = block.float() if block.dtype == torch.float64 else block
        yield start * per_item, rows.reshape(-1, states.shape[-1]).contiguous()


def _is_float(array: Any) -> bool:
    return (
        array.dtype.is_floating_point
        if isinstance(array, Tensor)
        else np.dtype(array.dtype).kind == "f"
    )


def _names(arrays: dict[str, Any]) -> str:
    return ", ".join(f"{k} {list(v.shape)}" for k, v in arrays.items()) or "nothing"
