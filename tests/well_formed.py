"""Whole files of every format, of which `malformed.py` makes others."""

from __future__ import annotations

import contextlib
import gzip
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zstandard

from bitlens.causal.effect import Effect, TokenEffect
from bitlens.causal.unfinished import Unfinished
from bitlens.errors import Interrupted
from bitlens.hidden.named import bundled_folder
from bitlens.hidden.writer import StoreWriter

GOLDEN = Path(__file__).parent / "golden" / "0.1"
VOCABULARY = 300  # all bytes, and a few pairs


def copied(*names: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for name in names:
            (shutil.copytree if (GOLDEN / name).is_dir() else shutil.copy)(
                GOLDEN / name, folder / name
            )

    return make


def rows(write: Callable[[Path, np.ndarray], object]) -> Callable[[Path], None]:
    rows = np.random.default_rng(0).standard_normal((48, 8)).astype(np.float32)

    def make(folder: Path) -> None:
        write(folder, rows)

    return make


def write_safetensors(folder: Path, rows: np.ndarray) -> None:
    import safetensors.numpy

    (folder / "rows.safetensors").write_bytes(safetensors.numpy.save({"hidden": rows}))


def write_hdf5(folder: Path, rows: np.ndarray) -> None:
    import h5py

    with h5py.File(folder / "rows.h5", "w") as file:
        chunks = (len(rows) // 3, rows.shape[1])
        file.create_dataset("hidden", data=rows, chunks=chunks, compression="gzip")


def write_parquet(folder: Path, rows: np.ndarray) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"hidden": list(rows)}), str(folder / "rows.parquet"))


ABOUT = {"model": "m", "hook": {"module": "layers.0"}, "d_in": 6, "context_length": 5}


def add(writer: StoreWriter, number: int) -> None:
    rows = torch.arange(5)
    columns = {"token": rows, "document": rows, "position": rows, "context": rows * 0}
    hidden = torch.randn(5, 6, generator=torch.Generator().manual_seed(number))
    writer.add(hidden, columns, rows[None], 1, number)


def begun_store(folder: Path) -> None:
    (folder / "store").mkdir()
    writer = StoreWriter(folder / "store", ABOUT)
    for number in range(2):
        add(writer, number)


def sums() -> dict[str, torch.Tensor]:
    return {"kl": torch.zeros(3), "changes": torch.zeros(3, 4, dtype=torch.float64)}


EFFECT: dict[str, Any] = {field.name: 0.5 for field in fields(Effect)[:-3]}


def unfinished(folder: Path) -> None:
    kept = Unfinished(folder / "kept", False, {"seed": 0})
    effect = Effect(**EFFECT, raises=[], lowers=[TokenEffect(1, "a", 0.5)], downstream=[])
    kept.finish(0, [asdict(effect)])
    kept._stop.signal = "SIGTERM"  # which saves at once
    with contextlib.suppress(Interrupted):
        kept.save(1, 7, sums())


def runs(suffix: str) -> Callable[[Path], None]:
    text = '[{"lam": 0.1, "seed": 1}, {"n-latents": 64, "prune-at": [0.1, 0.5]}]'
    if suffix == ".toml":
        text = "[[run]]\nlam = 0.1\nseed = 1\n\n[[run]]\nn-latents = 64\nprune-at = [0.1, 0.5]\n"
    return lambda folder: (folder / f"runs{suffix}").write_text(text) and None


def texts(suffix: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        rows = [{"text": f"Number {i}.", "n": i} for i in range(6)]
        path = folder / f"texts{suffix}"
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        if suffix == ".parquet":
            import pyarrow
            import pyarrow.parquet

            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), str(path))
        elif suffix == ".json":
            path.write_text(json.dumps(rows))
        elif suffix == ".csv":
            path.write_text("text,n\n" + "".join(f'"{r["text"]}",{r["n"]}\n' for r in rows))
        else:
            packers = {".gz": gzip.compress, ".zst": zstandard.compress}
            path.write_bytes(packers.get(path.suffix, bytes)(content))

    return make


def tensors(width: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0).standard_normal
    shapes = {"w_enc": (8, width), "b_enc": (width,), "w_dec": (width, 8), "b_dec": (8,)}
    shapes["threshold"] = (width,)
    return {name: draw(shape).astype(np.float32) for name, shape in shapes.items()}


def npz_weights(folder: Path, width: int = 12) -> None:
    np.savez(folder / "params.npz", **tensors(width))  # pyright: ignore[reportArgumentType]


def torch_weights(folder: Path, width: int = 12) -> None:
    found = {name: torch.from_numpy(array) for name, array in tensors(width).items()}
    names = {"encoder.weight": found["w_enc"].T, "encoder.bias": found["b_enc"]}
    names |= {"decoder.weight": found["w_dec"].T, "bias": found["b_dec"]}
    torch.save(names, folder / "ae.pt")
    widths = {"activation_dim": 8, "dict_size": width}
    config = {"trainer": {"dict_class": "AutoEncoder", **widths}}
    (folder / "config.json").write_text(json.dumps(config))


def model(folder: Path, inner: int = 16) -> None:
    """A tiny model in one file, with some of the vocabulary of the one that bitlens comes with."""
    import transformers

    from test_gguf import write

    size = {"hidden_size": 16, "intermediate_size": inner, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 32}
    whole = folder / "whole"
    config: Any = transformers.AutoConfig.from_pretrained(
        bundled_folder(), **size, **heads, head_dim=8, vocab_size=VOCABULARY
    )
    transformers.LlamaForCausalLM(config).save_pretrained(whole)
    tokenizer = json.loads((bundled_folder() / "tokenizer.json").read_bytes())
    words = tokenizer["model"]
    words["vocab"] = {word: i for word, i in words["vocab"].items() if i < VOCABULARY}
    words["merges"] = [pair for pair in words["merges"] if "".join(pair) in words["vocab"]]
    (whole / "tokenizer.json").write_text(json.dumps(tokenizer))
    write(folder / "model.gguf", whole)
    shutil.rmtree(whole)
