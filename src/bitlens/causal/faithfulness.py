"""How much of a hidden state the language model needs: only the k most surprising bits are kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from torch import Tensor

from bitlens import terminal
from bitlens.autoencoders import Autoencoder
from bitlens.causal.losses import SpliceLosses, SpliceSums
from bitlens.causal.splice import Splice, SpliceTokens
from bitlens.errors import BitlensError
from bitlens.files import write_json_lines
from bitlens.hidden.pieces import in_text
from bitlens.hidden.source import NO_ROWS
from bitlens.hidden.split import held_out_share
from bitlens.hidden.store import ActivationStore
from bitlens.information.moments import Variance, squared_error
from bitlens.labels.sources import position_bucket
from bitlens.results import Number, brief
from bitlens.seeding import generator

KEEP = (1, 2, 4, 8, 16, 32, 64, None)
RATE_ROWS = 65536  # of training documents, from which firing rates are taken

By = Literal["surprisal", "magnitude"]


class Kept(NamedTuple):
    """What is left of hidden states and of predictions with k latents of each row."""

    __repr__ = brief

    k: int | None
    """None: the whole code"""
    l0: float
    """mean number of latents on"""
    surprisal: Annotated[float, Number("bits: -log2 p of the latents on", ".1f")]
    """mean sum of `-log2 p_j` over the latents on, bits"""
    fvu: float
    """of the hidden states that are replaced, about their own mean"""
    tokens: SpliceTokens
    losses: SpliceLosses
    sums: SpliceSums
    """of the contexts: `a.sums.less(b.sums)` is the difference of two on the same ones"""

    def as_dict(self) -> dict[str, Any]:
        """All but the single tokens and contexts."""
        numbers = {"k": self.k, "l0": self.l0, "surprisal": self.surprisal, "fvu": self.fvu}
        return {**numbers, **self.losses._asdict()}


def keep_surprising(codes: Tensor, rates: Tensor, k: int | None) -> Tensor:
    """codes `[..., n_latents]`, rates `[n_latents]` -> the k non-zero latents of the lowest rate,
    among equals the first; the others are zero. k None: the codes as they are."""
    if k is None:
        return codes
    order = rates.argsort(stable=True)
    on = codes[..., order] != 0
    kept = torch.empty_like(on)
    kept[..., order] = on & (on.cumsum(-1) <= k)
    return codes * kept


def keep_largest(codes: Tensor, norms: Tensor, k: int | None) -> Tensor:
    """codes `[..., n_latents]`, norms of the decoder's rows `[n_latents]` -> the k latents of the
    largest magnitude times norm; the others are zero. k None: the codes as they are."""
    if k is None:
        return codes
    top = (codes.abs() * norms).topk(min(k, codes.shape[-1]), dim=-1).indices
    return torch.zeros_like(codes).scatter(-1, top, codes.gather(-1, top))


class _Truncated:
    """An autoencoder that keeps k latents of every row: of those in their rarer state, which is
    what on means here. The others are set to their commoner one."""

    def __init__(self, autoencoder: Autoencoder, rates: Tensor, by: By) -> None:
        """rates `[n_latents]`: how often each latent is not zero"""
        self.autoencoder, self.by = autoencoder, by
        self.rates = autoencoder.on_rates(rates)
        self.off = (self.rates < rates).float()
        self.norms = autoencoder.W_dec.norm(dim=1)

    def encode(self, x: Tensor) -> Tensor:
        return self.autoencoder.encode(x) - self.off

    def keep(self, codes: Tensor, k: int | None) -> Tensor:
        if self.by == "surprisal":
            return keep_surprising(codes, self.rates, k)
        return keep_largest(codes, self.norms, k)

    def decode(self, codes: Tensor, x: Tensor) -> Tensor:
        return self.autoencoder.decode(codes + self.off, x)


@terminal.shown("faithfulness")
@torch.inference_mode()
def faithfulness(
    autoencoder: Autoencoder,
    store: ActivationStore,
    splice: Splice,
    keep: Sequence[int | None] = KEEP,
    *,
    by: By = "surprisal",
    progress: bool = True,
) -> list[Kept]:
    """Splice reconstructions from the k most surprising (or largest) latents of every row, for each
    k of `keep`.

    splice: the contexts to score, as of `Splice.of_store(language_model, autoencoder, store)`.
    Firing rates are those of up to 65,536 training rows of the store. progress: show it on standard
    error.
    """
    if wrong := [k for k in keep if k is not None and k < 0]:
        raise BitlensError(f"The number of latents to keep must not be negative, as {wrong[0]} is.")
    share = held_out_share(store, autoencoder.metadata)
    training = store if share in (None, store.test_fraction) else store.split(share)
    truncated = _Truncated(autoencoder, _rates(autoencoder, training), by)
    # Of each k: latents on, their surprisal in bits, squared error
    sums = torch.zeros(len(keep), 3, dtype=torch.float64)
    variance = Variance()
    for x, target in splice.hidden_states():
        variance.add(target)
        codes = truncated.encode(x)
        for row, k in zip(sums, keep, strict=True):
            kept = truncated.keep(codes, k)
            row[0] += int((kept != 0).sum())
            row[1] -= float(((kept != 0) * truncated.rates.log2()).sum())
            row[2] += squared_error(target, truncated.decode(kept, x))
    l0, surprisal, _ = (sums / variance.rows).T.tolist()
    fvu = [variance.fvu(error) for error in sums[:, 2].tolist()]
    changes = [
        lambda x, k=k: truncated.decode(truncated.keep(truncated.encode(x), k), x) for k in keep
    ]
    tokens = splice.tokens(changes)
    totals = [splice.sums(of_k) for of_k in tokens]
    losses = [total.losses() for total in totals]
    columns = (keep, l0, surprisal, fvu, tokens, losses, totals)
    return [Kept(*numbers) for numbers in zip(*columns, strict=True)]


@terminal.shown("firing rates")
def _rates(autoencoder: Autoencoder, store: ActivationStore) -> Tensor:
    """How often each latent is not zero, float64 `[n_latents]`, with half a count added to each
    state (Krichevsky & Trofimov 1981)."""
    rows = store.sample(RATE_ROWS, generator("faithfulness"))
    if not len(rows):
        raise BitlensError(NO_ROWS)
    inputs = (autoencoder.pair(block)[0] for block in rows.split(16384))
    on = torch.stack([(autoencoder.encode(x) != 0).sum(0) for x in inputs]).sum(0)
    return (on.double() + 0.5) / (len(rows) + 1)


class PositionLosses(NamedTuple):
    """Means over the scored tokens at some positions of their contexts."""

    __repr__ = brief

    tokens: Annotated[int, Number("scored", ",d")]
    ce_original: float
    ce_spliced: float
    kl_div: float
    top1: float


def by_position(tokens: SpliceTokens) -> dict[str, PositionLosses]:
    """Positions 1, 2-3, 4-7, 8-15, ... -> what the tokens there lose."""
    exponents = torch.frexp(tokens.position.double()).exponent - 1
    losses = {}
    for exponent in exponents.unique().tolist():
        inside, name = exponents == exponent, position_bucket(1 << exponent, alone=1)
        means = (float(column[inside].double().mean()) for column in tokens[2:])
        losses[name] = PositionLosses(int(inside.sum()), *means)
    return losses


def record(splice: Splice, tokens: SpliceTokens, index: int, window: int = 8) -> dict[str, Any]:
    """The numbers of one scored token, with its text, and up to `window` tokens of its context on
    either side."""
    numbers = {name: value[index].item() for name, value in tokens._asdict().items()}
    ids, position = splice.contexts[numbers["context"]], numbers["position"]
    place = int((ids[:position] >= 0).sum())
    before, token, after = in_text(splice.model.tokenizer, ids[ids >= 0].tolist(), place, window)
    return {**numbers, "before": before, "token": token, "after": after}


def write_tokens(path: Path, splice: Splice, tokens: SpliceTokens) -> None:
    """Write the `record` of every scored token as a line of JSON."""
    write_json_lines(path, (record(splice, tokens, i) for i in range(len(tokens.position))))
