"""A Hugging Face language model, read at its hook points."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bitlens import terminal
from bitlens.errors import BitlensError
from bitlens.hidden.hooks import Architecture, attach
from bitlens.hidden.loading import Checkpoint, Loaded, embeddings
from bitlens.hidden.named import digest, here, name_from_anywhere, recorded_model
from bitlens.hidden.spread import entrance, spread_over
from bitlens.hidden.trace import Trace


class _AllRead(Exception):
    """Ends the forward pass once every hook point was read."""


class LanguageModel:
    """A Hugging Face model with its tokenizer, its hook points and nothing above the last of them.

    `model` is the module to call (the base model `base`, or the whole causal model).
    """

    def __init__(self, name: str, loaded: Loaded) -> None:
        self.model, self.base, self.tokenizer, self.hooks, trace = loaded
        self.name = name
        self.config: Any = self.model.config
        self.device, self.dtype = entrance(self.model), next(self.model.parameters()).dtype
        self.split = False
        """whether the model is one of several processes together"""
        values = {} if trace is None else trace.values
        self._widths = {hook.name: values[hook].shape[-1] for hook in self.hooks if values}
        self._positions = {} if trace is None else trace.positions

    @cached_property
    def special(self) -> Tensor:
        """Ids of the special tokens, sorted, on the CPU"""
        return torch.tensor(sorted(set(self.tokenizer.all_special_ids)), dtype=torch.long)

    @classmethod
    @terminal.shown("load the language model")
    def load(
        cls,
        name: str,
        hooks: list[str],
        *,
        dtype: str = "auto",
        device: str = "auto",
        device_map: str | dict[str, Any] | None = None,
        tp_plan: str | dict[str, str] | None = None,
        revision: str | None = None,
        causal: bool = False,
    ) -> LanguageModel:
        """Load a model by hub name, folder or .gguf file ('bundled' comes with bitlens).

        Layers above the last hook point are not kept, unless `causal` asks for the whole causal
        language model. Only safetensors and GGUF weights are read, and no code from the model's
        folder is run. dtype: auto (as stored, but float32 on a CPU and of a .gguf file), float32,
        float16 or bfloat16. device_map, tp_plan: as transformers has them, to spread layers over
        devices and disk, or to split every layer over the processes of torchrun, all of which must
        then read the same.
        BitlensError for a model that cannot be read or lacks a hook point.
        """
        spread = spread_over(device_map, tp_plan)
        checkpoint = Checkpoint(name, hooks, dtype, device, spread, revision, causal)
        model = cls(name_from_anywhere(name), checkpoint.load())
        model.split = tp_plan is not None
        return model

    @classmethod
    def again(
        cls, manifest: dict[str, Any], folder: Path | str, hooks: list[str], **settings: Any
    ) -> LanguageModel:
        """Load the model that the manifest of `folder` names; refused if another is there now.
        settings: as for `load`."""
        name, revision = recorded_model(manifest, folder)
        return cls.load(name, hooks, revision=revision, **settings)

    @classmethod
    @torch.no_grad()
    def of(cls, model: Any, hooks: list[str], tokenizer: Any = None) -> LanguageModel:
        """Hook a transformers model that is loaded already, which stays as it is.

        hooks: where all are paths of modules nothing is run; to find what another name means in
        this model, two tokens are run through it. tokenizer: its own, for its special tokens and to
        read text; without one, special are those that the model's configuration names.
        """
        import transformers

        if not isinstance(model, transformers.PreTrainedModel):
            raise BitlensError(
                f"A transformers model is hooked, not a {type(model).__name__}; name the one that "
                "it holds (of nnsight `model._module`, of a TransformerLens bridge "
                "`model.original_model`)."
            )
        base, config = model.base_model, model.config
        architecture = Architecture(base, config)
        wanted = [architecture.want(name) for name in hooks]
        trace, places = None, [each.place for each in wanted]
        if not all(places):
            last = embeddings(base) or config.get_text_config().vocab_size
            pair = torch.tensor([[last // 2, last // 3]], device=next(model.parameters()).device)
            trace = Trace(base, architecture, pair, False)
            places = [trace.find(each) for each in wanted]
        known = tokenizer or SimpleNamespace(all_special_ids=_special_tokens(config))
        return cls(
            str(config.name_or_path), Loaded(model, base, known, list(filter(None, places)), trace)
        )

    @cached_property
    def record(self) -> dict[str, str | None]:
        """What a manifest keeps of the model, so that another one is not taken for it later; a
        digest of the files, None for one from the hub."""
        return {"model": self.name, "revision": self.revision, "model_digest": digest(self.name)}

    @property
    def revision(self) -> str | None:
        """The commit of a model from the hub; None for a folder or file."""
        return None if here(self.name) else getattr(self.config, "_commit_hash", None)

    def __repr__(self) -> str:
        hooks = ", ".join(hook.name for hook in self.hooks) or "no hook point"
        return f"LanguageModel({self.name} read at {hooks}, {self.dtype} on {self.device})"

    @contextlib.contextmanager
    def reading(self, into: dict[str, Tensor], stop: bool = True) -> Iterator[None]:
        """Within the block a forward pass leaves the hidden states of all hook points in `into`,
        by name; what is there already stays. stop: end the pass once all were read."""
        hooks = {hook.name: hook for hook in self.hooks}

        def keep(name: str, value: Any) -> None:
            if name in into:
                return
            last = stop and len(into) + 1 == len(hooks)
            into[name] = value if last else value.clone()  # what runs on may change it in place
            if last:
                raise _AllRead

        with contextlib.ExitStack() as stack:
            for name, hook in hooks.items():
                stack.enter_context(attach(self.base, hook, partial(keep, name)))
            stack.enter_context(contextlib.suppress(_AllRead))
            yield

    @torch.inference_mode()
    def hidden_states(self, tokens: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        """tokens, mask `[batch, context]` -> of every hook point, by name, `[batch, context, d]`"""
        if mask is not None and not bool(mask.all()) and not self._takes_mask:
            lengths = mask.sum(1).int().tolist()
            rows = [
                self.hidden_states(row[None, :length])
                for row, length in zip(tokens, lengths, strict=True)
            ]
            return {name: pad_sequence([row[name][0] for row in rows], True) for name in rows[0]}
        states: dict[str, Tensor] = {}
        with self.reading(states):
            self.base(**self.inputs(tokens, mask))
        return states

    def inputs(self, tokens: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        """tokens, mask `[batch, context]` -> what the model is called with, on its device. A token
        without an embedding is refused, unless it is masked."""
        # A mask of ones only is left out, which lets attention take its faster causal path.
        mask = None if mask is None or bool(mask.all()) else mask
        beyond = tokens >= (self.vocabulary or torch.inf)
        if beyond.any():
            real = beyond if mask is None else beyond & mask.bool()
            if real.any():
                raise BitlensError(
                    f"The tokenizer of '{self.name}' gives the token {int(tokens[real][0])}, but "
                    f"the model has embeddings for {self.vocabulary} tokens only; they do not "
                    "belong together."
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
        """Width of the hidden states at every hook point, by name."""
        return dict(self._widths)

    def longest_context(self) -> int | None:
        """Tokens that the model reads at once, by its configuration and learned positions; None if
        neither says."""
        config = self.config.get_text_config()
        names = ("max_position_embeddings", "max_seq_len")
        limits = [getattr(config, name, None) for name in names]
        for path, first in self._positions.items():
            table: Any = self.base.get_submodule(path)
            limits.append(len(table.weight) - first)
        return min((n for n in limits if isinstance(n, int) and n > 0), default=None)

    def require_context(self, length: int, setting: str = "`length`") -> None:
        """Refuse contexts that are longer than the model's positions; setting: to be lowered."""
        limit = self.longest_context()
        if limit is not None and length > limit:
            raise BitlensError(
                f"{self.name} reads at most {limit} tokens at once, not {length}; lower {setting}."
            )

    def batch_memory(self, batch_size: int, length: int) -> int:
        """Bytes that a layer holds of a batch, about: hidden states beside the more of what
        attention makes of them, with its scores where it keeps those, and what the MLP widens."""
        config, tokens = self.config.get_text_config(), batch_size * length
        width = getattr(config, "hidden_size", None) or max(self._widths.values())
        wide = getattr(config, "intermediate_size", None) or 4 * width
        kept = getattr(config, "_attn_implementation", "eager") == "eager"
        scores = kept * 2 * length * (getattr(config, "num_attention_heads", None) or 1)
        return tokens * (2 * width + max(7 * width + scores, 3 * wide)) * self.dtype.itemsize

    def memory(self) -> int:
        """Bytes of the weights."""
        return sum(p.numel() * p.element_size() for p in self.model.parameters())


def _special_tokens(config: Any) -> list[int]:
    """Those that a model's configuration names."""
    text, found = config.get_text_config(), set()
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        ids = getattr(text, name, None)
        found |= set(ids if isinstance(ids, list) else [ids])
    return sorted(found - {None})
