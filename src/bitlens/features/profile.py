"""How well a latent can be told from the token it fires on: a sign of meaning that needs no judge."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

from bitlens import terminal
from bitlens.bits.packed import PackedBits
from bitlens.errors import BitlensError


class TokenScore(NamedTuple):
    """How well a set of tokens predicts a latent. The set is chosen on training rows, `f1` is from held-out rows."""

    latent: int
    rate: float
    f1: float
    tokens: list[int]


@terminal.shown("token F1")
def token_scores(bits: PackedBits, token: Tensor, test: Tensor, min_on: int = 20) -> list[TokenScore]:
    """For every latent that is on in at least `min_on` held-out and training rows: the set of tokens that predicts it
    with the highest F1 on the training rows, and its F1 on the held-out ones.

    token: id of each row `[rows]`; test: bool `[rows]`, the held-out rows. Tokens are taken in order of the share of their occurrences that are on.
    """
    tokens, held = token.numpy(), test.numpy()
    if not len(tokens):
        raise BitlensError("There are no rows to score latents on.")
    if tokens.min() < 0:
        raise BitlensError("These rows have no tokens: they come from hidden states imported without them.")
    size = int(tokens.max()) + 1
    seen, seen_test = np.bincount(tokens[~held], minlength=size), np.bincount(tokens[held], minlength=size)
    columns = bits.transpose()
    scores = []
    for latent in range(bits.n_latents):
        on = PackedBits(columns.words[latent : latent + 1], columns.n_latents).unpack()[0].numpy() > 0
        fit = np.bincount(tokens[on & ~held], minlength=size)
        check = np.bincount(tokens[on & held], minlength=size)
        if fit.sum() < min_on or check.sum() < min_on:
            continue
        chosen = _best_set(fit, seen)
        f1 = 2 * check[chosen].sum() / (check.sum() + seen_test[chosen].sum())
        common = chosen[np.argsort(-fit[chosen])]
        scores.append(TokenScore(latent, float(on.mean()), float(f1), common.tolist()))
    return scores


def _best_set(on: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Tokens whose occurrences predict "on" with the highest F1. on, seen: counts by token."""
    present = np.flatnonzero(on)
    order = present[np.argsort(-on[present] / seen[present], kind="stable")]
    hits, guesses = on[order].cumsum(), seen[order].cumsum()
    return order[: int(np.argmax(2 * hits / (on.sum() + guesses))) + 1]
