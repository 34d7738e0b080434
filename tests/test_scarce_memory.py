"""A sound file that does not fit into memory is read, or refused for want of memory, at whatever
point of its reading memory ends; it is never called damaged."""

from __future__ import annotations

import ast
import ctypes
import gzip
import importlib.util
import json
import resource
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard

import bitlens
import well_formed
from bitlens import ActivationStore, Codes, PackedBits, TrainConfig, train
from bitlens.compression.file import Compressed, compress
from bitlens.errors import BitlensError
from bitlens.hidden.arrays import import_arrays
from bitlens.information.autoregression import Autoregression
from bitlens.memory import asked_for
from command import FORKS
from malformed import FORMATS
from well_formed import GOLDEN

MIB = 1 << 20
ROOM = (12, 40, 80, 1024)  # MiB of addresses, beside those that are taken
GOES_ON = {"n_latents": MIB // 8, "architecture": "topk", "steps": 3, "batch_size": 4}
GOES_ON |= {"log_every": 1, "checkpoint_every": 1, "device": "cpu"}
BROAD = {"Exception", "BaseException", "RuntimeError", "MemoryError"}
ELSEWHERE = {"processes.py", "devices.py"}  # what they catch comes of no file

Read = Callable[[Path, Path], object]


# --- large files ----------------------------------------------------------------------------------


def _rows(write: Callable[[Path, np.ndarray], object]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        write(folder, np.random.default_rng(0).standard_normal((MIB // 8, 64), np.float32))

    return make


def _text(suffix: str) -> Callable[[Path], None]:
    """One text of 32 MiB."""
    row = {"text": "word " * (32 * MIB // 5), "n": 0}

    def make(folder: Path) -> None:
        path = folder / f"texts{suffix}"
        if suffix == ".parquet":
            import pyarrow
            import pyarrow.parquet

            pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), str(path))
            return
        content = json.dumps(row).encode() + b"\n"
        if suffix == ".csv":
            content = f'text,n\n"{row["text"]}",0\n'.encode()
        packers = {".gz": gzip.compress, ".zst": zstandard.compress}
        path.write_bytes(packers.get(path.suffix, bytes)(content))

    return make


def _store(folder: Path) -> None:
    np.save(folder / "rows.npy", np.ones((MIB // 2, 8), np.float32))
    import_arrays([folder / "rows.npy"], folder / "store")
    (folder / "rows.npy").unlink()


def _bits(rows: int) -> PackedBits:
    return PackedBits(torch.ones(rows, 16, dtype=torch.int64), 1024)


def _codes(folder: Path) -> None:
    names = ("token", "document", "position")
    columns = {name: torch.zeros(MIB // 8, dtype=torch.int64) for name in names}
    columns["usual"] = torch.ones(MIB // 8, dtype=torch.bool)
    Codes.write(folder / "codes", [(_bits(MIB // 8), columns)], 1024, {})


def _compressed(folder: Path) -> None:
    n = 1024
    model = Autoregression(
        torch.arange(n), torch.full((n,), 0.1), torch.zeros(n), [torch.zeros(n, n)]
    )
    documents = torch.zeros(MIB // 16, dtype=torch.int64)
    compress(_bits(MIB // 16), documents, model, folder / "states.bits", {})


def _run(folder: Path) -> None:
    train(ActivationStore(GOLDEN / "store"), TrainConfig(**GOES_ON), folder / "run", progress=False)


class Cut(Exception):
    pass


def _begun(folder: Path) -> None:
    def stop(record: dict[str, float]) -> None:
        if record["step"] == 2:
            raise Cut

    store = ActivationStore(GOLDEN / "store")
    with pytest.raises(Cut):
        train(store, TrainConfig(**GOES_ON), folder / "begun", report=stop, progress=False)


def _calls(folder: Path) -> None:
    shutil.copy(GOLDEN / "calls.sqlite", folder)
    with closing(sqlite3.connect(folder / "calls.sqlite")) as database, database:
        database.execute("UPDATE calls SET answer = ?", ("x" * (32 * MIB),))


SOUND: dict[str, Callable[[Path], object]] = {
    "store's shard": _store,
    "codes' shard": _codes,
    "weights": _run,
    "checkpoint": _begun,
    "compressed": _compressed,
    "sqlite": _calls,
    "npy": _rows(lambda folder, rows: np.save(folder / "rows.npy", rows)),
    "npz": _rows(lambda folder, rows: np.savez(folder / "rows.npz", hidden=rows)),
    "safetensors": _rows(well_formed.write_safetensors),
    "hdf5": _rows(well_formed.write_hdf5),
    "parquet": _rows(well_formed.write_parquet),
    "text in parquet": _text(".parquet"),
    "json": _text(".json"),
    "jsonl": _text(".jsonl"),
    "csv": _text(".csv"),
    "gzip": _text(".jsonl.gz"),
    "zstandard": _text(".jsonl.zst"),
    "weights in npz": partial(well_formed.npz_weights, width=MIB // 2),
    "weights in PyTorch": partial(well_formed.torch_weights, width=MIB // 2),
}
if importlib.util.find_spec("gguf"):
    SOUND["gguf"] = partial(well_formed.model, inner=MIB // 4)


# --- and what becomes of them ---------------------------------------------------------------------


def _go_on(folder: Path, out: Path) -> None:
    shutil.copytree(folder / "begun", out / "begun")
    config = TrainConfig(**GOES_ON)
    train(ActivationStore(GOLDEN / "store"), config, out / "begun", resume=True, progress=False)


READ: dict[str, Read] = {
    "store's shard": lambda folder, out: list(ActivationStore(folder / "store").read()),
    "codes' shard": lambda folder, out: Codes(folder / "codes").bits,
    "weights": lambda folder, out: bitlens.Autoencoder.from_pretrained(folder / "run"),
    "checkpoint": _go_on,
    "compressed": lambda folder, out: list(Compressed(folder / "states.bits")),
}


def _heap() -> list[bytes]:
    """Blocks that fill what imports have left free in the heap: that is no room to read in."""
    end = ctypes.CDLL(None).sbrk
    end.restype = ctypes.c_void_p
    before, blocks = end(0), []
    while end(0) == before:
        blocks.append(bytes(1 << 16))
    return blocks


def _said(name: str, small: Path, large: Path, out: Path) -> dict[int, str]:
    """By the room that reading has, what is said; in a process of its own."""
    torch.set_num_threads(1)
    read = READ.get(name, FORMATS[name].read)
    (out / "small").mkdir(parents=True)
    read(small, out / "small")  # what it imports is there then
    said, _filled = {}, _heap()
    for room in ROOM:
        (out / str(room)).mkdir()
        here = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (here + room * MIB, resource.RLIM_INFINITY))
        try:
            read(large, out / str(room))
            said[room] = "read"
        except Exception as error:
            ran_out = not isinstance(error, BitlensError) and asked_for(error) is not None
            said[room] = f"{'Memory ran out: ' * ran_out}{type(error).__name__}: {error}"
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
    return said


@pytest.mark.slow
@pytest.mark.parametrize("name", SOUND)
def test_a_sound_file_is_not_called_damaged_where_memory_ends(name: str, tmp_path: Path) -> None:
    large, small = tmp_path / "large", tmp_path / "small"
    for folder in (large, small):
        folder.mkdir()
    SOUND[name](large)
    if name in READ:
        small = large
    else:
        FORMATS[name].make(small)
    with ProcessPoolExecutor(1, FORKS) as fresh:
        said = fresh.submit(_said, name, small, large, tmp_path / "out").result()
    assert [text for text in said.values() if text != "read" and "Memory ran out" not in text] == []
    assert said[ROOM[0]] != "read" == said[ROOM[-1]]


@pytest.mark.slow
def test_what_reads_files_asks_of_any_error_whether_memory_ran_out() -> None:
    """Before it calls it something else."""
    handlers = [
        (f"{file.name}:{handler.lineno}", handler)
        for file in Path(bitlens.__file__).parent.rglob("*.py")
        if file.name not in ELSEWHERE
        for handler in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(handler, ast.ExceptHandler) and BROAD & set(_names(handler.type))
    ]
    assert len(handlers) > 10
    silent = [
        place
        for place, handler in handlers
        if any(isinstance(node, ast.Raise) and node.exc for node in ast.walk(handler))
        and not {"refuse", "asked_for"} & set(_names(handler))
    ]
    assert silent == []


def _names(tree: ast.AST | None) -> Iterator[str]:
    for node in ast.walk(tree) if tree else ():
        if isinstance(node, ast.Name | ast.Attribute):
            yield node.id if isinstance(node, ast.Name) else node.attr
