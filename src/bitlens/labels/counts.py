"""Counts of latents by class, bit by bit: of a sparse code the bits that are on are few."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bitlens.bits.kernel import kernel
from bitlens.bits.shards import AnyBits
from bitlens.bits.words import trailing_zeros

# pyright: reportCallIssue=false, reportArgumentType=false


@kernel
def _add_bits(words, group, counts):
    """counts[group[i], j] += 1 for every bit j that is on in row i, but in rows of group -1"""
    for i in range(len(words)):
        if group[i] >= 0:
            own = counts[group[i]]
            for w in range(words.shape[1]):
                word = words[i, w]
                while word:
                    own[w * 64 + np.int64(trailing_zeros(word))] += 1
                    word &= word - np.uint64(1)


def counts_by_group(bits: AnyBits, group: Tensor, groups: int) -> Tensor:
    """Rows of each group in which each latent is on, int64 `[groups, n_latents]`.

    group: of every row, `[rows]`, from 0 to `groups - 1`; rows of group -1 do not count.
    """
    counts = np.zeros((groups, bits.n_latents), np.int64)
    own, first = group.cpu().long().numpy(), 0
    for block in bits.blocks():
        _add_bits(block.numpy(), own[first : first + len(block)], counts)
        first += len(block)
    return torch.from_numpy(counts)
