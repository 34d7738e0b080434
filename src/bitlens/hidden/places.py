"""Which tokens of a forward pass are meant, whatever its padding and its key-value cache."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bitlens.errors import BitlensError
from bitlens.hidden.hooks import attach
from bitlens.hidden.models import LanguageModel

Positions = Sequence[int] | Tensor | None
NONE = -1  # the place of a token that is not meant


class Places:
    """Watches the forward passes of a language model, `generate` among them.

    positions: None for all tokens, those that are generated, too; integers count the tokens of each
    sequence without padding, from 0, negative ones from the end of its prompt; a bool mask
    `[length]` or `[batch, length]` has the columns of the prompt's input. Special tokens and
    padding are never meant. The prompt is what a pass without a cache reads, in `generate` the
    first one.

    During a pass `place [batch, length]` says which of the positions each of its tokens is (0 where
    they are None or a mask), or NONE.
    """

    def __init__(self, model: LanguageModel, positions: Positions) -> None:
        self.model = model
        self.marked: Tensor | None = None
        self.positions: Tensor | None = None
        if positions is not None:
            self._read(positions)
        self.place = torch.zeros(0, 0, dtype=torch.long)
        self._parameters = inspect.signature(model.base.forward)
        self._prompt: Tensor | None = None  # tokens of each sequence
        self._generating = False

    def _read(self, positions: Sequence[int] | Tensor) -> None:
        given = torch.as_tensor(positions).cpu()
        if given.dtype == torch.bool and given.dim() in (1, 2):
            self.marked = given
        elif given.numel() and (given.is_floating_point() or given.dim() > 1):
            raise BitlensError(
                "Positions are whole numbers, in one list for all sequences, or a bool mask "
                "`[length]` or `[batch, length]`."
            )
        else:
            self.positions = given.long().view(-1)

    @contextlib.contextmanager
    def watched(self) -> Iterator[Places]:
        """Within the block every pass is watched."""
        network: Any = self.model.model
        with contextlib.ExitStack() as stack:
            hook = self.model.base.register_forward_pre_hook(self._see, with_kwargs=True)
            stack.enter_context(hook)
            if hasattr(network, "generate"):
                if "generate" in vars(network):
                    stack.callback(setattr, network, "generate", network.generate)
                else:  # it is the class's
                    stack.callback(delattr, network, "generate")
                network.generate = self._noticing(network.generate)
            yield self

    def _noticing(self, generate: Any) -> Any:
        """Without a cache, too, only the first pass of a generation is its prompt."""

        def noticed(*args: Any, **kwargs: Any) -> Any:
            if kwargs.get("prefill_chunk_size"):  # no pass would be the whole prompt
                raise BitlensError("A prompt must be read at once: leave out prefill_chunk_size.")
            self._generating, self._prompt = True, None
            try:
                return generate(*args, **kwargs)
            finally:
                self._generating = False

        return noticed

    def _see(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = self._parameters.bind_partial(*args, **kwargs).arguments
        given = {**given, **given.get("kwargs", {})}
        ids: Tensor | None = given.get("input_ids")
        batch, length = (given["inputs_embeds"] if ids is None else ids).shape[:2]
        mask: Any = given.get("attention_mask")
        if mask is None:
            cache: Any = given.get("past_key_values")
            past = int(cache.get_seq_length()) if hasattr(cache, "get_seq_length") else 0
            mask = torch.ones(batch, past + length, dtype=torch.long)
        elif not isinstance(mask, Tensor) or mask.dim() != 2:
            raise BitlensError(
                "Where the padding is cannot be read from an attention mask that is not "
                "`[batch, length]`; use the model's usual cache."
            )
        real: Tensor = mask.cpu().bool()
        past = real.shape[1] - length
        index = real.long().cumsum(1) - 1
        first = not past and not self._generating
        if first or self._prompt is None or len(self._prompt) != batch:
            self._prompt = index[:, -1] + 1
            self._refuse_before(self._prompt)
        usual = real[:, past:]
        if ids is not None:
            usual = usual & ~torch.isin(ids.cpu(), self.model.special)
        self.place = self._placed(index[:, past:], past).masked_fill(~usual, NONE)

    def _placed(self, index: Tensor, past: int) -> Tensor:
        """index `[batch, length]`: of each token in its sequence, without padding"""
        if self.marked is not None:
            marked = spread(self.marked if self.marked.dim() == 2 else self.marked[None], index)
            here = marked[:, past : past + index.shape[1]]
            here = nn.functional.pad(here, (0, index.shape[1] - here.shape[1]))
            return torch.where(here, 0, NONE)
        if self.positions is None:
            return torch.zeros_like(index)
        if not len(self.positions) or self._prompt is None:
            return torch.full_like(index, NONE)
        wanted = self.positions + (self.positions < 0) * self._prompt[:, None]
        same = index[:, :, None] == wanted[:, None]
        return torch.where(same.any(2), same.int().argmax(2), NONE)

    def _refuse_before(self, lengths: Tensor) -> None:
        longest = int(lengths.max())
        if self.positions is not None and len(self.positions) and -self.positions.min() > longest:
            raise BitlensError(
                f"There is no position {int(self.positions.min())} in a text of {longest} tokens."
            )


@contextlib.contextmanager
def passing(
    places: Places, read: Callable[[Tensor], None], write: Callable[[Tensor], Tensor | None]
) -> Iterator[None]:
    """Within the block every pass is watched: what passes the model's first hook point is read, and
    then what passes its last one (the same, where it has one) is written, unless that is None."""

    def read_and_write(x: Tensor) -> Tensor | None:
        read(x)
        return write(x)

    model = places.model
    first, last = model.hooks[0], model.hooks[-1]
    with contextlib.ExitStack() as stack:
        stack.enter_context(places.watched())
        if first != last:
            stack.enter_context(attach(model.base, first, read))
            stack.enter_context(attach(model.base, last, write))
        else:
            stack.enter_context(attach(model.base, first, read_and_write))
        yield


def spread(rows: Tensor, batch: Tensor) -> Tensor:
    """Rows of one for all sequences, or one for each, where a beam search repeats them."""
    times, left = divmod(len(batch), len(rows))
    if left:
        raise BitlensError(
            f"{len(rows)} sequences were described, and the model reads {len(batch)}."
        )
    return rows.repeat_interleave(times, 0)
