"""Writes activation stores."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitlens.errors import BitlensError
from bitlens.files import (
    read_manifest,
    read_sealed,
    read_tensors,
    required,
    tidy,
    write_json,
    write_sealed,
    write_tensors,
)
from bitlens.forms import fits
from bitlens.hidden.source import Spread, outlier_limit, refuse_non_finite, row_norms
from bitlens.hidden.store import KIND, MANIFEST, OUTLIER_MULTIPLE, SCHEMA, WHAT, ActivationStore

NOT_COMPARED = ("text", "documents_of")  # where a text lies; what it holds is named by `corpus`
SAID = {"file": str, "rows": int, "contexts": int, "bytes": int, "sha256": str}  # of a shard
LATER = ("model_dtype",)  # what stores begun by earlier versions go on without


class StoreWriter:
    """Writes a store by shards; killed at any moment, it goes on with those that are not whole.

    Until the store is complete every shard has a JSON file beside it with what the manifest will
    say of it, so several processes can each write some of the shards.
    """

    def __init__(
        self, path: Path, about: dict[str, Any], outlier_multiple: float = OUTLIER_MULTIPLE
    ) -> None:
        """about: what the manifest says of the origin; a store that is there must say the same."""
        if not outlier_multiple >= 1:
            raise BitlensError(f"`outlier_multiple` must be at least 1, not {outlier_multiple}.")
        self.path = path
        self.outlier_multiple = outlier_multiple
        self.about = {**about, "outlier_multiple": outlier_multiple}
        self.shards: dict[int, dict[str, Any]] = {}
        """what the manifest says, or will say, of each by its number"""
        self.complete = False
        if (path / MANIFEST).exists():
            self._compare(read_manifest(path / MANIFEST, SCHEMA, WHAT))
            self.look()
        else:
            self._write_manifest({})

    def _compare(self, former: dict[str, Any]) -> None:
        """Refuse to go on with what was begun with other settings."""
        self.about = {k: v for k, v in self.about.items() if k in former or k not in LATER}
        ignored, digest = [*NOT_COMPARED], self.about.get("model_digest")
        if digest is not None and former.get("model_digest") == digest:
            ignored.append("model")  # a folder, which may lie elsewhere now
        changed = [k for k, v in self.about.items() if k not in ignored and former.get(k) != v]
        if changed:
            raise BitlensError(
                f"{self.path} was begun with other settings ({', '.join(changed)} differ); resume "
                "it with the same ones, or replace it with `overwrite=True`."
            )
        self.about |= {k: former[k] for k in NOT_COMPARED if k in former}

    def look(self) -> None:
        """Which shards are there, whoever wrote them."""
        manifest = read_manifest(self.path / MANIFEST, SCHEMA, WHAT)
        self.complete = manifest.get("complete") is True
        # earlier versions had them there while they wrote
        self.shards = dict(enumerate(required(manifest, "shards", self.path / MANIFEST)))
        if self.complete:
            self._tidy()
            return
        for file in self.path.glob("shard-*.json"):
            with contextlib.suppress(BitlensError, ValueError):
                self.shards[int(file.stem.removeprefix("shard-"))] = read_sealed(file, WHAT)
        self.shards = {i: each for i, each in self.shards.items() if self._is_whole(i, each)}

    def _is_whole(self, number: int, shard: dict[str, Any]) -> bool:
        file = self.path / _file(number)
        if fits(shard, SAID) and shard["file"] == file.name:
            with contextlib.suppress(OSError):
                return file.stat().st_size == shard["bytes"]
        return False

    def _tidy(self) -> None:
        for file in self.path.glob("shard-*.json"):
            file.unlink(missing_ok=True)
        tidy(self.path)

    @property
    def rows(self) -> int:
        """Written so far."""
        return sum(shard["rows"] for shard in self.shards.values())

    def add(
        self,
        hidden: Tensor,
        columns: dict[str, Tensor],
        contexts: Tensor | None = None,
        done: int = 0,
        number: int | None = None,
    ) -> None:
        """Write one shard. hidden: `[rows, d_in]`. columns: token, document, position and, with
        contexts `[contexts, length]`, context. done: contexts of the corpus that it covers.
        number: of the shard, in the order of the text; by default the next."""
        number = len(self.shards) if number is None else number
        file = _file(number)
        norm = row_norms(hidden)
        known = all(i in self.shards for i in range(number))
        before = sum(self.shards[i]["rows"] for i in range(number)) if known else None
        refuse_non_finite(hidden, norm, columns, before, self.about.get("hook"))
        none = Spread(0, torch.zeros(hidden.shape[1], dtype=torch.float64), 0.0)
        spread = Spread.of(hidden) if len(hidden) else none
        tensors = {
            "hidden": hidden,
            "norm": norm.float(),
            "token": columns["token"].int(),
            "document": columns["document"].long(),
            "position": columns["position"].int(),
            "mean": spread.mean,
            "squares": torch.tensor(spread.squares, dtype=torch.float64),
        }
        if contexts is not None:
            tensors |= {"context": columns["context"].int(), "context_tokens": contexts.int()}
        about = (self.path / file).with_suffix(".json")
        about.unlink(missing_ok=True)  # it must not speak of another than this one
        digest = write_tensors(self.path / file, tensors)
        size = (self.path / file).stat().st_size
        shard = {"file": file, "rows": len(hidden), "contexts": done, "bytes": size}
        self.shards[number] = shard | {"sha256": digest}
        write_sealed(about, self.shards[number])

    def finish(self) -> ActivationStore:
        """Compute the standardisation over all usual rows, and mark the store complete."""
        if self.complete:
            return ActivationStore(self.path)
        if not self.rows:
            raise BitlensError(
                "The text gave no usable tokens: it is empty or holds only special tokens."
            )
        files = [self.path / shard["file"] for shard in self._in_order()]
        norms = [read_tensors(file, ["norm"])["norm"] for file in files]
        # Of each shard its documents alone are held, which are fewer than its rows.
        documents = [read_tensors(file, ["document"])["document"].unique() for file in files]
        limit = outlier_limit(torch.cat(norms), self.outlier_multiple)
        usual = [norm <= limit for norm in norms]
        spread = Spread.joined(
            _spread(file, rows) for file, rows in zip(files, usual, strict=True) if rows.any()
        )
        result = {
            "complete": True,
            "documents": len(torch.cat(documents).unique()),
            "mean": spread.mean.tolist(),
            "std": spread.std,
            "outlier_norm": limit,
            "outliers": self.rows - spread.rows,
            "zeros": sum(int((norm == 0).sum()) for norm in norms),
        }
        self._write_manifest(result)
        self._tidy()
        return ActivationStore(self.path)

    def _write_manifest(self, result: dict[str, Any]) -> None:
        head = {"schema": SCHEMA, "kind": KIND, "complete": False, "rows": self.rows}
        head |= self.about | result
        write_json(self.path / MANIFEST, {**head, "shards": self._in_order()})

    def _in_order(self) -> list[dict[str, Any]]:
        return [shard for _, shard in sorted(self.shards.items())]


def _file(number: int) -> str:
    return f"shard-{number:05d}.safetensors"


def _spread(file: Path, usual: Tensor) -> Spread:
    """Of the usual rows of a shard; what was written with it is of all its rows."""
    if usual.all():
        tensors = read_tensors(file, ["mean", "squares"])
        return Spread(len(usual), tensors["mean"], float(tensors["squares"]))
    return Spread.of(read_tensors(file, ["hidden"])["hidden"][usual])
