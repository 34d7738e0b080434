"""Load any Hugging Face language model, name its hook points and read hidden states there.

One place in a model has three names: `layers.4` (module path, output), `hidden_states[5]` (transformers) and
`blocks.4.hook_resid_post` (TransformerLens). All are accepted; the module path is what bitlens writes. `PATH:input`
is what goes into a module, so `layers.4.mlp:input` is the MLP's input.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.resources
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from bitlens import terminal
from bitlens.errors import BitlensError

BUNDLED = "bundled"
_ATTENTION = ("self_attn", "attn", "attention", "self_attention")
_MLP = ("mlp", "feed_forward", "ffn")
_FINAL_NORM = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "layer_norm")


@dataclass(frozen=True)
class HookPoint:
    """A place in the model: what goes into or comes out of the module at `path` (relative to the base model)."""

    path: str
    side: str = "output"
    transformers: str | None = None
    transformer_lens: str | None = None

    @property
    def name(self) -> str:
        """Module path, with `:input` where the input is meant."""
        return self.path if self.side == "output" else f"{self.path}:input"

    def names(self) -> dict[str, str | None]:
        """All three namings, for manifests and checkpoints."""
        return {"module": self.name, "transformers": self.transformers, "transformer_lens": self.transformer_lens}


class _Architecture:
    """Where a base model keeps its blocks, their attention and MLP, and its final norm."""

    def __init__(self, base: nn.Module, config: Any) -> None:
        self.modules = dict(base.named_modules())
        self.layers = config.get_text_config().num_hidden_layers
        lists = [n for n, m in self.modules.items() if isinstance(m, nn.ModuleList) and len(m) == self.layers]
        if not lists:
            raise BitlensError(f"{type(base).__name__} keeps its layers in no list of modules; it is not supported.")
        self.blocks = lists[0]
        block = f"{self.blocks}.0"
        children = {name for name, _ in self.modules[block].named_children()}
        if {"intermediate", "output"} <= children:  # BERT and its relatives: a block's MLP is two modules
            self.mlp_in, self.mlp_out, self.attention = "intermediate", "output.dense", "attention.output.dense"
        else:
            self.mlp_in = self.mlp_out = next((n for n in _MLP if n in children), None)
            self.attention = next((n for n in _ATTENTION if n in children), None)
        top = [name for name, _ in base.named_children()]
        self.final_norm = next((n for n in _FINAL_NORM if n in top), None)

    def by_kind(self) -> dict[str, tuple[str | None, str]]:
        """TransformerLens' suffix -> (path below the block, side)"""
        return {
            "hook_resid_post": ("", "output"), "hook_resid_pre": ("", "input"),
            "hook_mlp_out": (self.mlp_out, "output"), "mlp.hook_in": (self.mlp_in, "input"),
            "hook_attn_out": (self.attention, "output"),
        }  # fmt: skip

    def parse(self, name: str) -> tuple[str, str]:
        """Any of the namings -> (module path, side); the path need not exist."""
        if match := re.fullmatch(r"hidden_states[\[.](\d+)\]?", name):
            index = int(match[1])
            if index == 0:
                return f"{self.blocks}.0", "input"
            if index == self.layers and self.final_norm:
                return self.final_norm, "output"
            return f"{self.blocks}.{index - 1}", "output"
        if match := re.fullmatch(r"blocks\.(\d+)\.(.+)", name):
            below, side = self.by_kind().get(match[2], (None, ""))
            if below is None:
                known = ", ".join(kind for kind, (path, _) in self.by_kind().items() if path is not None)
                raise BitlensError(
                    f"There is no hook point '{name}'; of TransformerLens' names a block here has: {known}."
                )
            return f"{self.blocks}.{match[1]}.{below}".rstrip("."), side
        path, _, side = name.partition(":")
        return re.sub(r"^layers\.(?=\d)", f"{self.blocks}.", path), side or "output"

    def hook_point(self, name: str, prefix: str) -> HookPoint:
        """The hook point of this name, checked, with all its names. prefix: the base model's name in a full model."""
        path, side = self.parse(name)
        if path not in self.modules:
            path = path.removeprefix(f"{prefix}.")
        if path not in self.modules or not path or side not in ("input", "output"):
            choices = [f"{self.blocks}.{i}" for i in range(self.layers)] + [n for n in self.modules if n]
            near = difflib.get_close_matches(path, choices, n=4, cutoff=0.0)
            raise BitlensError(
                f"There is no hook point '{name}' in this model of {self.layers} layers; the nearest names are: "
                f"{', '.join(dict.fromkeys(near))}."
            )
        transformers = lens = None
        if match := re.fullmatch(rf"{re.escape(self.blocks)}\.(\d+)(?:\.(.+))?", path):
            index, below = int(match[1]), match[2] or ""
            lens = next((f"blocks.{index}.{k}" for k, v in self.by_kind().items() if v == (below, side)), None)
            if not below and side == "input":
                transformers = f"hidden_states[{index}]"
            elif not below and (index + 1 < self.layers or not self.final_norm):
                transformers = f"hidden_states[{index + 1}]"
        elif path == self.final_norm and side == "output":
            transformers = f"hidden_states[{self.layers}]"
        return HookPoint(path, side, transformers, lens)

    def last_layer(self, hooks: list[HookPoint]) -> int:
        """Index of the last block that these hook points need."""
        pattern = re.compile(rf"{re.escape(self.blocks)}\.(\d+)(?:\.|$)")
        needed = [pattern.match(hook.path) for hook in hooks]
        return max((int(m[1]) if m else self.layers - 1) for m in needed) if needed else self.layers - 1


