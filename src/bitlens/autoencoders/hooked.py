"""An autoencoder at its hook point in a transformers model: its codes are recorded, or what it
makes of the hidden states passes on instead of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bitlens.errors import BitlensError
from bitlens.hidden.models import LanguageModel
from bitlens.hidden.places import NONE, Places, Positions, passing
from bitlens.results import brief


class Pass(NamedTuple):
    """What an autoencoder made of one forward pass."""

    __repr__ = brief

    codes: Tensor
    """`[batch, length, n_latents]`, float32, zero at tokens that were not encoded"""
    encoded: Tensor
    """bool `[batch, length]`: not special tokens, padding, and hidden states of outlying norm"""


class Hooked:
    """What is hooked to the model, and its `passes` so far. The settings are those of
    `Autoencoder.hook`."""

    def __init__(
        self,
        autoencoder: Any,
        replace: bool,
        use_error_term: bool,
        change: Callable[[Tensor], Tensor] | None,
        record: bool,
        max_norm: float,
    ) -> None:
        if not replace and (use_error_term or change is not None):
            raise BitlensError("An error term and changed codes take replace=True.")
        self.autoencoder, self.replace, self.change = autoencoder, replace, change
        self.use_error_term, self.record, self.max_norm = use_error_term, record, max_norm
        self.passes: list[Pass] = []
        self.places: Any = None
        self._new: tuple[Tensor, Tensor | None] | None = None
        self._where: tuple[Tensor, ...] = ()

    @property
    def codes(self) -> Tensor:
        """Codes of the last pass, `[batch, length, n_latents]`."""
        if not self.passes:
            raise BitlensError("No pass was recorded: call the model in the block first.")
        return self.passes[-1].codes

    def read(self, x: Tensor) -> None:
        """What passes where the autoencoder reads -> its codes, and what will be written"""
        self._new = None
        norm = torch.linalg.vector_norm(x.detach().float(), dim=-1)
        meant = (self.places.place.to(x.device) != NONE) & (norm <= self.max_norm)
        self._where = meant.nonzero(as_tuple=True)
        raw = x[meant]
        codes = self.autoencoder.encode(raw)
        if self.record:
            self.passes.append(self._recorded(codes, meant))
        if self.replace and len(raw):
            new = codes if self.change is None else self.change(codes)
            lacking = self.autoencoder.decode(codes, raw).detach() if self.use_error_term else None
            self._new = self.autoencoder.decode(new, raw), lacking

    def _recorded(self, codes: Tensor, meant: Tensor) -> Pass:
        encoded = meant.to(codes.device)
        every = codes.new_zeros(*meant.shape, codes.shape[-1])
        return Pass(every.index_put(encoded.nonzero(as_tuple=True), codes), encoded)

    def write(self, y: Tensor) -> Tensor | None:
        """What passes where it writes -> what passes on instead, None for the same"""
        if self._new is None:
            return None
        x_hat, of_codes = self._new
        x_hat = x_hat.to(y.device)
        where = tuple(index.to(y.device) for index in self._where)
        if of_codes is not None:  # exactly y where the codes stay; gradients pass by x_hat alone
            x_hat = y[where].detach().float() + (x_hat - of_codes.to(y.device))
        return y.index_put(where, x_hat.to(y.dtype))


@contextlib.contextmanager
def hooked(done: Hooked, model: Any, positions: Positions, tokenizer: Any) -> Iterator[Hooked]:
    """Within the block `done` is hooked to the model, at the hook points of its autoencoder."""
    hooks = done.autoencoder.hooks
    if not all(hooks):
        raise BitlensError(
            "This autoencoder does not know its hook point: put it into its metadata, as "
            'metadata["hook"] = {"module": "layers.2"}.'
        )
    if isinstance(model, LanguageModel):
        model, tokenizer = model.model, tokenizer or model.tokenizer
    done.places = Places(LanguageModel.of(model, hooks, tokenizer), positions)
    with passing(done.places, done.read, done.write):
        yield done
