"""Hidden states on disk: safetensors shards, a manifest, exact shuffling.

A store is a folder with `manifest.json` and shards of `hidden [rows, d_in]` and, for every row, `token`, `document`,
`position` (in the context that the model saw), `context` (index into the shard's `context_tokens [contexts, length]`,
-1 is padding) and `norm`. Every shard is written whole or not at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bitlens.errors import BitlensError
from bitlens.files import read_manifest, read_tensors, required, verify_shard, write_json, write_tensors
from bitlens.hidden.source import HiddenSource, held_out
from bitlens.seeding import generator

SCHEMA = 1
MANIFEST = "manifest.json"
COLUMNS = ("token", "document", "position")
WINDOW_BYTES = 1 << 30
OUTLIER_MULTIPLE = 10.0


class Rows(NamedTuple):
    """Some rows of a store, in the order of the text: raw hidden states and their columns."""

    hidden: Tensor
    columns: dict[str, Tensor]


class ActivationStore(HiddenSource):
    """A finished store, memory-mapped. As a `HiddenSource` it gives the training rows.

    Held-out documents and rows of outlying norm (above `outlier_multiple` times the median norm, as recorded) are never
    trained on. Each shard's checksum is verified when the shard is first read.
    """

    def __init__(self, path: Path | str, test_fraction: float = 0.1) -> None:
        self.path = Path(path)
        file = self.path / MANIFEST
        if not file.exists() and self.path.is_dir() and list(self.path.glob(f"*/{MANIFEST}")):
            inside = ", ".join(str(p.parent) for p in sorted(self.path.glob(f"*/{MANIFEST}")))
            raise BitlensError(f"{self.path} holds a store for each hook point; name one of them: {inside}.")
        self.manifest = read_manifest(file, SCHEMA, "a store of hidden states")
        if self.manifest.get("kind") != "bitlens.store":
            raise BitlensError(f"{file} belongs to a folder of another kind, not to a store of hidden states.")
        if not self.manifest.get("complete"):
            raise BitlensError(f"The store {self.path} is unfinished; go on with its harvest.")
        self.shards: list[dict[str, Any]] = required(self.manifest, "shards", file)
        self.rows: int = required(self.manifest, "rows", file)
        self.d_in: int = required(self.manifest, "d_in", file)
        self.mean = torch.tensor(required(self.manifest, "mean", file), dtype=torch.float64).float()
        self.scale = float(required(self.manifest, "std", file))
        keys = (
            "model",
            "revision",
            "hook",
            "corpus",
            "context_length",
            "packed",
            "prepend_bos",
            "d_in",
            "rows",
            "std",
            "outlier_norm",
        )
        self.about = {"store": str(self.path), **{k: self.manifest.get(k) for k in keys}}
        self.test_fraction = test_fraction
        self._verified: set[str] = set()
        self._splits: list[tuple[np.ndarray, np.ndarray]] | None = None
        self._window: tuple[Any, Tensor] | None = None

    def __len__(self) -> int:
        return self.rows

    def __repr__(self) -> str:
        hook = (self.manifest.get("hook") or {}).get("module")
        return (
            f"ActivationStore({self.path}: {self.rows:,} rows of {self.d_in}, {self.manifest.get('model')} at {hook})"
        )

    def require_width(self, d_in: int) -> None:
        """Refuse an autoencoder whose width is not that of the rows."""
        if d_in != self.d_in:
            raise BitlensError(
                f"The store {self.path} holds hidden states of width {self.d_in}, the autoencoder takes {d_in}; "
                "use the store that it was trained on, or one of the same hook point."
            )

    def shard(self, index: int, names: list[str] | None = None) -> dict[str, Tensor]:
        """Tensors of one shard, memory-mapped."""
        entry = self.shards[index]
        path = self.path / entry["file"]
        if entry["file"] not in self._verified:
            verify_shard(path, entry["sha256"])
            self._verified.add(entry["file"])
        return read_tensors(path, names)

    def is_test(self, documents: Tensor) -> Tensor:
        """Which of these documents are held out -> bool, same shape."""
        return torch.from_numpy(held_out(documents.numpy(), self.test_fraction))

    def splits(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """For every shard the indices of its (training, test) rows, both without outliers."""
        if self._splits is None:
            limit = self.manifest.get("outlier_norm") or float("inf")
            self._splits = []
            for index in range(len(self.shards)):
                columns = self.shard(index, ["document", "norm"])
                usual = columns["norm"] <= limit
                test = self.is_test(columns["document"])
                self._splits.append(((usual & ~test).numpy().nonzero()[0], (usual & test).numpy().nonzero()[0]))
        return self._splits

    # --- training rows ------------------------------------------------------------------------------------------

    def windows(self, seed: int, epoch: int) -> list[Any]:
        order = torch.randperm(len(self.shards), generator=generator(seed, "shards", epoch)).tolist()
        windows: list[tuple[int, ...]] = []
        group: list[int] = []
        size = 0
        for index in order:
            bytes_here = self.shards[index]["bytes"]
            if group and size + bytes_here > WINDOW_BYTES:
                windows.append(tuple(group))
                group, size = [], 0
            group.append(index)
            size += bytes_here
        return [*windows, tuple(group)] if group else windows

    def window(self, key: Any) -> Tensor:
        if self._window is None or self._window[0] != key:
            self._window = None  # the former window is freed before the next is read
            parts = [self.shard(i, ["hidden"])["hidden"][torch.from_numpy(self.splits()[i][0])] for i in key]
            self._window = (key, parts[0] if len(parts) == 1 else torch.cat(parts))
        return self._window[1]

    def sample(self, n: int, seed: torch.Generator) -> Tensor:
        counts = np.array([len(train) for train, _ in self.splits()])
        total = int(counts.sum())
        if total <= 1 << 24:
            chosen = torch.randperm(total, generator=seed)[:n]
        else:
            chosen = torch.randint(total, (n,), generator=seed).unique()
        chosen = chosen.sort().values.numpy()
        ends = counts.cumsum()
        owner = np.searchsorted(ends, chosen, side="right")
        parts = []
        for index in np.unique(owner):
            inside = chosen[owner == index] - (ends[index] - counts[index])
            rows = torch.from_numpy(self.splits()[index][0][inside])
            parts.append(self.shard(int(index), ["hidden"])["hidden"][rows].float())
        return torch.cat(parts) if parts else torch.empty(0, self.d_in)

    # --- rows in the order of the text --------------------------------------------------------------------------

    def read(self, part: str = "all", block: int = 16384) -> Iterator[Rows]:
        """Rows in blocks, in the order of the text. part: `all` (outliers too), `train` or `test`."""
        for index, (train, test) in enumerate(self.splits()):
            tensors = self.shard(index)
            everything = np.arange(self.shards[index]["rows"])
            chosen = torch.from_numpy({"all": everything, "train": train, "test": test}[part])
            for rows in chosen.split(block):
                yield Rows(tensors["hidden"][rows], {name: tensors[name][rows] for name in COLUMNS})

    def contexts(self) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """For every shard the contexts that the model saw `[contexts, length]` (-1 is padding) and the rows' columns."""
        for index in range(len(self.shards)):
            names = [*COLUMNS, "context", "context_tokens"]
            if not self.manifest.get("context_length"):
                raise BitlensError(
                    f"The store {self.path} was imported without its text, so no model can be run on it."
                )
            tensors = self.shard(index, names)
            yield tensors.pop("context_tokens").long(), tensors


