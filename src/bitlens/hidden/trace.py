"""Run two tokens through a loaded model, and give names to its hook points by what it does: to the
place whose value is the one that the name promises, in this very model.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
from collections import Counter
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from bitlens.errors import BitlensError
from bitlens.hidden.hooks import Architecture, HookPoint, Wanted, attach

MLP_NAMES = ("mlp", "feed_forward", "ffn", "intermediate", "block_sparse_moe", "moe")


class NeedsAllLayers(BitlensError):
    """Refused, unless it helps to load the layers that were left out."""


class Trace:
    """What went into and came out of every module while a model read two tokens."""

    def __init__(
        self, base: nn.Module, architecture: Architecture, tokens: Tensor, partial_model: bool
    ) -> None:
        """tokens `[1, 2]`, not consecutive ids. partial_model: layers were left out above, so that
        the last of transformers' hidden states is that of another model."""
        self.architecture = architecture
        self.shape = tokens.shape
        self.calls: Counter[str] = Counter()
        self.values: dict[HookPoint, Tensor] = {}
        """of the first call, in the order in which they were made"""
        self.flat: set[HookPoint] = set()
        """places of `[batch * context, d]`: they add up like others, but are no hook points"""
        self.positions: dict[str, int] = {}
        """modules with learned positions outside the layers -> the first row that is a token's"""
        parameters = inspect.signature(base.forward).parameters.values()
        able = any(p.name == "output_hidden_states" or p.kind is p.VAR_KEYWORD for p in parameters)
        asking = {"output_hidden_states": True} if able else {}
        with contextlib.ExitStack() as stack:
            for path, module in base.named_modules():
                entered, left = HookPoint(path, "input"), HookPoint(path)
                stack.enter_context(attach(base, entered, partial(self._enter, entered, module)))
                stack.enter_context(attach(base, left, partial(self._keep, left)))
            output = base(input_ids=tokens, **asking)
        states = getattr(output, "hidden_states", None) or ()
        self.hidden_states: list[Any] = list(states[:-1] if partial_model else states)

    def _enter(self, place: HookPoint, module: nn.Module, value: Any) -> None:
        self.calls[place.path] += 1
        self._keep(place, value)
        table = getattr(module, "weight", None)
        inside = self.architecture.layer(place.path) is not None
        if inside or not isinstance(value, Tensor) or not isinstance(table, Tensor):
            return
        # A table asked for two consecutive rows is one of positions: the tokens' ids are not.
        if table.dim() == 2 and not value.is_floating_point() and value.numel() == 2:
            first, second = (int(row) for row in value.flatten())
            if second == first + 1:
                self.positions[place.path] = first

    def _keep(self, place: HookPoint, value: Any) -> None:
        if not isinstance(value, Tensor) or not value.is_floating_point() or place in self.values:
            return
        if value.dim() == 2 and len(value) == self.shape.numel():
            self.flat.add(place)
            value = value[None]
        if value.dim() == 3 and value.shape[:2] == self.shape:
            self.values[place] = value.clone()  # the model may change its own in place

    def has_nan(self, wanted: list[Wanted]) -> bool:
        """Whether what was asked for is not a number."""
        for each in wanted:
            place = each.place or self.architecture.block(each.layer or 0)
            value = self.values.get(place)
            if each.state is not None:
                value = dict(enumerate(self.hidden_states)).get(each.state)
            if value is not None and bool(value.isnan().any()):
                return True
        return False

    def find(self, wanted: Wanted) -> HookPoint:
        """The hook point that was asked for, with the names that hold for it."""
        if wanted.kind == "layers" and not self.stacked:
            raise BitlensError(
                f"This model keeps its layers in no one list, so there is no {wanted.name}; hook a "
                f"module path, for example {self.architecture.block(0).name}."
            )
        if wanted.place is not None:
            place = wanted.place
        elif wanted.state is not None:
            place = self._place_of_state(wanted.state)
        else:
            place = self._place_in_block(wanted.layer or 0, wanted.kind)
        if place not in self.values or place in self.flat:
            raise BitlensError(
                f"The module {place.name} does not give one vector per token; hook a layer, MLP or "
                "attention."
            )
        if self.calls[place.path] > 1:
            raise BitlensError(
                f"The module {place.path} runs {self.calls[place.path]} times in one pass, so what "
                "it gives is no one hidden state; hook a module that runs once."
            )
        value, layer = self.values[place], self.architecture.layer(place.path)
        named = {} if layer is None else self._named_in_block(layer)
        states = (i for i, state in enumerate(self.hidden_states) if _same(value, state))
        names = (
            next((f"hidden_states[{i}]" for i in states), None),
            next((f"blocks.{layer}.{k}" for k, other in named.items() if other == place), None),
        )
        return HookPoint(place.path, place.side, *names)

    # --- transformers' names ----------------------------------------------------------------------

    @cached_property
    def stacked(self) -> bool:
        """Whether what each layer gives is what the next gets, or one of transformers' states."""
        block = self.architecture.block
        for layer in range(self.architecture.layers - 1):
            given, got = self.values.get(block(layer)), self.values.get(block(layer + 1, "input"))
            known = given is not None and got is not None
            if known and not any(_same(given, state) for state in (got, *self.hidden_states)):
                return False
        return True

    def _place_of_state(self, index: int) -> HookPoint:
        """The place whose value is transformers' own `hidden_states[index]`."""
        block = self.architecture.block
        if index < len(self.hidden_states):
            around = f"{self.architecture.blocks}."
            others = [p for p in self.values if p.path and not around.startswith(f"{p.path}.")]
            others.sort(key=lambda place: (place.side == "input", place.path.count(".")))
            for place in [block(index - 1), block(index, "input"), block(index), *others]:
                usable = self.calls[place.path] == 1 and place not in self.flat
                if usable and _same(self.values.get(place), self.hidden_states[index]):
                    return place
        raise NeedsAllLayers(
            f"No module of this model gives what transformers calls hidden_states[{index}]; hook a "
            f"module path, for example {block(max(0, index - 1)).name}."
        )

    # --- TransformerLens' names -------------------------------------------------------------------

    def _place_in_block(self, layer: int, kind: str) -> HookPoint:
        place = self._named_in_block(layer).get(kind)
        if place is not None:
            return place
        path = self.architecture.block(layer).path
        inside, reason = [], "no such place"
        module = {"hook_attn_out": "attention", "hook_mlp_out": "MLP"}.get(kind)
        if module:
            reason = f"no module there gives just what the {module} adds to the residual stream"
            names = [p.name for p in self._residual_wide(layer)]
            inside = [name for name in names if module[:3].lower() in name[len(path) :].lower()]
        if self._norm_at_the_end(layer):
            reason = (
                "its layers end in a norm over the residual stream, so nothing is just added to it"
            )
        example = min(inside, key=lambda name: name.count("."), default=path)
        raise BitlensError(
            f"There is no blocks.{layer}.{kind} in this model: {reason}; hook a module path, for "
            f"example {example}."
        )

    def _named_in_block(self, layer: int) -> dict[str, HookPoint]:
        """TransformerLens' names in this block -> the places that they hold for."""
        pre, post = self.architecture.block(layer, "input"), self.architecture.block(layer)
        if pre not in self.values or post not in self.values or not self.stacked:
            return {}
        named = {"hook_resid_pre": pre}
        if norm := self._norm_at_the_end(layer):
            named["hook_resid_post"] = HookPoint(norm, "input")
            named["hook_normalized_resid_post"] = post
        else:
            named |= {"hook_resid_post": post} | self._added_in_block(layer)
        mlps = (HookPoint(f"{post.path}.{name}", "input") for name in MLP_NAMES)
        mlp_in = next((place for place in mlps if place in self.values), None)
        return named | ({"mlp.hook_in": mlp_in} if mlp_in else {})

    def _below(self, layer: int) -> dict[HookPoint, Tensor]:
        """Outputs of the modules in a block, in the order in which they were made."""
        prefix = f"{self.architecture.block(layer).path}."
        outputs = {p: value for p, value in self.values.items() if p.side == "output"}
        return {p: value for p, value in outputs.items() if p.path.startswith(prefix)}

    def _residual_wide(self, layer: int) -> list[HookPoint]:
        """Outputs in a block as wide as the residual stream; of equal ones the outermost."""
        stream = self.values.get(self.architecture.block(layer))
        kept: list[HookPoint] = []
        for place, value in self._below(layer).items():
            if stream is None or value.shape != stream.shape:
                continue
            twin = next((i for i, p in enumerate(kept) if _same(self.values[p], value)), None)
            if twin is None:
                kept.append(place)
            elif place.path.count(".") < kept[twin].path.count("."):
                kept[twin] = place
        return kept

    def _added_in_block(self, layer: int) -> dict[str, HookPoint]:
        """The two modules whose outputs are what a block adds to what goes in."""
        block = self.architecture.block(layer)
        pre, post = self.values[self.architecture.block(layer, "input")], self.values[block]
        for first, second in itertools.combinations(self._residual_wide(layer), 2):
            if not _adds_up(post, pre, self.values[first], self.values[second]):
                continue
            attends = ["att" in p.path.removeprefix(block.path).lower() for p in (first, second)]
            if attends == [False, True]:  # where the MLP is called first
                return {"hook_mlp_out": first, "hook_attn_out": second}
            return {"hook_mlp_out": second} | ({"hook_attn_out": first} if attends[0] else {})
        return {}

    def _norm_at_the_end(self, layer: int) -> str | None:
        """The norm whose output is the block's own."""
        output = self.values.get(self.architecture.block(layer))
        for place, value in self._below(layer).items():
            if _same(value, output):
                module = self.architecture.modules[place.path]
                if "norm" in type(module).__name__.lower() and not list(module.children()):
                    return place.path
        return None


def _same(one: Any, other: Any) -> bool:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor) or one.dtype != other.dtype:
        return False
    return torch.equal(one, other.to(one.device))


def _adds_up(whole: Tensor, *parts: Tensor) -> bool:
    """Whether the whole is the sum of its parts, up to what their dtype rounds in every number."""
    exact = torch.stack([part.to(whole.device).double() for part in parts])
    rounding = 2 * torch.finfo(whole.dtype).eps * exact.abs().sum(0)
    return bool(((whole.double() - exact.sum(0)).abs() <= rounding).all())
