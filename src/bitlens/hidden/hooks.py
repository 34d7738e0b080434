"""Name the places in a model where hidden states are read, and check by running it that the names mean what they say.

One place has up to three names: `layers.4` (module path, output), `hidden_states[5]` (transformers) and
`blocks.4.hook_resid_post` (TransformerLens). The module path is what bitlens writes; `PATH:input` is what goes into a
module. The other two are never taken from a table of architectures: a few tokens are run through the loaded model, and
a name is given only to the place whose value is the one that the name promises.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bitlens.errors import BitlensError

_MLP = ("mlp", "feed_forward", "ffn", "intermediate", "block_sparse_moe", "moe")
_KINDS = (
    "hook_resid_pre", "hook_resid_post", "hook_normalized_resid_post", "hook_attn_out", "hook_mlp_out", "mlp.hook_in",
)  # fmt: skip


@dataclass(frozen=True)
class HookPoint:
    """A place in the model: what goes into or comes out of the module at `path` (relative to the base model)."""

    path: str
    side: str = "output"
    transformers: str | None = None
    transformer_lens: str | None = None

    @property
    def place(self) -> HookPoint:
        """The same without its other names."""
        return HookPoint(self.path, self.side)

    @property
    def name(self) -> str:
        """Module path, with `:input` where the input is meant."""
        return self.path if self.side == "output" else f"{self.path}:input"

    def names(self) -> dict[str, str | None]:
        """All three namings, for manifests and checkpoints; None where the place has no such name."""
        return {"module": self.name, "transformers": self.transformers, "transformer_lens": self.transformer_lens}


@dataclass(frozen=True)
class Wanted:
    """A hook point as it was asked for: a place, or a promise that the trace of a model finds the place of."""

    name: str
    place: HookPoint | None = None
    state: int | None = None
    """index into transformers' `hidden_states`"""
    layer: int | None = None
    """the layer that has to be loaded for it; None: all of them"""
    kind: str = ""
    """what TransformerLens calls the place within its block"""


class Architecture:
    """Where a base model keeps the layers of its text model."""

    def __init__(self, base: nn.Module, config: Any) -> None:
        text = config.get_text_config()
        self.modules = dict(base.named_modules())
        self.prefix = getattr(base, "base_model_prefix", "")
        self.layers = int(text.num_hidden_layers)
        roots = (n for n, m in self.modules.items() if type(getattr(m, "config", None)) is type(text))
        within = "".join(f"{n}." for n in [next(roots, "")] if n)  # so that a vision tower of equal depth is not taken
        lists = [
            name for name, module in self.modules.items()
            if isinstance(module, nn.ModuleList) and len(module) == self.layers and name.startswith(within)
        ]  # fmt: skip
        if not lists:
            raise BitlensError(f"{type(base).__name__} keeps its layers in no list of modules; it is not supported.")
        self.blocks = lists[0]

    def want(self, name: str) -> Wanted:
        """What a name asks for. The model's own module paths go before the two other namings."""
        path, _, side = name.partition(":")
        for own in (path, path.removeprefix(f"{self.prefix}."), re.sub(r"^layers\.(?=\d)", f"{self.blocks}.", path)):
            if own in self.modules and own and side in ("", "input", "output"):
                return Wanted(name, HookPoint(own, side or "output"), layer=self.layer(own))
        if match := re.fullmatch(r"hidden_states[\[.](\d+)\]?", name):
            index = int(match[1])
            if index <= self.layers:
                return Wanted(name, state=index, layer=index if index < self.layers else None)
        elif match := re.fullmatch(r"blocks\.(\d+)\.(.+)", name):
            if int(match[1]) < self.layers and match[2] in _KINDS:
                return Wanted(name, layer=int(match[1]), kind=match[2])
            if match[2] not in _KINDS:
                raise BitlensError(
                    f"There is no hook point '{name}'; of TransformerLens' names these are known: {', '.join(_KINDS)}."
                )
        choices = [f"{self.blocks}.{i}" for i in range(self.layers)] + [n for n in self.modules if n]
        near = difflib.get_close_matches(path, choices, n=4, cutoff=0.0)
        raise BitlensError(
            f"There is no hook point '{name}' in this model of {self.layers} layers; the nearest names are: "
            f"{', '.join(dict.fromkeys(near))}."
        )

    def layer(self, path: str) -> int | None:
        """The layer that a module is in; None outside the layers."""
        match = re.match(rf"{re.escape(self.blocks)}\.(\d+)(?:\.|$)", path)
        return int(match[1]) if match else None

    def layer_of_weight(self, key: str) -> int:
        """The layer that a tensor of a model or of a model around it is in; -1 outside the layers."""
        match = re.search(rf"(?:^|\.){re.escape(self.blocks)}\.(\d+)\.", key)
        return int(match[1]) if match else -1

    def last_layer(self, layers: Iterator[int | None]) -> int:
        """The last of these layers; of all where one of them lies outside the layers."""
        return max((self.layers - 1 if layer is None else layer for layer in layers), default=self.layers - 1)


