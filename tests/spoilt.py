"""Ways to spoil the bytes of a file: any bytes, JSON by its grammar, and what formats hold."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import random
import sqlite3
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bitlens.compression.file import PREFIX

MARK = "ran"  # the folder that code in a file makes, beside its folder

Draw = random.Random
Change = Callable[[bytes, Draw], bytes]

# --- bytes ----------------------------------------------------------------------------------------

NUMBERS = [0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 1 << 20, 1 << 24, 0x7FFFFFFF, 0x80000000]
NUMBERS += [0xFFFFFFFF, 1 << 33, 1 << 40, 1 << 48, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]


def _place(content: bytes, draw: Draw) -> int:
    """Anywhere; half of the time where most formats have what tells how long things are."""
    n = max(1, len(content))
    return min(n - 1, draw.choice([draw.randrange(n)] * 2 + [draw.randrange(64), n - 64])) % n


def turned(content: bytes, draw: Draw) -> bytes:
    """A few bits."""
    spoilt = bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 8])):
        if spoilt:
            spoilt[_place(content, draw)] ^= 1 << draw.randrange(8)
    return bytes(spoilt)


def numbered(content: bytes, draw: Draw) -> bytes:
    """A length, or what is in its place, is another number."""
    size = draw.choice([1, 2, 4, 8, 8])
    number = (draw.choice(NUMBERS) & ((1 << 8 * size) - 1)).to_bytes(size, "little")
    at = _place(content, draw) // draw.choice([1, size]) * draw.choice([1, 1])
    return content[:at] + number + content[at + size :]


def cut(content: bytes, draw: Draw) -> bytes:
    """Short."""
    return content[: _place(content, draw)]


def moved(content: bytes, draw: Draw) -> bytes:
    """A piece is left out, there twice, or random."""
    at, n = _place(content, draw), draw.choice([1, 8, 100, 1000])
    piece = content[at : at + n]
    instead = draw.choice([b"", piece * 2, draw.randbytes(len(piece)), bytes(len(piece))])
    return content[:at] + instead + content[at + n :]


BYTES: tuple[Change, ...] = (turned, numbered, cut, moved)

# --- JSON -----------------------------------------------------------------------------------------

ODD = [None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**30, -(10**6), 0.5, -0.5, 1e308, 1e-320]
ODD += [
    "",
    "x",
    "../secret",
    "/etc/passwd",
    "\0",
    "\ud800",
    "é" * 99,
    [],
    {},
    [[]],
    [None],
    {"": 0},
]
ODD += [float("nan"), float("inf"), "shard-00000.safetensors", "http://127.0.0.1:9/x", "a/b@c/d"]


def grammar(content: bytes, draw: Draw) -> bytes:
    """JSON of another form: values replaced, left out, added, nested."""
    value = json.loads(content)
    for _ in range(draw.choice([1, 1, 1, 2, 4])):
        value = _changed(value, draw)
    text = json.dumps(value)
    if draw.random() < 0.1:
        text = draw.choice(
            ["[" * 100_000, '{"a":' * 20_000, text * 2, "9" * 5000, "\ufeff" + text, text[:-1]]
        )
    return text.encode("utf-16" if draw.random() < 0.02 else "utf-8", "surrogatepass")


def _changed(value: Any, draw: Draw) -> Any:
    if isinstance(value, dict | list) and value and draw.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key, copy = draw.choice(keys), value.copy()
        kind = draw.random()
        if kind < 0.12:
            del copy[key]
        elif kind < 0.2 and isinstance(copy, list):
            copy.insert(key, copy[key])
        elif kind < 0.2 and isinstance(copy, dict):
            copy[draw.choice([*keys, "x", "", "é"])] = value[key]
        else:
            copy[key] = _changed(value[key], draw)
        return copy
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and draw.random() < 0.5:
        return draw.choice([value + 1, value - 1, -value, value * 1000, float(value), str(value)])
    return draw.choice(ODD)


def lines(content: bytes, draw: Draw) -> bytes:
    """The same in a line of many."""
    parts = content.splitlines(keepends=True)
    i = draw.randrange(len(parts))
    parts[i] = grammar(parts[i], draw) + draw.choice([b"\n", b"\n", b"", b"\r", b"\0\n"])
    return b"".join(parts)


def safetensors_header(content: bytes, draw: Draw) -> bytes:
    """The JSON that a safetensors file begins with."""
    n = int.from_bytes(content[:8], "little")
    header = grammar(content[8 : 8 + n], draw)
    return len(header).to_bytes(8, "little") + header + content[8 + n :]


def other_tensors(content: bytes, draw: Draw) -> bytes:
    """A whole safetensors file, of tensors that have other forms, kinds, names or numbers."""
    import safetensors.torch

    tensors = safetensors.torch.load(content)
    name = draw.choice(sorted(tensors))
    tensor = tensors[name]
    tensors[name] = draw.choice(
        [
            lambda: tensor[:-1] if tensor.dim() else tensor[None],
            lambda: tensor[..., None].clone(),
            lambda: tensor.flatten().clone(),
            lambda: torch.cat([tensor, tensor]) if tensor.dim() else tensor,
            lambda: tensor.to(draw.choice([torch.float64, torch.int8, torch.bool, torch.bfloat16])),
            lambda: torch.full_like(tensor, draw.choice([0, 1, 77])),
            lambda: torch.zeros(0, *tensor.shape[1:], dtype=tensor.dtype),
            lambda: tensor * float("nan") if tensor.is_floating_point() else -tensor.long(),
            lambda: tensor * 1e30 if tensor.is_floating_point() else tensor.long() + 2**40,
        ]
    )().contiguous()
    if draw.random() < 0.3:
        tensors[draw.choice(["x", "hidden", "", "token"])] = tensors.pop(name)
    return safetensors.torch.save(tensors, {"bitlens": json.dumps({"schema": 1})})


def compressed_header(content: bytes, draw: Draw) -> bytes:
    """The JSON of a file of compressed bits, with its checksum."""
    magic, n, _ = PREFIX.unpack_from(content)
    header = grammar(content[PREFIX.size : PREFIX.size + n], draw)
    return PREFIX.pack(magic, len(header), zlib.crc32(header)) + header + content[PREFIX.size + n :]


def compressed_parts(content: bytes, draw: Draw) -> bytes:
    """Its model or its index spoilt, with their checksums."""
    magic, n, _ = PREFIX.unpack_from(content)
    header = json.loads(content[PREFIX.size : PREFIX.size + n])
    first = PREFIX.size + n
    second = first + header["model"]["bytes"]
    third = second + 24 * header["documents"]
    model, index, rest = content[first:second], content[second:third], content[third + 4 :]
    change = draw.choice([turned, numbered])
    if draw.random() < 0.5:
        model = change(model, draw)
    else:
        index = change(index, draw)
    header["model"] |= {"bytes": len(model), "crc32": zlib.crc32(model)}
    head = json.dumps(header).encode()
    crc = struct.pack("<I", zlib.crc32(index))
    return PREFIX.pack(magic, len(head), zlib.crc32(head)) + head + model + index + crc + rest


# --- containers -----------------------------------------------------------------------------------


class Trap:
    """What runs when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, (str(Path("..", MARK)),)


