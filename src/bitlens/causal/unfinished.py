"""What is measured so far, kept in a folder, so that a measurement that was stopped goes on there.

After a context the sums are as exact as they would be undisturbed, so the result is the same bit by
bit. A kill at any moment leaves the former state or the new one, whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from torch import Tensor

from bitlens.errors import BitlensError, Interrupted
from bitlens.files import (
    finite,
    holds_something,
    read_manifest,
    read_sealed,
    read_tensors,
    required,
    write_json,
    write_sealed,
    write_tensors,
)
from bitlens.training.signals import stop_on_signals
from bitlens.version import __version__

ABOUT, TABLE = "unfinished.json", "table.safetensors"
SCHEMA, WHAT = 1, "an unfinished measurement"
SAVE_SECONDS = 30.0  # at least, between two states
SHARE = 20  # of the time goes at most one part to saving

Tensors = dict[str, Tensor]
T = TypeVar("T")


class Unfinished:
    """A measurement of several tables, one after another, each of several contexts.

    folder None: nothing is kept. settings: what the numbers depend on; a measurement that goes on
    must have the same.
    """

    def __init__(self, folder: Path | None, resume: bool, settings: Mapping[str, Any]) -> None:
        self.folder, self._saved, self._took = folder, time.monotonic(), 0.0
        self._stop = SimpleNamespace(signal=None)
        if folder is None:
            return
        settings = finite({**settings, "version": __version__})
        about = folder / ABOUT
        if not about.exists():
            if folder.exists() and (not folder.is_dir() or holds_something(folder)):
                raise BitlensError(f"{folder} was not written by this command; move it away.")
            folder.mkdir(parents=True, exist_ok=True)
            write_json(about, {"schema": SCHEMA, "settings": settings})
            return
        if not resume:
            raise BitlensError(
                f"{folder} holds a measurement that was stopped: go on with `resume=True`, or "
                "delete that folder to begin anew."
            )
        before = required(read_manifest(about, SCHEMA, WHAT), "settings", about)
        if not isinstance(before, dict):
            raise self._damaged(about)
        changed = [
            f"{k} was {before.get(k)!r:.60}" for k, v in settings.items() if before.get(k) != v
        ]
        if changed:
            raise BitlensError(
                f"{folder} holds a measurement with other settings ({'; '.join(changed)}): repeat "
                "it with the same ones, or delete that folder to begin anew."
            )

    def finished(self, table: int, made: Callable[[dict[str, Any]], T]) -> list[T] | None:
        """What is `made` of each record of a table that is done, None of one that is not."""
        path = self._records(table)
        if path is None or not path.exists():
            return None
        try:
            return [made(record) for record in required(read_sealed(path, WHAT), "records", path)]
        except (AttributeError, KeyError, TypeError) as error:
            raise self._damaged(path) from error

    def finish(self, table: int, records: list[dict[str, Any]]) -> None:
        """Keep the records of a table that is done; NaN is None in them."""
        path = self._records(table)
        if path is not None and self.folder is not None:
            write_sealed(path, {"schema": SCHEMA, "records": records})
            (self.folder / TABLE).unlink(missing_ok=True)

    def restore(self, table: int, sums: Tensors) -> int:
        """Put what was saved of this table into its sums -> how many contexts that is."""
        if self.folder is None or not (path := self.folder / TABLE).exists():
            return 0
        tensors = read_tensors(path)
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
            if int(header["table"]) != table:  # killed before its file went
                return 0
            saved = {name: tensors[name] for name in sums}
            alike = all(saved[name].shape == values.shape for name, values in sums.items())
            if not alike or header["digest"] != digest(saved.values()):
                raise ValueError("other numbers than were saved")
            contexts = int(header["contexts"])
        except (KeyError, ValueError) as error:
            raise self._damaged(path) from error
        for name, values in sums.items():
            values.copy_(saved[name])
        return contexts

    @contextlib.contextmanager
    def stopping(self) -> Iterator[None]:
        """Within the block a signal waits for `save`, where something is kept."""
        if self.folder is None:
            yield
            return
        with stop_on_signals() as self._stop:
            yield

    def save(self, table: int, contexts: int, sums: Tensors) -> None:
        """Keep the sums after so many contexts, once it is time or a signal came, which then ends
        the work."""
        if self.folder is None:
            return
        now, signal = time.monotonic(), self._stop.signal
        if signal or now - self._saved >= max(SAVE_SECONDS, SHARE * self._took):
            header = {"table": str(table), "contexts": str(contexts)}
            header["digest"] = digest(sums.values())
            write_tensors(self.folder / TABLE, sums, header)
            self._saved = time.monotonic()
            self._took = self._saved - now
        if signal:
            raise Interrupted(
                f"Stopped by {signal}: what is measured is kept in {self.folder}; continue with "
                "`resume=True`."
            )

    def _damaged(self, path: Path) -> BitlensError:
        return BitlensError(
            f"{path} is damaged; delete {self.folder} to begin the measurement anew."
        )

    def _records(self, table: int) -> Path | None:
        return None if self.folder is None else self.folder / f"effects-{table}.json"


def digest(tensors: Iterable[Tensor]) -> str:
    """Of what is in these tensors."""
    hashed = hashlib.sha256()
    for tensor in tensors:
        hashed.update(f"{tensor.dtype}{list(tensor.shape)}".encode())
        hashed.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()
