"""Rows that the autoencoder of a layer is trained on: prompts of all cells, and ordinary text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitlens.files import read_tensors
from bitlens.hidden import ActivationStore, TensorSource


class PooledSource(TensorSource):
    """Rows of prompts and of text, the fewer again and again until each have their share.

    Mean and scale are those of the prompts' rows, which are measured: rows of text are spread
    wider, and by their measure all that tells prompts apart would be too small to be worth a bit.
    """

    def __init__(
        self, prompts: Tensor, text: Tensor, share: float, about: dict[str, Any] | None = None
    ) -> None:
        """prompts, text: raw rows `[n, d]`; share: of the prompts, 1 for them alone."""
        super().__init__(prompts, about)
        if share < 1:
            n = max(len(prompts) / share, len(text) / (1 - share))
            parts = ((prompts, n * share), (text, n * (1 - share)))
            self.rows = torch.cat([_repeated(rows, round(times)) for rows, times in parts])


def _repeated(rows: Tensor, n: int) -> Tensor:
    """n rows: all of them again and again, the last time not all."""
    return rows.repeat(-(-n // len(rows)), 1)[:n]


def fitting_states(files: Sequence[Path], name: str) -> tuple[Tensor, Tensor]:
    """Of all sets of prompts the states that are not held out -> `[n, d]`, and for each the place
    of its query; rows of one query together."""
    kept = [read_tensors(file, [name, "held_out"]) for file in files]
    states = torch.stack([tensors[name][~tensors["held_out"]] for tensors in kept], 1)
    queries = torch.arange(len(states)).repeat_interleave(len(files))
    return states.flatten(0, 1).float(), queries


def text_rows(store: ActivationStore) -> Tensor:
    """All rows of usual norm, float32 `[n, d]`."""
    return torch.cat([rows.hidden.float() for rows in store.read("usual")])
