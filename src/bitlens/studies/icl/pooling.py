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
    """Rows of prompts and, if there is any, of text: the fewer again and again until each have
    their share.

    The mean is that of the prompts, the scale that of prompts about the mean of their own cell: it
    is what a cell's `fvu` is measured by, so that a bit has the same price as where each cell has
    an autoencoder. By that of all rows, the most of which is between cells and between prompts and
    text, what tells two prompts of a cell apart would be too little to be worth a bit.
    """

    def __init__(
        self,
        prompts: Tensor,
        text: Tensor | None,
        share: float,
        about: dict[str, Any] | None = None,
    ) -> None:
        """prompts: raw `[queries, cells, d]`; text: raw `[n, d]`, if any; share: of the prompts."""
        super().__init__(prompts.flatten(0, 1), about)
        own = prompts.double() - prompts.double().mean(0)
        self.scale = float(own.square().mean().sqrt())
        if text is not None:
            n = max(len(self.rows) / share, len(text) / (1 - share))
            parts = ((self.rows, n * share), (text, n * (1 - share)))
            self.rows = torch.cat([_repeated(rows, round(times)) for rows, times in parts])


def _repeated(rows: Tensor, n: int) -> Tensor:
    """n rows: all of them again and again, the last time not all."""
    return rows.repeat(-(-n // len(rows)), 1)[:n]


def fitting_states(files: Sequence[Path], name: str) -> Tensor:
    """Of all sets of prompts, which have the same queries, the states that are not held out ->
    float32 `[queries, sets, d]`"""
    kept = [read_tensors(file, [name, "held_out"]) for file in files]
    return torch.stack([tensors[name][~tensors["held_out"]].float() for tensors in kept], 1)


def text_rows(store: ActivationStore) -> Tensor:
    """All rows of usual norm, float32 `[n, d]`."""
    return torch.cat([rows.hidden.float() for rows in store.read("usual")])
