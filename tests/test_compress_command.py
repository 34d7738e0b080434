"""The commands compress and decompress: hidden states in a file of bits, and back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("constriction")
pytest.importorskip("zstandard")

from bitlens.autoencoders import BinaryAutoencoder
from bitlens.bits.packed import PackedBits
from bitlens.cli import main
from bitlens.compression import store as compression
from bitlens.compression.file import Compressed
from bitlens.compression.store import compress_store, reconstruct
from bitlens.errors import BitlensError
from bitlens.hidden.store import ActivationStore
from bitlens.hidden.writer import StoreWriter

ROWS, DOCUMENTS = 6000, 30
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def run(*arguments: object) -> int:
    """Exit status of `bitlens ARGUMENTS`, in this process."""
    try:
        main([str(a) for a in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def hidden_of(store: Path) -> torch.Tensor:
    return torch.cat([rows.hidden for rows in ActivationStore(store).read()])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores of the same rows in three dtypes, in three shards each, and a run."""
    folder = tmp_path_factory.mktemp("compress")
    random = np.random.default_rng(0)
    bits = random.random((ROWS, 24)) < 0.2
    rows = torch.from_numpy(
        bits @ random.normal(size=(24, 16)) + random.normal(0, 0.1, (ROWS, 16)) + 1
    )
    ids = torch.arange(ROWS) // (ROWS // DOCUMENTS)
    for dtype in DTYPES:
        (folder / dtype).mkdir()
        about = {
            "model": "random",
            "revision": None,
            "hook": {"module": "there"},
            "d_in": 16,
            "dtype": dtype,
        }
        writer = StoreWriter(folder / dtype, {**about, "context_length": None})
        for some in torch.arange(ROWS).split(2050):  # documents span shards
            columns = {"token": some, "document": ids[some], "position": some % 200}
            writer.add(rows[some].to(DTYPES[dtype]), columns)
        writer.finish()
    assert (
        run("train", folder / "float32", "--out", folder / "run", "--n-latents", 48, "--steps", 150)
        == 0
    )
    return folder


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """A compressed file, of the bfloat16 store."""
    out = folder / "whole.bits"
    assert run("compress", folder / "run", folder / "bfloat16", "--out", out) == 0
    return out


