"""The activation store: hidden states on disk, as safetensors shards and a manifest.

A store is a folder with `manifest.json` and shards of `hidden [rows, d_in]` and, for every row,
`token`, `document`, `position` (in the context that the model saw), `context` (index into the
shard's `context_tokens [contexts, length]`, -1 is padding) and `norm`. Every shard is written whole
or not at all.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from bitlens.cache import ahead, has
from bitlens.errors import BitlensError
from bitlens.files import read_manifest, read_tensors, required, verify_shard
from bitlens.forms import fits, require_columns
from bitlens.hidden.source import HiddenSource, held_out, refuse_non_finite, row_norms
from bitlens.options import TEST_FRACTION
from bitlens.remote import is_remote, place
from bitlens.results import brief
from bitlens.seeding import generator

SCHEMA = 1
KIND = "bitlens.store"
WHAT = "a store of hidden states"
MANIFEST = "manifest.json"
AT_ONCE = 4  # remote shards, or columns of them, that are fetched at once
COLUMNS = ("token", "document", "position")
ABOUT = (
    *("model", "revision", "model_digest", "hook", "corpus", "documents_of", "context_length"),
    *("packed", "prepend_bos", "d_in", "rows", "std", "outlier_norm"),
)
WINDOW_BYTES = 1 << 30
WHOLE_BYTES = 4 << 30  # of a store that is read whole before its rows are used
OUTLIER_MULTIPLE = 10.0  # of the median norm
FEW_DOCUMENTS = 50


class Rows(NamedTuple):
    """Some rows, in the order of the text."""

    __repr__ = brief

    hidden: Tensor
    """raw hidden states `[rows, d_in]`"""
    columns: dict[str, Tensor]
    """`token`, `document` and `position`, `[rows]` each"""


class Split(NamedTuple):
    """Indices of a shard's rows, int64, without those of outlying norm."""

    train: Tensor
    test: Tensor


