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
    their share. Mean and scale are those of the prompts."""

    def __init__(
        self,
        prompts: Tensor,
        text: Tensor | None,
        share: float,
        about: dict[str, Any] | None = None,
    ) -> None:
        """prompts, text: raw rows `[n, d]`; share: of the prompts."""
        super().__init__(prompts, about)
        if text is not None:
            n = max(len(prompts) / share, len(text) / (1 - share))
            parts = ((prompts, round(n * share)), (text, round(n * (1 - share))))
            # all again and again, the last time not all
            self.rows = torch.cat([rows.repeat(-(-m // len(rows)), 1)[:m] for rows, m in parts])


def centred(states: Tensor, held_out: Tensor) -> Tensor:
    """States of a cell `[prompts, d]` about the mean of those that are not held out, float32.

    A cell's mean tells nothing of its prompts. With it, cells are far apart for what tells prompts
    of one apart, and latents whose bits change between cells are too large for their prompts.
    """
    states = states.float()
    return states - states[~held_out].mean(0)


def fitting_states(files: Sequence[Path], name: str) -> tuple[Tensor, Tensor]:
    """Of all cells, which have the same queries, the centred states that are not held out, those of
    one query together -> `[n, d]`, and the place of each one's query."""
    kept = [read_tensors(file, [name, "held_out"]) for file in files]
    cells = [centred(of[name], of["held_out"])[~of["held_out"]] for of in kept]
    queries = torch.arange(len(cells[0])).repeat_interleave(len(cells))
    return torch.stack(cells, 1).flatten(0, 1), queries


def text_rows(store: ActivationStore) -> Tensor:
    """All rows of usual norm about their mean, float32 `[n, d]`."""
    rows = torch.cat([rows.hidden.float() for rows in store.read("usual")])
    return rows - rows.mean(0)
