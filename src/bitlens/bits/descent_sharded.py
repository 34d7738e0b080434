"""Descent where each process of a group holds some of the latents, for widths that do not fit one.

Every process has all rows, and of each what is not explained yet. A round of flips takes three
collectives, for all rows together: each process tells the gains of its best flips of each row; the
decoder rows of the best of all are told, unless they were before; and each process decides for some
of the rows which of these to make, and tells it. That is the best one and, while it gains more
than any that was not told did, the next, of gains that follow from the products of the told rows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bitlens import processes
from bitlens.bits.descent import TOLERANCE, refuse_non_finite
from bitlens.bits.packed import PackedBits
from bitlens.bits.statistics import sums

TOGETHER = 16  # flips of a row that are told in a round
BLOCK_BYTES = 256 << 20  # of the gains of a block of rows, and of what is told for it


def block_rows(n_latents: int, d: int, together: int = TOGETHER) -> int:
    """How many rows of width d are searched at once, by processes of so many latents each."""
    return max(16, BLOCK_BYTES // (4 * max(n_latents, together * d)))


def descend(
    x: Tensor,
    W: Tensor,
    b: Tensor,
    price: Tensor,
    *,
    start: PackedBits | None = None,
    flips: int | None = None,
    together: int = TOGETHER,
) -> PackedBits:
    """Bits of rows `x [n, d]` under a dictionary whose latents are spread over the processes of a
    group -> those of this process's latents; BitlensError for rows that are not finite.

    x, b `[d]`, flips and together are the same in all processes; W `[m, d]`, price `[m]` and start
    are of the latents of this one, each process having one at least. The rest is as for
    `bitlens.bits.descent.descend` without exchanges. With `together=1` so are the bits, but where
    gains agree to float32's rounding; of equal ones the first process's latent is flipped. With
    more, several flips of a row are made in a round: still each lowers the energy and in the end
    none does, but their order, and so the end, may be another. Over rows of a trained dictionary
    its mean energy is the same to about a thousandth. Neither depends on how many processes
    there are, beyond rounding.
    """
    refuse_non_finite(x)
    widest = torch.tensor([len(W)], device=x.device)
    processes.largest(widest)
    most = 4 * int(widest) * processes.world_size() if flips is None else flips
    shard = _Shard(W, W.square().sum(1), price, together)
    parts, block = [], block_rows(int(widest), x.shape[1], together)
    for rows in (slice(first, first + block) for first in range(0, len(x), block)):
        residual = x[rows] - b
        tolerance = TOLERANCE * residual.square().sum(1)
        on = torch.zeros(len(residual), len(W), dtype=torch.bool, device=x.device)
        if start is not None:
            on = start[rows].unpack(torch.bool)
            residual -= explained(start[rows], W)
        parts.append(shard.search(_Rows(residual, on, tolerance), most))
    return PackedBits(torch.cat(parts), len(W))


def explained(bits: PackedBits, W: Tensor) -> Tensor:
    """`h W` over the latents of all processes, each with its bits and its W `[m, d]` -> `[n, d]`"""
    block = max(16, BLOCK_BYTES // (4 * len(W)))
    starts = range(0, len(bits), block)
    total = torch.cat([sums(bits[first : first + block], W) for first in starts])
    processes.add(total)
    return total


class _Rows(NamedTuple):
    """What of each row is not explained yet `[n, d]`; its bits `[n, m]`; the least gain `[n]`."""

    residual: Tensor
    on: Tensor
    tolerance: Tensor


class _Told(NamedTuple):
    """The best flips of n rows, by falling gain: gains beyond the least one `[n, c]`, -inf where
    there are no more latents, their names, `process << 32 | index`, what their bits become, 1 or
    -1, and the gain of the best flip that was not told `[n]`."""

    gain: Tensor
    name: Tensor
    sign: Tensor
    bound: Tensor

    def decided(self, told: Tensor, left: Tensor) -> Tensor:
        """Which to make, given the decoder rows `[n, c, d]` -> bool `[n, c]`"""
        G = told @ told.mT * self.sign[:, :, None] * self.sign[:, None]
        gain, made = self.gain.clone(), torch.zeros_like(self.gain, dtype=torch.bool)
        every, least = torch.arange(len(gain), device=gain.device), torch.zeros_like(self.bound)
        for flip in range(gain.shape[1]):
            best, k = gain.max(1)
            active = (best > least) & (left > flip)
            if not active.any():
                break
            made[every, k] |= active
            gain -= 2 * active[:, None] * G[every, k]
            gain[made] = -torch.inf
            least = self.bound.clamp_min(0)
        return made


class _Shard(NamedTuple):
    """The latents of this process: W `[m, d]`, the squares of its rows' lengths, prices `[m]`."""

    W: Tensor
    square: Tensor
    price: Tensor
    together: int

    def search(self, rows: _Rows, flips: int) -> Tensor:
        """-> words of the bits"""
        left = torch.full_like(rows.tolerance, flips, dtype=torch.int64)
        place = torch.arange(len(left), device=left.device)
        known = _Known(place[:0], self.W[:0])
        while True:
            some = _Rows(*(part[place] for part in rows))
            told = self.best(some)
            live = (told.gain[:, 0] > 0) & (left[place] > 0)
            if not live.any():
                return PackedBits.pack(rows.on).words
            place, told = place[live], _Told(*(part[live] for part in told))
            known, decoder = known.of(told.name, self)
            made = self.decided(told, decoder, left[place])
            left[place] -= made.sum(1)
            step = torch.einsum("nc,ncd->nd", made * told.sign, decoder)
            rows.residual[place] -= step
            mine = made & (told.name >> 32 == processes.rank())
            row, flip = mine.nonzero(as_tuple=True)
            rows.on[place[row], told.name[row, flip] & 0xFFFFFFFF] ^= True

    def best(self, rows: _Rows) -> _Told:
        """Of all processes"""
        gain = torch.addmm(-self.square - self.price, rows.residual, self.W.T, alpha=2)
        torch.where(rows.on, gain.neg().sub_(2 * self.square), gain, out=gain)
        gain -= rows.tolerance[:, None]  # the least: so all agree on which flips gain
        c = self.together + 1
        top = gain.topk(min(c, gain.shape[1]), 1)
        on = rows.on.gather(1, top.indices)
        # an index, and its bit as the sign, travels with its gain as if it were one
        index = torch.where(on, -1 - top.indices, top.indices).int().view(torch.float32)
        mine = torch.full((len(on), 2, c), -torch.inf, device=on.device)
        k = on.shape[1]
        mine[:, 0, :k], mine[:, 1, :k] = top.values, index
        gains, indices = processes.of_each(mine).permute(2, 1, 0, 3).flatten(2)
        gains, order = gains.sort(dim=1, descending=True, stable=True)
        index = indices.contiguous().view(torch.int32).gather(1, order[:, :-1]).long()
        index, order = index[:, : self.together], order[:, : self.together]
        name = (order // c) << 32 | torch.where(index < 0, -1 - index, index)
        # where there are no more, the name of the first
        name = torch.where(gains[:, : self.together] > -torch.inf, name, name[:, :1])
        sign = torch.where(index < 0, -1.0, 1.0)
        return _Told(gains[:, : self.together], name, sign, gains[:, self.together])

    def decided(self, told: _Told, decoder: Tensor, left: Tensor) -> Tensor:
        """The same in all processes, each deciding for its share of the rows: rounding may differ
        between processors, and one that made another flip would wait for ever."""
        share = processes.part(len(left))
        mine = _Told(*(part[share] for part in told))
        made = mine.decided(decoder[share], left[share])
        return processes.gather(made.to(torch.int8), len(left)).bool()


class _Known(NamedTuple):
    """Decoder rows that were told: names `[k]` and the rows `[k, d]`."""

    names: Tensor
    rows: Tensor

    def of(self, names: Tensor, shard: _Shard) -> tuple[_Known, Tensor]:
        """The decoder rows of latents `[n, c]`, `[n, c, d]`, and what is known after these."""
        distinct, place = names.unique(return_inverse=True)
        new = distinct[~torch.isin(distinct, self.names)]
        names, rows = torch.cat([self.names, new]), torch.cat([self.rows, self._told(new, shard)])
        order = names.argsort()
        at = order[torch.searchsorted(names[order], distinct)]
        return _Known(names, rows), rows[at[place]]

    @staticmethod
    def _told(names: Tensor, shard: _Shard) -> Tensor:
        """By the processes that hold them. names `[k]`: ascending."""
        holder = names >> 32
        counts = holder.bincount(minlength=processes.world_size())
        own = names[holder == processes.rank()] & 0xFFFFFFFF
        part = shard.W.new_zeros(int(counts.max()), shard.W.shape[1])
        part[: len(own)] = shard.W[own]
        there = torch.arange(len(part), device=names.device) < counts[:, None]
        return processes.of_each(part)[there]
