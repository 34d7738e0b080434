"""Put reconstructions into the forward pass and see what the language model loses."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bitlens import terminal
from bitlens.autoencoders.base import Autoencoder
from bitlens.causal.losses import SpliceLosses, SpliceSums
from bitlens.errors import BitlensError
from bitlens.hidden.hooks import attach
from bitlens.hidden.models import LanguageModel
from bitlens.hidden.paired import PairedStore
from bitlens.hidden.split import unseen
from bitlens.hidden.store import ActivationStore
from bitlens.results import brief
from bitlens.seeding import generator

Change = Callable[[Tensor], Tensor]


class SpliceTokens(NamedTuple):
    """One entry a scored token, `[tokens]` each, in the order of the contexts, on the CPU;
    cross-entropies and KL divergence (original to spliced) in nats."""

    __repr__ = brief

    context: Tensor
    """index into the contexts"""
    position: Tensor
    """of the token in its context; its prediction is made one before"""
    ce_original: Tensor
    ce_spliced: Tensor
    kl_div: Tensor
    top1: Tensor
    """bool: whether the likeliest token stays the same"""


class _Batch(NamedTuple):
    """Some of the contexts (`rows`), on the model's device."""

    rows: Tensor
    tokens: Tensor
    mask: Tensor
    usual: Tensor
    """`[n, length, 1]`: whether the hidden state of each may be replaced"""
    scored: Tensor
    """`[n, length - 1]`: whether the token after each is scored"""
    targets: Tensor
    """the scored tokens, `[tokens]`"""


