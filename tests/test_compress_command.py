"""The commands compress and decompress: hidden states in a file of bits, and back, exactly where that is asked for."""

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
from bitlens.compression.file import Compressed
from bitlens.errors import BitlensError
from bitlens.hidden.store import ActivationStore
from bitlens.hidden.writer import StoreWriter
from bitlens.information import residual
from bitlens.information.residual import Decoder, corrected, difference, float_bytes

ROWS, DOCUMENTS = 6000, 30


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
    for dtype in residual.DTYPES:
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
            writer.add(rows[some].to(residual.DTYPES[dtype]), columns)
        writer.finish()
    assert (
        run("train", folder / "float32", "--out", folder / "run", "--n-latents", 48, "--steps", 150)
        == 0
    )
    return folder


@pytest.fixture(scope="module")
def exact(folder: Path) -> Path:
    """A compressed file with residuals, of the bfloat16 store."""
    out = folder / "exact.bits"
    assert run("compress", folder / "run", folder / "bfloat16", "--out", out, "--residual") == 0
    return out


@pytest.mark.parametrize("dtype", residual.DTYPES)
def test_hidden_states_come_back_exactly(folder: Path, tmp_path: Path, dtype: str) -> None:
    file, out = tmp_path / "a.bits", tmp_path / "store"
    assert run("compress", folder / "run", folder / dtype, "--out", file, "--residual") == 0
    assert run("decompress", file, folder / "run", "--out", out) == 0
    again, store = ActivationStore(out), ActivationStore(folder / dtype)
    assert hidden_of(out).dtype == residual.DTYPES[dtype]
    assert float_bytes(hidden_of(out)) == float_bytes(hidden_of(folder / dtype))
    assert torch.equal(
        *(torch.cat([r.columns["document"] for r in s.read()]) for s in (again, store))
    )
    for key in ("model", "hook", "dtype", "rows", "documents"):
        assert again.manifest[key] == store.manifest[key]


@pytest.mark.parametrize("dtype", residual.DTYPES)
def test_without_a_residual_the_reconstructions_come_back(
    folder: Path, tmp_path: Path, dtype: str
) -> None:
    file, out = tmp_path / "a.bits", tmp_path / "store"
    assert (
        run("compress", folder / "run", folder / dtype, "--out", file, "--documents", "test") == 0
    )
    assert b'"schema": 1,' in file.read_bytes()[:100]
    assert run("decompress", file, folder / "run", "--out", out) == 0
    autoencoder = BinaryAutoencoder.from_pretrained(folder / "run")
    store = ActivationStore(folder / dtype)
    expected = torch.cat(
        [autoencoder(r.hidden[store.is_test(r.columns["document"])]) for r in store.read()]
    )
    torch.testing.assert_close(hidden_of(out), expected.detach(), rtol=1e-5, atol=1e-5)


