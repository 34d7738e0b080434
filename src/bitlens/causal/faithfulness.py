"""How much of a hidden state the language model needs: only the k most surprising bits are kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from torch import Tensor

from bitlens import terminal
from bitlens.autoencoders import Autoencoder
from bitlens.causal.losses import SpliceLosses, SpliceSums
from bitlens.causal.splice import Splice, SpliceTokens
from bitlens.errors import BitlensError
from bitlens.files import finite, replacing
from bitlens.hidden.pieces import in_text
from bitlens.hidden.source import NO_ROWS
from bitlens.hidden.split import held_out_share
from bitlens.hidden.store import ActivationStore
from bitlens.information.intervals import Estimate
from bitlens.information.moments import Variance, squared_error
from bitlens.results import Number, brief
from bitlens.seeding import generator

KEEP = (1, 2, 4, 8, 16, 32, 64, None)
RATE_ROWS = 65536  # of training documents, from which firing rates are taken

By = Literal["surprisal", "magnitude"]


class Kept(NamedTuple):
    """What is left of hidden states, and of the language model's predictions, with k latents of each row."""

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
    """of the contexts: `a.sums.less(b.sums)` is the difference of two on the same ones, with its interval"""

    def as_dict(self) -> dict[str, Any]:
        """All but the single tokens and contexts"""
        numbers = {"k": self.k, "l0": self.l0, "surprisal": self.surprisal, "fvu": self.fvu}
        return {**numbers, **self.losses._asdict()}


def keep_surprising(codes: Tensor, rates: Tensor, k: int | None) -> Tensor:
    """codes `[..., n_latents]`, rates `[n_latents]` -> the k non-zero latents of the lowest rate, among equals the
    first; the others are zero. k None: the codes as they are."""
    if k is None:
        return codes
    order = rates.argsort(stable=True)
    on = codes[..., order] != 0
    kept = torch.empty_like(on)
    kept[..., order] = on & (on.cumsum(-1) <= k)
    return codes * kept


def keep_largest(codes: Tensor, norms: Tensor, k: int | None) -> Tensor:
    """codes `[..., n_latents]`, norms of the decoder's rows `[n_latents]` -> the k latents of the largest magnitude
    times norm; the others are zero. k None: the codes as they are."""
    if k is None:
        return codes
    top = (codes.abs() * norms).topk(min(k, codes.shape[-1]), dim=-1).indices
    return torch.zeros_like(codes).scatter(-1, top, codes.gather(-1, top))


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
    """Splice reconstructions from the k most surprising (or largest) latents of every row, for each k of `keep`.

    splice: the contexts to score, as `Splice.of_store(language_model, autoencoder, store)` gives them. Firing rates are
    those of up to 65,536 training rows of the store. A latent counts as on where it is not zero, of a BAE in canonical
    form, and one that is not kept is set to its other state. progress: show it on standard error.
    """
    if wrong := [k for k in keep if k is not None and k < 0]:
        raise BitlensError(f"The number of latents to keep must not be negative, as {wrong[0]} is.")
    share = held_out_share(store, autoencoder.metadata)
    rates = _rates(
        autoencoder, store if share in (None, store.test_fraction) else store.split(share)
    )
    off = (autoencoder.on_rates(rates) < rates).float()
    rates = autoencoder.on_rates(rates)
    norms = autoencoder.W_dec.norm(dim=1)

    def kept(on: Tensor, k: int | None) -> Tensor:
        return keep_surprising(on, rates, k) if by == "surprisal" else keep_largest(on, norms, k)

    def change(k: int | None) -> Callable[[Tensor], Tensor]:
        return lambda x: autoencoder.decode(kept(autoencoder.encode(x) - off, k) + off, x)

    sums = torch.zeros(len(keep), 3, dtype=torch.float64)
    variance = Variance()
    for x, target in splice.hidden_states():
        variance.add(target)
        on = autoencoder.encode(x) - off
        for i, k in enumerate(keep):
            codes = kept(on, k)
            error = squared_error(target, autoencoder.decode(codes + off, x))
            numbers = (
                float((codes != 0).sum()),
                -float(((codes != 0) * rates.log2()).sum()),
                error,
            )
            sums[i] += torch.tensor(numbers, dtype=torch.float64)
    l0, surprisal, _ = (sums / variance.rows).T.tolist()
    fvu = [variance.fvu(error) for error in sums[:, 2].tolist()]
    tokens = splice.tokens([change(k) for k in keep])
    sums = [splice.sums(of) for of in tokens]
    losses = [of.losses() for of in sums]
    return [
        Kept(*numbers)
        for numbers in zip(keep, l0, surprisal, fvu, tokens, losses, sums, strict=True)
    ]


@terminal.shown("firing rates")
def _rates(autoencoder: Autoencoder, store: ActivationStore) -> Tensor:
    """Firing rates `[n_latents]`, float64, with half a count added to each state (Krichevsky & Trofimov 1981)."""
    rows = store.sample(RATE_ROWS, generator("faithfulness"))
    if not len(rows):
        raise BitlensError(NO_ROWS)
    on = torch.stack(
        [(autoencoder.encode(autoencoder.pair(x)[0]) != 0).sum(0) for x in rows.split(16384)]
    ).sum(0)
    return (on.double() + 0.5) / (len(rows) + 1)


@torch.inference_mode()
def differences(
    own: SpliceSums, splice: Splice, others: Mapping[str, Autoencoder]
) -> dict[str, dict[str, Estimate]]:
    """The scores of one splice less those of other autoencoders' whole codes on the same contexts, by their names."""
    spliced = splice.tokens(list(others.values())) if others else []
    return {
        name: own.less(splice.sums(tokens)) for name, tokens in zip(others, spliced, strict=True)
    }


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
    octave = tokens.position.double().log2().floor().long()
    lines = {}
    for i in octave.unique().tolist():
        here = octave == i
        positions = f"{2**i}-{2 ** (i + 1) - 1}" if i else "1"
        lines[positions] = PositionLosses(
            int(here.sum()), *(float(t[here].double().mean()) for t in tokens[2:])
        )
    return lines


def worst(tokens: SpliceTokens, n: int = 10) -> list[int]:
    """Indices of the tokens whose cross-entropy rises most, those first."""
    rise = tokens.ce_spliced - tokens.ce_original
    return rise.topk(min(n, len(rise))).indices.tolist()


def record(splice: Splice, tokens: SpliceTokens, index: int, window: int = 8) -> dict[str, Any]:
    """The numbers of one scored token, with its text, and up to `window` tokens of its context on either side."""
    numbers = {name: value[index].item() for name, value in tokens._asdict().items()}
    ids, position = splice.contexts[numbers["context"]], numbers["position"]
    here = int((ids[:position] >= 0).sum())
    parts = in_text(splice.model.tokenizer, ids[ids >= 0].tolist(), here, window)
    return {**numbers, **dict(zip(("before", "token", "after"), parts, strict=True))}


def write_tokens(path: Path, splice: Splice, tokens: SpliceTokens) -> None:
    """Write the `record` of every scored token as a line of JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for index in range(len(tokens.position)):
            file.write(json.dumps(finite(record(splice, tokens, index)), ensure_ascii=False) + "\n")
