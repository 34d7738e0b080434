"""What looking at latents will take of memory, by the rows of their codes."""

from __future__ import annotations

from bitlens.bits.codes import Codes
from bitlens.bits.packed import BLOCK_BYTES
from bitlens.bits.words import words_for
from bitlens.memory import MemoryPlan, at_peak, gaps

COLUMNS = 25  # bytes a row: token, document, position, which rows count, and where these lie
PROFILES, COUNTING, LATENTS = 48, 34, 40  # what is known of a row, is made of it, is on in it
LABELS, JUDGED, DRAWING = 24, 20, 12
TREE_ROWS = 1 << 17  # that the tree of the profiles is fitted on


def features_plan(codes: Codes) -> MemoryPlan:
    """Of the profiles of all latents."""
    rows, m = len(codes), codes.n_latents
    always = {"columns": COLUMNS * rows, "blocks of rows": _block(codes)}
    always |= gaps(8 * rows, 2 * 8 * rows)
    sample = 3 * 8 * words_for(m) * min(rows, TREE_ROWS)
    known = {"of every row": PROFILES * rows}
    phases = (
        known | {"tokens": COUNTING * rows},
        known | {"64 latents": LATENTS * rows},
        known | {"pairs of latents": 8 * m * m, "rows of the tree": sample},
    )
    return MemoryPlan("features", at_peak(always, *phases))


def interpret_plan(codes: Codes, labelled: bool) -> MemoryPlan:
    """Of drawing the rows that explainer and judge see, whose labels are known or not; a language
    model is beside it."""
    rows = len(codes)
    always = {"columns": COLUMNS * rows, "blocks of rows": _block(codes)}
    always |= {"labels": LABELS * rows * labelled, "of every row": JUDGED * rows}
    always |= gaps(8 * rows, 2 * 8 * rows)
    return MemoryPlan("interpret", always | {"drawing": DRAWING * rows})


def _block(codes: Codes) -> int:
    return 2 * min(BLOCK_BYTES, 8 * words_for(codes.n_latents) * len(codes))
