"""Malformed files: whole ones are read, some hundred spoilt ones are read or refused in a sentence.

`python tests/fuzz.py --minutes 8`, or `make fuzz`, tries as many as time allows.
"""

from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from command import FORKS
from fuzz import Outcome, trials
from malformed import FORMATS

KEPT = {  # inputs that once ended otherwise
    "checkpoint": (156, 164),
    "codes' shard": (1, 5, 15, 42, 103),
    "compressed": (13, 34, 84, 89, 93, 118),
    "evaluation": (252,),
    "hdf5": (3, 5, 28, 47, 194),
    "npz": (14, 48),
    "store": (164,),
    "store's shard": (5, 16, 34),
    "training": (39,),
}


def _outcomes(inputs: list[tuple[str, int]], place: Path) -> list[Outcome]:
    return list(trials(inputs, place))


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_malformed_files_are_read_or_refused_in_a_sentence(part: int, tmp_path: Path) -> None:
    names = list(FORMATS)[part::4]
    inputs = [(name, seed) for name in names for seed in (-1, *range(9), *KEPT.get(name, ()))]
    # a process that has run numba's kernels on OpenMP's threads is killed where it is forked
    with ProcessPoolExecutor(1, FORKS) as fresh:
        found = fresh.submit(_outcomes, inputs, tmp_path).result()
    assert [(outcome.format, outcome.seed) for outcome in found] == inputs
    assert [outcome for outcome in found if not outcome.allowed] == []
    assert {outcome.kind for outcome in found if outcome.seed < 0} == {"read"}
    assert "refused" in {outcome.kind for outcome in found}