def test_the_table(folder: Path, exact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numbers = folder / "numbers.json"
    capsys.readouterr()
    arguments = ["--out", exact, "--residual", "--overwrite", "--json", numbers]
    assert run("compress", folder / "run", folder / "bfloat16", *arguments) == 0
    result: dict[str, Any] = json.loads(numbers.read_text())
    shown, lines, rows = capsys.readouterr().out, result["lines"], result["held_out_rows"]
    # a stream ends on a whole word: up to 64 bits a document beyond the code length
    assert abs(result["ratio"] - 1) <= 0.02 + 64 / (ROWS / DOCUMENTS * result["bits_joint"])
    assert lines["words"]["bits_a_row"] == 64
    assert lines["file"]["bytes"] == exact.stat().st_size
    assert lines["streams"]["bytes"] == round(rows * result["bits_joint"] * result["ratio"] / 8)
    assert lines["exact"]["fvu"] == lines["stored_zstd"]["fvu"] == 0
    assert 0 < lines["int8_zstd"]["fvu"] < 0.001 < lines["streams"]["fvu"] < 1
    assert result["gain"] == pytest.approx(
        1 - lines["exact"]["bytes"] / lines["stored_zstd"]["bytes"]
    )
    for line in lines.values():
        assert f"{line['bytes']:,}" in shown
    assert run("encode", folder / "run", folder / "bfloat16", "--out", folder / "codes") == 0
    assert run("entropy", folder / "codes", "--json", folder / "entropy.json") == 0
    measured = json.loads((folder / "entropy.json").read_text())["bits_joint"]["value"]
    assert measured == pytest.approx(result["bits_joint"])


@pytest.mark.parametrize("part", ["stream", "residual"])
def test_damage_is_named_and_the_rest_decodes(
    folder: Path, exact: Path, tmp_path: Path, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file, hurt = Compressed(shutil.copy(exact, tmp_path / "a.bits")), 7
    at = int(file._offsets[hurt]) + (3 if part == "stream" else int(file.stream_bytes[hurt]) + 5)
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
    assert torch.equal(hidden_of(tmp_path / "store"), hidden_of(folder / "bfloat16")[ids != hurt])


def test_what_does_not_fit_is_refused(
    folder: Path, exact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
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
        "other weights": ["decompress", exact, other, "--out", tmp_path / "o"],
        "with a bae": ["compress", topk, folder / "float32", "--out", tmp_path / "o"],
        "--overwrite": ["compress", folder / "run", folder / "bfloat16", "--out", exact],
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


def test_a_full_disk_leaves_the_former_file(
    folder: Path, exact: Path, bitlens_command: Any
) -> None:
    before = exact.read_bytes()
    arguments = [
        "compress",
        folder / "run",
        folder / "bfloat16",
        "--out",
        exact,
        "--residual",
        "--overwrite",
    ]
    command = bitlens_command(*arguments, file_limit=len(before) // 2)
    assert command.wait() == 2, command.output
    assert "disk is full" in command.output
    assert exact.read_bytes() == before
    assert not list(exact.parent.glob(f".{exact.name}*"))


def test_a_killed_command_leaves_no_half_file(
    folder: Path, tmp_path: Path, bitlens_command: Any
) -> None:
    out = tmp_path / "a.bits"
    arguments = ["compress", folder / "run", folder / "bfloat16", "--out", out, "--residual"]
    command = bitlens_command(*arguments)
    command.wait_until(lambda: (tmp_path / ".a.bits.tmp" / "a.bits").exists())
    command.kill()
    assert not out.exists() or Compressed(out).verify() == []
    assert run(*arguments, "--overwrite") == 0
    assert Compressed(out).verify() == []


# --- floats -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", residual.DTYPES.values())
def test_any_floats_differ_by_what_is_kept(dtype: torch.dtype) -> None:
    """Zeros of both signs, subnormals, infinities, and every pattern of bits."""
    integer = torch.int32 if dtype == torch.float32 else torch.int16
    patterns = torch.randint(
        -(2**31), 2**31, (400, 7), generator=torch.Generator().manual_seed(0)
    ).to(integer)
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 1e-7, -1e-7, 1.0], dtype=dtype).view(
        integer
    )
    patterns[:7] = special[:, None]
    hidden, predicted = patterns.view(dtype), patterns.flip(0).view(dtype)
    assert float_bytes(corrected(predicted, difference(hidden, predicted))) == float_bytes(hidden)


def test_reconstructions_are_sums_in_the_order_of_the_latents(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(residual, "BLOCK", 3)
    autoencoder = BinaryAutoencoder(5, 70)
    autoencoder.scale.fill_(3.7)
    autoencoder.mean.fill_(100.1)
    decoder = Decoder.of(autoencoder)
    on = torch.rand(20, 70, generator=torch.Generator().manual_seed(0)) < 0.3
    expected = []
    for row in on:
        values = [float(v) for v in decoder.base]
        for latent in row.nonzero()[:, 0].tolist():
            values = [a + float(b) for a, b in zip(values, decoder.rows[latent], strict=True)]
        expected.append(values)
    exact = torch.tensor(expected, dtype=torch.float64)
    for dtype in residual.DTYPES.values():
        assert torch.equal(decoder.decode(PackedBits.pack(on), dtype), exact.to(dtype))
    torch.testing.assert_close(
        decoder.decode(PackedBits.pack(on)), autoencoder.decode(on.float()).detach()
    )


def test_weights_that_are_not_finite() -> None:
    autoencoder = BinaryAutoencoder(5, 7)
    autoencoder.W_dec.data[3, 2] = torch.inf
    with pytest.raises(BitlensError, match="not finite"):
        Decoder.of(autoencoder)