class _AllRead(Exception):
    """Ends the forward pass once every hook point was read."""


class LanguageModel:
    """A Hugging Face model with its tokenizer, its hook points and nothing above the last of them.

    model: the module to call (the base model, or the whole causal model); base: the base model, which the hook points'
    paths are relative to.
    """

    def __init__(self, model: nn.Module, base: nn.Module, tokenizer: Any, name: str, hooks: list[HookPoint]) -> None:
        self.model, self.base, self.tokenizer, self.name, self.hooks = model, base, tokenizer, name, hooks
        self.config: Any = model.config
        self.device = next(model.parameters()).device
        self.dtype = next(model.parameters()).dtype

    @classmethod
    @terminal.shown("load the language model")
    def load(
        cls,
        name: str,
        hooks: list[str],
        *,
        dtype: str = "auto",
        device: str = "auto",
        device_map: str | None = None,
        revision: str | None = None,
        causal: bool = False,
    ) -> LanguageModel:
        """Load a model by hub name or folder ('bundled' is the one that comes with bitlens).

        Layers above the last hook point are not loaded, unless `causal` asks for the whole causal language model.
        dtype: auto (as stored, but float32 for half precision on a CPU), float32, float16 or bfloat16. Only safetensors
        weights are read, and no code from the model's folder is ever run.
        """
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        where = str(bundled_folder()) if name == BUNDLED else name
        device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        with _loading_errors(name):
            config = transformers.AutoConfig.from_pretrained(where, revision=revision)
            if getattr(config, "is_encoder_decoder", False):
                raise BitlensError(f"{name} is an encoder-decoder model; bitlens reads causal models and encoders.")
            if causal and not is_causal(config):
                raise BitlensError(f"{name} is not a causal language model, so it has no next-token loss.")
            tokenizer = transformers.AutoTokenizer.from_pretrained(where, revision=revision)
            with torch.device("meta"):
                skeleton = transformers.AutoModel.from_config(config)
            architecture = _Architecture(skeleton, config)
            points = [architecture.hook_point(hook, skeleton.base_model_prefix) for hook in hooks]
            kind: Any = transformers.AutoModelForCausalLM
            kind = kind if causal else _truncated(type(skeleton), architecture, architecture.last_layer(points))
            model, loading = kind.from_pretrained(
                where, config=config, revision=revision, dtype=_dtype(dtype, config, device), output_loading_info=True,
                use_safetensors=True, **({"device_map": device_map} if device_map else {}),
            )  # fmt: skip
            if missing := sorted(key for key in loading["missing_keys"] if f"{architecture.blocks}." in key):
                raise BitlensError(f"The weights of '{name}' are incomplete: they lack {missing[0]}.")
        if not device_map:
            model = model.to(device)
        model.eval().requires_grad_(False)
        model.config.use_cache = False
        return cls(model, model.base_model if causal else model, tokenizer, name, points)

    @property
    def revision(self) -> str | None:
        """The commit of a model from the hub; None for a folder."""
        return getattr(self.config, "_commit_hash", None)

    @contextlib.contextmanager
    def reading(self, into: dict[str, Tensor], stop: bool = True) -> Iterator[None]:
        """Within the block a forward pass leaves the hidden states of all hook points in `into`, by name.

        stop: end the pass, by an exception that the block swallows, once all were read.
        """

        def keep(name: str, value: Any) -> None:
            into.setdefault(name, value[0] if isinstance(value, tuple) else value)
            if stop and len(into) == len(self.hooks):
                raise _AllRead

        handles = []
        for hook in self.hooks:
            module = self.base.get_submodule(hook.path)
            if hook.side == "output":
                handles.append(module.register_forward_hook(lambda m, a, out, name=hook.name: keep(name, out)))
            else:
                handles.append(
                    module.register_forward_pre_hook(
                        lambda m, args, kwargs, name=hook.name: keep(
                            name, args[0] if args else kwargs["hidden_states"]
                        ),
                        with_kwargs=True,
                    )
                )
        try:
            yield
        except _AllRead:
            pass
        finally:
            for handle in handles:
                handle.remove()

    @torch.inference_mode()
    def hidden_states(self, tokens: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        """tokens, mask `[batch, context]` -> for every hook point, by name, `[batch, context, d]`"""
        found: dict[str, Tensor] = {}
        with self.reading(found):
            # A mask of ones only is left out, which lets attention take its faster causal path.
            mask = None if mask is None or bool(mask.all()) else mask.to(self.device)
            self.base(input_ids=tokens.to(self.device), attention_mask=mask)
        return found

    def widths(self) -> dict[str, int]:
        """Width of the hidden states at every hook point, found by running two tokens through the model."""
        found = self.hidden_states(torch.zeros(1, 2, dtype=torch.long))
        for hook in self.hooks:
            state = found.get(hook.name)
            if not isinstance(state, Tensor) or state.shape[:2] != (1, 2) or not state.is_floating_point():
                raise BitlensError(
                    f"The module {hook.name} does not give one vector per token; hook a layer, MLP or attention."
                )
        return {name: state.shape[-1] for name, state in found.items()}

    def longest_context(self) -> int | None:
        """Tokens that the model reads at once, where its configuration says."""
        return getattr(self.config.get_text_config(), "max_position_embeddings", None)

    def require_context(self, length: int) -> None:
        """Refuse contexts that are longer than the model's positions."""
        limit = self.longest_context()
        if limit is not None and length > limit:
            raise BitlensError(f"{self.name} reads at most {limit} tokens at once, not {length}; lower `length`.")

    def memory(self) -> int:
        """Bytes of the weights that are loaded."""
        return sum(p.numel() * p.element_size() for p in self.model.parameters())


def is_causal(config: Any) -> bool:
    """Whether the weights are those of a causal language model, so that a next-token loss has a meaning."""
    return any("ForCausalLM" in a or "LMHeadModel" in a for a in getattr(config, "architectures", None) or [])


def bundled_folder() -> Path:
    """Folder of the language model that is installed with bitlens."""
    return Path(str(importlib.resources.files("bitlens") / "bundled" / "model"))


def _truncated(kind: Any, architecture: _Architecture, last: int) -> Any:
    """The model class with the blocks above `last` left out, so that they are never loaded."""
    if last + 1 >= architecture.layers:
        return kind

    def build(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        kind.__init__(self, config, *args, **kwargs)
        del self.get_submodule(architecture.blocks)[last + 1 :]

    return type(kind.__name__, (kind,), {"__init__": build, "__module__": kind.__module__})


def _dtype(dtype: str, config: Any, device: str) -> torch.dtype:
    if dtype != "auto":
        chosen = getattr(torch, dtype, None)
        if not isinstance(chosen, torch.dtype) or not chosen.is_floating_point:
            raise BitlensError(f"dtype '{dtype}' is none of auto, float32, float16, bfloat16.")
        return chosen
    stored = getattr(config, "dtype", None)
    if device == "cpu" or not isinstance(stored, torch.dtype):
        return torch.float32
    return stored


@contextlib.contextmanager
def _loading_errors(name: str) -> Iterator[None]:
    """Turn the loader's long messages into one sentence."""
    try:
        yield
    except BitlensError:
        raise
    except Exception as error:  # the libraries raise many kinds
        text = textwrap.shorten(str(error), 240, placeholder=" …").rstrip(".:")
        if isinstance(error, SafetensorError):
            reason = f"its weights are damaged ({text}); download or copy them again"
        elif isinstance(error, ImportError):
            reason = f"a package is missing: {text}"
        elif "trust_remote_code" in str(error):
            reason = "it needs code of its own to run, which bitlens never loads"
        elif "mismatched_sizes" in text:
            reason = "its weights have other shapes than its config.json says"
        elif "safetensors" in str(error):
            reason = "it has no safetensors weights; convert it with save_pretrained first"
        elif Path(name).exists() or name == BUNDLED:
            reason = text
        else:
            reason = "it is neither a folder here nor a model that the Hugging Face Hub gave (name, access or network)"
        raise BitlensError(f"The model '{name}' could not be loaded: {reason}.") from error