class Trace:
    """What went into and came out of every module while a model read two tokens, and what its names mean by it."""

    def __init__(self, base: nn.Module, architecture: Architecture, tokens: Tensor, partial: bool) -> None:
        """tokens `[1, 2]`, not consecutive ids. partial: layers were left out above, so that the last of transformers'
        hidden states is that of another model."""
        self.architecture = architecture
        self.shape = tokens.shape
        self.calls: Counter[str] = Counter()
        self.values: dict[HookPoint, Tensor] = {}
        """of the first call, in the order in which they were made"""
        self.flat: set[HookPoint] = set()
        """places of `[batch * context, d]`: they add up like others, but are no hook points"""
        self.positions: int | None = None
        """tokens that the model has learned positions for"""
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
            if isinstance(value, Tensor) and isinstance(table, Tensor) and not value.is_floating_point():
                ids = value.flatten().tolist()
                if table.dim() == 2 and len(ids) == 2 and ids[1] == ids[0] + 1:
                    self.positions = min(self.positions or len(table), len(table) - ids[0])

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
            self.hidden_states[w.state] for w in wanted if w.state is not None and w.state < len(self.hidden_states)
        ]
        return any(value is not None and bool(value.isnan().any()) for value in values)

    # --- from a name to its place ------------------------------------------------------------------------------------

    def find(self, wanted: Wanted) -> HookPoint:
        """The hook point that was asked for, with the names that hold for it; refused in a sentence if there is none."""
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
        return HookPoint(place.path, place.side, self._transformers(place), self._transformer_lens(place))

    def _block(self, layer: int, side: str = "output") -> HookPoint:
        return HookPoint(f"{self.architecture.blocks}.{layer}", side)

    def _of_state(self, index: int) -> HookPoint:
        """The place whose value is transformers' own `hidden_states[index]`."""
        name = f"hidden_states[{index}]"
        if index < len(self.hidden_states):
            usual = [self._block(index - 1), self._block(index, "input"), self._block(index)]
            blocks = f"{self.architecture.blocks}."
            others = [place for place in self.values if place.path and not blocks.startswith(f"{place.path}.")]
            others.sort(key=lambda place: (place.side == "input", place.path.count(".")))
            for place in [*usual, *others]:
                once = self.calls[place.path] == 1 and place not in self.flat
                if once and _same(self.values.get(place), self.hidden_states[index]):
                    return place
        here = self._block(max(0, index - 1)).name
        raise BitlensError(
            f"No module of this model gives what transformers calls {name}; hook a module path, for example {here}."
        )

    def _transformers(self, place: HookPoint) -> str | None:
        value = self.values[place]
        return next((f"hidden_states[{i}]" for i, s in enumerate(self.hidden_states) if _same(value, s)), None)

    # --- TransformerLens -----------------------------------------------------------------------------------------------

    def _of_block(self, layer: int, kind: str) -> HookPoint:
        place = self._kinds(layer).get(kind)
        if place is not None:
            return place
        block = self._block(layer)
        what, word = {"hook_attn_out": ("attention", "att"), "hook_mlp_out": ("MLP", "mlp")}.get(kind, ("", ""))
        inside = [p.name for p in self._inside(layer) if word and word in p.path.removeprefix(block.path).lower()]
        below = min(inside, key=lambda name: name.count("."), default=block.name)
        reason = f"no module there gives just what the {what} adds to the residual stream" if what else "no such place"
        if self._norm_at_the_end(layer):
            reason = "its layers end in a norm over the residual stream, so nothing is added to it from end to end"
        raise BitlensError(
            f"There is no blocks.{layer}.{kind} in this model: {reason}; hook a module path, for example {below}."
        )

    def _kinds(self, layer: int) -> dict[str, HookPoint]:
        """TransformerLens' names in this block -> the places that they hold for."""
        pre, post = self._block(layer, "input"), self._block(layer)
        if pre not in self.values or post not in self.values:
            return {}
        found = {"hook_resid_pre": pre}
        if norm := self._norm_at_the_end(layer):
            found |= {"hook_resid_post": HookPoint(norm, "input"), "hook_normalized_resid_post": post}
        else:
            found |= {"hook_resid_post": post} | self._added(layer)
        mlps = (HookPoint(f"{post.path}.{name}", "input") for name in _MLP)
        found |= {"mlp.hook_in": place for place in mlps if place in self.values}
        return found

    def _transformer_lens(self, place: HookPoint) -> str | None:
        layer = self.architecture.layer(place.path)
        kinds = {} if layer is None else self._kinds(layer)
        return next((f"blocks.{layer}.{kind}" for kind, other in kinds.items() if other == place), None)

    def _inside(self, layer: int) -> list[HookPoint]:
        """Outputs below a block that are as wide as the residual stream, in the order in which they were made; of those
        that are equal the outermost."""
        block = self._block(layer)
        width = self.values[block].shape if block in self.values else None
        kept: list[HookPoint] = []
        for place, value in self.values.items():
            if place.side == "output" and place.path.startswith(f"{block.path}.") and value.shape == width:
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
                    names = [place.path.removeprefix(self._block(layer).path).lower() for place in (first, second)]
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
                and _same(value, self.values.get(block)) and "norm" in self._kind_of(place.path)
            ),
            None,
        )  # fmt: skip

    def _kind_of(self, path: str) -> str:
        return type(self.architecture.modules[path]).__name__.lower()


def passed_in(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The tensor that goes into a module: its first argument."""
    return args[0] if args else kwargs.get(first_argument(kwargs))


def first_argument(kwargs: dict[str, Any]) -> str:
    """The name of the tensor that goes into a module which is called by names only."""
    if "hidden_states" in kwargs:
        return "hidden_states"
    return next((name for name, value in kwargs.items() if isinstance(value, Tensor)), "")


def came_out(value: Any) -> Any:
    """The tensor that comes out of a module: the first where there are several."""
    return value[0] if isinstance(value, tuple | list) and value else value


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
