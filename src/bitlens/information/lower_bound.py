"""A lower bound on the entropy of a code that assumes nothing about it."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from bitlens.bits.packed import PackedBits
from bitlens.errors import BitlensError
from bitlens.seeding import mixed


def lower_bits(
    bits: PackedBits, documents: Tensor | None = None, confidence: float = 0.95
) -> float:
    """Bits a row that the distribution of these rows carries at least, with this confidence.

    The entropy of the rows as counted is in expectation never above the true one (it is concave in
    the distribution), and replacing a document of m among n rows moves it by at most
    `m (log2 n + log2 e) / n`, so by McDiarmid's inequality it is seldom far above its expectation.
    It can never exceed log2 n; no bound without assumptions can by much (McAllester & Stratos
    2020), so with many bits the truth lies far above.

    documents: the document of every row `[rows]`; they count as independent, without them rows do.
    """
    n = len(bits)
    if n == 0:
        raise BitlensError("There are no rows, so there is no entropy.")
    counts = _row_counts(bits)
    entropy = math.log2(n) - float((counts * counts.log2()).sum()) / n
    sizes = torch.ones(n) if documents is None else documents.unique(return_counts=True)[1]
    change = (math.log2(n) + math.log2(math.e)) * float((sizes.double() / n).square().sum().sqrt())
    return max(0.0, entropy - change * math.sqrt(-math.log(1 - confidence) / 2))


def _row_counts(bits: PackedBits) -> Tensor:
    """How often every distinct row occurs, float64.

    Rows are compared by a hash of 64 bits: two that share one by accident only lower the entropy.
    """
    words = bits.numpy()
    hashes = np.zeros(len(words), np.uint64)
    for column in words.T:
        hashes = mixed(hashes ^ column)
    return torch.from_numpy(np.unique(hashes, return_counts=True)[1].astype(np.float64))
