"""Hold latents at values while a language model runs, and see what it says then.

To what passes the hook point only the change is added: `(h' - h) W_dec scale`, where h are the
codes of a hidden state and h' the codes as they are held. What the autoencoder does not explain
stays, and rows whose codes do not change stay as they are, bit by bit.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from bitlens.autoencoders import Autoencoder, BinaryAutoencoder
from bitlens.causal.faithfulness import keep_largest
from bitlens.causal.splice import require_hooks
from bitlens.errors import BitlensError
from bitlens.features.on_rows import refuse_unknown
from bitlens.hidden.models import LanguageModel
from bitlens.hidden.places import NONE, Places, Positions, passing, spread
from bitlens.results import brief

Holds = Mapping[int, float]
Others = Literal["kept", "searched"]


class Rows(NamedTuple):
    """Hidden states whose codes may change."""

    __repr__ = brief

    x: Tensor
    """as they pass the hook point where the autoencoder reads, `[rows, d_in]`"""
    codes: Tensor
    """`[rows, n_latents]`, float32"""
    sequence: Tensor
    """which of the batch each is of"""
    place: Tensor
    """which of the `positions` each is at; 0 where those are a mask or all"""
    batch: int
    """sequences of the batch"""


@dataclass
class Intervention:
    """What an intervention has done so far, in all passes of its block."""

    rows: int = 0
    """hidden states at its positions"""
    changed: int = 0
    """of these, those whose codes it changed"""


def intervene(
    model: LanguageModel,
    autoencoder: Autoencoder,
    holds: Holds | Sequence[Holds],
    positions: Positions = None,
    others: Others = "kept",
    *,
    max_norm: float | None = None,
) -> contextlib.AbstractContextManager[Intervention]:
    """Within the block latents are held at values in every pass of the model, `generate` too.

    model: hooked where the autoencoder reads (and, for a transcoder, where it writes), as
    `load_spliced` does; whole (`causal=True`), where it is to predict. holds: latent -> 0 or 1; of
    a sparse autoencoder any value from 0 on. A list holds others in each sequence of the batch.

    positions: None: every token, those that are generated, too. Integers: from the start of each
    sequence, padding not counted; negative: from the end of the prompt. A bool mask `[length]` or
    `[batch, length]`: of the prompt's columns. Special tokens and hidden states of a norm above
    max_norm (default: the limit of the autoencoder's training) stay as the model made them, as no
    autoencoder is trained on them.

    others: the latents that are not held. `kept`: they stay as they were found without holding:
    what is added is the decoder rows of the held latents alone. `searched`: only for bits found by
    descent; they are searched anew while the held ones stand, so they may answer by taking over
    what a bit that is held off explained, or by cancelling what one that is held on adds. A row
    whose bits are as they are held already is not searched again.
    """
    several = [holds] if isinstance(holds, Mapping) else list(holds)
    if not several:
        raise BitlensError("A list of holds has one for each sequence; to hold nothing name {}.")
    values = torch.stack([_values(autoencoder, each) for each in several])
    if others not in ("kept", "searched"):
        raise BitlensError(f"Other latents are 'kept' or 'searched', not '{others}'.")
    searched = others == "searched"
    if searched and getattr(autoencoder, "coding", None) != "descent":
        raise BitlensError(
            "Only bits that are found by descent are searched anew; those of this "
            f"{autoencoder.architecture} are not: let the others be kept."
        )
    change = partial(_hold, autoencoder, values, searched)
    if values.isnan().all():
        positions = ()
    return change_codes(model, autoencoder, change, positions, max_norm=max_norm)


def swap(
    model: LanguageModel,
    autoencoder: Autoencoder,
    other: str | Tensor,
    positions: Sequence[int],
    from_positions: Sequence[int] | None = None,
    *,
    max_norm: float | None = None,
) -> contextlib.AbstractContextManager[Intervention]:
    """Within the block the codes at these positions are those of another text.

    other: the text, or its token ids `[length]`. from_positions: where its codes are taken from,
    one for each of `positions` (default: the same ones).
    """
    tokens = tokens_of(model, other)
    taken = list(positions if from_positions is None else from_positions)
    if len(taken) != len(positions):
        raise BitlensError(
            f"{len(positions)} positions take the codes of as many, not of {len(taken)}."
        )
    if wrong := [place for place in taken if not -len(tokens) <= place < len(tokens)]:
        raise BitlensError(f"There is no position {wrong[0]} in a text of {len(tokens)} tokens.")
    with torch.no_grad():
        states = model.hidden_states(tokens[None])[model.hooks[0].name][0]
        codes = autoencoder.encode(states[taken])
    return change_codes(
        model, autoencoder, lambda rows: codes[rows.place], positions, max_norm=max_norm
    )


def keep_only(
    model: LanguageModel,
    autoencoder: Autoencoder,
    keep: int | Sequence[int],
    positions: Positions = None,
    *,
    max_norm: float | None = None,
) -> contextlib.AbstractContextManager[Intervention]:
    """Within the block all latents are off but some: those of a list, or so many of each row as
    `keep` says, those of the largest magnitude times decoder norm."""
    if isinstance(keep, int):
        if keep < 0:
            raise BitlensError(f"The number of latents to keep must not be negative, as {keep} is.")
        norms, most = autoencoder.W_dec.detach().norm(dim=1), keep

        def change(rows: Rows) -> Tensor:
            return keep_largest(rows.codes, norms, most)
    else:
        refuse_unknown(keep, autoencoder.n_latents)
        kept = torch.zeros(autoencoder.n_latents, device=autoencoder.W_dec.device)
        kept[list(keep)] = 1

        def change(rows: Rows) -> Tensor:
            return rows.codes * kept

    return change_codes(model, autoencoder, change, positions, max_norm=max_norm)


@torch.inference_mode()
def sweep(
    model: LanguageModel,
    autoencoder: Autoencoder,
    text: str | Tensor,
    holds: Sequence[Holds],
    positions: Positions = None,
    others: Others = "kept",
    *,
    max_norm: float | None = None,
    batch_size: int = 32,
) -> Tensor:
    """Log-probabilities of the token after a text, once for each of `holds`, `[holds, vocabulary]`.

    One latent at several values: `[{317: 0}, {317: 1}]`; all latents one after another:
    `[{latent: 0} for latent in range(n_latents)]`. text: or its token ids `[length]`.
    """
    tokens, holds = tokens_of(model, text), list(holds)
    if not len(tokens) or not holds:
        raise BitlensError("A sweep needs a token to predict after, and something to hold.")
    found = []
    for first in range(0, len(holds), batch_size):
        some = holds[first : first + batch_size]
        inputs = model.inputs(tokens.expand(len(some), -1))
        with intervene(model, autoencoder, some, positions, others, max_norm=max_norm):
            found.append(model.model(**inputs).logits[:, -1].float().log_softmax(-1))
    return torch.cat(found)


def steering_vector(autoencoder: Autoencoder, latent: int) -> Tensor:
    """What a latent adds to the hidden state when it goes from 0 to 1, `[d_out]`, in the model's
    own units: to be added to what passes the hook point by any other tool."""
    refuse_unknown([latent], autoencoder.n_latents)
    return (autoencoder.W_dec[latent].detach().float() * autoencoder.output_scale).clone()


def tokens_of(model: LanguageModel, text: str | Tensor) -> Tensor:
    """Token ids `[length]` of a text, or as they are."""
    if isinstance(text, str):
        return torch.tensor(model.tokenizer(text)["input_ids"], dtype=torch.long)
    return text


def change_codes(
    model: LanguageModel,
    autoencoder: Autoencoder,
    change: Callable[[Rows], Tensor],
    positions: Positions = None,
    *,
    max_norm: float | None = None,
) -> contextlib.AbstractContextManager[Intervention]:
    """Within the block the codes at these positions are what `change` makes of them, `[rows,
    n_latents]`; see `intervene` for what the other arguments mean."""
    require_hooks(model, autoencoder)
    limit = autoencoder.outlier_norm if max_norm is None else max_norm
    return _changing(_Change(autoencoder, change, Places(model, positions), limit))


@contextlib.contextmanager
def _changing(change: _Change) -> Iterator[Intervention]:
    with passing(change.places, change.read, change.write):
        yield change.done


class _Change:
    """What is hooked to the model."""

    def __init__(
        self,
        autoencoder: Autoencoder,
        change: Callable[[Rows], Tensor],
        places: Places,
        max_norm: float,
    ) -> None:
        self.autoencoder, self.change, self.places = autoencoder, change, places
        self.max_norm, self.done = max_norm, Intervention()
        self._delta: Tensor | None = None
        self._where: tuple[Tensor, ...] = ()

    @torch.no_grad()
    def read(self, x: Tensor) -> None:
        """What passes where the autoencoder reads -> what will be added, and where"""
        self._delta, place = None, self.places.place.to(x.device)
        meant = place != NONE
        if not meant.any():
            return
        norm = torch.linalg.vector_norm(x.float(), dim=-1)
        sequence, column = (meant & (norm <= self.max_norm)).nonzero().T
        self.done.rows += len(sequence)
        if not len(sequence):
            return
        raw = x[sequence, column]
        codes = self.autoencoder.encode(raw)
        home = codes.device
        where = sequence.to(home), place[sequence, column].to(home)
        new = self.change(Rows(raw, codes, *where, len(x)))
        changed = (new != codes).any(1)
        self.done.changed += int(changed.sum())
        if changed.any():
            difference = (new - codes)[changed]
            scale = self.autoencoder.output_scale
            self._delta = difference @ self.autoencoder.W_dec.detach().float() * scale
            kept = changed.to(x.device)
            self._where = sequence[kept], column[kept]

    def write(self, y: Tensor) -> Tensor | None:
        """What passes where it writes -> what passes on instead, None for the same"""
        if self._delta is None:
            return None
        return added(y, self._where, self._delta)


def added(x: Tensor, where: tuple[Tensor, ...], delta: Tensor) -> Tensor:
    """The same with delta added at these places, in float32, so that it is rounded once."""
    where = tuple(index.to(x.device) for index in where)
    changed = x.clone()
    changed[where] = (x[where].float() + delta.to(x.device)).to(x.dtype)
    return changed


# --- what becomes of codes ------------------------------------------------------------------------


def _values(autoencoder: Autoencoder, holds: Holds) -> Tensor:
    """What every latent is held at, NaN for those that are not, `[n_latents]`"""
    refuse_unknown(list(holds), autoencoder.n_latents)
    for latent, value in holds.items():
        if autoencoder.binary and value not in (0, 1):
            raise BitlensError(f"Latent {latent} is a bit: it is held at 0 or 1, not {value}.")
        if not math.isfinite(value) or (value < 0 and autoencoder.architecture != "pca"):
            raise BitlensError(f"Latent {latent} cannot be held at {value}, only from 0 on.")
    values = torch.full((autoencoder.n_latents,), math.nan)
    for latent, value in holds.items():
        values[latent] = value
    return values.to(autoencoder.W_dec.device)


def _hold(autoencoder: Autoencoder, values: Tensor, searched: bool, rows: Rows) -> Tensor:
    """values `[n_latents]` of all sequences, or of each"""
    own = spread(torch.arange(len(values)), torch.empty(rows.batch)).to(values.device)
    own = own[rows.sequence]
    held = values[own]
    kept = torch.where(held.isnan(), rows.codes, held)
    if not searched or not isinstance(autoencoder, BinaryAutoencoder):
        return kept
    different = (kept != rows.codes).any(1)
    for each in own[different].unique().cpu().tolist():
        some = different & (own == each)
        kept[some] = autoencoder.encode_held(rows.x[some.to(rows.x.device)], values[each])
    return kept
