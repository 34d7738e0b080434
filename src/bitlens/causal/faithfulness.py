"""How much of a hidden state the language model needs: only the k most surprising bits are kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from bitlens import terminal
from bitlens.autoencoders import Autoencoder
from bitlens.causal.splice import Splice, SpliceLosses, SpliceTokens
from bitlens.errors import BitlensError
from bitlens.files import finite, replacing
from bitlens.hidden.source import NO_ROWS
from bitlens.hidden.store import ActivationStore
from bitlens.seeding import generator

KEEP = (1, 2, 4, 8, 16, 32, 64, None)
RATE_ROWS = 65536  # of training documents, from which firing rates are taken

By = Literal["surprisal", "magnitude"]


class Kept(NamedTuple):
    """What is left of hidden states, and of the language model's predictions, with k latents of each row."""

    k: int | None
    """None: the whole code"""
    l0: float
    """mean number of latents on"""
    surprisal: float
    """mean sum of `-log2 p_j` over the latents on, bits"""
    fvu: float
    """of the hidden states that are replaced, about their own mean"""
    tokens: SpliceTokens
    losses: SpliceLosses

    def as_dict(self) -> dict[str, Any]:
        """All but the single tokens"""
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
    those of up to 65,536 training rows of the store. Of a BAE a latent counts as on in the rarer of its two states, and
    one that is not kept is set to the other. progress: show it on standard error.
    """
    if wrong := [k for k in keep if k is not None and k < 0]:
        raise BitlensError(f"The number of latents to keep must not be negative, as {wrong[0]} is.")
    rates = _rates(autoencoder, store)
    off = ((rates > 0.5) & autoencoder.binary).float()
    rates = torch.where(off > 0, 1 - rates, rates)
    norms = autoencoder.W_dec.norm(dim=1)

    def kept(on: Tensor, k: int | None) -> Tensor:
        return keep_surprising(on, rates, k) if by == "surprisal" else keep_largest(on, norms, k)

    def change(k: int | None) -> Callable[[Tensor], Tensor]:
        return lambda x: autoencoder.decode(kept(autoencoder.encode(x) - off, k) + off, x)

    sums = torch.zeros(len(keep), 3, dtype=torch.float64)
    rows, total, squares = 0, torch.zeros_like(splice.mean, dtype=torch.float64), 0.0
    for x, target in splice.hidden_states():
        shifted = target.double() - splice.mean
        rows, total, squares = rows + len(x), total + shifted.sum(0), squares + float(shifted.square().sum())
        on = autoencoder.encode(x) - off
        for i, k in enumerate(keep):
            codes = kept(on, k)
            error = autoencoder.decode(codes + off, x) - target
            numbers = ((codes != 0).sum(), -((codes != 0) * rates.log2()).sum(), error.double().square().sum())
            sums[i] += torch.stack(numbers).cpu()
    l0, surprisal, error = (sums / rows).T.tolist()
    variance = (squares - float(total.square().sum()) / rows) / rows
    fvu = [e / variance for e in error]
    tokens = splice.tokens([change(k) for k in keep])
    return [Kept(*numbers, splice.means(numbers[-1])) for numbers in zip(keep, l0, surprisal, fvu, tokens, strict=True)]


@terminal.shown("firing rates")
def _rates(autoencoder: Autoencoder, store: ActivationStore) -> Tensor:
    """Firing rates `[n_latents]`, float64, with half a count added to each state (Krichevsky & Trofimov 1981)."""
    rows = store.sample(RATE_ROWS, generator("faithfulness"))
    if not len(rows):
        raise BitlensError(NO_ROWS)
    on = torch.stack([(autoencoder.encode(autoencoder.pair(x)[0]) != 0).sum(0) for x in rows.split(16384)]).sum(0)
    return (on.double() + 0.5) / (len(rows) + 1)


class PositionLosses(NamedTuple):
    """Means over the scored tokens at some positions of their contexts."""

    tokens: int
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
        lines[positions] = PositionLosses(int(here.sum()), *(float(t[here].double().mean()) for t in tokens[2:]))
    return lines


def worst(tokens: SpliceTokens, n: int = 10) -> list[int]:
    """Indices of the tokens whose cross-entropy rises most, those first."""
    rise = tokens.ce_spliced - tokens.ce_original
    return rise.topk(min(n, len(rise))).indices.tolist()


def record(splice: Splice, tokens: SpliceTokens, index: int, window: int = 8) -> dict[str, Any]:
    """The numbers of one scored token, with its text, and up to `window` tokens of its context on either side."""
    numbers = {name: value[index].item() for name, value in tokens._asdict().items()}
    ids, position = splice.contexts[numbers["context"]], numbers["position"]
    parts = {"before": ids[max(0, position - window) : position], "token": ids[position : position + 1]}
    parts["after"] = ids[position + 1 : position + 1 + window]
    return {**numbers, **{name: splice.model.tokenizer.decode(part[part >= 0]) for name, part in parts.items()}}


def write_tokens(path: Path, splice: Splice, tokens: SpliceTokens) -> None:
    """Write the `record` of every scored token as a line of JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for index in range(len(tokens.position)):
            file.write(json.dumps(finite(record(splice, tokens, index)), ensure_ascii=False) + "\n")
