"""Malformed files: of each format a whole one, what bitlens makes of it, and what spoils it.

A format is a line of `FORMATS`. `fuzz.py` tries them.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import importlib.util
import json
import sqlite3
from collections.abc import Callable
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
from bitlens.causal.effect import of_record
from bitlens.causal.unfinished import Unfinished
from bitlens.cli.sweep import read_sweep
from bitlens.compression.file import Compressed
from bitlens.compression.store import decompress_file
from bitlens.comsem.calls import Calls
from bitlens.errors import BitlensError
from bitlens.files import write_sealed
from bitlens.hidden.arrays import import_arrays
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
from well_formed import (
    ABOUT,
    GOLDEN,
    add,
    begun_store,
    copied,
    model,
    npz_weights,
    rows,
    runs,
    sums,
    texts,
    torch_weights,
    unfinished,
    write_hdf5,
    write_parquet,
    write_safetensors,
)

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
            add(writer, number)
    list(writer.finish().read())


def _unfinished(folder: Path, out: Path) -> None:
    _mend_seal(folder / "kept" / "effects-0.json")
    kept = Unfinished(folder / "kept", True, {"seed": 0})
    kept.finished(0, of_record)
    kept.restore(1, sums())


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


TENSORS = (safetensors_header, other_tensors)
FORMATS = {
    "store": Format(copied("store", "descent"), "store/manifest.json", _store, (grammar,)),
    "store's shard": Format(
        copied("store", "descent"), "store/shard-00000.safetensors", _store, TENSORS
    ),
    "codes": Format(copied("codes"), "codes/manifest.json", _codes, (grammar,)),
    "codes' shard": Format(copied("codes"), "codes/codes-00000.safetensors", _codes, TENSORS),
    "settings": Format(copied("descent", "topk"), "topk/cfg.json", _run, (grammar,)),
    "settings of bits": Format(copied("descent", "topk"), "descent/cfg.json", _run, (grammar,)),
    "weights": Format(copied("descent", "topk"), "descent/sae_weights.safetensors", _run, TENSORS),
    "evaluation": Format(copied("descent", "topk"), "descent/evaluation.json", _run, (grammar,)),
    "metrics": Format(copied("descent", "topk"), "descent/metrics.jsonl", _run, (lines,)),
    "training": Format(copied("store", "begun"), "begun/training.json", _begun, (grammar,)),
    "checkpoint": Format(copied("store", "begun"), "begun/state.safetensors", _begun, TENSORS),
    "log": Format(copied("store", "begun"), "begun/metrics.jsonl", _begun, (lines,)),
    "said of a shard": Format(begun_store, "store/shard-00001.json", _begun_store, (grammar,)),
    "begun store": Format(begun_store, "store/manifest.json", _begun_store, (grammar,)),
    "unfinished": Format(unfinished, "kept/unfinished.json", _unfinished, (grammar,)),
    "unfinished records": Format(unfinished, "kept/effects-0.json", _unfinished, (grammar,)),
    "unfinished sums": Format(unfinished, "kept/table.safetensors", _unfinished, TENSORS),
    "sweep": Format(runs(".json"), "runs.json", _sweep(".json"), (grammar,)),
    "sweep in TOML": Format(runs(".toml"), "runs.toml", _sweep(".toml")),
    "compressed": Format(
        copied("states.bits", "descent"),
        "states.bits",
        _bits,
        (compressed_header, compressed_parts),
    ),
    "sqlite": Format(copied("calls.sqlite"), "calls.sqlite", _calls, (sql,)),
    "npy": Format(
        rows(lambda f, x: np.save(f / "rows.npy", x)), "rows.npy", _arrays(".npy"), (npy_header,)
    ),
    "npz": Format(
        rows(lambda f, x: np.savez(f / "rows.npz", hidden=x)),
        "rows.npz",
        _arrays(".npz"),
        (zipped,),
    ),
    "safetensors": Format(
        rows(write_safetensors), "rows.safetensors", _arrays(".safetensors"), TENSORS
    ),
    "hdf5": Format(rows(write_hdf5), "rows.h5", _arrays(".h5"), (hdf5,)),
    "parquet": Format(rows(write_parquet), "rows.parquet", _arrays(".parquet"), (parquet,)),
    "text in parquet": Format(texts(".parquet"), "texts.parquet", _text(".parquet"), (parquet,)),
    "json": Format(texts(".json"), "texts.json", _text(".json"), (grammar,)),
    "jsonl": Format(texts(".jsonl"), "texts.jsonl", _text(".jsonl"), (lines,)),
    "csv": Format(texts(".csv"), "texts.csv", _text(".csv")),
    "gzip": Format(
        texts(".jsonl.gz"), "texts.jsonl.gz", _text(".jsonl.gz"), (packed(gzip.compress),)
    ),
    "zstandard": Format(
        texts(".jsonl.zst"), "texts.jsonl.zst", _text(".jsonl.zst"), (packed(zstandard.compress),)
    ),
    "weights in npz": Format(npz_weights, "params.npz", _foreign, (zipped,)),
    "weights in PyTorch": Format(torch_weights, "ae.pt", _foreign, (zipped, pickled)),
    "settings of others": Format(torch_weights, "config.json", _foreign, (grammar,)),
}
if importlib.util.find_spec("gguf"):
    FORMATS["gguf"] = Format(model, "model.gguf", _gguf)
