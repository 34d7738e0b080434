"""Put reconstructions into the forward pass and see what the language model loses."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bitlens.autoencoders.base import Autoencoder
from bitlens.errors import BitlensError
from bitlens.hidden.models import LanguageModel
from bitlens.hidden.store import ActivationStore


class SpliceLosses(NamedTuple):
    """Means over scored tokens, in nats. `score` is 1 where splicing costs nothing and 0 where it costs as much as
    zeroing the hidden states: `(ce_zero - ce_spliced) / (ce_zero - ce_original)`."""

    ce_original: float
    ce_spliced: float
    ce_zero: float
    kl_div: float
    score: float
    tokens: int


@contextlib.contextmanager
def replaced(model: LanguageModel, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within the block, what passes the model's one hook point is `change` of what would have passed."""
    (hook,) = model.hooks
    module = model.base.get_submodule(hook.path)

    def new(value: Any) -> Any:
        return (change(value[0]), *value[1:]) if isinstance(value, tuple) else change(value)

    if hook.side == "output":
        handle = module.register_forward_hook(lambda m, args, out: new(out))
    else:

        def before(m: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            if args:
                return new(args), kwargs
            return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

        handle = module.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@torch.inference_mode()
def splice_losses(
    model: LanguageModel,
    autoencoder: Autoencoder,
    contexts: Tensor,
    scored: Tensor,
    max_norm: float = math.inf,
    max_bytes: int = 1 << 29,
) -> SpliceLosses:
    """Cross-entropy and KL of the next token with the reconstruction in place of the hidden states.

    model: a whole causal model with one hook point. contexts `[n, length]`: token ids, -1 is padding. scored: bool, same
    shape: the tokens whose prediction counts. Every token is replaced but special ones, padding and hidden states of a
    norm above max_norm (attention sinks, which no autoencoder is trained on); those stay as the model made them. KL is from the original's distribution to the spliced one's.
    """
    special = torch.tensor(sorted(model.tokenizer.all_special_ids))
    real = contexts >= 0
    usual = real & ~torch.isin(contexts, special)
    counts = scored & usual
    counts[:, 0] = False
    if not counts.any():
        raise BitlensError("There is no token to score in these contexts.")
    sums = torch.zeros(4, dtype=torch.float64)
    batch = max(1, max_bytes // (contexts.shape[1] * model.config.get_text_config().vocab_size * 4))
    for rows in torch.arange(len(contexts))[counts.any(1)].split(batch):
        tokens, mask = contexts[rows].clamp_min(0).to(model.device), real[rows].to(model.device)
        here, replace = counts[rows][:, 1:].to(model.device), usual[rows].to(model.device)[:, :, None]

        def reconstructed(x: Tensor, replace: Tensor = replace) -> Tensor:
            return torch.where(replace & _usual(x, max_norm), autoencoder(x).to(x), x)

        def zeroed(x: Tensor, replace: Tensor = replace) -> Tensor:
            return torch.where(replace & _usual(x, max_norm), 0, x)

        original = _log_probabilities(model, tokens, mask, None)
        spliced = _log_probabilities(model, tokens, mask, reconstructed)
        sums[0] += _cross_entropy(original, tokens, here)
        sums[1] += _cross_entropy(spliced, tokens, here)
        sums[3] += (original.exp() * (original - spliced)).sum(-1)[here].double().sum().cpu()
        del original, spliced
        sums[2] += _cross_entropy(_log_probabilities(model, tokens, mask, zeroed), tokens, here)
    n = int(counts.sum())
    original, spliced, zero, kl = (sums / n).tolist()
    score = (zero - spliced) / (zero - original) if zero != original else math.nan
    return SpliceLosses(original, spliced, zero, kl, score, n)


def _usual(x: Tensor, max_norm: float) -> Tensor:
    """Which hidden states have a norm up to max_norm -> `[..., 1]`"""
    return torch.linalg.vector_norm(x.float(), dim=-1, keepdim=True) <= max_norm


def _log_probabilities(
    model: LanguageModel, tokens: Tensor, mask: Tensor, change: Callable[[Tensor], Tensor] | None
) -> Tensor:
    """Of the token after each, `[n, length - 1, vocabulary]`, float32, with `change` made at the hook point."""
    with replaced(model, change) if change else contextlib.nullcontext():
        logits = model.model(input_ids=tokens, attention_mask=None if bool(mask.all()) else mask).logits
    return logits[:, :-1].float().log_softmax(-1)


def _cross_entropy(log_probabilities: Tensor, tokens: Tensor, where: Tensor) -> Tensor:
    """Sum over the chosen tokens, in nats, float64"""
    return -log_probabilities.gather(-1, tokens[:, 1:, None])[..., 0][where].double().sum().cpu()


def contexts_to_score(store: ActivationStore, limit: int, part: str = "test") -> tuple[Tensor, Tensor]:
    """Up to `limit` contexts with tokens of this part (`test` or `all`) -> (token ids `[n, length]`, which are of it)"""
    found: list[tuple[Tensor, Tensor]] = []
    missing = limit
    for contexts, columns in store.contexts():
        scored = torch.zeros(contexts.shape, dtype=torch.bool)
        test = store.is_test(columns["document"]) | (part == "all")
        scored[columns["context"][test].long(), columns["position"][test].long()] = True
        chosen = scored.any(1).nonzero()[:missing, 0]
        found.append((contexts[chosen], scored[chosen]))
        missing -= len(chosen)
        if missing <= 0:
            break
    return torch.cat([c for c, _ in found]), torch.cat([s for _, s in found])
