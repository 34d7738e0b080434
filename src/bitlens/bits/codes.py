"""The packed bits of a corpus, on disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch

from bitlens.bits.packed import PackedBits
from bitlens.bits.shards import BitShards
from bitlens.bits.words import words_for
from bitlens.errors import BitlensError
from bitlens.files import (
    read_manifest,
    read_tensors,
    required,
    verify_shard,
    write_json,
    write_tensors,
)
from bitlens.forms import require_columns
from bitlens.remote import is_remote, place

SCHEMA = 1
KIND = "bitlens.codes"
MANIFEST = "manifest.json"


class TextRows(Protocol):
    """Rows in the order of their text: `Codes`, a store, or what was read now."""

    @property
    def token(self) -> torch.Tensor:
        """Token id of each row"""
        ...

    @property
    def document(self) -> torch.Tensor:
        """Document of each row"""
        ...


class Columns(TextRows, Protocol):
    """What is known of rows beside hidden states or bits: `Codes`, or the store of their origin."""

    @property
    def path(self) -> Path:
        """The folder"""
        ...

    @property
    def manifest(self) -> dict[str, Any]:
        """What the folder says of itself"""
        ...

    @property
    def position(self) -> torch.Tensor:
        """Position of each row in the context that the model saw"""
        ...


class Codes:
    """Packed bits with each row's token, document and position: what every reader of codes takes.

    On disk: a folder with `manifest.json` and safetensors shards of `bits` (uint64 `[rows,
    words]`), `token`, `document`, `position` and `usual` (bool: not of outlying norm). Shards are
    memory-mapped; `bits` and each column are concatenated on first use. `shards` and `parts` give
    the bits without that.
    """

    def __init__(self, path: Path | str, verify: bool = True) -> None:
        """verify: compare every shard with its checksum first."""
        self.path = place(path)
        manifest = self.path / MANIFEST
        self.manifest = read_manifest(manifest, SCHEMA, "a folder of codes")
        if self.manifest.get("kind") != KIND:
            raise BitlensError(f"{self.path} is a folder of another kind, not of codes.")
        if self.manifest.get("complete") is False:
            raise BitlensError(f"The codes in {self.path} are unfinished; encode the store again.")
        self.n_latents: int = required(self.manifest, "n_latents", manifest)
        self.rows: int = required(self.manifest, "rows", manifest)
        if verify:
            for shard in required(self.manifest, "shards", manifest):
                verify_shard(self.path / shard["file"], shard["sha256"])

    @cached_property
    def _shards(self) -> list[dict[str, torch.Tensor]]:
        """The columns of every shard, memory-mapped."""
        parts = []
        for shard in self.manifest["shards"]:
            path = self.path / shard["file"]
            parts.append(read_tensors(path, digest=shard["sha256"]))
            words = words_for(self.n_latents)
            require_columns(parts[-1], ("bits",), path, shard["rows"], words)
            last, used = parts[-1]["bits"][:, -1:].view(torch.int64), self.n_latents % 64
            if used and (last >> used).any():  # kernels trust them
                raise BitlensError(
                    f"{path} is damaged: it has bits of more than {self.n_latents:,} latents; "
                    "restore it or encode the store again."
                )
        self._joined: dict[str, torch.Tensor] = {}
        return parts

    def _column(self, name: str) -> torch.Tensor:
        shards = self._shards
        for shard, columns in zip(self.manifest["shards"], shards, strict=True):
            if name not in columns:  # whose bits can be read all the same
                raise BitlensError(
                    f"{self.path / shard['file']} lacks '{name}'; encode the store again."
                )
        if len(shards) == 1:
            return shards[0][name]  # stays memory-mapped
        if name not in self._joined:
            self._joined[name] = torch.cat([shard[name] for shard in shards])
        return self._joined[name]

    def shards(self) -> Iterator[tuple[int, PackedBits]]:
        """(first row, bits) of one shard after another, memory-mapped"""
        first = 0
        for shard in self._shards:
            yield first, PackedBits(shard["bits"].view(torch.int64), self.n_latents)
            first += len(shard["bits"])

    @property
    def parts(self) -> BitShards:
        """The bits of all rows, where they are on disk"""
        none = torch.empty(0, words_for(self.n_latents), dtype=torch.int64)
        parts = [bits for _, bits in self.shards()]
        return BitShards(parts or [PackedBits(none, self.n_latents)])

    def __repr__(self) -> str:
        hook = (self.manifest.get("hook") or {}).get("module")
        size = f"{self.rows:,} rows of {self.n_latents:,} bits"
        return f"Codes({self.path}: {size}, {self.manifest.get('model')} at {hook})"

    def __len__(self) -> int:
        return self.rows

    @property
    def bits(self) -> PackedBits:
        """The bits of all rows"""
        return PackedBits(self._column("bits").view(torch.int64), self.n_latents)

    @property
    def token(self) -> torch.Tensor:
        """Token id of each row, int32 `[rows]`"""
        return self._column("token")

    @property
    def document(self) -> torch.Tensor:
        """Document of each row, int64 `[rows]`"""
        return self._column("document")

    @property
    def position(self) -> torch.Tensor:
        """Position of each row in the context that the model saw, int32 `[rows]`"""
        return self._column("position")

    @property
    def usual(self) -> torch.Tensor:
        """Which rows are not of outlying norm, bool `[rows]`; all in codes that do not say"""
        if any("usual" not in shard for shard in self._shards):
            return torch.ones(len(self), dtype=torch.bool)
        return self._column("usual")

    @property
    def outliers(self) -> int:
        """Rows of outlying norm"""
        return int((~self.usual).sum())

    def require_run(self, run: Path, n_latents: int | None) -> None:
        """BitlensError for a run of another width than that of these codes."""
        if n_latents != self.n_latents:
            raise BitlensError(
                f"{run} has {n_latents} latents, but the codes {self.path} have {self.n_latents}; "
                "name the run and the codes that belong together."
            )

    @staticmethod
    def write(
        path: Path,
        parts: Iterable[tuple[PackedBits, dict[str, torch.Tensor]]],
        n_latents: int,
        about: dict[str, Any],
    ) -> Codes:
        """Write a shard for each part: bits, and the columns of the same rows. about: what the
        manifest says of their origin (autoencoder, store, model, hook point)."""
        if not is_remote(path):
            path.mkdir(parents=True, exist_ok=True)
        head = {"schema": SCHEMA, "kind": KIND}
        write_json(path / MANIFEST, {**head, "complete": False})
        shards: list[dict[str, Any]] = []
        for bits, columns in parts:
            file = f"codes-{len(shards):05d}.safetensors"
            words = bits.words.cpu().view(torch.uint64)
            digest = write_tensors(path / file, {"bits": words, **columns})
            shards.append({"file": file, "rows": len(bits), "sha256": digest})
        rows = sum(shard["rows"] for shard in shards)
        manifest = {**head, "complete": True, "rows": rows, "n_latents": n_latents, **about}
        write_json(path / MANIFEST, {**manifest, "shards": shards})
        return Codes(path)
