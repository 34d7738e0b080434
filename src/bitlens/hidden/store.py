"""Hidden states on disk: safetensors shards, a manifest, exact shuffling.

A store is a folder with `manifest.json` and shards of `hidden [rows, d_in]` and, for every row, `token`, `document`,
`position` (in the context that the model saw), `context` (index into the shard's `context_tokens [contexts, length]`,
-1 is padding) and `norm`. Every shard is written whole or not at all.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from bitlens.errors import BitlensError
from bitlens.files import (
    read_manifest,
    read_tensors,
    required,
    verify_shard,
    write_json,
    write_tensors,
)
from bitlens.hidden.source import HiddenSource, Spread, held_out, outlier_limit
from bitlens.options import TEST_FRACTION
from bitlens.results import brief
from bitlens.seeding import generator

SCHEMA = 1
MANIFEST = "manifest.json"
COLUMNS = ("token", "document", "position")
WINDOW_BYTES = 1 << 30
OUTLIER_MULTIPLE = 10.0
FEW_DOCUMENTS = 50
NOT_COMPARED = ("text", "documents_of")  # where a text lies; what it holds is named by `corpus`


class Rows(NamedTuple):
    """Some rows of a store, in the order of the text: raw hidden states and their columns."""

    __repr__ = brief

    hidden: Tensor
    columns: dict[str, Tensor]


class ActivationStore(HiddenSource):
    """A finished store, memory-mapped. As a `HiddenSource` it gives the training rows.

    Held-out documents and rows of outlying norm (above `outlier_multiple` times the median norm, as recorded) are never
    trained on. Each shard's checksum is verified when the shard is first read.
    """

    def __init__(self, path: Path | str, test_fraction: float | None = None) -> None:
        """test_fraction: share of the documents that is held out; by default what the store was packed for, or a tenth, and
        where an autoencoder is measured that of its training."""
        self.path = Path(path)
        file = self.path / MANIFEST
        if not file.exists() and self.path.is_dir() and list(self.path.glob(f"*/{MANIFEST}")):
            inside = ", ".join(str(p.parent) for p in sorted(self.path.glob(f"*/{MANIFEST}")))
            raise BitlensError(
                f"{self.path} holds a store for each hook point; name one of them: {inside}."
            )
        self.manifest = read_manifest(file, SCHEMA, "a store of hidden states")
        if self.manifest.get("kind") != "bitlens.store":
            raise BitlensError(
                f"{file} belongs to a folder of another kind, not to a store of hidden states."
            )
        if not self.manifest.get("complete"):
            raise BitlensError(f"The store {self.path} is unfinished; go on with its harvest.")
        self.shards: list[dict[str, Any]] = required(self.manifest, "shards", file)
        self.rows: int = required(self.manifest, "rows", file)
        self.d_in: int = required(self.manifest, "d_in", file)
        self.mean = torch.tensor(required(self.manifest, "mean", file), dtype=torch.float64).float()
        self.scale = float(required(self.manifest, "std", file))
        keys = (
            "model", "revision", "model_digest", "hook", "corpus", "documents_of", "context_length", "packed",
            "prepend_bos", "d_in", "rows", "std", "outlier_norm",
        )  # fmt: skip
        self.about = {"store": str(self.path.resolve()), **{k: self.manifest.get(k) for k in keys}}
        self.chosen = test_fraction is not None
        limit = self.manifest.get("outlier_norm")
        self.outlier_norm = math.inf if limit is None else float(limit)
        self.test_fraction = self._fraction(test_fraction)
        self._verified: set[str] = set()
        self._splits: list[tuple[np.ndarray, np.ndarray]] | None = None
        self._window: tuple[Any, Tensor] | None = None

    @property
    def packed_for(self) -> float | None:
        """The share that had to be known when the contexts were packed, so that none holds both parts; None: any will do."""
        return self.manifest.get("test_fraction") if self.manifest.get("packed") else None

    def _fraction(self, asked: float | None) -> float:
        if asked is None:
            recorded = self.manifest.get("test_fraction")
            return TEST_FRACTION if recorded is None else float(recorded)
        if asked and self.packed_for is not None and asked != self.packed_for:
            raise BitlensError(
                f"The contexts of {self.path} were packed for a test fraction of {self.packed_for}; with {asked} some would "
                f"hold training and held-out text: take {self.packed_for}, or harvest with `test_fraction={asked}`."
            )
        return asked

    def __len__(self) -> int:
        return self.rows

    def __repr__(self) -> str:
        hook, documents = (
            (self.manifest.get("hook") or {}).get("module"),
            self.manifest.get("documents", 0),
        )
        return (
            f"ActivationStore({self.path}: {self.rows:,} rows of {self.d_in} from {documents:,} documents, "
            f"{self.manifest.get('model')} at {hook})"
        )

    def warnings(self) -> list[str]:
        """What to mind before numbers of this store are believed, a sentence each."""
        documents, zeros = self.manifest.get("documents", 0), self.manifest.get("zeros", 0)
        found = []
        if documents < FEW_DOCUMENTS:
            found.append(
                f"Only {documents:,} documents: the split into training and test and all intervals rest on documents; "
                "take more text, or cut it smaller, by paragraphs."
            )
        if zeros:
            found.append(
                f"{zeros:,} of {self.rows:,} rows are all zeros; if they are padding, take them out."
            )
        return found

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

    def split(self, test_fraction: float) -> Self:
        """The same store with this share of its documents held out."""
        other = copy.copy(self)
        other.chosen, other.test_fraction = True, self._fraction(test_fraction)
        other._splits = other._window = None
        return other

    def is_test(self, documents: Tensor) -> Tensor:
        """Which of these documents are held out -> bool, same shape."""
        return torch.from_numpy(held_out(documents.numpy(), self.test_fraction))

    def splits(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """For every shard the indices of its (training, test) rows, both without outliers."""
        if self._splits is None:
            self._splits = []
            for index in range(len(self.shards)):
                columns = self.shard(index, ["document", "norm"])
                usual = columns["norm"] <= self.outlier_norm
                test = self.is_test(columns["document"])
                self._splits.append(
                    ((usual & ~test).numpy().nonzero()[0], (usual & test).numpy().nonzero()[0])
                )
        return self._splits

    def usual(self) -> Tensor:
        """Which rows are not of outlying norm -> bool `[rows]`"""
        found = torch.zeros(len(self), dtype=torch.bool)
        first = 0
        for shard, (train, test) in zip(self.shards, self.splits(), strict=True):
            found[first + torch.from_numpy(np.concatenate([train, test]))] = True
            first += shard["rows"]
        return found

    # --- training rows ------------------------------------------------------------------------------------------

    def windows(self, seed: int, epoch: int) -> list[Any]:
        order = torch.randperm(
            len(self.shards), generator=generator(seed, "shards", epoch)
        ).tolist()
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
            parts = [
                self.shard(i, ["hidden"])["hidden"][torch.from_numpy(self.splits()[i][0])]
                for i in key
            ]
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
        """Rows in blocks, in the order of the text. part: `train`, `test`, `usual` (both) or `all` (outliers, too)."""
        for index, (train, test) in enumerate(self.splits()):
            tensors = self.shard(index)
            usual = np.sort(np.concatenate([train, test]))
            parts = {
                "train": train,
                "test": test,
                "usual": usual,
                "all": np.arange(self.shards[index]["rows"]),
            }
            chosen = torch.from_numpy(parts[part])
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

    def __init__(
        self, path: Path, about: dict[str, Any], outlier_multiple: float = OUTLIER_MULTIPLE
    ) -> None:
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
            known = about.get("model_digest")  # of a model in a folder, wherever that lies now
            moved = ("model",) if known is not None and former.get("model_digest") == known else ()
            changed = [
                k
                for k, v in about.items()
                if k not in (*NOT_COMPARED, *moved) and former.get(k) != v
            ]
            if changed:
                raise BitlensError(
                    f"{path} was begun with other settings ({', '.join(changed)} differ); resume it with the same ones, "
                    "or replace it with `overwrite=True`."
                )
            self.about = {**about, **{k: former[k] for k in NOT_COMPARED if k in former}}
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

    def add(
        self,
        hidden: Tensor,
        columns: dict[str, Tensor],
        contexts: Tensor | None = None,
        done: int = 0,
    ) -> None:
        """Write one shard. hidden `[rows, d_in]`; columns token, document, position and, with contexts
        `[contexts, length]`, context; done: contexts of the corpus that this shard covers."""
        file = f"shard-{len(self.shards):05d}.safetensors"
        norm = torch.linalg.vector_norm(hidden, dim=1, dtype=torch.float64)
        refuse_non_finite(norm, columns["document"], self.rows)
        spread = (
            Spread.of(hidden)
            if len(hidden)
            else Spread(0, hidden.new_zeros(hidden.shape[1]).double(), 0.0)
        )
        tensors = {
            "hidden": hidden, "norm": norm.float(),
            "token": columns["token"].int(), "document": columns["document"].long(),
            "position": columns["position"].int(),
            "mean": spread.mean, "squares": torch.tensor(spread.squares, dtype=torch.float64),
        }  # fmt: skip
        if contexts is not None:
            tensors |= {"context": columns["context"].int(), "context_tokens": contexts.int()}
        digest = write_tensors(self.path / file, tensors)
        size = (self.path / file).stat().st_size
        self.shards.append(
            {"file": file, "rows": len(hidden), "contexts": done, "bytes": size, "sha256": digest}
        )
        self._write_manifest({})

    def finish(self) -> ActivationStore:
        """Compute the standardisation over all rows but the outliers, and mark the store complete."""
        if not self.rows:
            raise BitlensError(
                "The text gave no usable tokens: it is empty or holds only special tokens."
            )
        norms, documents = [], []
        for shard in self.shards:
            tensors = read_tensors(self.path / shard["file"], ["norm", "document"])
            norms.append(tensors["norm"])
            documents.append(tensors["document"].unique())
        limit = outlier_limit(torch.cat(norms), self.outlier_multiple)
        spread = Spread.joined(
            self._spread(shard["file"], norm <= limit)
            for shard, norm in zip(self.shards, norms, strict=True)
            if (norm <= limit).any()
        )
        self._write_manifest(
            {
                "complete": True, "documents": len(torch.cat(documents).unique()), "mean": spread.mean.tolist(),
                "std": spread.std, "outlier_norm": limit, "outliers": self.rows - spread.rows,
                "zeros": sum(int((norm == 0).sum()) for norm in norms),
            }
        )  # fmt: skip
        return ActivationStore(self.path)

    def _spread(self, file: str, usual: Tensor) -> Spread:
        """Of the usual rows of a shard; what was written with it is of all its rows."""
        if usual.all():
            tensors = read_tensors(self.path / file, ["mean", "squares"])
            return Spread(len(usual), tensors["mean"], float(tensors["squares"]))
        return Spread.of(read_tensors(self.path / file, ["hidden"])["hidden"][usual])

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
