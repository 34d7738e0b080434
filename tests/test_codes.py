"""Codes on disk: the format to the byte, checksums, schema."""

import hashlib
import json
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from bitlens.bits import Codes, PackedBits
from bitlens.errors import BitlensError

SHARD = "codes-00000.safetensors"


def columns(start: int, rows: int) -> dict[str, torch.Tensor]:
    index = torch.arange(start, start + rows)
    return {"token": (index * 3).int(), "document": index // 4, "position": (index % 4).int()}


@pytest.fixture
def written(tmp_path):
    """Codes of 13 rows and 70 latents in two shards, and the bits that went in."""
    bits = (torch.rand(13, 70, generator=torch.Generator().manual_seed(0)) < 0.3).float()
    parts = [(PackedBits.pack(bits[:8]), columns(0, 8)), (PackedBits.pack(bits[8:]), columns(8, 5))]
    return Codes.write(tmp_path / "codes", parts, 70, {"autoencoder": "run"}), bits


def golden_shard() -> bytes:
    """A shard written by hand: 2 rows of 66 latents, row 0 with latents 0 and 65, row 1 with latent
    63."""
    data = {
        "bits": ("U64", [2, 2], struct.pack("<4Q", 1, 1 << 1, 1 << 63, 0)),
        "document": ("I64", [2], struct.pack("<2q", 0, 7)),
        "position": ("I32", [2], struct.pack("<2i", 5, 1)),
        "token": ("I32", [2], struct.pack("<2i", 12, 34)),
    }
    header, body = {}, b""
    for name, (dtype, shape, octets) in data.items():
        header[name] = {
            "dtype": dtype,
            "shape": shape,
            "data_offsets": [len(body), len(body) + len(octets)],
        }
        body += octets
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    return struct.pack("<Q", len(head)) + head + body


def by_hand(folder, **changes):
    folder.mkdir()
    (folder / SHARD).write_bytes(golden_shard())
    digest = hashlib.sha256(golden_shard()).hexdigest()
    shards = [{"file": SHARD, "rows": 2, "sha256": digest}]
    manifest = {
        "schema": 1,
        "kind": "bitlens.codes",
        "rows": 2,
        "n_latents": 66,
        "shards": shards,
        **changes,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_what_is_written_is_read(written):
    codes, bits = written
    again = Codes(codes.path, verify=True)
    assert (len(again), again.n_latents) == (13, 70)
    assert torch.equal(again.bits.unpack(), bits)
    for name, expected in columns(0, 13).items():
        assert torch.equal(getattr(again, name), expected)
        assert getattr(again, name).dtype == expected.dtype
    assert again.manifest["autoencoder"] == "run"
    assert [shard["rows"] for shard in again.manifest["shards"]] == [8, 5]


def test_a_shard_made_by_hand_is_read(tmp_path):
    codes = Codes(by_hand(tmp_path / "codes"), verify=True)
    assert codes.bits.unpack().nonzero().tolist() == [[0, 0], [0, 65], [1, 63]]
    assert (codes.token.tolist(), codes.document.tolist(), codes.position.tolist()) == (
        [12, 34],
        [0, 7],
        [5, 1],
    )


def test_a_written_shard_has_the_documented_bytes(tmp_path):
    bits = torch.zeros(2, 66)
    bits[0, 0] = bits[0, 65] = bits[1, 63] = 1
    Codes.write(tmp_path / "codes", [(PackedBits.pack(bits), columns(0, 2))], 66, {})
    octets = (tmp_path / "codes" / SHARD).read_bytes()
    (size,) = struct.unpack("<Q", octets[:8])
    header = json.loads(octets[8 : 8 + size])
    assert {
        name: (header[name]["dtype"], header[name]["shape"])
        for name in header
        if name != "__metadata__"
    } == {
        "bits": ("U64", [2, 2]),
        "token": ("I32", [2]),
        "document": ("I64", [2]),
        "position": ("I32", [2]),
    }
    begin, end = header["bits"]["data_offsets"]
    assert octets[8 + size + begin : 8 + size + end] == struct.pack("<4Q", 1, 2, 1 << 63, 0)
    manifest = json.loads((tmp_path / "codes" / "manifest.json").read_text())
    assert set(manifest) == {"schema", "kind", "complete", "rows", "n_latents", "shards"}
    assert manifest["shards"] == [
        {"file": SHARD, "rows": 2, "sha256": hashlib.sha256(octets).hexdigest()}
    ]


def test_an_altered_byte_is_found(written):
    codes, _ = written
    shard = codes.path / "codes-00001.safetensors"
    octets = bytearray(shard.read_bytes())
    octets[-1] ^= 1
    shard.write_bytes(octets)
    with pytest.raises(
        BitlensError, match=r"codes-00001\.safetensors is truncated or altered.*sha256"
    ):
        Codes(codes.path, verify=True)


def test_a_truncated_shard_is_named_even_without_verification(written):
    codes, _ = written
    shard = codes.path / SHARD
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(BitlensError, match=SHARD):
        _ = Codes(codes.path).bits


def test_a_missing_shard_is_named(written):
    codes, _ = written
    (codes.path / SHARD).unlink()
    with pytest.raises(BitlensError, match=f"{SHARD} is missing"):
        Codes(codes.path, verify=True)
    with pytest.raises(BitlensError, match=f"{SHARD} is missing"):
        _ = Codes(codes.path).token


def test_a_newer_schema_is_refused(tmp_path):
    with pytest.raises(BitlensError, match="schema 2, but this bitlens reads up to 1; upgrade"):
        Codes(by_hand(tmp_path / "codes", schema=2))


@pytest.mark.parametrize("key", ["n_latents", "rows"])
def test_a_manifest_without_a_key_is_refused(tmp_path, key):
    folder = by_hand(tmp_path / "codes")
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest[key]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BitlensError, match=f"lacks the key '{key}'"):
        Codes(folder)


def test_rows_that_do_not_match_the_manifest_are_refused(tmp_path):
    folder = by_hand(tmp_path / "codes", shards=[{"file": SHARD, "rows": 3, "sha256": ""}])
    with pytest.raises(BitlensError, match="its manifest tells of 3 rows"):
        _ = Codes(folder, verify=False).bits


def test_a_column_that_a_shard_lacks_is_named(written):
    codes, bits = written
    tensors = load_file(codes.path / "codes-00001.safetensors")
    del tensors["document"]
    save_file(tensors, codes.path / "codes-00001.safetensors")
    codes = Codes(codes.path, verify=False)
    assert torch.equal(codes.bits.unpack(), bits)
    with pytest.raises(BitlensError, match=r"codes-00001\.safetensors lacks 'document'; encode"):
        _ = codes.document


def test_a_folder_without_codes_is_refused(tmp_path):
    with pytest.raises(BitlensError, match="is not a folder of codes"):
        Codes(tmp_path)
