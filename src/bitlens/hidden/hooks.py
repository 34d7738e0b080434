"""Name the places in a model where hidden states are read.

One place has up to three names: `layers.4` (module path, output), `hidden_states[5]` (transformers) and
`blocks.4.hook_resid_post` (TransformerLens). All are accepted; the module path is what bitlens writes, and `PATH:input`
is what goes into a module. What the other two mean in a model is found by `trace`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from bitlens.errors import BitlensError

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
        return {
            "module": self.name,
            "transformers": self.transformers,
            "transformer_lens": self.transformer_lens,
        }


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
    """what TransformerLens calls the place within its block; `layers` for a place that was not named by its own path"""


class Architecture:
    """Where a base model keeps the layers of its text model."""

    def __init__(self, base: nn.Module, config: Any) -> None:
        text = config.get_text_config()
        self.modules = dict(base.named_modules())
        self.prefix = getattr(base, "base_model_prefix", "")
        self.layers = int(text.num_hidden_layers)
        roots = (
            n for n, m in self.modules.items() if type(getattr(m, "config", None)) is type(text)
        )
        within = "".join(
            f"{n}." for n in [next(roots, "")] if n
        )  # so that a vision tower of equal depth is not taken
        lists = [
            name for name, module in self.modules.items()
            if isinstance(module, nn.ModuleList) and len(module) == self.layers and name.startswith(within)
        ]  # fmt: skip
        if not lists:
            raise BitlensError(
                f"{type(base).__name__} keeps its layers in no list of modules; it is not supported."
            )
        self.blocks = lists[0]

    def want(self, name: str) -> Wanted:
        """What a name asks for. The model's own module paths go before the two other namings."""
        path, _, side = name.partition(":")
        common = re.sub(r"^layers\.(?=\d)", f"{self.blocks}.", path)
        for own, kind in (
            (path, ""),
            (path.removeprefix(f"{self.prefix}."), ""),
            (common, "layers"),
        ):
            if own in self.modules and own and side in ("", "input", "output"):
                return Wanted(
                    name, HookPoint(own, side or "output"), layer=self.layer(own), kind=kind
                )
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
        choices = [f"{self.blocks}.{i}" for i in range(self.layers)] + [
            n for n in self.modules if n
        ]
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

    def last_layer(self, layers: Iterable[int | None]) -> int:
        """The last of these layers; of all where one of them lies outside the layers."""
        return max(
            (self.layers - 1 if layer is None else layer for layer in layers),
            default=self.layers - 1,
        )


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
