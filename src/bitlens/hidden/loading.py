"""Find a language model, load its weights as far as its hook points need them, and try it on two
tokens. What would give other hidden states than the model's own is refused.
"""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import nn

from bitlens import hub
from bitlens.devices import pick_device
from bitlens.errors import BitlensError
from bitlens.hidden.gguf import ENDING, Source, is_gguf
from bitlens.hidden.hooks import Architecture, HookPoint
from bitlens.hidden.named import folder_of
from bitlens.hidden.spread import entrance, refuse_split
from bitlens.hidden.trace import NeedsAllLayers, Trace
from bitlens.memory import asked_for
from bitlens.options import BUNDLED


class Loaded(NamedTuple):
    """A model that was read and (but for `trace` None) tried; `model` is called, hook points are
    paths of `base`."""

    model: nn.Module
    base: nn.Module
    tokenizer: Any
    hooks: list[HookPoint]
    trace: Trace | None


class Checkpoint:
    """A model in a folder, a file or on the hub, and which of its hook points are to be read."""

    def __init__(
        self,
        name: str,
        hooks: list[str],
        dtype: str,
        device: str,
        spread: dict[str, Any],
        revision: str | None,
        causal: bool,
    ) -> None:
        """spread: as `spread_over` gives it."""
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        self.name, self.causal = name, causal
        self.source = _source(name)
        device = pick_device(device)
        self.device = None if spread else device
        with _refusing(name), self.source.opened() as (where, file):
            config = transformers.AutoConfig.from_pretrained(where, revision=revision, **file)
            if getattr(config, "is_encoder_decoder", False):
                raise BitlensError(
                    f"{name} is an encoder-decoder model; bitlens reads causal models and encoders."
                )
            causal_class = _causal_class(config)
            if file and not config.architectures and causal_class:  # a .gguf does not say it
                config.architectures = [causal_class.__name__]
            if causal and not _is_causal(config, causal_class):
                raise BitlensError(
                    f"{name} is not a causal language model, so it has no next-token loss."
                )
            self.tokenizer = self.source.tokenizer(revision)
            with torch.device("meta"):
                skeleton = transformers.AutoModel.from_config(config)
            self.architecture = Architecture(skeleton, config)
            self.wanted = [self.architecture.want(hook) for hook in hooks]
            self.kind: Any = causal_class if causal else type(skeleton)
            self.settings = {
                "config": config,
                "revision": revision,
                "dtype": _dtype(dtype, config, device),
                **spread,
            }

    def load(self) -> Loaded:
        """Without the layers above the last hook point; a causal model is whole."""
        every = needed = self.architecture.layers
        if not self.causal:
            # A layer more than the hook points need shows what transformers has after the last one
            # that they do need.
            needed = min(every, self.architecture.last_layer(w.layer for w in self.wanted) + 2)
        try:
            return self._load(needed)
        except NeedsAllLayers:
            if needed == every:
                raise
            return self._load(every)

    def _load(self, layers: int) -> Loaded:
        with _refusing(self.name):
            model, missing = self._read_weights(layers)
        model = model.to(self.device) if self.device else model
        model.eval()  # not frozen: torch multiplies frozen weights otherwise, and last bits differ
        model.config.use_cache = model.config.get_text_config().use_cache = False
        base = model.base_model if self.causal else model
        trace = self._try(model, base, layers, missing)
        hooks = [trace.find(wanted) for wanted in self.wanted]
        refuse_split(self.settings, {hook: trace.values[hook] for hook in hooks})
        architecture = self.architecture
        paths = [] if self.causal else [architecture.layer(hook.path) for hook in hooks]
        last = architecture.last_layer(paths)
        for key in missing:
            if 0 <= architecture.layer_of_weight(key) <= last:
                raise self._lacking(key)
        del base.get_submodule(architecture.blocks)[last + 1 :]
        return Loaded(model, base, self.tokenizer, hooks, trace)

    def _read_weights(self, layers: int) -> tuple[Any, list[str]]:
        """The model with its first `layers` layers, and the names of weights that the files lack,
        which are filled with NaN: what is read shows it where it depends on them."""
        whole, blocks = self.kind, self.architecture.blocks

        def build(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
            whole.__init__(self, config, *args, **kwargs)
            del self.get_submodule(blocks)[layers:]

        short = type(whole.__name__, (whole,), {"__init__": build, "__module__": whole.__module__})
        kind = short if layers < self.architecture.layers else whole
        with self.source.opened(layers) as (where, file):
            settings = {**self.settings, **file, **self.source.weights()}
            model, loading = kind.from_pretrained(
                where, output_loading_info=True, use_safetensors=True, **settings
            )
        self.source.finish(model)
        tensors, missing = model.state_dict(), sorted(loading["missing_keys"])
        for key in missing:
            if key in tensors and tensors[key].is_floating_point():
                tensors[key].fill_(torch.nan)
        return model, missing

    @torch.inference_mode()
    def _try(self, model: Any, base: Any, layers: int, missing: list[str]) -> Trace:
        """Run two tokens; refused if that fails, needs weights that the files lack, or predicts a
        token from what comes after it."""
        special = set(self.tokenizer.all_special_ids)
        vocabulary = range(embeddings(base) or len(self.tokenizer))
        usual = [token for token in vocabulary if token not in special] or [0]
        one, two, three = (usual[len(usual) // k] for k in (2, 3, 5))
        pair, other_pair = torch.tensor([[[one, two]], [[one, three]]]).to(entrance(model))
        logits = []
        try:
            trace = Trace(base, self.architecture, pair, layers < self.architecture.layers)
            if self.causal:
                logits = [model(input_ids=i).logits[0, 0].float() for i in (pair, other_pair)]
        except Exception as error:  # models and the libraries below raise many kinds
            if asked_for(error) is not None:
                raise
            text = textwrap.shorten(str(error), 160, placeholder=" …").rstrip(".:")
            said = f"The model '{self.name}' does not run on text alone ({text})."
            raise NeedsAllLayers(said) from error
        spoilt = trace.has_nan(self.wanted) or any(bool(x.isnan().any()) for x in logits)
        if missing and spoilt:
            raise self._lacking(missing[0])
        if logits and not torch.allclose(*logits, rtol=0.01, atol=0.01 * float(logits[0].std())):
            raise BitlensError(
                f"{self.name} is not a causal language model: it reads the tokens after each too, "
                "so it has no next-token loss."
            )
        return trace

    def _lacking(self, key: str) -> BitlensError:
        return BitlensError(f"The weights of '{self.name}' are incomplete: they lack {key}.")


def _is_causal(config: Any, kind: Any) -> bool:
    """Whether the weights are a causal model's of this class, as far as the configuration says."""
    return kind is not None and any(
        name == kind.__name__ or "ForCausalLM" in name or "LMHeadModel" in name
        for name in getattr(config, "architectures", None) or ()
    )


def _causal_class(config: Any) -> Any:
    """The class with a next-token head, also of a model that reads images too."""
    import transformers

    kinds = (
        transformers.MODEL_FOR_CAUSAL_LM_MAPPING,
        transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    )
    return next((kind[type(config)] for kind in kinds if type(config) in kind), None)


def embeddings(base: Any) -> int | None:
    """How many tokens the model has embeddings for; None if it embeds in a way of its own."""
    try:
        return len(base.get_input_embeddings().weight)
    except (AttributeError, NotImplementedError):
        return None


def _dtype(dtype: str, config: Any, device: str) -> torch.dtype:
    stored = getattr(config, "dtype", None)
    if dtype == "auto":
        return torch.float32 if device == "cpu" or not isinstance(stored, torch.dtype) else stored
    chosen = getattr(torch, dtype, None)
    if not isinstance(chosen, torch.dtype) or not chosen.is_floating_point:
        raise BitlensError(f"dtype '{dtype}' is none of auto, float32, float16, bfloat16.")
    return chosen


@contextlib.contextmanager
def _refusing(name: str) -> Iterator[None]:
    """Turn the loader's long messages into one sentence."""
    try:
        yield
    except Exception as error:  # the libraries raise many kinds
        if isinstance(error, BitlensError) or asked_for(error) is not None:
            raise
        reason = _reason(error, name)
        raise BitlensError(f"The model '{name}' could not be loaded: {reason}.") from error


def _reason(error: Exception, name: str) -> str:
    text = textwrap.shorten(str(error), 240, placeholder=" …").rstrip(".:")
    if isinstance(error, SafetensorError):
        return f"its weights are damaged ({text}); download or copy them again"
    if isinstance(error, ImportError):
        return f"a package is missing: {text}"
    reasons = {
        "trust_remote_code": "it needs code of its own to run, which bitlens never loads",
        "mismatched_sizes": "its weights have other shapes than its config.json says",
        "GGUF model with architecture": "transformers reads no .gguf of this architecture; use "
        "the folder that it was made from",
        "safetensors": "it has no safetensors weights; convert it with save_pretrained first",
    }
    for word, reason in reasons.items():
        if word in str(error):
            return reason
    if Path(name).exists() or name == BUNDLED:
        return text
    reason = hub.why(error, name) if hub.is_name(name) else None
    reason = f": {reason.rstrip('.')}" if reason else " (name, access or network)"
    return f"it is neither a folder here nor a model that the Hub gave{reason}"


def load_tokenizer(name: str, revision: str | None) -> Any:
    """The tokenizer of a model, alone."""
    return _source(name).tokenizer(revision)


def load_config(name: str, revision: str | None) -> Any:
    """The configuration of a model, alone."""
    import transformers

    with _refusing(name), _source(name).opened() as (where, file):
        return transformers.AutoConfig.from_pretrained(where, revision=revision, **file)


def _source(name: str) -> Source:
    """Where a model is read from; refused if it is a file or folder of another kind."""
    where = folder_of(name)
    if Path(where).is_file() and not is_gguf(where):
        raise BitlensError(
            f"{name} is a file; name the folder of a model, with its config.json and weights, or a "
            f"{ENDING} file."
        )
    if Path(where).suffix.lower() == ENDING and not Path(where).exists():
        raise BitlensError(f"There is no file {name}.")
    if (Path(where) / "adapter_config.json").is_file():
        raise BitlensError(
            f"{name} holds an adapter (PEFT), no whole model; merge it into its model with PEFT's "
            "merge_and_unload() and write that with save_pretrained()."
        )
    return Source(name, where)