def npy(header: str, data: bytes) -> bytes:
    """An array as numpy writes it."""
    text = header.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + data


def npy_header(content: bytes, draw: Draw) -> bytes:
    """Other numbers, kinds or code in the header of an array."""
    kinds = ["<f4", ">f8", "<f2", "|O", "<c8", "<U9", "|V99999", "<M8[s]", "<i8", "|S0", "<f16"]
    kinds += ["[('a', '<f4')]", "|b1", "<V2147483647"]
    shapes = ["(1000000000000, 8)", "(-1, 8)", "(48,)", "()", "(4, 12, 8)", "(0, 8)", "8", "(1e3,)"]
    shapes += [
        "(4611686018427387904, 4)",
        "(48, 8)",
        "(2,) * 99",
        "__import__('os').mkdir('../ran')",
    ]
    kind, shape = draw.choice(kinds), draw.choice(shapes)
    if draw.random() < 0.2:
        return npy(
            "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", pickle.dumps([Trap()])
        )
    head = (
        f"{{'descr': {kind!r}, 'fortran_order': {draw.choice([True, False])}, 'shape': {shape}, }}"
    )
    return npy(head, content[128:])


def zipped(content: bytes, draw: Draw) -> bytes:
    """A zip file with entries that lead out of it, that nobody asked for, or that are enormous."""
    entries: list[tuple[str, bytes]] = []
    with zipfile.ZipFile(io.BytesIO(content)) as old:
        entries += [(name, old.read(name)) for name in old.namelist()]
    i = draw.randrange(len(entries))
    name, inner = entries[i]
    code = pickle.dumps({"w_enc": Trap(), "bias": Trap()})
    entries[i] = draw.choice(
        [
            ("../" * draw.randint(1, 4) + "out.npy", inner),
            ("/tmp/../../out.npy", inner),
            (name, npy_header(inner, draw)),
            (name, turned(inner, draw)),
            (name, numbered(inner, draw)),
            (name, cut(inner, draw)),
            (name, code),
            (name, npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1 << 28,), }", b"")),
            (
                name,
                npy(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {(2**24, 8)}, }}", b""),
            ),
            ("", inner),
            (name.replace("data.pkl", "code/a.py"), inner),
        ]
    )
    if draw.random() < 0.2:
        entries.append(entries[draw.randrange(len(entries))])
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
        warnings.simplefilter("ignore")
        for name, inner in entries:
            new.writestr(name, inner)
    return draw.choice([file.getvalue(), file.getvalue(), numbered(file.getvalue(), draw)])


