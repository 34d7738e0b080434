"""The kernels on a GPU: products of 0/1 matrices in int8, summed in int32, hence exact; in tiles.

They run on any device, which is how they are tested where there is no GPU.
"""

import torch
from torch import Tensor

from bitlens.bits.packed import PackedBits

TILE = 1024  # latents a tile
ROWS = 1 << 16  # rows unpacked at a time


def product(a: Tensor, b: Tensor) -> Tensor:
    """int8 `[m, k]` @ `[k, n]` -> int32 `[m, n]`. int8 units want multiples of 32 as sizes."""
    padded = (torch.nn.functional.pad(x, (0, -x.shape[1] % 32, 0, -len(x) % 32)) for x in (a, b))
    return torch._int_mm(*padded)[: len(a), : b.shape[1]]  # pyright: ignore[reportPrivateImportUsage]


def co_occurrence(bits: PackedBits, others: PackedBits | None = None) -> Tensor:
    """See `statistics.co_occurrence`."""
    others = bits if others is None else others
    shape = bits.n_latents, others.n_latents
    counts = torch.zeros(shape, dtype=torch.int64, device=bits.words.device)
    for start in range(0, len(bits), ROWS):
        block, other = (b[start : start + ROWS].unpack(torch.int8) for b in (bits, others))
        for first in range(0, bits.n_latents, TILE):
            part = slice(first, first + TILE)
            counts[part] += product(block[:, part].T.contiguous(), other)
    return counts


def covariance(bits: PackedBits) -> tuple[Tensor, Tensor]:
    """See `statistics.covariance`."""
    h, n = bits.unpack(torch.int8), len(bits)
    columns = h.T.contiguous()
    counts = h.sum(0, dtype=torch.int64)
    total = torch.zeros((), dtype=torch.float64, device=h.device)
    gradient = torch.empty(h.shape, device=h.device)
    for first in range(0, bits.n_latents, TILE):
        part = slice(first, first + TILE)
        v = n * product(columns, h[:, part]).long() - counts[:, None] * counts[part]
        v[part].fill_diagonal_(0)
        total += v.abs().sum(1).double().sum()
        products = product(h, v.sign().to(torch.int8)).double()
        gradient[:, part] = (products - products.mean(0)) * (2 / (n - 1))
    return total / (n * (n - 1)), gradient


def hamming(queries: PackedBits, codes: PackedBits) -> Tensor:
    """Bits in which rows differ -> int32 `[n, m]`"""
    q, c = queries.unpack(torch.int8), codes.unpack(torch.int8)
    ons = q.sum(1, dtype=torch.int32)[:, None] + c.sum(1, dtype=torch.int32)
    return ons - 2 * product(q, c.T.contiguous())


def nearest(queries: PackedBits, codes: PackedBits, k: int) -> tuple[Tensor, Tensor]:
    """See `statistics.nearest`."""
    best = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.words.device)
    for start in range(0, len(codes), ROWS):
        distances = hamming(queries, codes[start : start + ROWS]).long()
        index = torch.arange(start, start + distances.shape[1], device=distances.device)
        keys = torch.cat([best, (distances << 40) | index], 1)  # sorted by distance, then by index
        best = keys.topk(min(k, keys.shape[1]), largest=False).values
    return (best >> 40).int(), best & ((1 << 40) - 1)
