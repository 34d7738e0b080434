"""Exact counts over packed bits, and the entropy of a bit."""

import math

import torch
from torch import Tensor

from bitlens.bits.packed import PackedBits


def binary_entropy(p: Tensor) -> Tensor:
    """H2(p) in bits, elementwise, float64; exactly 0 at 0 and 1."""
    p = p.double()
    return -(torch.special.xlogy(p, p) + torch.special.xlogy(1 - p, 1 - p)) / math.log(2)


def firing_rates(bits: PackedBits) -> Tensor:
    """Share of rows in which each latent is on -> float64 `[n_latents]`"""
    return bits.column_counts().double() / len(bits)


def co_occurrence(bits: PackedBits) -> Tensor:
    """`N = H^T H`: the number of rows in which latents i and j are both on -> int64 `[n_latents, n_latents]`"""
    if bits.words.device.type == "cpu":
        from bitlens.bits import cpu  # compiled when first used

        columns = bits.transpose().words.numpy().view("uint64")
        return torch.from_numpy(cpu.co_occurrence(columns))
    counts = torch.zeros(bits.n_latents, bits.n_latents, dtype=torch.int64, device=bits.words.device)
    for start in range(0, len(bits), 1 << 16):  # 0/1 products summed in float32 are exact up to 2^24
        block = bits[start : start + (1 << 16)].unpack()
        counts += (block.T @ block).long()
    return counts
