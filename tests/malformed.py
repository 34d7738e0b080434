"""Malformed files: of each format a whole one, what bitlens makes of it, and what spoils it.

A format is a line of `FORMATS`. `fuzz.py` tries them.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import importlib.util
import json
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import zstandard

from bitlens import (
    ActivationStore,
    Autoencoder,
    Codes,
    Corpus,
    LanguageModel,
    TrainConfig,
    encode_store,
    entropy,
    train,
)
from bitlens.causal.effect import Effect, TokenEffect, of_record
from bitlens.causal.unfinished import Unfinished
from bitlens.cli.sweep import read_sweep
from bitlens.compression.file import Compressed
from bitlens.compression.store import decompress_file
from bitlens.comsem.calls import Calls
from bitlens.errors import BitlensError, Interrupted
from bitlens.files import write_sealed
from bitlens.hidden.arrays import import_arrays
from bitlens.hidden.named import bundled_folder
from bitlens.hidden.writer import StoreWriter
from bitlens.report.page import write_report
from spoilt import (
    Change,
    compressed_header,
    compressed_parts,
    grammar,
    hdf5,
    lines,
    npy_header,
    other_tensors,
    packed,
    parquet,
    pickled,
    safetensors_header,
    sql,
    zipped,
)

GOLDEN = Path(__file__).parent / "golden" / "0.1"
VOCABULARY = 300  # all bytes, and a few pairs
BEGUN: dict[str, Any] = {"n_latents": 12, "steps": 12, "batch_size": 16, "log_every": 3}


class Format(NamedTuple):
    """A kind of file.

    make: writes a whole one, and what it belongs to, into a folder. file: its path there. read: all
    that bitlens does with it; `out` is a folder for results. changes: that spoil its bytes, beside
    those that spoil any.
    """

    make: Callable[[Path], object]
    file: str
    read: Callable[[Path, Path], object]
    changes: tuple[Change, ...] = ()


# --- what is read ---------------------------------------------------------------------------------


def _copied(*names: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for name in names:
            (shutil.copytree if (GOLDEN / name).is_dir() else shutil.copy)(
                GOLDEN / name, folder / name
            )

    return make


def _mend_digests(folder: Path) -> None:
    """Of what is meant to be read, although it is spoilt."""
    path = folder / "manifest.json"
    with contextlib.suppress(ValueError, TypeError, KeyError, OSError, RecursionError):
        manifest = json.loads(path.read_bytes())
        for shard in manifest["shards"]:
            shard["sha256"] = hashlib.sha256((folder / shard["file"]).read_bytes()).hexdigest()
        path.write_text(json.dumps(manifest))


def _store(folder: Path, out: Path) -> None:
    _mend_digests(folder / "store")
    store = ActivationStore(folder / "store")
    assert repr(store)
    store.warnings()
    encode_store(Autoencoder.from_pretrained(folder / "descent"), store, out / "codes")
    next(iter(store.batches(8, 0)), None)


def _codes(folder: Path, out: Path) -> None:
    _mend_digests(folder / "codes")
    codes = Codes(folder / "codes")
    assert repr(codes)
    assert codes.outliers <= len(codes)
    entropy(codes.bits[codes.usual], codes.document[codes.usual])


def _run(folder: Path, out: Path) -> None:
    for name in ("descent", "topk"):
        autoencoder = Autoencoder.from_pretrained(folder / name)
        autoencoder(torch.zeros(3, autoencoder.d_in))
    write_report(folder / "descent")


def _begun(folder: Path, out: Path) -> None:
    config = TrainConfig(**BEGUN, device="cpu")
    train(ActivationStore(folder / "store"), config, folder / "begun", resume=True, progress=False)


def _mend_seal(path: Path) -> None:
    """As `_mend_digests`, of what `write_sealed` wrote."""
    with contextlib.suppress(ValueError, TypeError, AttributeError, OSError, RecursionError):
        value = json.loads(path.read_bytes())
        value.pop("seal", None)
        write_sealed(path, value)


def _begun_store(folder: Path, out: Path) -> None:
    _mend_seal(folder / "store" / "shard-00001.json")
    writer = StoreWriter(folder / "store", ABOUT)
    for number in range(3):
        if number not in writer.shards:
            _add(writer, number)
    list(writer.finish().read())


def _unfinished(folder: Path, out: Path) -> None:
    _mend_seal(folder / "kept" / "effects-0.json")
    kept = Unfinished(folder / "kept", True, {"seed": 0})
    kept.finished(0, of_record)
    kept.restore(1, _sums())


def _sweep(suffix: str) -> Callable[[Path, Path], None]:
    def read(folder: Path, out: Path) -> None:
        with contextlib.suppress(SystemExit):  # of the parser of flags, which has said why
            read_sweep((str(folder / f"runs{suffix}"),), TrainConfig())

    return read


def _bits(folder: Path, out: Path) -> None:
    file = Compressed(folder / "states.bits")
    with contextlib.suppress(BitlensError):  # other documents can still be read
        list(file)
        file.verify()
    decompress_file(file, folder / "descent", out / "store")


def _calls(folder: Path, out: Path) -> None:
    with Calls(folder / "calls.sqlite", max_calls=9, max_cost=1) as calls:
        with contextlib.closing(sqlite3.connect(GOLDEN / "calls.sqlite")) as golden:
            keys = [key for (key,) in golden.execute("SELECT key FROM calls")]
        for key in [*keys, "x"]:
            call = calls.get(key)
            assert call is None or isinstance(call.answer, str), call
            assert type(calls.cut(key)) is int
        spent = calls.spent()
        assert f"{spent.calls:,} {spent.cost:.4f} {spent.input_tokens:,}"
        calls.put("y", "judge", [{"role": "user", "content": "?"}], "yes", 0.1)


def _arrays(suffix: str) -> Callable[[Path, Path], None]:
    def read(folder: Path, out: Path) -> None:
        store = import_arrays([folder / f"rows{suffix}"], out / "store")
        assert not (store.mean == 7777).any()

    return read


def _text(suffix: str) -> Callable[[Path, Path], None]:
    def read(folder: Path, out: Path) -> None:
        for _, text in Corpus((str(folder / f"texts{suffix}"),)).documents():
            assert isinstance(text, str)

    return read


def _foreign(folder: Path, out: Path) -> None:
    autoencoder = Autoencoder.from_pretrained(folder)
    autoencoder(torch.zeros(3, autoencoder.d_in))


def _gguf(folder: Path, out: Path) -> None:
    model = LanguageModel.load(str(folder / "model.gguf"), ["layers.0"], device="cpu")
    ids = model.tokenizer("The old sailor")["input_ids"]
    model.hidden_states(torch.tensor([ids]))


# --- whole ones -----------------------------------------------------------------------------------


def _rows(write: Callable[[Path, np.ndarray], object]) -> Callable[[Path], None]:
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


def _add(writer: StoreWriter, number: int) -> None:
    rows = torch.arange(5)
    columns = {"token": rows, "document": rows, "position": rows, "context": rows * 0}
    hidden = torch.randn(5, 6, generator=torch.Generator().manual_seed(number))
    writer.add(hidden, columns, rows[None], 1, number)


def begun_store(folder: Path) -> None:
    (folder / "store").mkdir()
    writer = StoreWriter(folder / "store", ABOUT)
    for number in range(2):
        _add(writer, number)


def _sums() -> dict[str, torch.Tensor]:
    return {"kl": torch.zeros(3), "changes": torch.zeros(3, 4, dtype=torch.float64)}


EFFECT: dict[str, Any] = {field.name: 0.5 for field in fields(Effect)[:-3]}


def unfinished(folder: Path) -> None:
    kept = Unfinished(folder / "kept", False, {"seed": 0})
    effect = Effect(**EFFECT, raises=[], lowers=[TokenEffect(1, "a", 0.5)], downstream=[])
    kept.finish(0, [asdict(effect)])
    kept._stop.signal = "SIGTERM"  # which saves at once
    with contextlib.suppress(Interrupted):
        kept.save(1, 7, _sums())


def _runs(suffix: str) -> Callable[[Path], None]:
    text = '[{"lam": 0.1, "seed": 1}, {"n-latents": 64, "prune-at": [0.1, 0.5]}]'
    if suffix == ".toml":
        text = "[[run]]\nlam = 0.1\nseed = 1\n\n[[run]]\nn-latents = 64\nprune-at = [0.1, 0.5]\n"
    return lambda folder: (folder / f"runs{suffix}").write_text(text) and None


def _texts(suffix: str) -> Callable[[Path], None]:
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


def _tensors(width: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0).standard_normal
    shapes = {"w_enc": (8, width), "b_enc": (width,), "w_dec": (width, 8), "b_dec": (8,)}
    shapes["threshold"] = (width,)
    return {name: draw(shape).astype(np.float32) for name, shape in shapes.items()}


def npz_weights(folder: Path, width: int = 12) -> None:
    np.savez(folder / "params.npz", **_tensors(width))  # pyright: ignore[reportArgumentType]


def torch_weights(folder: Path, width: int = 12) -> None:
    found = {name: torch.from_numpy(array) for name, array in _tensors(width).items()}
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


TENSORS = (safetensors_header, other_tensors)
FORMATS = {
    "store": Format(_copied("store", "descent"), "store/manifest.json", _store, (grammar,)),
    "store's shard": Format(
        _copied("store", "descent"), "store/shard-00000.safetensors", _store, TENSORS
    ),
    "codes": Format(_copied("codes"), "codes/manifest.json", _codes, (grammar,)),
    "codes' shard": Format(_copied("codes"), "codes/codes-00000.safetensors", _codes, TENSORS),
    "settings": Format(_copied("descent", "topk"), "topk/cfg.json", _run, (grammar,)),
    "settings of bits": Format(_copied("descent", "topk"), "descent/cfg.json", _run, (grammar,)),
    "weights": Format(_copied("descent", "topk"), "descent/sae_weights.safetensors", _run, TENSORS),
    "evaluation": Format(_copied("descent", "topk"), "descent/evaluation.json", _run, (grammar,)),
    "metrics": Format(_copied("descent", "topk"), "descent/metrics.jsonl", _run, (lines,)),
    "training": Format(_copied("store", "begun"), "begun/training.json", _begun, (grammar,)),
    "checkpoint": Format(_copied("store", "begun"), "begun/state.safetensors", _begun, TENSORS),
    "log": Format(_copied("store", "begun"), "begun/metrics.jsonl", _begun, (lines,)),
    "said of a shard": Format(begun_store, "store/shard-00001.json", _begun_store, (grammar,)),
    "begun store": Format(begun_store, "store/manifest.json", _begun_store, (grammar,)),
    "unfinished": Format(unfinished, "kept/unfinished.json", _unfinished, (grammar,)),
    "unfinished records": Format(unfinished, "kept/effects-0.json", _unfinished, (grammar,)),
    "unfinished sums": Format(unfinished, "kept/table.safetensors", _unfinished, TENSORS),
    "sweep": Format(_runs(".json"), "runs.json", _sweep(".json"), (grammar,)),
    "sweep in TOML": Format(_runs(".toml"), "runs.toml", _sweep(".toml")),
    "compressed": Format(
        _copied("states.bits", "descent"),
        "states.bits",
        _bits,
        (compressed_header, compressed_parts),
    ),
    "sqlite": Format(_copied("calls.sqlite"), "calls.sqlite", _calls, (sql,)),
    "npy": Format(
        _rows(lambda f, x: np.save(f / "rows.npy", x)), "rows.npy", _arrays(".npy"), (npy_header,)
    ),
    "npz": Format(
        _rows(lambda f, x: np.savez(f / "rows.npz", hidden=x)),
        "rows.npz",
        _arrays(".npz"),
        (zipped,),
    ),
    "safetensors": Format(
        _rows(write_safetensors), "rows.safetensors", _arrays(".safetensors"), TENSORS
    ),
    "hdf5": Format(_rows(write_hdf5), "rows.h5", _arrays(".h5"), (hdf5,)),
    "parquet": Format(_rows(write_parquet), "rows.parquet", _arrays(".parquet"), (parquet,)),
    "text in parquet": Format(_texts(".parquet"), "texts.parquet", _text(".parquet"), (parquet,)),
    "json": Format(_texts(".json"), "texts.json", _text(".json"), (grammar,)),
    "jsonl": Format(_texts(".jsonl"), "texts.jsonl", _text(".jsonl"), (lines,)),
    "csv": Format(_texts(".csv"), "texts.csv", _text(".csv")),
    "gzip": Format(
        _texts(".jsonl.gz"), "texts.jsonl.gz", _text(".jsonl.gz"), (packed(gzip.compress),)
    ),
    "zstandard": Format(
        _texts(".jsonl.zst"), "texts.jsonl.zst", _text(".jsonl.zst"), (packed(zstandard.compress),)
    ),
    "weights in npz": Format(npz_weights, "params.npz", _foreign, (zipped,)),
    "weights in PyTorch": Format(torch_weights, "ae.pt", _foreign, (zipped, pickled)),
    "settings of others": Format(torch_weights, "config.json", _foreign, (grammar,)),
}
if importlib.util.find_spec("gguf"):
    FORMATS["gguf"] = Format(model, "model.gguf", _gguf)
