"""The rows of one position of a store: as many for every position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bitlens.errors import BitlensError
from bitlens.hidden import ActivationStore
from bitlens.studies.sequence.config import FEWEST_TEST, FEWEST_TRAINING


class Rows(NamedTuple):
    """How many rows of a position a cell has: of training documents and of held-out ones."""

    training: int
    test: int


class Sample(NamedTuple):
    """Rows of one position in the order of the text: hidden `[n, d]` float32, document `[n]`, test bool `[n]`."""

    hidden: Tensor
    document: Tensor
    test: Tensor


def common_rows(
    store: ActivationStore, positions: Sequence[int], max_rows: int | None = None
) -> Rows:
    """The rows that every one of these positions has: an entropy's error depends on their number, so all get the same."""
    counts = {position: torch.zeros(2, dtype=torch.long) for position in positions}
    for index in range(len(store.shards)):
        columns = store.shard(index, ["document", "position"])
        test = store.is_test(columns["document"])
        for position, count in counts.items():
            at = columns["position"] == position
            count += torch.stack([(at & ~test).sum(), (at & test).sum()])
    for position, count in counts.items():
        training, test = count.tolist()
        if training < FEWEST_TRAINING or test < FEWEST_TEST:
            raise BitlensError(
                f"Position {position} has {training} rows to train on and {test} of held-out documents, "
                f"fewer than {FEWEST_TRAINING} and {FEWEST_TEST}; give more text, or leave the "
                "position out."
            )
    training, test = torch.stack(list(counts.values())).min(0).values.tolist()
    if max_rows is not None and training + test > max_rows:
        test = max(FEWEST_TEST, round(max_rows * test / (training + test)))
        training = min(training, max_rows - test)
    return Rows(training, test)


def rows_at(store: ActivationStore, position: int, rows: Rows) -> Sample:
    """So many rows of this position, evenly spread over the text. Rows of outlying norm are among them: a position
    where all have it, as the first often does, is measured like any other."""
    hidden, documents = [], []
    for index in range(len(store.shards)):
        tensors = store.shard(index, ["hidden", "document", "position"])
        at = (tensors["position"] == position).nonzero()[:, 0]
        hidden.append(tensors["hidden"][at])
        documents.append(tensors["document"][at])
    document = torch.cat(documents)
    test = store.is_test(document)
    chosen = torch.cat([_spread(~test, rows.training), _spread(test, rows.test)]).sort().values
    return Sample(torch.cat(hidden)[chosen].float(), document[chosen], test[chosen])


def _spread(which: Tensor, n: int) -> Tensor:
    """n of the indices where `which` holds, at even distances."""
    indices = which.nonzero()[:, 0]
    return indices[torch.arange(n) * len(indices) // n]