class ActivationStore(HiddenSource):
    """A finished store, memory-mapped. As a `HiddenSource` it gives the training rows: no held-out
    documents, no rows of outlying norm. Each shard's checksum is verified when it is first read; of
    stores of more than WHOLE_BYTES, when its hidden states are."""

    def __init__(self, path: Path | str, test_fraction: float | None = None) -> None:
        """test_fraction: share of the documents that is held out; by default what the store was
        packed for, or a tenth, and where an autoencoder is measured that of its training."""
        self.path = place(path)
        file = self.path / MANIFEST
        if not file.exists() and (several := sorted(self.path.glob(f"*/{MANIFEST}"))):
            raise BitlensError(
                f"{self.path} holds a store for each hook point; name one of them: "
                f"{', '.join(str(manifest.parent) for manifest in several)}."
            )
        self.manifest = read_manifest(file, SCHEMA, WHAT)
        if self.manifest.get("kind") != KIND:
            raise BitlensError(f"{file} belongs to a folder of another kind, not to {WHAT}.")
        if not self.manifest.get("complete"):
            raise BitlensError(f"The store {self.path} is unfinished; go on with its harvest.")
        self.shards: list[dict[str, Any]] = required(self.manifest, "shards", file)
        if not fits(self.shards, [{"bytes": int}]):
            raise BitlensError(f"{file} is damaged: its shards lack 'bytes'; restore it.")
        self.rows: int = required(self.manifest, "rows", file)
        self.d_in: int = required(self.manifest, "d_in", file)
        self.mean = torch.tensor(required(self.manifest, "mean", file), dtype=torch.float64).float()
        self.scale = float(required(self.manifest, "std", file))
        recorded = {key: self.manifest.get(key) for key in ABOUT}
        self.about = {"store": str(self.path.resolve()), **recorded}
        limit = self.manifest.get("outlier_norm")
        self.outlier_norm = math.inf if limit is None else float(limit)
        self.chosen = test_fraction is not None
        self.test_fraction = self._fraction(test_fraction)
        self._bytes = sum(shard["bytes"] for shard in self.shards)
        self._verified: set[str] = set()
        self._finite: set[int] = set()
        self._splits: list[Split] | None = None
        self._window: tuple[Any, Tensor] | None = None
        self._next: dict[Any, Any] = {}  # what is read after each window

    @property
    def packed_for(self) -> float | None:
        """The test fraction that contexts are packed for, so that none holds both parts."""
        return self.manifest.get("test_fraction") if self.manifest.get("packed") else None

    def _fraction(self, asked: float | None) -> float:
        if asked is None:
            recorded = self.manifest.get("test_fraction")
            return TEST_FRACTION if recorded is None else float(recorded)
        if not 0 <= asked < 1:
            raise BitlensError(f"`test_fraction` must be in [0, 1), not {asked}.")
        if asked and self.packed_for is not None and asked != self.packed_for:
            raise BitlensError(
                f"The contexts of {self.path} were packed for a test fraction of {self.packed_for};"
                f" with {asked} some would hold training and held-out text: take "
                f"{self.packed_for}, or harvest with `test_fraction={asked}`."
            )
        return asked

    def __len__(self) -> int:
        return self.rows

    def __repr__(self) -> str:
        hook = (self.manifest.get("hook") or {}).get("module")
        return (
            f"ActivationStore({self.path}: {self.rows:,} rows of {self.d_in} from "
            f"{self.manifest.get('documents') or 0:,} documents, {self.manifest.get('model')} at "
            f"{hook})"
        )

    def warnings(self) -> list[str]:
        """What to mind before numbers of this store are believed, a sentence each."""
        documents, zeros = self.manifest.get("documents") or 0, self.manifest.get("zeros", 0)
        sentences = []
        if documents < FEW_DOCUMENTS:
            sentences.append(
                f"Only {documents:,} documents: the split into training and test and all intervals "
                "rest on documents; take more text, or cut it smaller, by paragraphs."
            )
        if zeros:
            sentences.append(
                f"{zeros:,} of {self.rows:,} rows are all zeros; if they are padding, take them "
                "out."
            )
        return sentences

    def require_width(self, d_in: int) -> None:
        """Refuse an autoencoder whose width is not that of the rows."""
        if d_in != self.d_in:
            raise BitlensError(
                f"The store {self.path} holds hidden states of width {self.d_in}, the autoencoder "
                f"takes {d_in}; use the store of its training, or one of the same hook point."
            )

    def shard(self, index: int, names: list[str] | None = None) -> dict[str, Tensor]:
        """Tensors of one shard, memory-mapped: all, or those of these names."""
        entry = self.shards[index]
        path = self.path / entry["file"]
        # of large stores, and remote shards, the columns that split them are read alone; what they
        # belong to is compared when it is read
        alone = names is not None and not {*names} - {"document", "norm"}
        if entry["file"] not in self._verified and not (alone and self._bytes > WHOLE_BYTES):
            verify_shard(path, entry["sha256"])
            self._verified.add(entry["file"])
        alone = alone and is_remote(path) and not has(entry["sha256"])
        tensors = read_tensors(path, names, digest=None if alone else entry["sha256"])
        wanted = ("hidden", "norm", *COLUMNS) if names is None else names
        require_columns(tensors, wanted, path, entry["rows"], self.d_in)
        if "hidden" in tensors and index not in self._finite:
            self._require_finite(index, tensors["hidden"])
            self._finite.add(index)
        return tensors

    def _require_finite(self, index: int, hidden: Tensor) -> None:
        """Refuse what our writer does: another program's, or a hand, may not."""
        if len(hidden) and not torch.isfinite(torch.stack(hidden.aminmax())).all():
            before = sum(shard["rows"] for shard in self.shards[:index])
            path, hook = self.path / self.shards[index]["file"], self.manifest.get("hook")
            origin = read_tensors(path, ["document", "position"])
            refuse_non_finite(hidden, row_norms(hidden), origin, before, hook, path)

    def _in_order(self, names: list[str] | None = None) -> Iterator[dict[str, Tensor]]:
        """Of one shard after another, as `shard`; those that follow are fetched ahead."""
        for index in range(len(self.shards)):
            self._ahead(range(index, min(index + AT_ONCE, len(self.shards))))
            yield self.shard(index, names)

    def _ahead(self, shards: Iterable[int]) -> None:
        """Begin to fetch these shards, if they are remote."""
        if is_remote(self.path):
            entries = [self.shards[index] for index in shards]
            ahead((self.path / e["file"], e["sha256"], e["bytes"]) for e in entries)

    def _columns(self, names: list[str]) -> Iterator[dict[str, Tensor]]:
        """Small columns of one shard after another; of remote ones, several at once."""
        if not is_remote(self.path):
            yield from (self.shard(index, names) for index in range(len(self.shards)))
            return
        with ThreadPoolExecutor(AT_ONCE) as threads:
            yield from threads.map(lambda index: self.shard(index, names), range(len(self.shards)))

    def split(self, test_fraction: float) -> Self:
        """The same store with this share of its documents held out."""
        other = copy.copy(self)
        other.chosen, other.test_fraction = True, self._fraction(test_fraction)
        other._splits = other._window = None
        return other

    def is_test(self, documents: Tensor) -> Tensor:
        """Which of these documents are held out -> bool, same shape."""
        return torch.from_numpy(held_out(documents.numpy(), self.test_fraction))

    def splits(self) -> list[Split]:
        """The training and test rows of every shard."""
        if self._splits is None:
            splits = []
            for columns in self._columns(["document", "norm"]):
                usual = columns["norm"] <= self.outlier_norm
                test = self.is_test(columns["document"])
                parts = (usual & ~test, usual & test)
                splits.append(Split(*(part.nonzero()[:, 0] for part in parts)))
            self._splits = splits
        return self._splits

    def usual(self) -> Tensor:
        """Which rows are not of outlying norm -> bool `[rows]`."""
        return torch.cat([part["norm"] <= self.outlier_norm for part in self._columns(["norm"])])

    # --- training rows ----------------------------------------------------------------------------

    def memory(self) -> tuple[int, int]:
        """Of a window and the index of all rows, and of a window's shards before they are joined"""
        row = self.row_bytes()
        largest = max((shard["rows"] for shard in self.shards), default=0) * row
        window = min(self.rows * row, max(WINDOW_BYTES, largest))
        return window + 8 * self.rows, window if window > largest else 0

    def row_bytes(self) -> int:
        """Bytes of one hidden state"""
        return self.d_in * getattr(torch, self.manifest.get("dtype") or "float32").itemsize

    def training_rows(self) -> int:
        """All rows: fewer are known only once they were looked at."""
        return self.rows

    def windows(self, seed: int, epoch: int) -> list[Any]:
        """The shards of each window, of WINDOW_BYTES at most if it is not one shard."""
        windows = self._shuffled(seed, epoch)
        self._next = dict(pairwise([*windows, *self._shuffled(seed, epoch + 1)[:1]]))
        return windows

    def _shuffled(self, seed: int, epoch: int) -> list[Any]:
        order = torch.randperm(len(self.shards), generator=generator(seed, "shards", epoch))
        windows: list[tuple[int, ...]] = []
        size = WINDOW_BYTES
        for index in order.tolist():
            size += self.shards[index]["bytes"]
            if size > WINDOW_BYTES or not windows:
                windows.append(())
                size = self.shards[index]["bytes"]
            windows[-1] += (index,)
        return windows

    def window(self, key: Any) -> Tensor:
        """The training rows of these shards, `[rows, d_in]`; those of one window are kept."""
        if self._window is None or self._window[0] != key:
            self._window = None  # the former window is freed before the next is read
            self._ahead(key)
            parts = [self.shard(i, ["hidden"])["hidden"][self.splits()[i].train] for i in key]
            self._window = (key, parts[0] if len(parts) == 1 else torch.cat(parts))
            self._ahead(self._next.get(key, ()))
        return self._window[1]

    def sample(self, n: int, seed: torch.Generator, part: str = "train") -> Tensor:
        """Up to n rows of this part, `train` or `test`, in random order, float32 `[<= n, d_in]`:
        from WHOLE_BYTES of shards, which are always the same."""
        shards = self._sampled()
        rows: list[Tensor] = [getattr(self.splits()[index], part) for index in shards]
        total = sum(map(len, rows))
        if total <= 1 << 24:
            chosen = torch.randperm(total, generator=seed)[:n]
        else:  # a permutation of all would take too long; of so many, few are drawn twice
            chosen = torch.randint(total, (n,), generator=seed).unique()
            chosen = chosen[torch.randperm(len(chosen), generator=seed)]
        self._ahead(shards)
        width = self.shard(shards[0], ["hidden"])["hidden"].shape[1]
        found, first = torch.empty(len(chosen), width), 0
        for index, own in zip(shards, rows, strict=True):
            inside = (chosen >= first) & (chosen < first + len(own))
            if inside.any():
                hidden = self.shard(index, ["hidden"])["hidden"]
                found[inside] = hidden[own[chosen[inside] - first]].float()
            first += len(own)
        return found

    def _sampled(self) -> list[int]:
        """The shards that samples are drawn from."""
        order = torch.randperm(len(self.shards), generator=generator("sample", "shards")).tolist()
        sizes = itertools.accumulate(self.shards[index]["bytes"] for index in order)
        few = sum(size <= WHOLE_BYTES for size in sizes)
        return sorted(order[: max(1, few)])

    # --- rows in the order of the text ------------------------------------------------------------

    def read(self, part: str = "all", block: int = 16384) -> Iterator[Rows]:
        """Rows in blocks of at most `block`, in the order of the text.

        part: `train`, `test`, `usual` (both) or `all` (rows of outlying norm, too).
        """
        for split, tensors in zip(self.splits(), self._in_order(), strict=True):
            usual, every = torch.cat(split).sort().values, torch.arange(len(tensors["norm"]))
            rows = {**split._asdict(), "usual": usual, "all": every}[part]
            for chosen in rows.split(block):
                columns = {name: tensors[name][chosen] for name in COLUMNS}
                yield Rows(tensors["hidden"][chosen], columns)

    def contexts(self) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """For every shard the contexts that the model saw, `[contexts, length]` (-1 is padding),
        and the columns of its rows, with the index of each row's context."""
        if not self.manifest.get("context_length"):
            raise BitlensError(
                f"The store {self.path} was imported without its text, so no model can be run on "
                "it."
            )
        for tensors in self._in_order([*COLUMNS, "context", "context_tokens"]):
            yield tensors.pop("context_tokens").long(), tensors
