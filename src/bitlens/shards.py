"""One safetensors file of tensors that are spread over processes.

The first process writes it and reads it, in blocks of what all of them exchange: the whole is in no
one's memory, and the file is as one process would have written it, for any number to read.
"""

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitlens import processes
from bitlens.files import read_tensors, replacing

BLOCK_BYTES = 64 << 20  # of a tensor that are exchanged at a time
Parts = Mapping[str, int]
"""by a name that is in the keys of tensors, the dimension, 0 or 1, along which the parts of all
processes are joined; of other tensors, and of single numbers, the first's stand for all"""


def write(path: Path, tensors: Mapping[str, Tensor], parts: Parts, metadata: str = "") -> None:
    """Called in all processes, each with its parts of float32 tensors; atomically."""
    dims = {key: _dim(key, tensor.ndim, parts) for key, tensor in tensors.items()}
    sizes = {
        key: processes.of_each(torch.tensor(tensors[key].shape[dim])).tolist()
        for key, dim in dims.items()
        if dim is not None
    }
    header: dict[str, Any] = {"__metadata__": {"bitlens": metadata}} if metadata else {}
    start = 0
    for key, tensor in tensors.items():
        shape, dim = list(tensor.shape), dims[key]
        if dim is not None:
            shape[dim] = sum(sizes[key])
        stop = start + 4 * torch.Size(shape).numel()
        header[key] = {"dtype": "F32", "shape": shape, "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with contextlib.ExitStack() as stack:
        file = None
        if processes.is_first():
            file = stack.enter_context(stack.enter_context(replacing(path)).open("wb"))
            file.write(len(text).to_bytes(8, "little") + text)
        for key, tensor in tensors.items():
            for row, block in _blocks(tensor.detach(), dims[key], sizes.get(key, [])):
                if file is not None:
                    at = header[key]["data_offsets"][0] + 4 * row * block[:1].numel()
                    file.seek(8 + len(text) + at)
                    file.write(block.cpu().contiguous().numpy().data)


def read(path: Path, parts: Parts) -> dict[str, Tensor]:
    """Called in all processes: the first reads a file -> of each tensor this process's part, the
    whole where it has none; on the CPU"""
    there = read_tensors(path) if processes.is_first() else {}
    table = [[k, list(v.shape), str(v.dtype).removeprefix("torch.")] for k, v in there.items()]
    return {
        key: _read(there.get(key), shape, getattr(torch, dtype), _dim(key, len(shape), parts))
        for key, shape, dtype in processes.from_first(table)
    }


def _read(there: Tensor | None, shape: list[int], dtype: torch.dtype, dim: int | None) -> Tensor:
    if not shape:
        number = torch.empty((), dtype=dtype) if there is None else there.clone()
        processes.take_from_first(number)
        return number
    own, kept = processes.part(shape[dim or 0]), []
    for rows in _slices(*shape):
        size = rows.stop - rows.start, *shape[1:]
        block = torch.empty(size, dtype=dtype) if there is None else there[rows].clone()
        processes.take_from_first(block)
        if dim == 0:
            block = block[max(0, own.start - rows.start) : max(0, own.stop - rows.start)].clone()
        kept.append(block[:, own].clone() if dim == 1 else block)
    return torch.cat(kept)


def _blocks(tensor: Tensor, dim: int | None, sizes: list[int]) -> Iterator[tuple[int, Tensor]]:
    """Parts of the whole and the row where each begins. sizes: of the processes' parts."""
    if dim is None:
        yield 0, tensor.flatten()
    elif dim == 0:
        for rows in _slices(max(sizes), len(sizes), *tensor.shape[1:]):
            own = tensor[rows]
            block = own.new_zeros(rows.stop - rows.start, *own.shape[1:])
            block[: len(own)] = own
            for r, part in enumerate(processes.of_each(block)):
                n = min(sizes[r], rows.stop) - rows.start
                if n > 0:
                    yield sum(sizes[:r]) + rows.start, part[:n]
    else:
        for rows in _slices(len(tensor), len(sizes), max(sizes)):
            block = torch.nn.functional.pad(tensor[rows], (0, max(sizes) - tensor.shape[1]))
            parts = zip(processes.of_each(block), sizes, strict=True)
            yield rows.start, torch.cat([part[:, :n] for part, n in parts], 1)


def _slices(rows: int, *others: int) -> Iterator[slice]:
    """Of so many rows, each of a block of the others' product of numbers."""
    size = max(1, BLOCK_BYTES // (4 * max(1, math.prod(others))))
    return (slice(first, min(first + size, rows)) for first in range(0, max(1, rows), size))


def _dim(key: str, dimensions: int, parts: Parts) -> int | None:
    found = [parts[name] for name in key.split(".") if name in parts]
    return found[0] if found and dimensions else None
