"""What measuring an entropy will take of memory."""

from __future__ import annotations

from bitlens.bits.packed import BLOCK_BYTES
from bitlens.bits.words import words_for
from bitlens.information.autoregression import BATCH, BLOCK
from bitlens.information.tree import MAX_BLOCKS
from bitlens.memory import MemoryPlan, at_peak, gaps

COLUMN_BYTES = 34  # a row: its document twice, which rows count, and where those of the parts lie
CODE_BYTES, HASH_BYTES = 34, 56  # a row: orders of training rows; distinct rows and their counts


def entropy_plan(
    rows: int, n_latents: int, units: int = MAX_BLOCKS, *, held: int = 0, joint: bool = True
) -> MemoryPlan:
    """Of codes on disk, of so many blocks of documents. held: bytes a row of codes in memory."""
    m = n_latents
    pairs, learning = autoregression_phases(rows, m)
    tables = 8 * m * units
    phases = [
        pairs,
        {"counts of documents": 12 * tables, "blocks of rows": pairs["blocks of rows"]},
        {"distinct rows": HASH_BYTES * rows},
    ]
    columns = {"columns": (COLUMN_BYTES + held) * rows}
    return MemoryPlan("entropy", at_peak(columns, *phases, *([learning] if joint else [])))


def autoregression_phases(rows: int, n_latents: int) -> tuple[dict[str, int], dict[str, int]]:
    """Of fitting one: counting pairs for the tree that it begins as, and learning."""
    m = n_latents
    block = min(BLOCK_BYTES, 8 * words_for(m) * rows)
    weights = 4 * (m * m // 2 + BLOCK * m // 2)
    batch = min(rows, BATCH) * (6 * m + 8 * min(m, BLOCK))
    learning = {"autoregression": 6 * weights, "batch": batch, "order": CODE_BYTES * rows}
    return (
        {"pairs of latents": 8 * m * m, "blocks of rows": 2 * block},
        learning | gaps(batch // 4, batch // 2),
    )