@pytest.mark.slow
def test_a_part_that_is_none_is_refused(folder: Path, tmp_path: Path) -> None:
    autoencoder, store = BinaryAutoencoder.from_pretrained(folder / "run"), folder / "float32"
    with pytest.raises(BitlensError, match="`documents` are all or test, not 'train'"):
        compress_store(
            autoencoder,
            ActivationStore(store),
            folder / "run",
            tmp_path / "a.bits",
            documents="train",
        )
    assert not (tmp_path / "a.bits").exists()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_reconstructions_come_back(
    folder: Path, tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In shards of 77 rows, of documents of 200."""
    monkeypatch.setattr("bitlens.compression.plan.SHARD_BYTES", 77 * 4 * 16)
    file, out = tmp_path / "a.bits", tmp_path / "store"
    arguments = ["--out", file, "--documents", "test"]
    assert run("compress", folder / "run", folder / dtype, *arguments) == 0
    assert run("decompress", file, folder / "run", "--out", out) == 0
    autoencoder = BinaryAutoencoder.from_pretrained(folder / "run")
    store, again = ActivationStore(folder / dtype), ActivationStore(out)
    rows = [
        (r.hidden, r.columns["document"], store.is_test(r.columns["document"]))
        for r in store.read()
    ]
    expected = torch.cat([autoencoder(hidden[test]) for hidden, _, test in rows])
    torch.testing.assert_close(hidden_of(out), expected.detach(), rtol=1e-5, atol=1e-5)
    documents = torch.cat([ids[test] for _, ids, test in rows])
    columns = [rows.columns for rows in again.read()]
    assert torch.equal(torch.cat([each["document"] for each in columns]), documents)
    positions = torch.arange(ROWS // DOCUMENTS).repeat(len(documents.unique()))
    assert torch.equal(torch.cat([each["position"] for each in columns]), positions.int())
    assert len(again.manifest["shards"]) == -(-len(documents) // 77)
    assert again.manifest["dtype"] == "float32"
    for key in ("model", "hook"):
        assert again.manifest[key] == store.manifest[key]


@pytest.mark.slow
def test_the_table(folder: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numbers = folder / "numbers.json"
    capsys.readouterr()
    arguments = ["--out", whole, "--overwrite", "--json", numbers]
    assert run("compress", folder / "run", folder / "bfloat16", *arguments) == 0
    result: dict[str, Any] = json.loads(numbers.read_text())
    shown, lines, rows = capsys.readouterr().out, result["lines"], result["held_out_rows"]
    # a stream ends on a whole word: up to 64 bits a document beyond the code length
    assert abs(result["ratio"] - 1) <= 0.02 + 64 / (ROWS / DOCUMENTS * result["bits_joint"])
    assert lines["words"]["bits_a_row"] == 64
    assert lines["file"]["bytes"] == whole.stat().st_size
    assert lines["streams"]["bytes"] == round(rows * result["bits_joint"] * result["ratio"] / 8)
    assert lines["stored_zstd"]["fvu"] == 0
    assert 0 < lines["int8_zstd"]["fvu"] < 0.001 < lines["streams"]["fvu"] < 1
    for line in lines.values():
        assert f"{line['bytes']:,}" in shown
    assert run("encode", folder / "run", folder / "bfloat16", "--out", folder / "codes") == 0
    assert run("entropy", folder / "codes", "--json", folder / "entropy.json") == 0
    measured = json.loads((folder / "entropy.json").read_text())["bits_joint"]["value"]
    assert measured == pytest.approx(result["bits_joint"])


@pytest.mark.slow
def test_damage_is_named_and_the_rest_decodes(
    folder: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, hurt = Compressed(shutil.copy(whole, tmp_path / "a.bits")), 7
    at = int(file._offsets[hurt]) + 3
    data = bytearray(file.path.read_bytes())
    data[at] ^= 1
    file.path.write_bytes(data)
    assert file.verify() == [hurt]
    assert run("decompress", file.path, folder / "run", "--out", tmp_path / "store") == 2
    assert f"damaged documents ({hurt})" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()
    assert (
        run("decompress", file.path, folder / "run", "--out", tmp_path / "store", "--skip-damaged")
        == 0
    )
    assert f"damaged: documents {hurt}." in capsys.readouterr().err
    ids = torch.arange(ROWS) // (ROWS // DOCUMENTS)
    assert run("decompress", whole, folder / "run", "--out", tmp_path / "all") == 0
    assert torch.equal(hidden_of(tmp_path / "store"), hidden_of(tmp_path / "all")[ids != hurt])


def test_what_does_not_fit_is_refused(
    folder: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, topk, foreign = tmp_path / "other", tmp_path / "topk", tmp_path / "notes.txt"
    BinaryAutoencoder(16, 48).save(other)
    few = ["--n-latents", 48, "--steps", 20]
    assert (
        run("train", folder / "float32", "--out", topk, "--architecture", "topk", "--k", 4, *few)
        == 0
    )
    foreign.write_text("keep me")
    bad = {
        "other weights": ["decompress", whole, other, "--out", tmp_path / "o"],
        "with a bae": ["compress", topk, folder / "float32", "--out", tmp_path / "o"],
        "--overwrite": ["compress", folder / "run", folder / "bfloat16", "--out", whole],
        "was not written": [
            "compress",
            folder / "run",
            folder / "bfloat16",
            "--out",
            foreign,
            "--overwrite",
        ],
        "is a folder": ["compress", folder / "run", folder / "bfloat16", "--out", topk],
        "not a file of compressed": [
            "decompress",
            foreign,
            folder / "run",
            "--out",
            tmp_path / "o",
        ],
    }
    for clue, arguments in bad.items():
        capsys.readouterr()
        assert run(*arguments) == 2
        assert clue in capsys.readouterr().err
    assert foreign.read_text() == "keep me"
    assert not (tmp_path / "o").exists()


def test_reconstructions_are_the_decoders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "DECODED_ROWS", 3)
    autoencoder = BinaryAutoencoder(5, 70)
    autoencoder.scale.fill_(3.7)
    autoencoder.mean.fill_(100.1)
    on = torch.rand(20, 70, generator=torch.Generator().manual_seed(0)) < 0.3
    expected = autoencoder.double().decode(on.double()).detach()
    autoencoder.float()
    assert torch.equal(reconstruct(autoencoder, PackedBits.pack(on)), expected.float())


def test_weights_that_are_not_finite() -> None:
    autoencoder = BinaryAutoencoder(5, 7)
    autoencoder.W_dec.data[3, 2] = torch.inf
    with pytest.raises(BitlensError, match="not finite"):
        reconstruct(autoencoder, PackedBits.pack(torch.zeros(1, 7)))