class StoreWriter:
    """Writes a store shard by shard. Killed at any moment, it goes on after the last whole shard."""

    def __init__(self, path: Path, about: dict[str, Any], outlier_multiple: float = OUTLIER_MULTIPLE) -> None:
        """about: what the manifest says of the origin; a store that is there already must say the same."""
        if not outlier_multiple >= 1:
            raise BitlensError(
                f"`outlier_multiple` must be at least 1, not {outlier_multiple}: below, usual rows are outliers."
            )
        self.path = path
        self.outlier_multiple = outlier_multiple
        self.about = about = {**about, "outlier_multiple": outlier_multiple}
        self.shards: list[dict[str, Any]] = []
        self.complete = False
        file = path / MANIFEST
        if file.exists():
            former = read_manifest(file, SCHEMA, "a store of hidden states")
            changed = [k for k, v in about.items() if former.get(k) != v]
            if changed:
                raise BitlensError(
                    f"{path} was begun with other settings ({', '.join(changed)} differ); resume it with the same ones, "
                    "or replace it with `overwrite=True`."
                )
            self.shards, self.complete = former["shards"], former["complete"]
        else:
            self._write_manifest({})

    @property
    def rows(self) -> int:
        return sum(shard["rows"] for shard in self.shards)

    @property
    def contexts(self) -> int:
        """Contexts that are done."""
        return sum(shard["contexts"] for shard in self.shards)

    def keep(self, shards: int) -> None:
        """Forget all but the first `shards` shards, which are then written again."""
        self.shards = self.shards[:shards]

    def add(self, hidden: Tensor, columns: dict[str, Tensor], contexts: Tensor | None = None, done: int = 0) -> None:
        """Write one shard. hidden `[rows, d_in]`; columns token, document, position and, with contexts
        `[contexts, length]`, context; done: contexts of the corpus that this shard covers."""
        file = f"shard-{len(self.shards):05d}.safetensors"
        norm = torch.linalg.vector_norm(hidden, dim=1, dtype=torch.float64)
        refuse_non_finite(norm, columns["document"], self.rows)
        tensors = {
            "hidden": hidden, "norm": norm.float(),
            "token": columns["token"].int(), "document": columns["document"].long(),
            "position": columns["position"].int(),
            "sum": hidden.sum(0, dtype=torch.float64), "square_sum": norm.square().sum(),
        }  # fmt: skip
        if contexts is not None:
            tensors |= {"context": columns["context"].int(), "context_tokens": contexts.int()}
        digest = write_tensors(self.path / file, tensors)
        size = (self.path / file).stat().st_size
        self.shards.append({"file": file, "rows": len(hidden), "contexts": done, "bytes": size, "sha256": digest})
        self._write_manifest({})

    def finish(self) -> ActivationStore:
        """Compute the standardisation over all rows but the outliers, and mark the store complete."""
        if not self.rows:
            raise BitlensError("The text gave no usable tokens: it is empty or holds only special tokens.")
        moments, norms, documents = [], [], 0
        for shard in self.shards:
            tensors = read_tensors(self.path / shard["file"], ["sum", "square_sum", "norm", "document"])
            moments.append((tensors["sum"], tensors["square_sum"]))
            norms.append(tensors["norm"])
            documents = max(documents, int(tensors["document"].max()) + 1) if len(tensors["document"]) else documents
        limit = self.outlier_multiple * float(torch.cat(norms).median())
        total = torch.stack([s for s, _ in moments]).sum(0)
        squares = torch.stack([q for _, q in moments]).sum()
        outliers = 0
        for shard, norm in zip(self.shards, norms, strict=True):
            out = norm > limit
            if out.any():
                rows = read_tensors(self.path / shard["file"], ["hidden"])["hidden"][out].double()
                total, squares, outliers = total - rows.sum(0), squares - rows.square().sum(), outliers + len(rows)
        n = self.rows - outliers
        mean = total / n
        variance = float(squares / n - mean.square().sum()) / len(mean)
        self._write_manifest(
            {
                "complete": True, "documents": documents, "mean": mean.tolist(), "std": max(variance, 0.0) ** 0.5,
                "outlier_norm": limit, "outliers": outliers,
            }
        )  # fmt: skip
        return ActivationStore(self.path)

    def _write_manifest(self, result: dict[str, Any]) -> None:
        head = {"schema": SCHEMA, "kind": "bitlens.store", "complete": False, "rows": self.rows}
        write_json(self.path / MANIFEST, {**head, **self.about, **result, "shards": self.shards})


def refuse_non_finite(norm: Tensor, document: Tensor, before: int = 0) -> None:
    """norm: of each row; before: rows that came before these. Names the first row and document with a NaN or infinity."""
    bad = (~torch.isfinite(norm)).nonzero()
    if len(bad):
        row = int(bad[0])
        raise BitlensError(
            f"Row {before + row} (document {int(document[row])}) has a NaN or infinite hidden state; "
            "load the model with `dtype='float32'`, or store with `store_dtype=torch.float32` if float16 overflowed."
        )
