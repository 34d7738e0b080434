"""The packed bits of a corpus, on disk."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import torch

from bitlens.bits.packed import PackedBits
from bitlens.errors import BitlensError
from bitlens.files import (
    read_manifest,
    read_tensors,
    required,
    verify_shard,
    write_json,
    write_tensors,
)

SCHEMA = 1
MANIFEST = "manifest.json"


class Columns(Protocol):
    """What is known of rows of hidden states beside themselves: of codes, or of the store that they were encoded from."""

    @property
    def path(self) -> Path: ...
    @property
    def manifest(self) -> dict[str, Any]: ...
    @property
    def token(self) -> torch.Tensor: ...
    @property
    def document(self) -> torch.Tensor: ...
    @property
    def position(self) -> torch.Tensor: ...


class Codes:
    """Packed bits with each row's token, document and position: the input of everything that reads codes.

    On disk: a folder with `manifest.json` and safetensors shards of `bits` (uint64 `[rows, words]`), `token`,
    `document`, `position` and `usual` (bool: not of outlying norm). Shards are memory-mapped; `bits` and the columns
    are concatenated on first use.
    """

    def __init__(self, path: Path | str, verify: bool = True) -> None:
        """verify: compare every shard with its checksum first; False leaves that out."""
        self.path = Path(path)
        self.manifest = read_manifest(self.path / MANIFEST, SCHEMA, "a folder of codes")
        if self.manifest.get("kind") != "bitlens.codes":
            raise BitlensError(f"{self.path} is a folder of another kind, not of codes.")
        if self.manifest.get("complete") is False:
            raise BitlensError(f"The codes in {self.path} are unfinished; encode the store again.")
        self.n_latents: int = required(self.manifest, "n_latents", self.path / MANIFEST)
        self.rows: int = required(self.manifest, "rows", self.path / MANIFEST)
        self._columns: dict[str, torch.Tensor] | None = None
        if verify:
            for shard in required(self.manifest, "shards", self.path / MANIFEST):
                verify_shard(self.path / shard["file"], shard["sha256"])

    def _load(self) -> dict[str, torch.Tensor]:
        if self._columns is None:
            parts = [read_tensors(self.path / shard["file"]) for shard in self.manifest["shards"]]
            for shard, part in zip(self.manifest["shards"], parts, strict=True):
                if len(part["bits"]) != shard["rows"]:
                    raise BitlensError(
                        f"Shard {self.path / shard['file']} does not have the rows its manifest states."
                    )
            self._columns = {
                k: parts[0][k] if len(parts) == 1 else torch.cat([p[k] for p in parts])
                for k in parts[0]
            }
        return self._columns

    def __repr__(self) -> str:
        hook = (self.manifest.get("hook") or {}).get("module")
        return f"Codes({self.path}: {self.rows:,} rows of {self.n_latents:,} bits, {self.manifest.get('model')} at {hook})"

    def __len__(self) -> int:
        return self.rows

    @property
    def bits(self) -> PackedBits:
        return PackedBits(self._load()["bits"].view(torch.int64), self.n_latents)

    @property
    def token(self) -> torch.Tensor:
        """Token id of each row, int32 `[rows]`"""
        return self._load()["token"]

    @property
    def document(self) -> torch.Tensor:
        """Document of each row, int64 `[rows]`"""
        return self._load()["document"]

    @property
    def position(self) -> torch.Tensor:
        """Position of each row in the context that the model saw, int32 `[rows]`"""
        return self._load()["position"]

    @property
    def usual(self) -> torch.Tensor:
        """Which rows are not of outlying norm, bool `[rows]`; all of them in codes that do not say"""
        return self._load().get("usual", torch.ones(len(self), dtype=torch.bool))

    @property
    def outliers(self) -> int:
        """Rows of outlying norm"""
        return int((~self.usual).sum())

    @staticmethod
    def write(
        path: Path,
        parts: Iterable[tuple[PackedBits, dict[str, torch.Tensor]]],
        n_latents: int,
        about: dict[str, Any],
    ) -> Codes:
        """Write `parts` (bits and the columns token, document, position, usual of the same rows), a shard each.

        about: what the manifest says of their origin (autoencoder, store, model, hook point).
        """
        path.mkdir(parents=True, exist_ok=True)
        head = {"schema": SCHEMA, "kind": "bitlens.codes"}
        write_json(path / MANIFEST, {**head, "complete": False})
        shards: list[dict[str, Any]] = []
        for bits, columns in parts:
            file = f"codes-{len(shards):05d}.safetensors"
            digest = write_tensors(
                path / file, {"bits": bits.words.cpu().view(torch.uint64), **columns}
            )
            shards.append({"file": file, "rows": len(bits), "sha256": digest})
        rows = sum(shard["rows"] for shard in shards)
        manifest = {**head, "complete": True, "rows": rows, "n_latents": n_latents, **about}
        write_json(path / MANIFEST, {**manifest, "shards": shards})
        return Codes(path)
