"""What every latent does to what a language model says, measured by switching it where it is on.

One latent at a time is switched at one token (a row) of a context; all else stays as the model made
it. Measured is, over the rows of a latent,

* what the switch changes in the log-probabilities of the next token, the one after the row;
* the KL divergence of that distribution from the unchanged one;
* the rise of the cross-entropy of the few tokens that follow (as they are in the text);
* at the same row, which latents of a second autoencoder further up go on or off;
* beside it, the KL divergence of a control: as long a step along the decoder row of another latent.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from bitlens import terminal
from bitlens.autoencoders import Autoencoder
from bitlens.causal.effect import Effect, LatentEffect, TokenEffect, of_record
from bitlens.causal.rerun import Context, Outcome, Rerun, require_later
from bitlens.causal.splice import draw_contexts, require_hooks
from bitlens.causal.switches import Contexts, EncodedRows, Flips, Switch, draw_flips
from bitlens.causal.unfinished import Unfinished, digest
from bitlens.errors import BitlensError
from bitlens.features.on_rows import refuse_unknown
from bitlens.hidden.hooks import HookPoint
from bitlens.hidden.models import LanguageModel
from bitlens.hidden.pieces import token_texts
from bitlens.hidden.split import unseen
from bitlens.hidden.store import ActivationStore
from bitlens.information.intervals import UNKNOWN, Estimate, jackknife

CONTEXTS, ROWS, FOLLOWING, TOP = 100, 32, 4, 10
TABLE_BYTES = 1 << 30  # of the sums of as many latents as are measured at once


@terminal.shown("effects")
def effects(
    model: LanguageModel,
    autoencoder: Autoencoder,
    store: ActivationStore,
    latents: Sequence[int] | None = None,
    *,
    contexts: int = CONTEXTS,
    rows: int = ROWS,
    following: int = FOLLOWING,
    switch: Switch = "off",
    top: int = TOP,
    control: bool = True,
    downstream: Autoencoder | None = None,
    part: str = "test",
    seed: int = 0,
    unfinished: Path | None = None,
    resume: bool = False,
    progress: bool = True,
) -> list[Effect]:
    """The effects of some latents (default: all) on contexts of a store.

    model: whole, as of `load_spliced(autoencoder, store)`; with `downstream` its last hook point is
    where that one reads. contexts: drawn at random among those with rows of this part of the store
    (`test`: what the training held out, or `all`). rows: at most so many of each latent, drawn at
    random among those where it is on. following: tokens after a row whose cross-entropy is
    measured. switch: `off` where a latent is on; or `on` where it is off, a sparse autoencoder's to
    its mean where it is on. top: tokens and latents that are named. control: also measure other
    directions, which takes as long again. unfinished: a folder for what is measured so far, to be
    deleted once the effects are kept; a measurement that was stopped goes on there with `resume`,
    bit-exactly. progress: show it on standard error.

    The other latents stay as they were found (`others="kept"` of `intervene`). Special tokens and
    hidden states of outlying norm are not switched, nor is a token without a next one.
    """
    chosen = list(range(autoencoder.n_latents)) if latents is None else list(map(int, latents))
    refuse_unknown(chosen, autoencoder.n_latents)
    _refuse(switch, rows=rows, following=following, top=top)
    model, later = _split_hooks(model, autoencoder, downstream)
    source = unseen(store, autoencoder.metadata) if part == "test" else store
    ids, scored, units = draw_contexts(source, contexts, part, seed)
    drawn = Contexts(model, ids, scored, units, source.outlier_norm)
    encoded = drawn.encoded(autoencoder)
    rerun = Rerun(model, model.hooks[-1], later, following)
    rerun.prepare(max(map(drawn.tokens, range(len(ids))), key=len))
    width = rerun.vocabulary + (downstream.n_latents if downstream is not None else 0)
    at_once = max(1, TABLE_BYTES // (4 * width))
    settings = {
        **{"contexts": contexts, "rows": rows, "following": following, "switch": switch},
        **{"top": top, "control": control, "part": part, "seed": seed, "latents": chosen},
        **{"model": [*model.record.values(), str(model.dtype)], "passes": [rerun.packs, at_once]},
        "inputs": digest([ids, *encoded, *_weights(autoencoder), *_weights(downstream)]),
    }
    kept = Unfinished(unfinished, resume, settings)
    found: list[Effect] = []
    with kept.stopping():
        for number, first in enumerate(range(0, len(chosen), at_once)):
            some_effects = kept.finished(number, of_record)
            if some_effects is None:
                some = chosen[first : first + at_once]
                flips = draw_flips(encoded, autoencoder, some, rows, switch, seed)
                table = _Table(rerun, drawn, encoded, flips, some, switch, downstream)
                table.fill(autoencoder, control, kept, number)
                some_effects = table.effects(top)
                kept.finish(number, [asdict(effect) for effect in some_effects])
            found += some_effects
    return found


def _refuse(switch: str, **numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise BitlensError(f"`{name}` must be at least 1, not {number}.")
    if switch not in ("off", "on"):
        raise BitlensError(f"A latent is switched off or on, not '{switch}'.")


def _weights(autoencoder: Autoencoder | None) -> Iterable[Tensor]:
    return () if autoencoder is None else autoencoder.state_dict().values()


def _split_hooks(
    model: LanguageModel, autoencoder: Autoencoder, downstream: Autoencoder | None
) -> tuple[LanguageModel, HookPoint | None]:
    """-> the model with the autoencoder's own hook points, and the one further up"""
    if downstream is None:
        require_hooks(model, autoencoder)
        return model, None
    if len(model.hooks) < 2:
        raise BitlensError(
            "The second autoencoder reads a hook point of its own: load the language model with "
            "that hook point as its last one."
        )
    *own, later = model.hooks
    reduced = copy.copy(model)
    reduced.hooks = own
    require_hooks(reduced, autoencoder)
    require_later(own[-1], later, model)
    return reduced, later


