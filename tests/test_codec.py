"""The codec: every bit comes back, sizes are code lengths, and damage is found where it is."""

from __future__ import annotations

import json
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from bitlens.bits.packed import PackedBits
from bitlens.bits.statistics import co_occurrence
from bitlens.compression import file as compressed
from bitlens.compression import range_coder as codec
from bitlens.compression.file import PREFIX, Compressed, compress
from bitlens.compression.range_coder import Quantised
from bitlens.errors import BitlensError
from bitlens.information import autoregression
from bitlens.information.autoregression import Autoregression
from bitlens.information.tree import Blocks, TreeCounts, chow_liu

GOLDEN = Path(__file__).parent / "golden" / "compressed.bin"


def some_bits(rows: int, n_latents: int, seed: int = 0) -> PackedBits:
    """Correlated bits: a few hidden causes, rates between rare and frequent."""
    random = np.random.default_rng(seed)
    causes = random.random((rows, 6)) < 0.3
    log_odds = causes @ random.normal(0, 2, (6, n_latents)) + random.normal(-2, 1, n_latents)
    return PackedBits.pack(
        torch.from_numpy(random.random(log_odds.shape) < 1 / (1 + np.exp(-log_odds)))
    )


def some_model(bits: PackedBits, spread: float = 0.3) -> Autoregression:
    """The tree of these bits, with some weight on every pair so that every sum counts."""
    tree = chow_liu(co_occurrence(bits), len(bits))
    model = Autoregression._from_tree(
        tree, TreeCounts.of(bits, Blocks(np.array([0, len(bits)])), tree)
    )
    random, first = torch.Generator().manual_seed(1), 0
    for i, weights in enumerate(model.weights):
        noise = spread * torch.randn(weights.shape, generator=random)
        model.weights[i] = weights + noise.triu(1 - first)
        first = len(weights)
    return model


def code_lengths(model: Quantised, bits: PackedBits) -> torch.Tensor:
    """Bits that each row costs under the integers that are coded, float64 `[rows]`."""
    parts = []
    for symbols, probabilities in model.chunks(bits.numpy()):
        chosen = np.take_along_axis(probabilities, symbols[..., None], 2)[..., 0]
        parts.append(-np.log2(chosen.astype(np.float64)).sum(0))
    return torch.from_numpy(np.concatenate(parts))


def some_documents(rows: int) -> torch.Tensor:
    """Documents of 1, 2, 3, ... rows, with ids that are neither small nor sorted."""
    place = torch.repeat_interleave(torch.arange(rows), torch.arange(rows) + 1)[:rows]
    return (place * 7919 + 5) % 10007 - 17


@pytest.fixture
def file(tmp_path: Path) -> Compressed:
    bits = some_bits(120, 70)
    return compress(
        bits, some_documents(120), some_model(bits), tmp_path / "codes.bin", {"of": "a test"}
    )


def decoded(file: Compressed) -> torch.Tensor:
    return torch.cat([bits.words for _, bits in file])


@pytest.mark.parametrize("n_latents", [1, 2, 63, 64, 65, 200])
def test_every_bit_comes_back(tmp_path: Path, n_latents: int) -> None:
    bits, documents = some_bits(150, n_latents), some_documents(150)
    compress(bits, documents, some_model(bits), tmp_path / "codes.bin", {"store": "there"})
    file = Compressed(tmp_path / "codes.bin")
    assert torch.equal(decoded(file), bits.words)
    assert (file.n_latents, file.rows, file.about) == (n_latents, 150, {"store": "there"})
    assert file.documents.tolist() == list(dict.fromkeys(documents.tolist()))
    assert sum(vars(file.sizes).values()) == file.path.stat().st_size
    assert file.verify() == []


