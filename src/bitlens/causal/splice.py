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
from torch.utils.hooks import RemovableHandle

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
    """One entry a scored token, `[tokens]` each, in the order of the contexts; on the CPU."""

    __repr__ = brief

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


class _Batch(NamedTuple):
    rows: Tensor
    tokens: Tensor
    mask: Tensor
    usual: Tensor
    counts: Tensor
    """`[n, length - 1]`: whether the token after each is scored"""
    targets: Tensor
    """the scored tokens, `[tokens]`"""


def replaced(model: LanguageModel, change: Change) -> RemovableHandle:
    """Within the `with` block, what passes the model's last hook point is `change` of what would
    have passed."""
    return attach(model.base, model.hooks[-1], change)


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
        units: Tensor | None = None,
        max_norm: float = math.inf,
        max_bytes: int = 1 << 29,
    ) -> None:
        """model: a whole causal model. contexts `[n, length]`: token ids, -1 is padding. scored: bool, same shape: the
        tokens whose prediction counts. mean `[d_out]`: of hidden states, for mean ablation. units `[n]`: numbers from 0 of
        what intervals take for independent; by default each context is. max_bytes: of the logits of a batch."""
        special = torch.tensor(sorted(model.tokenizer.all_special_ids))
        self.model, self.contexts, self.mean, self.max_norm = model, contexts, mean, max_norm
        self.units = torch.arange(len(contexts)) if units is None else units
        self.real = contexts >= 0
        self.usual = self.real & ~torch.isin(contexts, special)
        self.counts = scored & self.usual
        self.counts[:, 0] = False
        if not self.counts.any():
            raise BitlensError("There is no token to score in these contexts.")
        self.batch_size = max(
            1, max_bytes // (contexts.shape[1] * model.config.get_text_config().vocab_size * 4)
        )

    def __repr__(self) -> str:
        hooks = ", ".join(hook.name for hook in self.model.hooks)
        contexts, length = self.contexts.shape
        return (
            f"Splice({self.model.name} at {hooks}: {int(self.counts.sum()):,} scored tokens in {contexts:,} contexts of "
            f"{length:,})"
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
        """On up to `limit` contexts, drawn at random, with tokens of this part of a store (`test` or `all`), which are
        scored; `test` are the documents that the autoencoder's training held out. Mean ablation takes the mean of the
        store's usual rows (of what a transcoder writes, of its target's), whatever the autoencoder took for one.
        autoencoder: None for one hook point whose autoencoders share this, in a store that is split as they were
        trained."""
        mean = store.mean
        if autoencoder is not None and _hooks_needed(model, autoencoder) == 2:
            mean = (
                store.mean_out
                if isinstance(store, PairedStore)
                else autoencoder.get_buffer("mean_out")
            )
        if autoencoder is not None and part == "test":
            store = unseen(store, autoencoder.metadata)
        contexts, scored, units = contexts_to_score(store, limit, part, seed)
        max_norm = store.outlier_norm
        return cls(model, contexts, scored, mean, units=units, max_norm=max_norm)

    def losses(self, autoencoder: Change) -> SpliceLosses:
        """What the language model loses with the autoencoder's reconstructions."""
        _hooks_needed(self.model, autoencoder)
        return self.sums(self.tokens([autoencoder])[0]).losses()

    def sums(self, tokens: SpliceTokens) -> SpliceSums:
        """`splice.sums(a).less(splice.sums(b))` is the paired difference of two changes."""
        unit = self.units[tokens.context]
        _, which = unit.unique(return_inverse=True)

        def over(x: Tensor) -> Tensor:
            return torch.zeros(int(which.max()) + 1, dtype=torch.float64).index_add_(
                0, which, x.double()
            )

        zero, mean = self.ablated
        original, spliced, kl_div, top1 = tokens[2:]
        return SpliceSums(
            *map(over, (torch.ones(len(unit)), original, spliced, zero, mean, kl_div, top1))
        )

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
                parts.append(
                    SpliceTokens(batch.rows[context], position + 1, *(n.cpu() for n in numbers))
                )
        return [SpliceTokens(*map(torch.cat, zip(*parts, strict=True))) for parts in found]

    @cached_property
    @torch.inference_mode()
    def ablated(self) -> tuple[Tensor, Tensor]:
        """Cross-entropies of every scored token with zeros and with the mean in place of the hidden states."""
        found: list[list[Tensor]] = [[], []]
        for batch in self._batches("with zeros and the mean"):
            for parts, constant in zip(
                found, (torch.zeros_like(self.mean), self.mean), strict=True
            ):
                log_probabilities = self._log_probabilities(
                    batch, lambda x, constant=constant: constant
                )
                parts.append(_cross_entropy(log_probabilities, batch.targets).cpu())
        return torch.cat(found[0]), torch.cat(found[1])

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
        for rows in terminal.track(
            scored.split(self.batch_size), f"contexts {what}", len(scored), len
        ):
            tokens, counts = (
                self.contexts[rows].clamp_min(0).to(device),
                self.counts[rows, 1:].to(device),
            )
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
            logits = self.model.model(**self.model.inputs(batch.tokens, batch.mask)).logits
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


def _cross_entropy(log_probabilities: Tensor, targets: Tensor) -> Tensor:
    """`[tokens, vocabulary]`, `[tokens]` -> nats, `[tokens]`"""
    return -log_probabilities.gather(-1, targets[:, None])[:, 0]


def load_spliced(
    autoencoder: Autoencoder, store: ActivationStore, device: str = "auto"
) -> LanguageModel:
    """The whole language model of a store, hooked where the autoencoder reads and, for a transcoder, where it writes."""
    if not all(store.manifest.get(key) for key in ("context_length", "model", "hook")):
        raise BitlensError(
            f"The store {store.path} was imported without its text, so no model can be run on it."
        )
    records = (
        [autoencoder.metadata["hook"], autoencoder.metadata["target_hook"]]
        if autoencoder.transcodes
        else []
    )
    hooks = [record["module"] for record in records or [store.manifest["hook"]]]
    return LanguageModel.again(store.manifest, store.path, hooks, device=device, causal=True)


class ToScore(NamedTuple):
    """Contexts of a store: token ids `[n, length]` (-1 is padding), which of them are scored, and which unit each is of:
    contexts that begin in the same document vary together."""

    contexts: Tensor
    scored: Tensor
    units: Tensor


def contexts_to_score(
    store: ActivationStore, limit: int, part: str = "test", seed: int = 0
) -> ToScore:
    """Up to `limit` contexts with tokens of this part (`test` or `all`), drawn at random, in the order of the text."""
    if limit < 1:
        raise BitlensError(f"At least one context must be read, not {limit}.")
    found: list[ToScore] = []
    counts = [int(scored.any(1).sum()) for _, scored, _ in _parts(store, part)]
    drawn = torch.randperm(sum(counts), generator=generator(seed, "contexts"))[:limit].sort().values
    first = 0
    for count, (contexts, scored, document) in zip(counts, _parts(store, part), strict=True):
        here = drawn[(drawn >= first) & (drawn < first + count)] - first
        rows = scored.any(1).nonzero()[here, 0]
        found.append(ToScore(contexts[rows], scored[rows], document[rows]))
        first += count
    if not len(drawn):
        raise BitlensError(
            f"{store.path} has no context with held-out rows to score; harvest more documents, or measure all (`part='all'`)."
        )
    whole = ToScore(*map(torch.cat, zip(*found, strict=True)))
    return whole._replace(units=whole.units.unique(return_inverse=True)[1])


def _parts(store: ActivationStore, part: str) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """For every shard its contexts, which of their tokens are of this part, and the document of the first of these."""
    for contexts, columns in store.contexts():
        scored, document = (
            torch.zeros(contexts.shape, dtype=torch.bool),
            torch.zeros(len(contexts), dtype=torch.long),
        )
        chosen = store.is_test(columns["document"]) | (part == "all")
        context, position = columns["context"][chosen].long(), columns["position"][chosen].long()
        scored[context, position] = True
        having, first = np.unique(context.numpy(), return_index=True)
        document[having] = columns["document"][chosen][first].long()
        yield contexts, scored, document
