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
    sample = 3 * 8 * words_for(m) * min(rows, TREE_ROWS)
    known = {"of every row": PROFILES * rows}
    phases = (
        known | {"tokens": COUNTING * rows},
        known | {"64 latents": LATENTS * rows},
        known | {"pairs of latents": 8 * m * m, "rows of the tree": sample},
    )
    return MemoryPlan("features", at_peak(_always(codes), *phases))


def interpret_plan(codes: Codes, labelled: bool) -> MemoryPlan:
    """Of drawing the rows that explainer and judge see, whose labels are known or not; a language
    model is beside it."""
    rows = len(codes)
    judged = {"labels": LABELS * rows * labelled, "of every row": JUDGED * rows}
    return MemoryPlan("interpret", _always(codes) | judged | {"drawing": DRAWING * rows})


def _always(codes: Codes) -> dict[str, int]:
    """Of any look at the rows, and of what comes and goes by 8 bytes a row."""
    rows = len(codes)
    blocks = 2 * min(BLOCK_BYTES, 8 * words_for(codes.n_latents) * rows)
    return {"columns": COLUMNS * rows, "blocks of rows": blocks, **gaps(8 * rows, 2 * 8 * rows)}
