"""Run two tokens through a loaded model, and check by what it does that the names of its hook points hold.

Nothing is taken from a table of architectures: a name is given only to the place whose value is the one that the name
promises, in this very model.
"""

from __future__ import annotations

import inspect
import textwrap
from collections import Counter
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from bitlens.errors import BitlensError
from bitlens.hidden.hooks import Architecture, HookPoint, Wanted, came_out, passed_in

_MLP = ("mlp", "feed_forward", "ffn", "intermediate", "block_sparse_moe", "moe")


class OnlyWhole(BitlensError):
    """Refused, unless the layers that were left out are needed for it."""


class Trace:
    """What went into and came out of every module while a model read two tokens, and what its names mean by it."""

    def __init__(
        self, base: nn.Module, architecture: Architecture, tokens: Tensor, partial: bool
    ) -> None:
        """tokens `[1, 2]`, not consecutive ids. partial: layers were left out above, so that the last of transformers'
        hidden states is that of another model."""
        self.architecture = architecture
        self.shape = tokens.shape
        self.calls: Counter[str] = Counter()
        self.values: dict[HookPoint, Tensor] = {}
        """of the first call, in the order in which they were made"""
        self.flat: set[HookPoint] = set()
        """places of `[batch * context, d]`: they add up like others, but are no hook points"""
        self.positions: dict[str, int] = {}
        """modules with learned positions outside the layers -> the first row that is a token's"""
        handles = []
        for name, module in base.named_modules():
            handles.append(module.register_forward_pre_hook(self._before(name), with_kwargs=True))
            handles.append(module.register_forward_hook(self._after(name)))
        try:
            output = base(input_ids=tokens, **self._asking(base))
        finally:
            for handle in handles:
                handle.remove()
        states = getattr(output, "hidden_states", None) or ()
        self.hidden_states: list[Any] = list(states[:-1] if partial else states)

    @staticmethod
    def _asking(base: nn.Module) -> dict[str, bool]:
        parameters = inspect.signature(base.forward).parameters.values()
        able = any(p.name == "output_hidden_states" or p.kind is p.VAR_KEYWORD for p in parameters)
        return {"output_hidden_states": True} if able else {}

    def _before(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            value = passed_in(args, kwargs)
            self.calls[name] += 1
            self._keep(HookPoint(name, "input"), value)
            table = getattr(module, "weight", None)
            if (
                isinstance(value, Tensor)
                and isinstance(table, Tensor)
                and not value.is_floating_point()
            ):
                ids = value.flatten().cpu().tolist()
                if table.dim() == 2 and len(ids) == 2 and ids[1] == ids[0] + 1:
                    self.positions |= (
                        {name: ids[0]} if self.architecture.layer(name) is None else {}
                    )

        return hook

    def _after(self, name: str) -> Any:
        return lambda module, args, output: self._keep(HookPoint(name), came_out(output))

    def _keep(self, place: HookPoint, value: Any) -> None:
        if not isinstance(value, Tensor) or not value.is_floating_point() or place in self.values:
            return
        if value.dim() == 2 and len(value) == self.shape.numel():
            self.flat.add(place)
            value = value[None]
        if value.dim() == 3 and value.shape[:2] == self.shape:
            self.values[place] = value.clone()

    def poisoned(self, wanted: list[Wanted]) -> bool:
        """Whether what was asked for is not a number."""
        places = [w.place or self._block(w.layer or 0) for w in wanted if w.state is None]
        values = [self.values.get(place) for place in places]
        values += [
            self.hidden_states[w.state]
            for w in wanted
            if w.state is not None and w.state < len(self.hidden_states)
        ]
        return any(value is not None and bool(value.isnan().any()) for value in values)

    # --- from a name to its place ------------------------------------------------------------------------------------

    def find(self, wanted: Wanted) -> HookPoint:
        """The hook point that was asked for, with the names that hold for it; refused in a sentence if there is none."""
        if wanted.kind == "layers" and not self.stacked:
            raise BitlensError(
                f"This model keeps its layers in no one list, so there is no {wanted.name}; hook a module path, for example "
                f"{self._block(0).name}."
            )
        if wanted.place is not None:
            place = wanted.place
        elif wanted.state is not None:
            place = self._of_state(wanted.state)
        else:
            assert wanted.layer is not None
            place = self._of_block(wanted.layer, wanted.kind)
        if place not in self.values or place in self.flat:
            raise BitlensError(
                f"The module {place.name} does not give one vector per token; hook a layer, MLP or attention."
            )
        if self.calls[place.path] > 1:
            raise BitlensError(
                f"The module {place.path} runs {self.calls[place.path]} times in one pass, so what it gives is no one "
                "hidden state; hook a module that runs once."
            )
        return HookPoint(
            place.path, place.side, self._transformers(place), self._transformer_lens(place)
        )

    @cached_property
    def stacked(self) -> bool:
        """Whether what the layers give is what the next ones get, or what transformers calls hidden states."""
        for layer in range(self.architecture.layers - 1):
            given, got = (
                self.values.get(self._block(layer)),
                self.values.get(self._block(layer + 1, "input")),
            )
            both = given is not None and got is not None
            if both and not any(_same(given, state) for state in (got, *self.hidden_states)):
                return False
        return True

    def _block(self, layer: int, side: str = "output") -> HookPoint:
        return HookPoint(f"{self.architecture.blocks}.{layer}", side)

    def _of_state(self, index: int) -> HookPoint:
        """The place whose value is transformers' own `hidden_states[index]`."""
        name = f"hidden_states[{index}]"
        if index < len(self.hidden_states):
            usual = [self._block(index - 1), self._block(index, "input"), self._block(index)]
            blocks = f"{self.architecture.blocks}."
            others = [
                place
                for place in self.values
                if place.path and not blocks.startswith(f"{place.path}.")
            ]
            others.sort(key=lambda place: (place.side == "input", place.path.count(".")))
            for place in [*usual, *others]:
                once = self.calls[place.path] == 1 and place not in self.flat
                if once and _same(self.values.get(place), self.hidden_states[index]):
                    return place
        here = self._block(max(0, index - 1)).name
        raise OnlyWhole(
            f"No module of this model gives what transformers calls {name}; hook a module path, for example {here}."
        )

    def _transformers(self, place: HookPoint) -> str | None:
        value = self.values[place]
        return next(
            (f"hidden_states[{i}]" for i, s in enumerate(self.hidden_states) if _same(value, s)),
            None,
        )

    # --- TransformerLens -----------------------------------------------------------------------------------------------

    def _of_block(self, layer: int, kind: str) -> HookPoint:
        place = self._kinds(layer).get(kind)
        if place is not None:
            return place
        block = self._block(layer)
        what, word = {"hook_attn_out": ("attention", "att"), "hook_mlp_out": ("MLP", "mlp")}.get(
            kind, ("", "")
        )
        inside = [
            p.name
            for p in self._inside(layer)
            if word and word in p.path.removeprefix(block.path).lower()
        ]
        below = min(inside, key=lambda name: name.count("."), default=block.name)
        reason = (
            f"no module there gives just what the {what} adds to the residual stream"
            if what
            else "no such place"
        )
        if self._norm_at_the_end(layer):
            reason = "its layers end in a norm over the residual stream, so nothing is added to it from end to end"
        raise BitlensError(
            f"There is no blocks.{layer}.{kind} in this model: {reason}; hook a module path, for example {below}."
        )

    def _kinds(self, layer: int) -> dict[str, HookPoint]:
        """TransformerLens' names in this block -> the places that they hold for."""
        pre, post = self._block(layer, "input"), self._block(layer)
        if pre not in self.values or post not in self.values or not self.stacked:
            return {}
        found = {"hook_resid_pre": pre}
        if norm := self._norm_at_the_end(layer):
            found |= {
                "hook_resid_post": HookPoint(norm, "input"),
                "hook_normalized_resid_post": post,
            }
        else:
            found |= {"hook_resid_post": post} | self._added(layer)
        mlps = (HookPoint(f"{post.path}.{name}", "input") for name in _MLP)
        read = next((place for place in mlps if place in self.values), None)
        return found | ({"mlp.hook_in": read} if read else {})

    def _transformer_lens(self, place: HookPoint) -> str | None:
        layer = self.architecture.layer(place.path)
        kinds = {} if layer is None else self._kinds(layer)
        return next(
            (f"blocks.{layer}.{kind}" for kind, other in kinds.items() if other == place), None
        )

    def _inside(self, layer: int) -> list[HookPoint]:
        """Outputs below a block that are as wide as the residual stream, in the order in which they were made; of those
        that are equal the outermost."""
        block = self._block(layer)
        width = self.values[block].shape if block in self.values else None
        kept: list[HookPoint] = []
        for place, value in self.values.items():
            if (
                place.side == "output"
                and place.path.startswith(f"{block.path}.")
                and value.shape == width
            ):
                twins = [p for p in kept if _same(self.values[p], value)]
                if not twins:
                    kept.append(place)
                elif place.path.count(".") < twins[0].path.count("."):
                    kept[kept.index(twins[0])] = place
        return kept

    def _added(self, layer: int) -> dict[str, HookPoint]:
        """The two modules whose outputs are what a block adds to what goes in."""
        pre, post = self.values[self._block(layer, "input")], self.values[self._block(layer)]
        inside = self._inside(layer)
        for i, first in enumerate(inside):
            for second in inside[i + 1 :]:
                if _adds_up(post, pre, self.values[first], self.values[second]):
                    names = [
                        place.path.removeprefix(self._block(layer).path).lower()
                        for place in (first, second)
                    ]
                    if "att" in names[1] and "att" not in names[0]:
                        first, second, names = second, first, names[::-1]
                    added = {"hook_mlp_out": second}
                    return added | ({"hook_attn_out": first} if "att" in names[0] else {})
        return {}

    def _norm_at_the_end(self, layer: int) -> str | None:
        """The norm whose output is the block's own."""
        block = self._block(layer)
        return next(
            (
                place.path for place, value in self.values.items()
                if place.side == "output" and place.path.startswith(f"{block.path}.")
                and _same(value, self.values.get(block)) and self._is_norm(place.path)
            ),
            None,
        )  # fmt: skip

    def _is_norm(self, path: str) -> bool:
        module = self.architecture.modules[path]
        return "norm" in type(module).__name__.lower() and not list(module.children())


@torch.inference_mode()
def traced(
    name: str, model: Any, architecture: Architecture, layers: int, wanted: list[Wanted], missing: list[str],
    tokenizer: Any, causal: bool,
) -> Trace:  # fmt: skip
    """Two tokens run through the model; refused if it does not run, or needs weights that the files lack."""
    base = model.base_model if causal else model
    special, rows = set(tokenizer.all_special_ids), embeddings(base) or len(tokenizer)
    usual = [token for token in range(rows) if token not in special] or [0]
    device = next(model.parameters()).device
    one, two, three = (torch.tensor(usual[len(usual) // k]).to(device) for k in (2, 3, 5))
    pair = torch.stack([one, two])[None]
    try:
        trace = Trace(base, architecture, pair, partial=layers < architecture.layers)
        logits = [
            model(input_ids=torch.stack([one, t])[None]).logits[0, 0].float()
            for t in (two, three)
            if causal
        ]
    except Exception as error:  # models and the libraries below raise many kinds
        text = textwrap.shorten(str(error), 160, placeholder=" …").rstrip(".:")
        raise OnlyWhole(f"The model '{name}' does not run on text alone ({text}).") from error
    if missing and (trace.poisoned(wanted) or any(bool(values.isnan().any()) for values in logits)):
        raise BitlensError(f"The weights of '{name}' are incomplete: they lack {missing[0]}.")
    if logits and not torch.allclose(*logits, rtol=0.01, atol=0.01 * float(logits[0].std())):
        raise BitlensError(
            f"{name} is not a causal language model: it reads the tokens after each too, so it has no next-token loss."
        )
    return trace


def embeddings(base: Any) -> int | None:
    """How many tokens the model has embeddings for."""
    try:
        return len(base.get_input_embeddings().weight)
    except (AttributeError, NotImplementedError):  # of models that embed in a way of their own
        return None


def _same(one: Any, other: Any) -> bool:
    return (
        isinstance(one, Tensor) and isinstance(other, Tensor) and one.dtype == other.dtype
        and torch.equal(one, other.to(one.device))
    )  # fmt: skip


def _adds_up(whole: Tensor, *parts: Tensor) -> bool:
    """Whether the whole is the sum of its parts, up to what their dtype rounds in every single number."""
    exact = [part.to(whole.device).double() for part in parts]
    room = 2 * torch.finfo(whole.dtype).eps * torch.stack(exact).abs().sum(0)
    return bool(((whole.double() - torch.stack(exact).sum(0)).abs() <= room).all())
