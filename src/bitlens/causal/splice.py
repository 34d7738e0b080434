"""Put reconstructions into the forward pass and see what the language model loses."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bitlens import terminal
from bitlens.autoencoders.base import Autoencoder
from bitlens.errors import BitlensError
from bitlens.hidden.models import LanguageModel
from bitlens.hidden.store import ActivationStore

Change = Callable[[Tensor], Tensor]


class SpliceTokens(NamedTuple):
    """One entry a scored token, `[tokens]` each, in the order of the contexts; on the CPU."""

    context: Tensor
    """index into the contexts"""
    position: Tensor
    """of the token in its context; its prediction is made one before"""
    ce_original: Tensor
    """cross-entropy of the language model, nats"""
    ce_spliced: Tensor
    """the same with reconstructions in place of the hidden states"""
    kl_div: Tensor
    """KL divergence of the next-token distribution, original to spliced, nats"""
    top1: Tensor
    """bool: whether the likeliest token stays the same"""


class SpliceLosses(NamedTuple):
    """Means over scored tokens; cross-entropies and KL in nats. A score is 1 where splicing costs nothing and 0 where it
    costs as much as an ablation: `(ce_ablated - ce_spliced) / (ce_ablated - ce_original)`."""

    ce_original: float
    ce_spliced: float
    ce_zero: float
    ce_mean: float
    ce_loss_score: float
    ce_loss_score_mean: float
    kl_div: float
    top1: float
    tokens: int


class _Batch(NamedTuple):
    rows: Tensor
    tokens: Tensor
    mask: Tensor
    usual: Tensor
    counts: Tensor
    """`[n, length - 1]`: whether the token after each is scored"""
    targets: Tensor
    """the scored tokens, `[tokens]`"""


@contextlib.contextmanager
def replaced(model: LanguageModel, change: Change) -> Iterator[None]:
    """Within the block, what passes the model's last hook point is `change` of what would have passed."""
    hook = model.hooks[-1]
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


