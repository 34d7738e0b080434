"""Run a language model again from a change at one token of a context on, many changes at once.

A change at one token reaches no earlier one, so of each only that token and a few that follow are
run. Those of many changes are laid one after another in one sequence, under a mask in which each
sees the context before its change (from the cache of one pass over the context) and itself. Layers
below the change are left out. Whether a model keeps to such a mask is tried on the longest context,
in a pass as full as any; one that does not (as attention in a window shorter than the context does
not) runs each change in a copy of the whole context, which is slower.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from bitlens import terminal
from bitlens.causal.intervene import added
from bitlens.errors import BitlensError
from bitlens.hidden.hooks import Architecture, HookPoint, attach
from bitlens.hidden.models import LanguageModel

PACK_BYTES = 64 << 20  # of the logits of a pass
MOST = 256  # tokens of a pass
# of a model that takes no cache, mask or positions from outside
FAILURES = (TypeError, ValueError, RuntimeError, AttributeError, KeyError, IndexError)


class Outcome(NamedTuple):
    """What some changes, a slice of them, led to."""

    changes: slice
    log_probs: Tensor
    """of the token after each change, float32 `[n, vocabulary]`"""
    losses: Tensor
    """cross-entropies of the tokens after it, `[n, following]`; NaN where there is none"""
    later: Tensor | None
    """what passed the later hook point at the token itself, `[n, d]`"""


class Context(NamedTuple):
    """A context as it is without a change."""

    ids: Tensor
    states: dict[str, Tensor]
    """of each hook point, by name, `[length, d]`"""
    entering: Tensor
    """what goes into the layer of the change"""
    logits: Tensor
    """`[length, vocabulary]`"""
    cache: Any


class Rerun:
    """A whole causal model in which what passes a hook point is changed at single tokens."""

    def __init__(
        self, model: LanguageModel, hook: HookPoint, later: HookPoint | None, following: int
    ) -> None:
        """hook: where changes are added. later: a hook point to read then. following: tokens after
        a change whose prediction is scored."""
        self.model, self.hook, self.later, self.following = model, hook, later, following
        architecture = Architecture(model.base, model.config)
        layer = architecture.layer(hook.path)
        first = 0 if layer is None else layer
        self.entry = architecture.block(first, "input")
        self.below = [architecture.modules[architecture.block(i).path] for i in range(first)]
        self.config = model.config.get_text_config()
        width = self.config.vocab_size
        self.vocabulary = min(len(model.tokenizer), width)
        self.room = max(following, min(MOST, PACK_BYTES // (4 * width)))
        self.packs = False  # whether the model keeps to the mask
        self._tuples: set[nn.Module] = set()  # layers whose output is one

    @torch.inference_mode()
    def prepare(self, longest: Tensor) -> None:
        """Try whether the model keeps to the mask, on the longest context `[length]`: what holds
        there holds in all."""
        window = getattr(self.config, "sliding_window", None)
        if not window or len(longest) <= window:
            with contextlib.suppress(*FAILURES):
                self.packs = self._keeps_to_the_mask(self._context(longest, DynamicCache()))
        if not self.packs:
            terminal.say(
                f"{self.model.name} cannot run many changes in one pass: each runs in a copy of "
                "its context, which is slower."
            )

    @torch.inference_mode()
    def context(self, ids: Tensor) -> Context:
        """A pass over a context `[length]`."""
        return self._context(ids, DynamicCache() if self.packs else None)

    def _context(self, ids: Tensor, cache: DynamicCache | None) -> Context:
        states: dict[str, Tensor] = {}
        hooks = {hook.name: hook for hook in [*self.model.hooks, self.entry]}
        if self.later is not None:
            hooks[self.later.name] = self.later
        with contextlib.ExitStack() as stack:
            for name, hook in hooks.items():
                keep = lambda x, name=name: states.__setitem__(name, x[0].clone())  # noqa: E731
                stack.enter_context(attach(self.model.base, hook, keep))
            for layer in self.below:
                stack.enter_context(layer.register_forward_hook(self._notice))
            cached = {} if cache is None else {"past_key_values": cache, "use_cache": True}
            output = self.model.model(**self.model.inputs(ids[None]), **cached)
        return Context(ids, states, states[self.entry.name], output.logits[0].float(), cache)

    @torch.inference_mode()
    def __call__(self, context: Context, position: Tensor, delta: Tensor) -> Iterator[Outcome]:
        """position, ascending `[n]`; delta `[n, d]`, in the model's own units."""
        run = self._packed if self.packs else self._whole
        each = max(1, self.room // (self.following if self.packs else len(context.ids)))
        for first in range(0, len(position), each):
            some = slice(first, min(first + each, len(position)))
            logits, at, later = run(context, position[some], delta[some])
            yield self._outcome(context, some, position[some], logits, at, later)

    def _outcome(
        self,
        context: Context,
        some: slice,
        position: Tensor,
        logits: Tensor,
        at: Tensor,
        later: Tensor | None,
    ) -> Outcome:
        """logits `[tokens, vocabulary]`; at `[n, following]`: their rows, -1 beyond the end"""
        logits = logits[:, : self.vocabulary]
        first = logits[at[:, 0]].log_softmax(-1)
        target = position[:, None] + 1 + torch.arange(self.following)
        target = context.ids[target.clamp_max(len(context.ids) - 1)].to(logits.device)
        inside = at >= 0
        right = logits[at[inside], target[inside]]
        losses = torch.full(at.shape, torch.nan, device=logits.device)
        losses[inside] = logits.logsumexp(-1)[at[inside]] - right
        return Outcome(some, first, losses, later)

    def _windows(self, context: Context, position: Tensor) -> tuple[Tensor, Tensor]:
        """-> the tokens that each change needs `[n, following]`, and which of them are there"""
        token = position[:, None] + torch.arange(self.following)
        inside = token < len(context.ids) - 1
        inside[:, 0] = True
        return token, inside

    # --- all changes in one sequence --------------------------------------------------------------

    def _packed(
        self, context: Context, position: Tensor, delta: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        token, inside = self._windows(context, position)
        device, length = self.model.device, len(context.ids)
        at = torch.where(inside, inside.flatten().cumsum(0).view(inside.shape) - 1, -1)
        change, places = inside.nonzero()[:, 0], token[inside]
        begun = at[:, 0]
        before = torch.arange(length) < position[change][:, None]
        own = (change == change[:, None]) & (places <= places[:, None])
        seen = torch.cat([before, own], 1).to(device)
        mask = torch.zeros(seen.shape, dtype=self.model.dtype, device=device)
        mask.masked_fill_(~seen, torch.finfo(mask.dtype).min)
        where = torch.zeros_like(begun), begun

        def enter(x: Tensor) -> Tensor:
            return context.entering[places][None].to(x)

        with contextlib.ExitStack() as stack:
            for layer in self.below:
                stack.enter_context(_left_out(layer, layer in self._tuples))
            stack.enter_context(attach(self.model.base, self.entry, enter))
            later = stack.enter_context(self._changed(where, delta))
            stack.callback(_put_back, context.cache, [vars(x).copy() for x in context.cache.layers])
            logits = self.model.model(
                input_ids=context.ids[places][None].to(device),
                position_ids=places[None].to(device),
                attention_mask=mask[None, None],
                past_key_values=context.cache,
                use_cache=True,
            ).logits[0]
        return logits.float(), at.to(logits.device), next(iter(later), None)

    def _keeps_to_the_mask(self, context: Context) -> bool:
        """Whether changes of nothing leave the logits as they are."""
        last, each = len(context.ids) - 1, self.room // self.following
        position = torch.linspace(0, max(0, last - self.following), each + 1).long()
        delta = torch.zeros(len(position), context.states[self.hook.name].shape[1])
        logits, at, _ = self._packed(context, position, delta)
        token, inside = self._windows(context, position)
        expected = context.logits[token[inside]]
        off = (logits[at[inside]] - expected).abs().max() / expected.abs().max()
        return bool(off < (1e-4 if self.model.dtype == torch.float32 else 5e-2))

    # --- each change in a copy of the context -----------------------------------------------------

    def _whole(
        self, context: Context, position: Tensor, delta: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        token, inside = self._windows(context, position)
        n, length = len(position), int(token[inside].max()) + 1
        at = torch.where(inside, torch.arange(n)[:, None] * length + token, -1)
        with self._changed((torch.arange(n), position), delta) as later:
            inputs = self.model.inputs(context.ids[:length].expand(n, -1))
            logits = self.model.model(**inputs).logits.flatten(0, 1)
        return logits.float(), at.to(logits.device), next(iter(later), None)

    @contextlib.contextmanager
    def _changed(self, where: tuple[Tensor, ...], delta: Tensor) -> Iterator[list[Tensor]]:
        """Within the block delta is added at these tokens -> what then passes the later hook point
        at them, if there is one, in a list."""
        read: list[Tensor] = []

        def keep(x: Tensor) -> None:
            read.append(x[tuple(index.to(x.device) for index in where)])

        with contextlib.ExitStack() as stack:
            add = partial(added, where=where, delta=delta)
            stack.enter_context(attach(self.model.base, self.hook, add))
            if self.later is not None:
                stack.enter_context(attach(self.model.base, self.later, keep))
            yield read

    def _notice(self, layer: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, tuple):
            self._tuples.add(layer)


def _put_back(cache: Any, before: list[dict[str, Any]]) -> None:
    """A cache as it was: a pass makes new tensors of keys and values, and keeps the old ones."""
    for layer, values in zip(cache.layers, before, strict=True):
        vars(layer).update(values)


@contextlib.contextmanager
def _left_out(layer: nn.Module, gives_tuple: bool) -> Iterator[None]:
    """Within the block the layer gives what it gets."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        x = args[0] if args else kwargs["hidden_states"]
        return (x,) if gives_tuple else x

    layer.forward = forward
    try:
        yield
    finally:
        del layer.forward


def require_later(hook: HookPoint, later: HookPoint, model: LanguageModel) -> None:
    """BitlensError unless the later hook point lies in a higher layer."""
    architecture = Architecture(model.base, model.config)
    layers = [architecture.layer(place.path) for place in (hook, later)]
    low, high = (-1 if layer is None else layer for layer in layers)
    if high <= low:
        raise BitlensError(
            f"{later.name} does not lie above {hook.name}, so nothing that is changed there can "
            "reach it; name an autoencoder of a later layer."
        )
