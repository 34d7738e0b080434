"""How well the token tells whether a latent is on: a sign of meaning that needs no judge."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from torch import Tensor

from bitlens import terminal
from bitlens.bits.shards import AnyBits
from bitlens.bits.statistics import DENSE
from bitlens.bits.words import positions, words_for
from bitlens.errors import BitlensError
from bitlens.labels.scores import GOOD
from bitlens.labels.sources import require_tokens
from bitlens.results import brief

MIN_ON = 20  # rows, of both parts, in which a latent has to be on
T = TypeVar("T")


class TokenScore(NamedTuple):
    """How well a set of tokens predicts a latent: chosen on training rows, scored on others."""

    __repr__ = brief

    latent: int
    rate: float
    f1: float
    """on held-out rows"""
    tokens: list[int]

    @property
    def dense(self) -> bool:
        """On in more than a tenth of the rows: "all tokens" has a high F1 for what is always on."""
        return self.rate > DENSE

    @property
    def good(self) -> bool:
        """F1 above .5 of a latent that is not dense."""
        return self.f1 > GOOD and not self.dense


def rows_on(bits: AnyBits) -> Iterator[np.ndarray]:
    """The rows in which each latent is on, ascending; 64 latents are transposed at a time."""
    found = np.empty(len(bits), np.int64)
    for word in range(words_for(bits.n_latents)):
        for column in bits.word(word).transpose().numpy():
            yield found[: positions(column, found)].copy()


class TokenSets:
    """Chooses tokens that predict a latent on some rows, and scores the choice on the others."""

    def __init__(self, token: np.ndarray, fit: np.ndarray) -> None:
        """token: id of each row `[rows]`; fit: bool `[rows]`, those to choose by."""
        self.ids, self.token = np.unique(token, return_inverse=True)  # of those that occur
        self.fit, self.size = fit, len(self.ids)
        self.seen_fit, self.seen_check = self._counts(np.arange(len(token)))

    def best(self, on: np.ndarray, min_on: int = MIN_ON) -> tuple[list[int], float] | None:
        """The tokens with the highest F1 on the fitting rows, the most frequent first, and their F1
        on the others; None if the latent is on (rows `on`) in fewer than `min_on` of either.

        Tokens are added in the order of the share of their occurrences that are on.
        """
        fit, check = self._counts(on)
        if min(fit.sum(), check.sum()) < min_on:
            return None
        present = np.flatnonzero(fit)
        order = present[np.argsort(-fit[present] / self.seen_fit[present], kind="stable")]
        f1 = _f1(fit[order].cumsum(), fit.sum(), self.seen_fit[order].cumsum())
        chosen = order[: int(np.argmax(f1)) + 1]
        held_out = _f1(check[chosen].sum(), check.sum(), self.seen_check[chosen].sum())
        return self.ids[chosen[np.argsort(-fit[chosen])]].tolist(), float(held_out)

    def _counts(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows of each token, of the fitting ones and of the others."""
        fit = self.fit[rows]
        return (
            np.bincount(self.token[rows[fit]], minlength=self.size),
            np.bincount(self.token[rows[~fit]], minlength=self.size),
        )


def _f1(hits: np.ndarray, on: np.ndarray, guesses: np.ndarray) -> np.ndarray:
    return 2 * hits / (on + guesses)


@terminal.shown("token F1")
def token_scores(
    bits: AnyBits, token: Tensor, test: Tensor, min_on: int = MIN_ON
) -> list[TokenScore]:
    """The score of every latent that is on in at least `min_on` held-out and training rows.

    token: id of each row; test: bool `[rows]`, the held-out rows.
    """
    if not len(token):
        raise BitlensError("There are no rows to score latents on.")
    require_tokens(token)
    sets = TokenSets(token.numpy(), ~test.numpy())
    best = ((latent, on, sets.best(on, min_on)) for latent, on in enumerate(rows_on(bits)))
    return [
        TokenScore(latent, len(on) / len(token), tokens=found[0], f1=found[1])
        for latent, on, found in best
        if found
    ]


def clearest(
    candidates: Sequence[T], f1: Callable[[T], float], tokens: Callable[[T], int]
) -> list[T]:
    """By F1, but those of a single token at most every other one, as they would fill the list."""
    ordered = sorted(candidates, key=lambda one: -f1(one))
    single = [one for one in ordered if tokens(one) == 1]
    several = [one for one in ordered if tokens(one) != 1]
    chosen: list[T] = []
    n_single = 0
    while several and n_single < len(single):
        if 2 * n_single <= len(chosen) and f1(single[n_single]) >= f1(several[0]):
            chosen.append(single[n_single])
            n_single += 1
        else:
            chosen.append(several.pop(0))
    return chosen + several + single[n_single:]