class Splice:
    """A language model on some contexts, to be run with something else in place of its hidden states.

    A `change` maps what passes the model's first hook point, `[n, length, d_in]`, to what then passes its last one,
    `[n, length, d_out]` or broadcastable to it: an autoencoder has one hook point, a transcoder two. Every token is
    replaced but special ones, padding and hidden states of a norm above max_norm (attention sinks, which no autoencoder
    is trained on); those stay as the model made them. What the ablations cost depends on no autoencoder: it is computed
    once, so several autoencoders of the same hook point share one `Splice`.
    """

    def __init__(
        self,
        model: LanguageModel,
        contexts: Tensor,
        scored: Tensor,
        mean: Tensor,
        *,
        max_norm: float = math.inf,
        max_bytes: int = 1 << 29,
    ) -> None:
        """model: a whole causal model. contexts `[n, length]`: token ids, -1 is padding. scored: bool, same shape: the
        tokens whose prediction counts. mean `[d_out]`: of hidden states, for mean ablation. max_bytes: of the logits of
        a batch."""
        special = torch.tensor(sorted(model.tokenizer.all_special_ids))
        self.model, self.contexts, self.mean, self.max_norm = model, contexts, mean, max_norm
        self.real = contexts >= 0
        self.usual = self.real & ~torch.isin(contexts, special)
        self.counts = scored & self.usual
        self.counts[:, 0] = False
        if not self.counts.any():
            raise BitlensError("There is no token to score in these contexts.")
        self.batch_size = max(1, max_bytes // (contexts.shape[1] * model.config.get_text_config().vocab_size * 4))

    @classmethod
    def of_store(
        cls, model: LanguageModel, autoencoder: Autoencoder, store: ActivationStore, limit: int = 64, part: str = "test"
    ) -> Splice:
        """On up to `limit` contexts of a store with tokens of this part (`test` or `all`), which are scored."""
        contexts, scored = contexts_to_score(store, limit, part)
        mean = autoencoder.get_buffer("mean_out" if _hooks_needed(model, autoencoder) == 2 else "mean")
        return cls(model, contexts, scored, mean, max_norm=store.manifest.get("outlier_norm") or math.inf)

    def losses(self, autoencoder: Change) -> SpliceLosses:
        """What the language model loses with the autoencoder's reconstructions."""
        _hooks_needed(self.model, autoencoder)
        return self.means(self.tokens([autoencoder])[0])

    def means(self, tokens: SpliceTokens) -> SpliceLosses:
        original, spliced, kl_div, top1 = (float(t.double().mean()) for t in tokens[2:])
        zero, mean = self.ablated
        return SpliceLosses(
            original, spliced, zero, mean, _score(zero, spliced, original), _score(mean, spliced, original), kl_div, top1,
            len(tokens.position),
        )  # fmt: skip

    @torch.inference_mode()
    def tokens(self, changes: Sequence[Change]) -> list[SpliceTokens]:
        """What each change costs, token by token; the original forward pass is made once for all of them."""
        found: list[list[SpliceTokens]] = [[] for _ in changes]
        for batch in self._batches("with reconstructions"):
            original = self._log_probabilities(batch, None)
            ce, likeliest = _cross_entropy(original, batch.targets), original.argmax(-1)
            context, position = batch.counts.cpu().nonzero().T
            for change, parts in zip(changes, found, strict=True):
                spliced = self._log_probabilities(batch, change)
                numbers = (
                    ce,
                    _cross_entropy(spliced, batch.targets),
                    (original.exp() * (original - spliced)).sum(-1),
                    spliced.argmax(-1) == likeliest,
                )
                parts.append(SpliceTokens(batch.rows[context], position + 1, *(n.cpu() for n in numbers)))
        return [SpliceTokens(*map(torch.cat, zip(*parts, strict=True))) for parts in found]

    @cached_property
    @torch.inference_mode()
    def ablated(self) -> tuple[float, float]:
        """Mean cross-entropies with zeros and with the mean in place of the hidden states."""
        sums = [0.0, 0.0]
        for batch in self._batches("with zeros and the mean"):
            for i, constant in enumerate((torch.zeros_like(self.mean), self.mean)):
                log_probabilities = self._log_probabilities(batch, lambda x, constant=constant: constant)
                sums[i] += float(_cross_entropy(log_probabilities, batch.targets).double().sum())
        n = int(self.counts.sum())
        return sums[0] / n, sums[1] / n

    def hidden_states(self) -> Iterator[tuple[Tensor, Tensor]]:
        """What is replaced, in batches: (what passes the first hook point `[rows, d_in]`, the last `[rows, d_out]`)"""
        first, last = self.model.hooks[0].name, self.model.hooks[-1].name
        for batch in self._batches("hidden states"):
            found = self.model.hidden_states(batch.tokens, batch.mask)
            rows = (batch.usual & self._usual(found[first]))[..., 0]
            yield found[first][rows], found[last][rows]

    def _batches(self, what: str) -> Iterator[_Batch]:
        device = self.model.device
        scored = self.counts.any(1).nonzero()[:, 0]
        for rows in terminal.track(scored.split(self.batch_size), f"contexts {what}", len(scored), len):
            tokens, counts = self.contexts[rows].clamp_min(0).to(device), self.counts[rows, 1:].to(device)
            mask, usual = self.real[rows].to(device), self.usual[rows].to(device)[:, :, None]
            yield _Batch(rows, tokens, mask, usual, counts, tokens[:, 1:][counts])

    def _log_probabilities(self, batch: _Batch, change: Change | None) -> Tensor:
        """Of the scored tokens, `[tokens, vocabulary]`, float32, with `change` made at the hook point."""
        read: dict[str, Tensor] = {}
        first = self.model.hooks[0].name

        def new(x: Tensor) -> Tensor:
            assert change is not None
            return torch.where(batch.usual & self._usual(read[first]), change(read[first]).to(x), x)

        with contextlib.ExitStack() as stack:
            if change is not None:
                stack.enter_context(self.model.reading(read, stop=False))
                stack.enter_context(replaced(self.model, new))
            mask = None if bool(batch.mask.all()) else batch.mask
            logits = self.model.model(input_ids=batch.tokens, attention_mask=mask).logits
        return logits[:, :-1][batch.counts].float().log_softmax(-1)

    def _usual(self, x: Tensor) -> Tensor:
        """Which hidden states have a norm up to max_norm -> `[..., 1]`"""
        return torch.linalg.vector_norm(x.float(), dim=-1, keepdim=True) <= self.max_norm


def _hooks_needed(model: LanguageModel, autoencoder: Any) -> int:
    """1, or 2 for a transcoder; a model with another number of hook points is refused."""
    needed = 1 + getattr(autoencoder, "transcodes", False)
    if len(model.hooks) != needed:
        raise BitlensError(
            "A transcoder reads one hook point and replaces another, an autoencoder replaces the one it reads: "
            f"load the language model with {needed} hook point{'s' * (needed - 1)}, not {len(model.hooks)}."
        )
    return needed


def _score(ablated: float, spliced: float, original: float) -> float:
    return (ablated - spliced) / (ablated - original) if ablated != original else math.nan


def _cross_entropy(log_probabilities: Tensor, targets: Tensor) -> Tensor:
    """`[tokens, vocabulary]`, `[tokens]` -> nats, `[tokens]`"""
    return -log_probabilities.gather(-1, targets[:, None])[:, 0]


def load_spliced(autoencoder: Autoencoder, store: ActivationStore, device: str = "auto") -> LanguageModel:
    """The whole language model of a store, hooked where the autoencoder reads and, for a transcoder, where it writes."""
    if not all(store.manifest.get(key) for key in ("context_length", "model", "hook")):
        raise BitlensError(f"The store {store.path} was imported without its text, so no model can be run on it.")
    records = [autoencoder.metadata["hook"], autoencoder.metadata["target_hook"]] if autoencoder.transcodes else []
    hooks = [record["module"] for record in records or [store.manifest["hook"]]]
    revision = store.manifest.get("revision")
    return LanguageModel.load(store.manifest["model"], hooks, device=device, revision=revision, causal=True)


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
