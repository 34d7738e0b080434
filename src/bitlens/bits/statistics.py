"""Exact counts over packed bits, on whichever device they are, and the entropy of a bit."""

import math
from typing import Literal, overload

import torch
from torch import Tensor

from bitlens.bits.packed import PackedBits
from bitlens.errors import BitlensError

DENSE = 0.1

# The CPU kernels are compiled when first used, and loading their compiler takes a moment: hence the local imports.


def binary_entropy(p: Tensor) -> Tensor:
    """H2(p) in bits, elementwise, float64; exactly 0 at 0 and 1."""
    p = p.double()
    return -(torch.special.xlogy(p, p) + torch.special.xlogy(1 - p, 1 - p)) / math.log(2)


def counted_entropy(counts: Tensor, dims: tuple[int, ...] = (-1,)) -> Tensor:
    """Entropy in bits of tables of counts over `dims`, with the correction of Miller (1955) and Madow, float64."""
    counts = counts.double()
    n = counts.sum(dims)
    logs = torch.special.xlogy(counts, counts).sum(dims)
    return (n.log() - logs / n) / math.log(2) + ((counts > 0).sum(dims) - 1) / (2 * n * math.log(2))


def counted_information(both: Tensor, a: Tensor, b: Tensor, rows: Tensor | int) -> Tensor:
    """Mutual information in bits of two binary variables, as counted: rows in which both are on, each, and all; shapes that
    broadcast."""

    def part(count: Tensor) -> Tensor:
        return torch.special.xlogy(count, count)

    n = torch.as_tensor(rows, device=both.device).double()
    both, a, b = both.double(), a.double(), b.double()
    joint = part(both) + part(a - both) + part(b - both) + part(n - a - b + both)
    return (joint - part(a) - part(n - a) - part(b) - part(n - b) + part(n)) / (n * math.log(2))


def firing_rates(bits: PackedBits) -> Tensor:
    """Share of rows in which each latent is on -> float64 `[n_latents]`; there must be rows."""
    if len(bits) == 0:
        raise BitlensError("There are no rows, so there are no firing rates.")
    return bits.column_counts().double() / len(bits)


def dense(rates: Tensor) -> Tensor:
    """Which latents are on in more than a tenth of the rows -> bool, the same shape. On is not zero, for every architecture
    (`Autoencoder.on_rates`)."""
    return rates > DENSE


def co_occurrence(bits: PackedBits, others: PackedBits | None = None) -> Tensor:
    """`N = H^T G`: the number of rows in which latent i and latent j of `others` are both on, int64 `[n, m]`

    others: another code of the same rows; without it the same code, `[n_latents, n_latents]`.
    """
    if others is not None and len(others) != len(bits):
        raise BitlensError(
            f"Codes of {len(bits):,} rows and of {len(others):,} are not of the same hidden states."
        )
    if bits.words.device.type == "cpu":
        from bitlens.bits import cpu

        counts = torch.zeros(bits.n_latents, (others or bits).n_latents, dtype=torch.int64)
        for start in range(0, len(bits), 1 << 20):  # a block of rows is turned at a time
            block = slice(start, start + (1 << 20))
            columns = [
                b[block].transpose().numpy() for b in ([bits] if others is None else [bits, others])
            ]
            counts += torch.from_numpy(cpu.co_occurrence(*columns))
        return counts
    from bitlens.bits import cuda

    return cuda.co_occurrence(bits, others)


@overload
def covariance(bits: PackedBits, with_gradient: Literal[True] = True) -> tuple[Tensor, Tensor]: ...
@overload
def covariance(bits: PackedBits, with_gradient: bool) -> tuple[Tensor, Tensor | None]: ...
def covariance(bits: PackedBits, with_gradient: bool = True) -> tuple[Tensor, Tensor | None]:
    """The covariance penalty of a minibatch, `sum_{i != j} |cov(h)_ij|` with the unbiased covariance, and its gradient.

    Both come from integer counts, so signs and zeros are exact. At least two rows, at most 2^20.

    -> (float64 scalar, `2 / (n - 1) (h - p) @ sign(cov)` as float32 `[rows, n_latents]`, or None)
    """
    if not 2 <= len(bits) <= 1 << 20:  # beyond, integer sums over pairs could leave 64 bits
        raise BitlensError(
            f"The covariance of a minibatch needs between 2 and 2^20 rows, not {len(bits):,}."
        )
    if bits.words.device.type == "cpu":
        from bitlens.bits.covariance import covariance as kernel

        penalty, gradient = kernel(bits.numpy(), bits.n_latents, with_gradient)
        return torch.tensor(
            penalty, dtype=torch.float64
        ), None if gradient is None else torch.from_numpy(gradient)
    from bitlens.bits import cuda

    return cuda.covariance(bits, with_gradient)


def hamming(queries: PackedBits, codes: PackedBits) -> Tensor:
    """Bits in which rows differ, many to many -> int32 `[len(queries), len(codes)]`"""
    _same_width(queries, codes)
    if queries.words.device.type == "cpu":
        from bitlens.bits import cpu

        return torch.from_numpy(cpu.hamming(queries.numpy(), codes.numpy()))
    from bitlens.bits import cuda

    return cuda.hamming(queries, codes)


def nearest(queries: PackedBits, codes: PackedBits, k: int) -> tuple[Tensor, Tensor]:
    """The k codes with the smallest Hamming distance to each query; among equals, those that come first.

    -> (distances int32, indices int64), each `[len(queries), k]`, nearest first
    """
    _same_width(queries, codes)
    if not 1 <= k <= len(codes):
        raise BitlensError(
            f"There are {len(codes)} codes to search, so k must be between 1 and that, not {k}."
        )
    if queries.words.device.type == "cpu":
        from bitlens.bits import cpu

        distances, indices = cpu.nearest(queries.numpy(), codes.numpy(), k)
        return torch.from_numpy(distances), torch.from_numpy(indices)
    from bitlens.bits import cuda

    return cuda.nearest(queries, codes, k)


def _same_width(a: PackedBits, b: PackedBits) -> None:
    if a.n_latents != b.n_latents:
        raise BitlensError(
            f"Codes of {a.n_latents} latents cannot be compared with codes of {b.n_latents}."
        )
