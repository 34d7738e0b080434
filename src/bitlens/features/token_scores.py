"""How well a latent can be told from the token it fires on: a sign of meaning that needs no judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from torch import Tensor

from bitlens import terminal
from bitlens.bits.packed import PackedBits
from bitlens.bits.statistics import DENSE
from bitlens.errors import BitlensError
from bitlens.labels.scores import GOOD
from bitlens.results import brief

MIN_ON = 20  # rows, of both parts, in which a latent has to be on
T = TypeVar("T")


class TokenScore(NamedTuple):
    """How well a set of tokens predicts a latent. The set is chosen on training rows, `f1` is from held-out rows."""

    __repr__ = brief

    latent: int
    rate: float
    f1: float
    tokens: list[int]

    @property
    def dense(self) -> bool:
        """On in more than a tenth of the rows: always on has a high F1 for all tokens together."""
        return self.rate > DENSE

    @property
    def good(self) -> bool:
        return self.f1 > GOOD and not self.dense


@terminal.shown("token F1")
def token_scores(
    bits: PackedBits, token: Tensor, test: Tensor, min_on: int = MIN_ON
) -> list[TokenScore]:
    """For every latent that is on in at least `min_on` held-out and training rows: the set of tokens that predicts it
    with the highest F1 on the training rows, and its F1 on the held-out ones.

    token: id of each row `[rows]`; test: bool `[rows]`, the held-out rows. Tokens are taken in order of the share of their occurrences that are on.
    """
    tokens, held = token.numpy(), test.numpy()
    if not len(tokens):
        raise BitlensError("There are no rows to score latents on.")
    if tokens.min() < 0:
        raise BitlensError(
            "These rows have no tokens: they come from hidden states imported without them."
        )
    size = int(tokens.max()) + 1
    seen, seen_test = (
        np.bincount(tokens[~held], minlength=size),
        np.bincount(tokens[held], minlength=size),
    )
    columns = bits.transpose()
    scores = []
    for latent in range(bits.n_latents):
        on = (
            PackedBits(columns.words[latent : latent + 1], columns.n_latents).unpack()[0].numpy()
            > 0
        )
        fit = np.bincount(tokens[on & ~held], minlength=size)
        check = np.bincount(tokens[on & held], minlength=size)
        if fit.sum() < min_on or check.sum() < min_on:
            continue
        chosen, f1 = predicted(fit, check, seen, seen_test)
        scores.append(
            TokenScore(latent, float(on.mean()), f1, chosen[np.argsort(-fit[chosen])].tolist())
        )
    return scores


def predicted(
    fit: np.ndarray, check: np.ndarray, seen: np.ndarray, seen_check: np.ndarray
) -> tuple[np.ndarray, float]:
    """The set of tokens that predicts "on" best on some rows, and its F1 on others, from counts by token: of the on-rows
    and of all rows, of the former part and the latter."""
    chosen = _best_set(fit, seen)
    return chosen, float(2 * check[chosen].sum() / (check.sum() + seen_check[chosen].sum()))


def clearest(found: Sequence[T], f1: Callable[[T], float], tokens: Callable[[T], int]) -> list[T]:
    """In order of F1, but those that a single token predicts at most every other one, as they would fill any list."""
    ordered = sorted(found, key=lambda one: -f1(one))
    single, several = (
        [one for one in ordered if (tokens(one) == 1) == kind] for kind in (True, False)
    )
    chosen: list[T] = []
    taken = 0
    while several and taken < len(single):
        if 2 * taken <= len(chosen) and f1(single[taken]) >= f1(several[0]):
            chosen.append(single[taken])
            taken += 1
        else:
            chosen.append(several.pop(0))
    return chosen + several + single[taken:]


def _best_set(on: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Tokens whose occurrences predict "on" with the highest F1. on, seen: counts by token."""
    present = np.flatnonzero(on)
    order = present[np.argsort(-on[present] / seen[present], kind="stable")]
    hits, guesses = on[order].cumsum(), seen[order].cumsum()
    return order[: int(np.argmax(2 * hits / (on.sum() + guesses))) + 1]
