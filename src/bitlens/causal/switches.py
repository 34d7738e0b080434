"""Rows of a store's contexts at which latents are switched, one at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from bitlens import terminal
from bitlens.autoencoders import Autoencoder
from bitlens.errors import BitlensError
from bitlens.hidden.models import LanguageModel
from bitlens.seeding import generator

AT_ONCE = 8  # contexts that are encoded

Switch = Literal["off", "on"]


class Contexts:
    """Contexts of a store, and which of their tokens may be switched: those of the part that was
    drawn that are not special, and have a next token that is not."""

    def __init__(
        self, model: LanguageModel, ids: Tensor, scored: Tensor, units: Tensor, max_norm: float
    ) -> None:
        """ids, scored, units: as of `draw_contexts`"""
        self.model, self.ids, self.units, self.max_norm = model, ids, units, max_norm
        self.usual = (ids >= 0) & ~torch.isin(ids, model.special)
        self.open = scored & self.usual
        self.open[:, :-1] &= self.usual[:, 1:]
        self.open[:, -1] = False
        if not self.open.any():
            raise BitlensError("There is no token with a next one in these contexts.")

    def tokens(self, context: int) -> Tensor:
        """Ids of a context without padding, which is on the right."""
        ids = self.ids[context]
        return ids[ids >= 0]

    @torch.no_grad()
    def encoded(self, autoencoder: Autoencoder) -> EncodedRows:
        """The rows that may be switched, but for those of outlying norm, and what is on in them."""
        places, entries, done = [], [], 0
        name = self.model.hooks[0].name
        batches = torch.arange(len(self.ids)).split(AT_ONCE)
        for some in terminal.track(batches, "contexts encoded", len(self.ids), len):
            ids = self.ids[some]
            states = self.model.hidden_states(ids.clamp_min(0), ids >= 0)[name]
            norm = torch.linalg.vector_norm(states.float(), dim=-1).cpu()
            context, position = (self.open[some] & (norm <= self.max_norm)).nonzero().T
            codes = autoencoder.encode(states[context, position]).cpu()
            row, latent = codes.nonzero().T
            places.append(torch.stack([some[context], position]))
            entries.append((latent, row + done, codes[row, latent]))
            done += len(context)
        context, position = torch.cat(places, 1)
        latent, row, value = (torch.cat(column) for column in zip(*entries, strict=True))
        order = latent.argsort(stable=True)
        columns = (latent[order], row[order], value[order])
        return EncodedRows(context, position, self.units[context], *columns)


class EncodedRows(NamedTuple):
    """Rows, numbered in the order of the contexts, `[rows]` each, and what is on in them."""

    context: Tensor
    position: Tensor
    unit: Tensor
    latent: Tensor
    """one entry for each latent that is on in a row, in the order of the latents"""
    row: Tensor
    value: Tensor

    def of(self, latent: int) -> tuple[Tensor, Tensor]:
        """The rows where a latent is on, and its values there."""
        ends = torch.searchsorted(self.latent, torch.tensor([latent, latent + 1])).tolist()
        return self.row[slice(*ends)], self.value[slice(*ends)]

    def rate(self, latent: int) -> float:
        """The share of the rows in which a latent is on."""
        return len(self.of(latent)[0]) / max(1, len(self.context))


class Flips(NamedTuple):
    """What is switched, in the order of the contexts, `[flips]` each."""

    number: Tensor
    """of the latent among those that were asked for"""
    latent: Tensor
    row: Tensor
    amount: Tensor
    """by which its code changes"""
    other: Tensor
    """another latent, at random"""


def draw_flips(
    rows: EncodedRows,
    autoencoder: Autoencoder,
    latents: Sequence[int],
    most: int,
    switch: Switch,
    seed: int,
) -> Flips:
    """Up to `most` rows of each of these latents, at random: where it is on, to be switched off, or
    where it is off, to be switched on (a sparse autoencoder's to its mean where it is on)."""
    parts = []
    for number, latent in enumerate(latents):
        on, values = rows.of(latent)
        draw = generator(seed, "effects", latent)
        if switch == "off":
            some = torch.randperm(len(on), generator=draw)[:most]
            row, amount = on[some], -values[some]
        else:
            off = torch.ones(len(rows.context), dtype=torch.bool)
            off[on] = False
            mean = float(values.mean()) if len(on) else math.nan
            value = 1.0 if autoencoder.binary else mean
            known = most if math.isfinite(value) else 0  # never on, it has no value
            row = off.nonzero()[:, 0]
            row = row[torch.randperm(len(row), generator=draw)[:known]]
            amount = torch.full((len(row),), value)
        parts.append((torch.full_like(row, number), torch.full_like(row, latent), row, amount))
    number, latent, row, amount = (torch.cat(column) for column in zip(*parts, strict=True))
    order = row.argsort(stable=True)
    number, latent, row, amount = (each[order] for each in (number, latent, row, amount))
    others = max(1, autoencoder.n_latents - 1)
    other = torch.randint(others, (len(row),), generator=generator(seed, "control"))
    return Flips(number, latent, row, amount, (other + (other >= latent)) % autoencoder.n_latents)