class Splice:
    """A language model on some contexts, to be run with something else in place of hidden states.

    A `change` maps what passes the model's first hook point, `[n, length, d_in]`, to what then
    passes its last one, `[n, length, d_out]` or broadcastable to it: an autoencoder has one hook
    point, a transcoder two. Every token is replaced but special ones, padding and hidden states of
    a norm above max_norm (attention sinks, which no autoencoder is trained on); those stay as the
    model made them. What the ablations cost depends on no autoencoder: it is computed once, so
    several autoencoders of the same hook point share one `Splice`.
    """

    def __init__(
        self,
        model: LanguageModel,
        contexts: Tensor,
        scored: Tensor,
        mean: Tensor,
        *,
        units: Tensor | None = None,
        max_norm: float = math.inf,
        max_bytes: int = 1 << 29,
    ) -> None:
        """model: a whole causal model. contexts `[n, length]`: token ids, -1 is padding. scored:
        bool, same shape: the tokens whose prediction counts. mean `[d_out]`: for mean ablation.
        units `[n]`: numbers from 0 of what intervals take for independent, by default contexts.
        max_bytes: of the logits of a batch."""
        self.model, self.contexts, self.mean, self.max_norm = model, contexts, mean, max_norm
        self.units = torch.arange(len(contexts)) if units is None else units
        self.real = contexts >= 0
        self.usual = self.real & ~torch.isin(contexts, model.special)
        self.scored = scored & self.usual
        self.scored[:, 0] = False  # nothing predicts the first token
        if not self.scored.any():
            raise BitlensError("There is no token to score in these contexts.")
        context_bytes = contexts.shape[1] * model.config.get_text_config().vocab_size * 4
        self.batch_size = max(1, max_bytes // context_bytes)

    def __repr__(self) -> str:
        hooks = ", ".join(hook.name for hook in self.model.hooks)
        contexts, length = self.contexts.shape
        return (
            f"Splice({self.model.name} at {hooks}: {int(self.scored.sum()):,} scored tokens in "
            f"{contexts:,} contexts of {length:,})"
        )

    @classmethod
    def of_store(
        cls,
        model: LanguageModel,
        autoencoder: Autoencoder | None,
        store: ActivationStore,
        limit: int = 64,
        part: str = "test",
        seed: int = 0,
    ) -> Splice:
        """On up to `limit` contexts, drawn at random, with tokens of this part of a store (`test`,
        what the autoencoder's training held out, or `all`), which are scored.

        Mean ablation takes the mean of the store's usual rows (for a transcoder, of its target's).
        autoencoder: None where several share this, in a store that is split as they were trained.
        """
        mean = store.mean
        if autoencoder is not None:
            require_hooks(model, autoencoder)
            if autoencoder.transcodes:
                paired = isinstance(store, PairedStore)
                mean = store.mean_out if paired else autoencoder.get_buffer("mean_out")
            store = unseen(store, autoencoder.metadata) if part == "test" else store
        contexts, scored, units = draw_contexts(store, limit, part, seed)
        return cls(model, contexts, scored, mean, units=units, max_norm=store.outlier_norm)

    def losses(self, autoencoder: Change) -> SpliceLosses:
        """What the language model loses with the autoencoder's reconstructions."""
        require_hooks(self.model, autoencoder)
        return self.sums(self.tokens([autoencoder])[0]).losses()

    def sums(self, tokens: SpliceTokens) -> SpliceSums:
        """The same and the ablations', summed over the tokens of each unit of contexts."""
        _, unit = self.units[tokens.context].unique(return_inverse=True)
        _, _, original, spliced, kl_div, top1 = tokens
        columns = (torch.ones(len(unit)), original, spliced, *self.ablated, kl_div, top1)
        zeros = torch.zeros(int(unit.max()) + 1, dtype=torch.float64)
        return SpliceSums(*(zeros.index_add(0, unit, column.double()) for column in columns))

    @torch.inference_mode()
    def tokens(self, changes: Sequence[Change]) -> list[SpliceTokens]:
        """What each change costs, token by token; the original pass is made once for all."""
        batches: list[list[SpliceTokens]] = [[] for _ in changes]
        for batch in self._batches("with reconstructions"):
            original = self._log_probabilities(batch, None)
            ce, likeliest = _cross_entropy(original, batch.targets), original.argmax(-1)
            context, position = batch.scored.cpu().nonzero().T
            for change, parts in zip(changes, batches, strict=True):
                spliced = self._log_probabilities(batch, change)
                ce_spliced = _cross_entropy(spliced, batch.targets)
                kl_div = (original.exp() * (original - spliced)).sum(-1)
                numbers = (ce, ce_spliced, kl_div, spliced.argmax(-1) == likeliest)
                places = batch.rows[context], position + 1
                parts.append(SpliceTokens(*places, *(number.cpu() for number in numbers)))
        return [SpliceTokens(*map(torch.cat, zip(*parts, strict=True))) for parts in batches]

    @cached_property
    @torch.inference_mode()
    def ablated(self) -> tuple[Tensor, Tensor]:
        """Cross-entropies with zeros and the mean in place of hidden states, `[tokens]` each."""
        zero, mean = [], []
        for batch in self._batches("with zeros and the mean"):
            for constant, parts in ((torch.zeros_like(self.mean), zero), (self.mean, mean)):
                spliced = self._log_probabilities(batch, lambda x, constant=constant: constant)
                parts.append(_cross_entropy(spliced, batch.targets).cpu())
        return torch.cat(zero), torch.cat(mean)

    def hidden_states(self) -> Iterator[tuple[Tensor, Tensor]]:
        """What is replaced, in batches: (what passes the first hook point `[rows, d_in]`, the last
        `[rows, d_out]`)"""
        first, last = self.model.hooks[0].name, self.model.hooks[-1].name
        for batch in self._batches("hidden states"):
            states = self.model.hidden_states(batch.tokens, batch.mask)
            rows = (batch.usual & self._usual(states[first]))[..., 0]
            yield states[first][rows], states[last][rows]

    def _batches(self, what: str) -> Iterator[_Batch]:
        device = self.model.device
        some = self.scored.any(1).nonzero()[:, 0]
        for rows in terminal.track(some.split(self.batch_size), f"contexts {what}", len(some), len):
            tokens = self.contexts[rows].clamp_min(0).to(device)
            scored = self.scored[rows, 1:].to(device)
            mask, usual = self.real[rows].to(device), self.usual[rows].to(device)[:, :, None]
            yield _Batch(rows, tokens, mask, usual, scored, tokens[:, 1:][scored])

    def _log_probabilities(self, batch: _Batch, change: Change | None) -> Tensor:
        """Of the scored tokens, float32 `[tokens, vocabulary]`, with `change` at the hook point."""
        read: dict[str, Tensor] = {}
        first = self.model.hooks[0].name
        with contextlib.ExitStack() as stack:
            if change is not None:

                def spliced(x: Tensor) -> Tensor:
                    usual = batch.usual & self._usual(read[first])
                    return torch.where(usual, change(read[first]).to(x), x)

                stack.enter_context(self.model.reading(read, stop=False))
                stack.enter_context(attach(self.model.base, self.model.hooks[-1], spliced))
            logits = self.model.model(**self.model.inputs(batch.tokens, batch.mask)).logits
        return logits[:, :-1][batch.scored].float().log_softmax(-1)

    def _usual(self, x: Tensor) -> Tensor:
        """Which hidden states have a norm up to max_norm -> `[..., 1]`"""
        return torch.linalg.vector_norm(x.float(), dim=-1, keepdim=True) <= self.max_norm


def require_hooks(model: LanguageModel, autoencoder: Any) -> None:
    """BitlensError for a language model with more or fewer hook points than the autoencoder has."""
    needed = 2 if getattr(autoencoder, "transcodes", False) else 1
    if len(model.hooks) != needed:
        raise BitlensError(
            "A transcoder reads one hook point and replaces another, an autoencoder replaces the "
            f"one it reads: load the language model with {needed} hook point{'s' * (needed - 1)}, "
            f"not {len(model.hooks)}."
        )


def _cross_entropy(log_probabilities: Tensor, targets: Tensor) -> Tensor:
    return -log_probabilities.gather(-1, targets[:, None])[:, 0]


def draw_contexts(
    store: ActivationStore, limit: int, part: str = "test", seed: int = 0
) -> list[Tensor]:
    """Up to `limit` contexts with tokens of this part (`test` or `all`), drawn at random, in the
    order of the text: token ids `[n, length]` (-1 is padding), which tokens are of the part, and
    units `[n]`, from 0: contexts that begin in the same document vary together."""
    if limit < 1:
        raise BitlensError(f"At least one context must be read, not {limit}.")
    counts = torch.tensor([len(contexts) for contexts, _, _ in _shards(store, part)])
    total = int(counts.sum())
    drawn = torch.randperm(total, generator=generator(seed, "contexts"))[:limit].sort().values
    if not len(drawn):
        raise BitlensError(
            f"{store.path} has no context with held-out rows to score; harvest more documents, or "
            "measure all (`part='all'`)."
        )
    ends = counts.cumsum(0)
    of_shards = drawn.tensor_split(torch.searchsorted(drawn, ends)[:-1])
    parts = [
        [column[rows - start] for column in shard]
        for shard, rows, start in zip(_shards(store, part), of_shards, ends - counts, strict=True)
    ]
    contexts, scored, document = map(torch.cat, zip(*parts, strict=True))
    return [contexts, scored, document.unique(return_inverse=True)[1]]


def _shards(store: ActivationStore, part: str) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Of every shard the contexts with tokens of this part, which tokens those are, and the
    document of each context's first."""
    for contexts, columns in store.contexts():
        chosen = store.is_test(columns["document"]) | (part == "all")
        context, position = columns["context"][chosen].long(), columns["position"][chosen].long()
        scored = torch.zeros(contexts.shape, dtype=torch.bool)
        scored[context, position] = True
        rows, first = np.unique(context.numpy(), return_index=True)
        yield contexts[rows], scored[rows], columns["document"][chosen][first].long()


def load_spliced(
    autoencoder: Autoencoder | None,
    store: ActivationStore,
    device: str = "auto",
    more: Sequence[str] = (),
    **loading: Any,
) -> LanguageModel:
    """The whole language model of a store, hooked where an autoencoder reads (None: any of this
    store) and, for a transcoder, where it writes. more: hook points after those. loading: as for
    `LanguageModel.load`."""
    if not all(store.manifest.get(key) for key in ("context_length", "model", "hook")):
        raise BitlensError(
            f"The store {store.path} was imported without its text, so no model can be run on it."
        )
    hooks: list[Any] = [store.manifest["hook"]["module"]]
    if autoencoder is not None and autoencoder.transcodes:
        hooks = autoencoder.hooks
        if not all(hooks):
            raise BitlensError(
                "This transcoder does not know where it reads and writes, so it cannot be put into "
                "a model: leave the cross-entropy out, or put both hook points into its metadata."
            )
    loading |= {"device": device, "causal": True}
    return LanguageModel.again(store.manifest, store.path, [*hooks, *more], **loading)