def pickled(content: bytes, draw: Draw) -> bytes:
    """A PyTorch file, or a plain pickle, that holds code."""
    file = io.BytesIO()
    torch.save({"encoder.weight": draw.choice([Trap(), [Trap()], torch.zeros(3)])}, file)
    return draw.choice([pickle.dumps(Trap()), pickle.dumps({"bias": Trap()}), file.getvalue()])


def packed(bomb: Callable[[bytes], bytes]) -> Change:
    """Compressed text of one endless line, or that is no text."""

    def change(content: bytes, draw: Draw) -> bytes:
        inner = [b'{"text": "a"}\n' * 3, b'{"text": "\xff"}\n', b"\0" * 9, b'{"text": "']
        return bomb(draw.choice(inner)) + draw.choice([b"", b"\0" * 9, content[:20]])

    return change


def hdf5(content: bytes, draw: Draw) -> bytes:
    """A whole HDF5 file of arrays that are elsewhere, enormous or odd, or of links in a circle."""
    import h5py

    file = io.BytesIO()
    with h5py.File(file, "w") as new:
        kind = draw.randrange(9)
        if kind == 0:  # the bytes of any file
            where = [("../secret", 0, 384)]
            new.create_dataset("hidden", (12, 8), "<f4", external=where)
        elif kind == 1:
            new["hidden"] = h5py.ExternalLink("../secret.h5", "hidden")
        elif kind == 2:
            layout = h5py.VirtualLayout((48, 8), "<f4")
            layout[:] = h5py.VirtualSource("../secret.h5", "hidden", (48, 8))
            new.create_virtual_dataset("hidden", layout)
        elif kind == 3:  # of no bytes at all
            new.create_dataset("hidden", (2 ** draw.choice([20, 33, 50]), 8), "<f4", chunks=(64, 8))
        elif kind == 4:
            new["hidden"] = h5py.SoftLink("/hidden")
            new["a"] = new["/"]
        elif kind == 5:
            new.create_dataset("hidden", (48, 8), h5py.string_dtype())
        elif kind == 6:
            new["hidden"] = np.zeros(48, [("a", "<f4"), ("b", "<i8")])
        elif kind == 7:
            new.create_dataset("hidden", (0, 8), "<f8", maxshape=(None, 8))
        else:
            new["hidden"] = h5py.Empty("f")
            new["é/\ud7ff"] = np.zeros((3, 3), np.complex64)
    return file.getvalue()


def parquet(content: bytes, draw: Draw) -> bytes:
    """A whole parquet file with columns of odd kinds."""
    import pyarrow
    import pyarrow.parquet

    row = draw.choice(
        [
            [1.0, None],
            [[1.0], [2.0]],
            [],
            None,
            {"a": 1},
            "text",
            b"\xff",
            10**18,
            [[]],
            True,
            [float("nan")] * 8,
            [{"a": [1]}],
        ]
    )
    column = pyarrow.array([row] * draw.choice([0, 1, 48]))
    if draw.random() < 0.3:
        with contextlib.suppress(pyarrow.ArrowInvalid, NotImplementedError):
            column = column.dictionary_encode()
    table = pyarrow.table({draw.choice(["hidden", "text", "", "x"]): column})
    file = io.BytesIO()
    pyarrow.parquet.write_table(table, file)
    return file.getvalue()


def sql(content: bytes, draw: Draw) -> bytes:
    """A whole database with other tables, columns or values."""
    values = ["NULL", "x'ff00'", "9e999", "-1", "'é'", "CAST(x'ff' AS TEXT)", "zeroblob(100)", "''"]
    columns = ["key", "judge", "messages", "answer", "input_tokens", "cost", "cut", "parameters"]
    value, column = draw.choice(values), draw.choice(columns)
    statement = draw.choice(
        [
            f"UPDATE calls SET {column} = {value}",
            "UPDATE judgements SET yes = 'x', call = 99",
            "DROP TABLE calls",
            "DROP TABLE judgements",
            f"ALTER TABLE calls RENAME COLUMN {column} TO x",
            "ALTER TABLE calls RENAME TO x; CREATE VIEW calls AS SELECT * FROM x",
            "ALTER TABLE calls RENAME TO x; CREATE VIEW calls AS SELECT * FROM calls",
            "CREATE TRIGGER t AFTER INSERT ON calls BEGIN DELETE FROM calls; END",
            "CREATE TRIGGER t AFTER INSERT ON calls BEGIN SELECT RAISE(FAIL, 'x'); END",
            f"PRAGMA user_version = {draw.choice([-1, 0, 1, 2, 3, 2**31 - 1])}",
            "PRAGMA journal_mode = DELETE; PRAGMA encoding = 'UTF-16'",
            "ALTER TABLE calls ADD COLUMN load_extension TEXT DEFAULT (1)",
        ]
    )
    path = Path(f"{os.getpid()}.sqlite")
    path.write_bytes(content)
    with contextlib.closing(sqlite3.connect(path)) as database:
        with contextlib.suppress(sqlite3.Error):
            database.executescript(statement)
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    found = path.read_bytes()
    for each in Path().glob(f"{path}*"):
        each.unlink()
    return found