def test_bits_the_model_was_not_fitted_to_come_back(tmp_path: Path) -> None:
    """Latents constant in the fit, and rows that contradict it, at the price of a surprise."""
    fitted = some_bits(5000, 80)
    on = fitted.unpack()
    on[:, :20], on[:, 20:40] = 0, 1
    fitted = PackedBits.pack(on)
    model = some_model(fitted, spread=0)
    contrary = PackedBits.pack(1 - on[:50])
    for bits in (contrary, PackedBits.pack(torch.zeros(9, 80)), PackedBits.pack(torch.ones(9, 80))):
        file = compress(
            bits, torch.zeros(len(bits), dtype=torch.int64), model, tmp_path / "codes.bin", {}
        )
        assert torch.equal(decoded(file), bits.words)
    assert float(code_lengths(Quantised.of(model), contrary).mean()) < 80 * 24


def test_extreme_weights_are_clamped(tmp_path: Path) -> None:
    bits = some_bits(60, 90)
    model = some_model(bits, spread=1e4)
    model.biases *= 1e9
    file = compress(bits, some_documents(60), model, tmp_path / "codes.bin", {})
    assert torch.equal(decoded(file), bits.words)


def test_a_fitted_model_of_several_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoregression, "BLOCK", 64)
    monkeypatch.setattr(autoregression, "USUAL", autoregression.Schedule(20, 40))
    bits = some_bits(1200, 150)
    model = Autoregression.fit(bits, torch.arange(1200) // 100)
    assert len(model.weights) == 3
    exact, quantised = (
        model.code_lengths(bits).mean(),
        code_lengths(Quantised.of(model), bits).mean(),
    )
    assert float(quantised) == pytest.approx(float(exact), rel=0.01)
    file = compress(bits, torch.arange(1200) // 300, model, tmp_path / "codes.bin", {})
    assert torch.equal(decoded(file), bits.words)


@pytest.mark.parametrize("rows", [300, 3])
def test_streams_are_as_long_as_the_code(tmp_path: Path, rows: int) -> None:
    """Within 2 % and two words, 64 bits, for each document."""
    bits = some_bits(900, 130)
    documents, model = torch.arange(900) // rows, some_model(bits)
    file = compress(bits, documents, model, tmp_path / "codes.bin", {})
    length = float(code_lengths(Quantised.of(model), bits).sum())
    assert length - 64 * len(file) <= 8 * file.sizes.streams <= 1.02 * length + 64 * len(file)


def test_chunks_of_rows_change_nothing_but_the_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bits, documents = some_bits(100, 40), torch.zeros(100, dtype=torch.int64)
    monkeypatch.setattr(codec, "CELLS", 40 * 7)
    file = compress(bits, documents, some_model(bits), tmp_path / "codes.bin", {})
    monkeypatch.undo()  # the file says how many rows a chunk has
    assert torch.equal(decoded(Compressed(file.path)), bits.words)


def test_documents_decode_alone_and_in_any_order(file: Compressed) -> None:
    all_of_them = dict(iter(file))
    for document in reversed(file.documents.tolist()):
        assert torch.equal(Compressed(file.path).read(document).words, all_of_them[document].words)
    with pytest.raises(BitlensError, match="has no document 4711"):
        file.read(4711)


def test_no_rows(tmp_path: Path) -> None:
    bits = some_bits(50, 30)
    file = compress(
        bits[:0], torch.zeros(0, dtype=torch.int64), some_model(bits), tmp_path / "codes.bin", {}
    )
    assert (len(file), file.rows, file.sizes.streams, file.verify()) == (0, 0, 0, [])


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


def test_a_flipped_byte_in_a_stream_is_in_its_document(file: Compressed) -> None:
    bits = dict(iter(file))
    i = 7
    hurt = file.documents[i].item()
    for at in (file._offsets[i], file._offsets[i + 1] - 1):
        flip(file.path, int(at))
        again = Compressed(file.path)
        assert again.verify() == [hurt]
        with pytest.raises(BitlensError, match=f"Document {hurt} of .* is damaged"):
            again.read(hurt)
        assert all(torch.equal(again.read(d).words, b.words) for d, b in bits.items() if d != hurt)
        flip(file.path, int(at))


def test_a_stream_that_decodes_to_other_bits_is_damaged(file: Compressed) -> None:
    """As with a coder of another version: whole, yet not what was compressed."""
    file.model.table[:] = file.model.table[::-1].copy()
    assert file.verify()


def test_flipped_bytes_before_the_streams(file: Compressed) -> None:
    header = PREFIX.size + PREFIX.unpack(file.path.read_bytes()[: PREFIX.size])[1]
    index = header + file.sizes.model
    places = {
        0: "is not a file",
        8: "header",
        12: "header",
        40: "header",
        header: "model",
        index - 1: "model",
    }
    for at, part in {**places, index: "index", int(file._offsets[0]) - 1: "index"}.items():
        flip(file.path, at)
        with pytest.raises(BitlensError, match=part):
            Compressed(file.path)
        flip(file.path, at)
    assert Compressed(file.path).verify() == []


def test_truncated_and_foreign_files(file: Compressed, tmp_path: Path) -> None:
    whole = file.path.read_bytes()
    for length in [0, 5, 8, 15, 16, 100, len(whole) // 2, int(file._offsets[0]), len(whole) - 1]:
        file.path.write_bytes(whole[:length])
        with pytest.raises(BitlensError, match=r"damaged|truncated|not a file"):
            Compressed(file.path)
    file.path.write_bytes(whole + b"more")
    with pytest.raises(BitlensError, match="appended"):
        Compressed(file.path)
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(BitlensError, match="cannot be read"):
            Compressed(path)


@pytest.mark.parametrize(
    ("changed", "advice"),
    [
        ({"schema": 2}, "upgrade bitlens"),
        ({"schema": 2, "residual": {"dtype": "float32", "d": 5}}, "not read any more"),
    ],
)
def test_another_schema_is_refused(
    file: Compressed, changed: dict[str, object], advice: str
) -> None:
    data = file.path.read_bytes()
    _, length, _ = PREFIX.unpack(data[: PREFIX.size])
    header = json.loads(data[PREFIX.size : PREFIX.size + length])
    text = json.dumps({**header, **changed}).encode()
    head = struct.pack("<8sII", compressed.MAGIC, len(text), zlib.crc32(text))
    file.path.write_bytes(head + text + data[PREFIX.size + length :])
    with pytest.raises(BitlensError, match=advice):
        Compressed(file.path)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    bits = some_bits(30, 20)
    model, out = some_model(bits), tmp_path / "codes.bin"
    with pytest.raises(BitlensError, match="do not go with"):
        compress(bits, torch.zeros(29, dtype=torch.int64), model, out, {})
    with pytest.raises(BitlensError, match="do not go with"):
        compress(some_bits(30, 21), torch.zeros(30, dtype=torch.int64), model, out, {})
    with pytest.raises(BitlensError, match="not together"):
        compress(bits, torch.arange(30) % 2, model, out, {})
    model.weights[0][0, 1] = float("nan")
    with pytest.raises(BitlensError, match="not finite"):
        compress(bits, torch.zeros(30, dtype=torch.int64), model, out, {})
    assert list(tmp_path.iterdir()) == []


GOLDEN_IDS = torch.tensor([3] * 20 + [1] + [2] * 39)


def golden_bits() -> PackedBits:
    i, j = torch.arange(60)[:, None], torch.arange(70)
    return PackedBits.pack((i * i * 31 + i * j * 17 + j * 7) % 97 < 5 + j % 30)


def test_the_golden_file_still_decodes(tmp_path: Path) -> None:
    """Written once, by the first version of the format: `python tests/test_codec.py` made it."""
    file = Compressed(shutil.copy(GOLDEN, tmp_path))
    assert file.documents.tolist() == [3, 1, 2]
    assert torch.equal(decoded(file), golden_bits().words)


def test_files_are_still_written_as_the_golden_one(tmp_path: Path) -> None:
    bits = golden_bits()
    file = compress(bits, GOLDEN_IDS, some_model(bits), tmp_path / "codes.bin", {"golden": 1})
    assert file.path.read_bytes() == GOLDEN.read_bytes()


if __name__ == "__main__":
    print(
        compress(golden_bits(), GOLDEN_IDS, some_model(golden_bits()), GOLDEN, {"golden": 1}).sizes
    )