class _Table:
    """Sums over the rows of each latent, and numbers of each flip."""

    def __init__(
        self,
        rerun: Rerun,
        drawn: Contexts,
        encoded: EncodedRows,
        flips: Flips,
        latents: list[int],
        switch: Switch,
        downstream: Autoencoder | None,
    ) -> None:
        self.rerun, self.drawn, self.encoded, self.flips = rerun, drawn, encoded, flips
        self.latents, self.downstream = latents, downstream
        self.switch: Switch = switch
        self.sign = 1.0 if switch == "on" else -1.0  # what is reported is "on less off"
        self.log_probs = torch.zeros(len(latents), rerun.vocabulary)
        n = 0 if downstream is None else downstream.n_latents
        self.later = torch.zeros(len(latents), n)
        numbers = torch.full((3, len(flips.row)), math.nan, dtype=torch.float64)
        self.kl_div, self.kl_control, self.loss = numbers
        self.sums = {"log_probs": self.log_probs, "later": self.later, "numbers": numbers}

    @torch.inference_mode()
    def fill(self, autoencoder: Autoencoder, control: bool, kept: Unfinished, number: int) -> None:
        """Make all flips that are left, context by context. number: of this table"""
        W = autoencoder.W_dec.detach().float().cpu() * autoencoder.output_scale.float().cpu()
        found, counts = self.encoded.context[self.flips.row].unique_consecutive(return_counts=True)
        ends = counts.cumsum(0)
        work = list(zip(found.tolist(), (ends - counts).tolist(), ends.tolist(), strict=True))
        done = kept.restore(number, self.sums)
        each = lambda item: item[2] - item[1]  # noqa: E731
        left = work[done:]
        for item in terminal.track(left, "rows", sum(map(each, left)), each):
            self._fill(W, control, *item)
            done += 1
            kept.save(number, done, self.sums)

    def _fill(self, W: Tensor, control: bool, which: int, first: int, last: int) -> None:
        """Make the flips of one context, `first` to `last`."""
        mine = slice(first, last)
        context = self.rerun.context(self.drawn.tokens(which))
        losses = self._losses(context, which)
        position = self.encoded.position[self.flips.row[mine]]
        amount = self.flips.amount[mine, None]
        delta = amount * W[self.flips.latent[mine]]
        for outcome in self.rerun(context, position, delta):
            self._add(context, losses, position, outcome, first)
        if not control:
            return
        along = normalize(W[self.flips.other[mine]], dim=1) * amount.sign()
        for outcome in self.rerun(context, position, along * delta.norm(dim=1, keepdim=True)):
            kl_div, _ = _compare(context, position[outcome.changes], outcome)
            self.kl_control[mine][outcome.changes] = kl_div

    def _losses(self, context: Context, which: int) -> Tensor:
        """Cross-entropy of each next token as it is, NaN of one that is special or not there, with
        room for a window after the last, `[length + following]`"""
        logits, ids = context.logits[:-1, : self.rerun.vocabulary], context.ids[1:]
        losses = cross_entropy(logits, ids.to(logits.device), reduction="none").cpu()
        usual = self.drawn.usual[which, 1 : len(context.ids)]
        losses = losses.masked_fill(~usual, math.nan)
        return torch.nn.functional.pad(losses, (0, 1 + self.rerun.following), value=math.nan)

    def _add(
        self, context: Context, losses: Tensor, position: Tensor, outcome: Outcome, first: int
    ) -> None:
        """first: number of the context's first flip"""
        place = position[outcome.changes]
        these = slice(first + outcome.changes.start, first + outcome.changes.stop)
        number = self.flips.number[these]
        self.kl_div[these], change = _compare(context, place, outcome)
        self.log_probs.index_add_(0, number, change, alpha=self.sign)
        before = losses[place[:, None] + torch.arange(self.rerun.following)]
        self.loss[these] = (outcome.losses.cpu() - before).nanmean(1).double()
        if self.downstream is not None and outcome.later is not None and self.rerun.later:
            states = context.states[self.rerun.later.name][place]
            codes = [self.downstream.encode(x).cpu() for x in (outcome.later, states)]
            self.later.index_add_(0, number, codes[0] - codes[1], alpha=self.sign)

    def effects(self, top: int) -> list[Effect]:
        """Of every latent, from what was summed."""
        counts = torch.bincount(self.flips.number, minlength=len(self.latents))
        means = self.log_probs / counts.clamp_min(1)[:, None]
        most = [(sign * means).topk(min(top, means.shape[1])).indices for sign in (1, -1)]
        tokens = torch.stack(most)  # [raised or lowered, latents, top]
        named = tokens[:, counts > 0].unique().tolist()
        texts = token_texts(self.rerun.model.tokenizer, named)
        return [
            self._effect(latent, number, means[number], tokens[:, number].tolist(), texts, top)
            for number, latent in enumerate(self.latents)
        ]

    def _effect(
        self,
        latent: int,
        number: int,
        means: Tensor,
        tokens: list[list[int]],
        texts: dict[int, str],
        top: int,
    ) -> Effect:
        mine = (self.flips.number == number).nonzero()[:, 0]
        kl_div, loss = self._intervals(mine)
        raises, lowers = (
            [TokenEffect(t, texts[t], float(means[t])) for t in each if sign * means[t] > 0]
            for sign, each in zip((1, -1), tokens, strict=True)
        )
        return Effect(
            latent=latent,
            rate=self.encoded.rate(latent),
            rows=len(mine),
            switched=self.switch,
            kl_div=kl_div.value,
            kl_div_low=kl_div.low,
            kl_div_high=kl_div.high,
            kl_control=float(self.kl_control[mine].mean()),
            loss=loss.value,
            loss_low=loss.low,
            loss_high=loss.high,
            raises=raises,
            lowers=lowers,
            downstream=self._moved(number, len(mine), top),
        )

    def _intervals(self, mine: Tensor) -> Iterator[Estimate]:
        """Mean KL divergence and loss of these flips, over the documents that they are in."""
        if not len(mine):
            return iter([UNKNOWN, UNKNOWN])
        unit = self.encoded.unit[self.flips.row[mine]]
        _, unit, sizes = unit.unique(return_inverse=True, return_counts=True)
        sums = torch.zeros(2, len(sizes), dtype=torch.float64)
        sums.index_add_(1, unit, torch.stack([self.kl_div[mine], self.loss[mine]]))

        def means(weights: Tensor) -> Tensor:
            return weights @ sums.T / (weights @ sizes.double())[:, None]

        return iter(jackknife(means, sizes))

    def _moved(self, number: int, rows: int, top: int) -> list[LatentEffect]:
        if not rows or not self.later.shape[1]:
            return []
        moved = self.later[number] / rows
        largest = moved.abs().topk(min(top, len(moved))).indices
        return [LatentEffect(j, float(moved[j])) for j in largest.tolist() if moved[j]]


def _compare(context: Context, place: Tensor, outcome: Outcome) -> tuple[Tensor, Tensor]:
    """-> KL divergence of each changed distribution of the next token from the unchanged one
    (float64), and change of its log-probabilities, on the CPU"""
    before = context.logits[place, : outcome.log_probs.shape[1]].log_softmax(-1)
    change = outcome.log_probs - before
    return -(before.exp() * change).sum(-1).double().cpu(), change.cpu()
