"""After a whole run with keys, tokens and passwords around, none of them is in any byte of it."""

from __future__ import annotations

import base64
import contextlib
import gzip
import io
import json
import sqlite3
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from faults import plant_codes
from language_model_server import LanguageModelServer, Reply
from test_interpret import by_first_letter

SECRETS = {
    "OPENAI_API_KEY": "sk-proj-kept/0123456789+abc",
    "HF_TOKEN": "hf_AbCdEfGhIjKlMnOpQrStUvWxYz",
    "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "HTTPS_PROXY": "http://user:pa55-of-the-proxy@127.0.0.1:9",
}
PASSWORD = "hunter2-hunter2"
HIDDEN = [*SECRETS.values(), "pa55-of-the-proxy", PASSWORD]


def ways(secret: str) -> set[bytes]:
    """How it may be written: as it is, for an address, in JSON, in two bytes a letter, encoded."""
    plain = secret.encode()
    encoded = {base64.b64encode(b"x" * i + plain)[4 * (i > 0) : -4] for i in range(3)}
    return {plain, quote(secret, "").encode(), json.dumps(secret)[1:-1].encode()} | {
        secret.encode("utf-16-le"),
        plain.hex().encode(),
        *encoded,
    }


def unpacked(name: str, content: bytes) -> Iterator[bytes]:
    """The bytes of a file, and what they hold that is compressed."""
    yield content
    if name.endswith(".parquet"):
        table = pyarrow.parquet.read_table(io.BytesIO(content))
        yield repr((table.to_pydict(), table.schema.metadata)).encode()
    if content.startswith(b"SQLite"):
        with contextlib.closing(sqlite3.connect(":memory:")) as database:
            database.deserialize(content[:18] + b"\1\1" + content[20:])  # without its log
            yield "\n".join(database.iterdump()).encode()
    for magic, unpack in ((b"\x1f\x8b", gzip.decompress), (b"\x28\xb5\x2f\xfd", _zstandard)):
        for start in _places(content, magic):
            with contextlib.suppress(OSError, EOFError, zlib.error, zstandard.ZstdError):
                yield unpack(content[start:])


def _zstandard(content: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompressobj().decompress(content)


def _places(content: bytes, magic: bytes) -> Iterator[int]:
    start = content.find(magic)
    while start >= 0:
        yield start
        start = content.find(magic, start + 1)


def found(files: dict[str, bytes]) -> list[tuple[str, str]]:
    """Every file with a secret in it, or in its name."""
    every = [(secret, way) for secret in HIDDEN for way in ways(secret)]
    return [
        (name, secret)
        for name, content in files.items()
        for part in (name.encode(), *unpacked(name, content))
        for secret, way in every
        if way in part
    ]


def _parquet(content: bytes) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"a": [content.decode()]}), file, compression="zstd")
    return file.getvalue()


def _sqlite(content: bytes) -> bytes:
    with contextlib.closing(sqlite3.connect(":memory:")) as database:
        database.execute("CREATE TABLE a (b TEXT)")
        database.execute("INSERT INTO a VALUES (?)", (content.decode() * 400,))
        database.commit()
        return database.serialize()


@pytest.mark.parametrize(
    "write",
    [bytes, gzip.compress, zstandard.compress, _parquet, _sqlite, base64.b64encode, bytes.hex],
)
def test_a_secret_that_is_there_is_found(write: Callable[[bytes], Any]) -> None:
    for secret in HIDDEN:
        for before in ("", "a", "ab"):
            content = write(f"{before}{secret} and more".encode())
            content = content.encode() if isinstance(content, str) else content
            name = "a.parquet" if write is _parquet else "a"
            assert (name, secret) in found({name: content})


@pytest.mark.slow
def test_after_a_whole_run_no_secret_is_in_any_byte_of_it(
    tmp_path: Path,
    tiny_llama: Path,
    text_folder: Path,
    bitlens_command: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    s3fs = pytest.importorskip("s3fs")
    storage = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    storage.start()
    environment = SECRETS | {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{storage.get_host_and_port()[1]}",
        "AWS_DEFAULT_REGION": "us-east-1",
        "BITLENS_CACHE": str(tmp_path / "cache"),
        "OPENAI_LOG": "debug",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir("kept")  # buckets are shared by all servers of one process
    plant_codes(tmp_path / "planted")
    store, run, asked = "s3://kept/store", tmp_path / "run", ["--judge", "openai", "--model", "x"]
    echo = Reply(status=401, body=json.dumps({"error": {"message": f"No: {HIDDEN[0]}"}}))
    with LanguageModelServer(by_first_letter) as judge, LanguageModelServer(lambda p: echo) as no:
        interpret = ["interpret", tmp_path / "planted", *asked, "--sample", 3, "--base-url"]
        small = ["--steps", 20, "--n-latents", 16, "--batch-size", 64, "--device", "cpu"]
        harvest = [
            "harvest",
            tiny_llama,
            "--text",
            text_folder,
            "--hook",
            "layers.1",
            "--context",
            32,
        ]
        for expected, *line in (
            (0, *harvest, "--max-rows", 600, "--out", store),
            (0, "train", store, "--out", run, *small, "--log", "tensorboard"),
            (0, "encode", run, store, "--out", "s3://kept/codes"),
            (0, "evaluate", run, store, "--json", tmp_path / "evaluation.json"),
            (0, "compress", run, store, "--out", tmp_path / "states.bits"),
            (0, *interpret, judge.url, "--out", tmp_path / "meanings"),
            (2, *interpret, no.url, "--out", tmp_path / "refused"),
            (2, *interpret, f"http://user:{PASSWORD}@127.0.0.1:9/v1", "--out", tmp_path / "no"),
            (2, "encode", run, f"s3://user:{PASSWORD}@kept/store", "--out", tmp_path / "none"),
            (2, "encode", run, f"https://a:{PASSWORD}@127.0.0.1:9/x", "--out", tmp_path / "none"),
        ):
            command = bitlens_command(*line, environment=environment)
            assert command.wait() == expected, command.output
        assert judge.keys == no.keys == {f"Bearer {HIDDEN[0]}"}, "it was used"
    files = {
        str(p.relative_to(tmp_path)): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()
    }
    files |= {name: s3fs.S3FileSystem().cat_file(name) for name in s3fs.S3FileSystem().find("kept")}
    storage.stop()
    s3fs.S3FileSystem.clear_instance_cache()
    kinds = {".json", ".jsonl", ".safetensors", ".sqlite", ".parquet", ".log", ".html", ".bits"}
    assert kinds <= {Path(name).suffix for name in files}
    assert any("tfevents" in name for name in files)
    assert any("HTTP Request" in files[name].decode() for name in files if name.endswith(".log"))
    assert found(files) == []
