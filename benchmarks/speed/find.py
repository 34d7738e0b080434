"""A corpus of codes on disk to be searched, as hidden states of a language model give them: of
2,304 latents about 36 are on in a row."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from bitlens.bits import Codes, PackedBits
from bitlens.features.search import matching, nearest, rates, rows_of

LATENTS = 2304
PART, BLOCK = 1 << 20, 1 << 16  # rows of a shard, and that are unpacked at a time
DOCUMENT = 200  # rows of one
TEXT = 50  # tokens


def write(folder: Path, rows: int) -> Codes:
    """Random bits, each on in one row of 64: six random words and-ed."""
    random = np.random.default_rng(0)
    parts = []
    for first in range(0, rows, PART):
        shape = (min(PART, rows - first), LATENTS // 64)
        words = random.integers(0, 1 << 64, shape, dtype=np.uint64)
        for _ in range(5):
            words &= random.integers(0, 1 << 64, shape, dtype=np.uint64)
        row = torch.arange(first, first + shape[0])
        columns = {
            "token": (row % 5000).int(),
            "document": row // DOCUMENT,
            "position": (row % DOCUMENT).int(),
            "usual": row % DOCUMENT > 0,
        }
        parts.append((PackedBits.from_numpy(words, LATENTS), columns))
    return Codes.write(folder, parts, LATENTS, {})


def searches(codes: Codes) -> dict[str, Callable[[], object]]:
    """The ten nearest contexts of a row and of a text, and rows with two latents on and one off."""
    query = rows_of(codes, [len(codes) // 2])
    text = rows_of(codes, range(len(codes) // 2, len(codes) // 2 + TEXT))
    latents = query.unpack()[0].nonzero()[:2, 0].tolist()
    return {
        "bitlens": lambda: nearest(codes, query),
        f"bitlens, a text of {TEXT} tokens": lambda: nearest(codes, text),
        "bitlens, two latents on and one off": lambda: matching(codes, latents, [0]),
        "unpacked and multiplied, in torch": lambda: naive(codes, query),
        f"the same, a text of {TEXT} tokens": lambda: naive(codes, text),
    }


def naive(codes: Codes, queries: PackedBits) -> torch.Tensor:
    """The ten rows most similar to each, as anybody would find them: blocks of floats times
    weights."""
    weight = torch.from_numpy(rates(codes).surprisal).float()
    asked = queries.unpack() * weight
    found = []
    for block in codes.bits.words.split(BLOCK):
        bits = PackedBits(block, codes.n_latents).unpack()
        both, own = (bits @ torch.cat([asked, weight[None]]).T).split([len(queries), 1], 1)
        found.append(both / (own + asked.sum(1) - both))
    return torch.cat(found).topk(10, 0).indices
