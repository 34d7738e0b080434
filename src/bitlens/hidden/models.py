"""Load any Hugging Face language model and read hidden states at its hook points."""

from __future__ import annotations

import contextlib
import inspect
import textwrap
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from bitlens import terminal
from bitlens.errors import BitlensError
from bitlens.hidden.hooks import Architecture, HookPoint, came_out, passed_in
from bitlens.hidden.recorded import (
    BUNDLED,
    bundled_folder,
    digest,
    folder_of,
    name_from_anywhere,
    recorded_model,
)
from bitlens.hidden.trace import OnlyWhole, Trace, embeddings, traced

__all__ = ["BUNDLED", "HookPoint", "LanguageModel", "bundled_folder", "is_causal"]


class _AllRead(Exception):
    """Ends the forward pass once every hook point was read."""


class LanguageModel:
    """A Hugging Face model with its tokenizer, its hook points and nothing above the last of them.

    model: the module to call (the base model, or the whole causal model); base: the base model, which the hook points'
    paths are relative to.
    """

    def __init__(
        self,
        model: nn.Module,
        base: nn.Module,
        tokenizer: Any,
        name: str,
        hooks: list[HookPoint],
        trace: Trace,
    ) -> None:
        self.model, self.base, self.tokenizer, self.name, self.hooks = (
            model,
            base,
            tokenizer,
            name,
            hooks,
        )
        self.config: Any = model.config
        self.device = next(model.parameters()).device
        self.dtype = next(model.parameters()).dtype
        self._widths = {hook.name: trace.values[hook.place].shape[-1] for hook in hooks}
        self._positions = trace.positions

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

        Layers above the last hook point are not kept, unless `causal` asks for the whole causal language model. Two
        tokens are run through the model, to check what its hook points are called.
        dtype: auto (as stored, but float32 for half precision on a CPU), float32, float16 or bfloat16. Only safetensors
        weights are read, and no code from the model's folder is ever run.
        """
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        where = folder_of(name)
        if Path(where).is_file():
            raise BitlensError(
                f"{name} is a file; name the folder of a model, with its config.json and weights."
            )
        device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        with _loading_errors(name):
            config = transformers.AutoConfig.from_pretrained(where, revision=revision)
            if getattr(config, "is_encoder_decoder", False):
                raise BitlensError(
                    f"{name} is an encoder-decoder model; bitlens reads causal models and encoders."
                )
            if causal and not is_causal(config):
                raise BitlensError(
                    f"{name} is not a causal language model, so it has no next-token loss."
                )
            tokenizer = transformers.AutoTokenizer.from_pretrained(where, revision=revision)
            with torch.device("meta"):
                skeleton = transformers.AutoModel.from_config(config)
            architecture = Architecture(skeleton, config)
            wanted = [architecture.want(hook) for hook in hooks]
            settings = {
                "config": config,
                "revision": revision,
                "dtype": _dtype(dtype, config, device),
            }
            settings |= {"device_map": device_map} if device_map else {}
            # A layer more than the hook points need shows what transformers has after the last one that they do need.
            needed = (
                architecture.layers
                if causal
                else architecture.last_layer(w.layer for w in wanted) + 2
            )
            kind = _causal_class(config) if causal else type(skeleton)

        def opened(layers: int) -> tuple[Any, list[str], Trace, list[HookPoint]]:
            with _loading_errors(name):
                model, missing = _load(kind, where, architecture, layers, settings)
            model = model if device_map else model.to(device)
            model.eval()  # not frozen: torch multiplies frozen weights in another way, and the last bits would differ
            model.config.use_cache = model.config.get_text_config().use_cache = False
            trace = traced(name, model, architecture, layers, wanted, missing, tokenizer, causal)
            return model, missing, trace, [trace.find(w) for w in wanted]

        layers = min(needed, architecture.layers)
        try:
            model, missing, trace, points = opened(layers)
        except OnlyWhole:
            if layers == architecture.layers:
                raise
            model, missing, trace, points = opened(architecture.layers)
        kept = [] if causal else [architecture.layer(point.path) for point in points]
        last = architecture.last_layer(kept)
        if lacking := [key for key in missing if 0 <= architecture.layer_of_weight(key) <= last]:
            raise BitlensError(f"The weights of '{name}' are incomplete: they lack {lacking[0]}.")
        base = model.base_model if causal else model
        del base.get_submodule(architecture.blocks)[last + 1 :]
        return cls(model, base, tokenizer, name_from_anywhere(name), points, trace)

    @classmethod
    def again(
        cls, manifest: dict[str, Any], of: Path | str, hooks: list[str], **settings: Any
    ) -> LanguageModel:
        """Load the model that the manifest of a store or of codes names; refused if another one is there now.

        of: the folder of the manifest. settings: as for `load`.
        """
        name, revision = recorded_model(manifest, of)
        return cls.load(name, hooks, revision=revision, **settings)

    @cached_property
    def digest(self) -> str | None:
        """Of the configuration and the weights in the model's folder; None for a model from the hub."""
        return digest(self.name)

    @property
    def record(self) -> dict[str, str | None]:
        """What a manifest keeps of the model, so that another one is not taken for it later."""
        return {"model": self.name, "revision": self.revision, "model_digest": self.digest}

    def __repr__(self) -> str:
        hooks = ", ".join(hook.name for hook in self.hooks)
        return f"LanguageModel({self.name} read at {hooks or 'no hook point'}, {self.dtype} on {self.device})"

    @property
    def revision(self) -> str | None:
        """The commit of a model from the hub; None for a folder."""
        return (
            None
            if Path(folder_of(self.name)).is_dir()
            else getattr(self.config, "_commit_hash", None)
        )

    @contextlib.contextmanager
    def reading(self, into: dict[str, Tensor], stop: bool = True) -> Iterator[None]:
        """Within the block a forward pass leaves the hidden states of all hook points in `into`, by name.

        stop: end the pass, by an exception that the block swallows, once all were read.
        """

        count = len({hook.name for hook in self.hooks})

        def keep(name: str, value: Any) -> None:
            if name in into:
                return
            last = stop and len(into) + 1 == count
            into[name] = value if last else value.clone()  # what runs on may change it in place
            if last:
                raise _AllRead

        handles = []
        for hook in {hook.name: hook for hook in self.hooks}.values():
            module = self.base.get_submodule(hook.path)
            if hook.side == "output":
                handles.append(
                    module.register_forward_hook(
                        lambda m, a, out, name=hook.name: keep(name, came_out(out))
                    )
                )
            else:
                handles.append(
                    module.register_forward_pre_hook(
                        lambda m, args, kwargs, name=hook.name: keep(name, passed_in(args, kwargs)),
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
        if mask is not None and not bool(mask.all()) and not self._takes_mask:
            alone = [
                self.hidden_states(row[None, :n])
                for row, n in zip(tokens, mask.sum(1).int().tolist(), strict=True)
            ]
            return {
                name: pad_sequence([states[name][0] for states in alone], True) for name in alone[0]
            }
        found: dict[str, Tensor] = {}
        with self.reading(found):
            self.base(**self.inputs(tokens, mask))
        return found

    def inputs(self, tokens: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        """tokens, mask `[batch, context]` -> what the model is called with, on its device.

        Tokens that the model has no embedding for are refused; where they are masked, another stands in for them.
        """
        # A mask of ones only is left out, which lets attention take its faster causal path.
        mask = None if mask is None or bool(mask.all()) else mask
        beyond = tokens >= (self.vocabulary or torch.inf)
        if beyond.any():
            real = beyond if mask is None else beyond & mask.bool()
            if real.any():
                raise BitlensError(
                    f"The tokenizer of '{self.name}' gives the token {int(tokens[real][0])}, but the model has embeddings "
                    f"for {self.vocabulary} tokens only; they do not belong together."
                )
            tokens = tokens.masked_fill(beyond, 0)
        masked = {} if mask is None else {"attention_mask": mask.to(self.device)}
        return {"input_ids": tokens.to(self.device), **masked}

    @cached_property
    def _takes_mask(self) -> bool:
        return "attention_mask" in inspect.signature(self.base.forward).parameters

    @cached_property
    def vocabulary(self) -> int | None:
        """Tokens that the model has embeddings for; None where it embeds in a way of its own."""
        return embeddings(self.base)

    def widths(self) -> dict[str, int]:
        """Width of the hidden states at every hook point."""
        return dict(self._widths)

    def longest_context(self) -> int | None:
        """Tokens that the model reads at once, as its configuration says or its learned positions allow."""
        config = self.config.get_text_config()
        said = (getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len"))
        tables: list[tuple[Any, int]] = [
            (self.base.get_submodule(n), first) for n, first in self._positions.items()
        ]
        learned = (len(table.weight) - first for table, first in tables)
        return min((n for n in (*said, *learned) if isinstance(n, int) and n > 0), default=None)

    def require_context(self, length: int) -> None:
        """Refuse contexts that are longer than the model's positions."""
        limit = self.longest_context()
        if limit is not None and length > limit:
            raise BitlensError(
                f"{self.name} reads at most {limit} tokens at once, not {length}; lower `length`."
            )

    def memory(self) -> int:
        """Bytes of the weights that are loaded."""
        return sum(p.numel() * p.element_size() for p in self.model.parameters())


def is_causal(config: Any) -> bool:
    """Whether the weights are those of a causal language model, as far as the configuration says."""
    kind = _causal_class(config)
    own = [] if kind is None else [kind.__name__]
    named = getattr(config, "architectures", None) or []
    return kind is not None and any(
        a in own or "ForCausalLM" in a or "LMHeadModel" in a for a in named
    )


def _causal_class(config: Any) -> Any:
    """The class with a next-token head; of a model that reads images too the one that also writes text."""
    import transformers

    kinds = (
        transformers.MODEL_FOR_CAUSAL_LM_MAPPING,
        transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    )
    return next((kind[type(config)] for kind in kinds if type(config) in kind), None)


def _load(
    kind: Any, where: str, architecture: Architecture, layers: int, settings: dict[str, Any]
) -> tuple[Any, list[str]]:
    """The model with its first `layers` layers, and the names of weights that the files lack.

    Those are filled with NaN: what is read shows it where it depends on them.
    """

    def build(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        kind.__init__(self, config, *args, **kwargs)
        del self.get_submodule(architecture.blocks)[layers:]

    short = type(kind.__name__, (kind,), {"__init__": build, "__module__": kind.__module__})
    kind_here = short if layers < architecture.layers else kind
    model, loading = kind_here.from_pretrained(
        where, output_loading_info=True, use_safetensors=True, **settings
    )
    tensors, missing = model.state_dict(), sorted(loading["missing_keys"])
    for key in missing:
        if key in tensors and tensors[key].is_floating_point():
            tensors[key].fill_(torch.nan)
    return model, missing


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
