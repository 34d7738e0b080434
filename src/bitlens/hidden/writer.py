"""Writes activation stores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitlens.errors import BitlensError
from bitlens.files import read_manifest, read_tensors, write_json, write_tensors
from bitlens.hidden.source import Spread, outlier_limit, refuse_non_finite, row_norms
from bitlens.hidden.store import KIND, MANIFEST, OUTLIER_MULTIPLE, SCHEMA, WHAT, ActivationStore

NOT_COMPARED = ("text", "documents_of")  # where a text lies; what it holds is named by `corpus`


class StoreWriter:
    """Writes a store by shards; killed at any moment, it goes on after the last whole one."""

    def __init__(
        self, path: Path, about: dict[str, Any], outlier_multiple: float = OUTLIER_MULTIPLE
    ) -> None:
        """about: what the manifest says of the origin; a store that is there must say the same."""
        if not outlier_multiple >= 1:
            raise BitlensError(f"`outlier_multiple` must be at least 1, not {outlier_multiple}.")
        self.path = path
        self.outlier_multiple = outlier_multiple
        self.about = {**about, "outlier_multiple": outlier_multiple}
        self.shards: list[dict[str, Any]] = []
        self.complete = False
        if (path / MANIFEST).exists():
            self._continue(read_manifest(path / MANIFEST, SCHEMA, WHAT))
        else:
            self._write_manifest({})

    def _continue(self, former: dict[str, Any]) -> None:
        """Take over what was written by the writer of this manifest."""
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
        self.shards, self.complete = former["shards"], former["complete"]

    @property
    def rows(self) -> int:
        """Written so far."""
        return sum(shard["rows"] for shard in self.shards)

    @property
    def contexts(self) -> int:
        """Done so far."""
        return sum(shard["contexts"] for shard in self.shards)

    def add(
        self,
        hidden: Tensor,
        columns: dict[str, Tensor],
        contexts: Tensor | None = None,
        done: int = 0,
    ) -> None:
        """Write one shard. hidden: `[rows, d_in]`. columns: token, document, position and, with
        contexts `[contexts, length]`, context. done: contexts of the corpus that it covers."""
        file = f"shard-{len(self.shards):05d}.safetensors"
        norm = row_norms(hidden)
        refuse_non_finite(norm, columns["document"], self.rows)
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
        digest = write_tensors(self.path / file, tensors)
        size = (self.path / file).stat().st_size
        self.shards.append(
            {"file": file, "rows": len(hidden), "contexts": done, "bytes": size, "sha256": digest}
        )
        self._write_manifest({})

    def finish(self) -> ActivationStore:
        """Compute the standardisation over all usual rows, and mark the store complete."""
        if not self.rows:
            raise BitlensError(
                "The text gave no usable tokens: it is empty or holds only special tokens."
            )
        files = [self.path / shard["file"] for shard in self.shards]
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
        return ActivationStore(self.path)

    def _write_manifest(self, result: dict[str, Any]) -> None:
        head = {"schema": SCHEMA, "kind": KIND, "complete": False, "rows": self.rows}
        write_json(self.path / MANIFEST, {**head, **self.about, **result, "shards": self.shards})


def _spread(file: Path, usual: Tensor) -> Spread:
    """Of the usual rows of a shard; what was written with it is of all its rows."""
    if usual.all():
        tensors = read_tensors(file, ["mean", "squares"])
        return Spread(len(usual), tensors["mean"], float(tensors["squares"]))
    return Spread.of(read_tensors(file, ["hidden"])["hidden"][usual])
