"""Name the places in a model where hidden states are read, and hook functions to them.

One place has up to three names: `layers.4` (module path, output), `hidden_states[5]` (transformers)
and `blocks.4.hook_resid_post` (TransformerLens). `PATH:input` is what goes into a module. What the
other two names mean in a model is found by `trace`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bitlens.errors import BitlensError

KINDS = ("hook_resid_pre", "hook_resid_post", "hook_normalized_resid_post")
KINDS += ("hook_attn_out", "hook_mlp_out", "mlp.hook_in")


@dataclass(frozen=True)
class HookPoint:
    """What goes into or comes out of the module at `path` of the base model. Two are equal where
    the place is, whatever other names are known of it."""

    path: str
    side: str = "output"
    transformers: str | None = field(default=None, compare=False)
    transformer_lens: str | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        """Module path, with `:input` where the input is meant."""
        return self.path if self.side == "output" else f"{self.path}:input"

    def names(self) -> dict[str, str | None]:
        """All three names, for manifests and checkpoints; None where the place has no such name."""
        other = {"transformers": self.transformers, "transformer_lens": self.transformer_lens}
        return {"module": self.name, **other}


def names_elsewhere(name: Any) -> dict[str, str | None] | None:
    """All names of a place (`HookPoint.names`) by the one that another library gave it, as far as
    they can be told without the model: TransformerLens', or a module path with `.input`, `.output`.

    Within the layers of the usual models `module` is a path; otherwise it is the name as given,
    which the model's own `trace` looks for.
    """
    if not isinstance(name, str) or not name:
        return None
    if match := re.fullmatch(r"blocks\.(\d+)\.(.+)", name):
        layer, kind = int(match[1]), match[2]
        if kind == "hook_resid_pre" and layer:
            return names_elsewhere(f"blocks.{layer - 1}.hook_resid_post")
        paths = {"hook_resid_post": "", "hook_resid_pre": ":input"}
        paths["attn.hook_z"] = ".self_attn.o_proj:input"
        module = f"layers.{layer}{paths[kind]}" if kind in paths else name
        return {"module": module, "transformers": None, "transformer_lens": name}
    path = re.sub(r"\.input$", ":input", name.removeprefix("model.").removesuffix(".output"))
    return {"module": path, "transformers": None, "transformer_lens": None}


def differ(one: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> bool:
    """Whether two records of hook points (`HookPoint.names`) are of different places, by the first
    naming that both have."""
    for naming in ("transformer_lens", "module"):
        names = [(record or {}).get(naming) for record in (one, other)]
        if all(names):
            return names[0] != names[1]
    return False


@dataclass(frozen=True)
class Wanted:
    """A hook point as it was asked for: a place, or a promise whose place the trace finds."""

    name: str
    place: HookPoint | None = None
    state: int | None = None
    """index into transformers' `hidden_states`"""
    layer: int | None = None
    """that has to be loaded for it; None: all of them"""
    kind: str = ""
    """TransformerLens' name within the block; `layers` for a place not named by its own path"""


class Architecture:
    """Where a base model keeps the layers of its text model."""

    def __init__(self, base: nn.Module, config: Any) -> None:
        text = config.get_text_config()
        self.modules = dict(base.named_modules())
        self.prefix = getattr(base, "base_model_prefix", "")
        self.layers = int(text.num_hidden_layers)
        # A vision tower may have as many layers: only the part with the text model's own
        # configuration is searched.
        configs = {path: getattr(m, "config", None) for path, m in self.modules.items()}
        root = next((path for path, own in configs.items() if type(own) is type(text)), "")
        within = f"{root}." if root else ""
        for path, module in self.modules.items():
            is_list = isinstance(module, nn.ModuleList) and len(module) == self.layers
            if is_list and path.startswith(within):
                self.blocks = path
                return
        raise BitlensError(
            f"{type(base).__name__} keeps its layers in no list of modules; it is not supported."
        )

    def block(self, layer: int, side: str = "output") -> HookPoint:
        """What goes into or comes out of a layer."""
        return HookPoint(f"{self.blocks}.{layer}", side)

    def want(self, name: str) -> Wanted:
        """What a name asks for. The model's own module paths go before the two other namings."""
        path, _, side = name.partition(":")
        if from_last := re.fullmatch(r"layers\.-(\d+)", path):
            path = f"layers.{self.layers - int(from_last[1])}"
        usual = re.sub(r"^layers\.(?=\d)", f"{self.blocks}.", path)
        paths = ((path, ""), (path.removeprefix(f"{self.prefix}."), ""), (usual, "layers"))
        for own, kind in paths:
            if own in self.modules and own and side in ("", "input", "output"):
                place = HookPoint(own, side or "output")
                return Wanted(name, place, layer=self.layer(own), kind=kind)
        if match := re.fullmatch(r"hidden_states[\[.](\d+)\]?", name):
            index = int(match[1])
            if index <= self.layers:
                return Wanted(name, state=index, layer=index if index < self.layers else None)
        elif match := re.fullmatch(r"blocks\.(\d+)\.(.+)", name):
            layer, kind = int(match[1]), match[2]
            if kind not in KINDS:
                raise BitlensError(
                    f"There is no hook point '{name}'; of TransformerLens' names these are known: "
                    f"{', '.join(KINDS)}."
                )
            if layer < self.layers:
                return Wanted(name, layer=layer, kind=kind)
        choices = [*(self.block(i).path for i in range(self.layers)), *filter(None, self.modules)]
        near = difflib.get_close_matches(path, choices, n=4, cutoff=0.0)
        raise BitlensError(
            f"There is no hook point '{name}' in this model of {self.layers} layers; the nearest "
            f"names are: {', '.join(dict.fromkeys(near))}."
        )

    def layer(self, path: str) -> int | None:
        """The layer that a module is in; None outside the layers."""
        match = re.match(rf"{re.escape(self.blocks)}\.(\d+)(?:\.|$)", path)
        return int(match[1]) if match else None

    def layer_of_weight(self, key: str) -> int:
        """The layer of a tensor of a model, or of a model around it; -1 outside the layers."""
        match = re.search(rf"(?:^|\.){re.escape(self.blocks)}\.(\d+)\.", key)
        return int(match[1]) if match else -1

    def last_layer(self, layers: Iterable[int | None]) -> int:
        """The last of these layers; that of the model where one of them lies outside the layers."""
        last = self.layers - 1
        return max((last if layer is None else layer for layer in layers), default=last)


def attach(base: nn.Module, place: HookPoint, function: Callable[[Any], Any]) -> RemovableHandle:
    """Call `function` with the tensor (of several the first) that passes a place, in every forward
    pass of `base`; what it returns passes on instead, unless it is None. The end of a `with` block
    undoes it."""

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            new = function(args[0])
            return None if new is None else ((new, *args[1:]), kwargs)
        tensors = (name for name, value in kwargs.items() if isinstance(value, Tensor))
        name = "hidden_states" if "hidden_states" in kwargs else next(tensors, "")
        new = function(kwargs.get(name))
        return None if new is None else (args, {**kwargs, name: new})

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if not isinstance(output, tuple | list) or not output:
            return function(output)
        new = function(output[0])
        return None if new is None else (new, *output[1:])

    module = base.get_submodule(place.path)
    if place.side == "output":
        return module.register_forward_hook(after)
    return module.register_forward_pre_hook(before, with_kwargs=True)
