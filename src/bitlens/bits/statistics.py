"""Exact counts over packed bits, on whichever device they are."""

import torch
from torch import Tensor

from bitlens.bits import covariance_cpu, cpu, cuda, products
from bitlens.bits.packed import PackedBits, block_rows
from bitlens.bits.shards import AnyBits, BitShards
from bitlens.errors import BitlensError

DENSE = 0.1  # a latent on in a larger share of the rows is dense
ROWS = 1 << 20  # the most of a minibatch


def firing_rates(bits: AnyBits) -> Tensor:
    """Share of rows in which each latent is on -> float64 `[n_latents]`; there must be rows."""
    if len(bits) == 0:
        raise BitlensError("There are no rows, so there are no firing rates.")
    return bits.column_counts().double() / len(bits)


def rate_histogram(rates: Tensor) -> dict[str, list[float]]:
    """Latents by firing rate `[n_latents]`: `counts` between `edges`, four to a factor of
    ten, up to 1. The first count is of those never on, the next of rates from the first edge on."""
    above = rates[rates > 0].double()
    lowest = min(-1, int(above.min().log10().floor()) if len(above) else -1)
    edges = 10 ** torch.linspace(lowest, 0, -lowest * 4 + 1, dtype=torch.float64)
    # a rate of 1 belongs to the last interval, and rounding moves none below the first edge
    place = torch.bucketize(above, edges, right=True).clamp(1, len(edges) - 1)
    counts = torch.bincount(place, minlength=len(edges))
    counts[0] = len(rates) - len(above)
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def sums(bits: PackedBits, matrix: Tensor) -> Tensor:
    """`H @ matrix`, a float32 matrix `[n_latents, d]` -> float32 `[rows, d]`"""
    matrix = matrix.detach()
    if matrix.device.type != "cpu":
        return bits.unpack() @ matrix
    return torch.from_numpy(products.gather_sums(bits.numpy(), matrix.numpy()))


def co_occurrence(
    bits: AnyBits, others: PackedBits | None = None, counts: Tensor | None = None
) -> Tensor:
    """`N = H^T G`: the rows in which latent i and latent j of `others`, another code of the same
    rows or by default the same code, are both on, int64 `[n, m]`. counts: of other rows on a CPU,
    to which those of these are added."""
    if others is not None and len(others) != len(bits):
        rows = f"{len(bits):,} rows and of {len(others):,}"
        raise BitlensError(f"Codes of {rows} are not of the same hidden states.")
    if not isinstance(bits, BitShards) and bits.device.type != "cpu":
        return cuda.co_occurrence(bits, others)
    if counts is None:
        counts = torch.zeros(bits.n_latents, (others or bits).n_latents, dtype=torch.int64)
    rows = block_rows(bits.n_latents)
    for start in range(0, len(bits), rows):
        block = slice(start, start + rows)
        columns = others[block].transpose().numpy() if others is not None else None
        cpu.co_occurrence(bits[block].transpose().numpy(), columns, counts.numpy())
    return counts


def covariance(bits: PackedBits) -> tuple[Tensor, Tensor]:
    """The covariance penalty of 2 to 2^20 rows, `sum_{i != j} |cov(h)_ij|`, and its gradient.

    The covariance is the unbiased one; from integer counts, so signs and zeros are exact.

    -> (float64 scalar, `2 / (n - 1) (h - p) @ sign(cov)` as float32 `[rows, n_latents]`)
    """
    if not 2 <= len(bits) <= ROWS:  # beyond, integer sums over pairs could leave 64 bits
        raise BitlensError(f"A covariance needs between 2 and 2^20 rows, not {len(bits):,}.")
    if bits.words.device.type != "cpu":
        return cuda.covariance(bits)
    penalty, gradient = covariance_cpu.covariance(bits.numpy(), bits.n_latents)
    return torch.tensor(penalty, dtype=torch.float64), torch.from_numpy(gradient)


def nearest(queries: PackedBits, codes: PackedBits, k: int) -> tuple[Tensor, Tensor]:
    """The k codes with the smallest Hamming distance to each query; among equals, the first ones.

    -> (distances int32, indices int64), each `[len(queries), k]`, nearest first
    """
    if queries.n_latents != codes.n_latents:
        widths = f"{queries.n_latents} latents cannot be compared with codes of {codes.n_latents}"
        raise BitlensError(f"Codes of {widths}.")
    if not 1 <= k <= len(codes):
        raise BitlensError(f"There are {len(codes)} codes to search: k is 1 to that, not {k}.")
    if queries.words.device.type != "cpu":
        return cuda.nearest(queries, codes, k)
    distances, indices = cpu.nearest(queries.numpy(), codes.numpy(), k)
    return torch.from_numpy(distances), torch.from_numpy(indices)
