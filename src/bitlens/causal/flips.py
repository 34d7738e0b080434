"""Whether latents that tell two groups of documents apart change what the model says.

A latent is held off in documents of the group where it is on more often, and held on in those of
the other. What it does is set beside what other latents of like rate do there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bitlens import terminal
from bitlens.autoencoders import Autoencoder
from bitlens.bits.packed import PackedBits
from bitlens.causal.intervene import intervene
from bitlens.errors import BitlensError
from bitlens.features.search import Rates
from bitlens.features.texts import CONTEXT
from bitlens.hidden.documents import Corpus
from bitlens.hidden.models import LanguageModel
from bitlens.hidden.source import row_norms
from bitlens.hidden.text import ContextReader
from bitlens.information.intervals import UNKNOWN, Estimate, mean
from bitlens.results import brief

LIKE = 10  # latents of the most similar rate, of which a control is drawn
LOGITS = 1 << 28  # bytes of logits at a time


class Change(NamedTuple):
    """What flipping a latent does in documents, means over these with 95 % intervals."""

    __repr__ = brief

    documents: int
    kl_div: Estimate
    """of the next-token distribution to that without the flip, in nats"""
    control_kl: Estimate
    """the same of other latents of like rate, in the documents that have such"""
    answer: Estimate
    """change of log p(first answer) - log p(second), in nats; not a number without answers"""
    control_answer: Estimate


class Flipped(NamedTuple):
    """A latent, or all of one group together, flipped in documents of both groups."""

    __repr__ = brief

    latents: list[int]
    off: Change
    """held off in the documents of the group where it is on more often, if it is on there"""
    on: Change
    """held on in documents of the other group, at as many tokens as it would be on at"""

    @property
    def together(self) -> bool:
        """Whether several latents are flipped at once."""
        return len(self.latents) > 1


class Question(NamedTuple):
    """What is asked after each document, and which answers are compared."""

    prompt: str = ""
    answers: tuple[str, ...] = ()
    """one or two; of several tokens the first counts"""


class Reader:
    """Documents with the question after them, and what the model then says."""

    def __init__(
        self, model: LanguageModel, autoencoder: Autoencoder, question: Question, rates: Rates
    ) -> None:
        """model: as for `intervene`, whole."""
        if not autoencoder.binary:
            raise BitlensError("Only bits can be flipped; measure with a binary autoencoder.")
        self.model, self.autoencoder, self.rates = model, autoencoder, rates
        flips = PackedBits.from_numpy(rates.flips[None], len(rates.rate))
        self.flipped = flips.unpack()[0].bool()
        tokenizer, bos = model.tokenizer, autoencoder.metadata.get("prepend_bos")
        self.before = ContextReader(Corpus(()), tokenizer, 16, bos=bos).before
        self.prompt = _ids(tokenizer, question.prompt)
        self.answers = [_first(tokenizer, answer) for answer in question.answers]
        if len(self.answers) > 2 or len(set(self.answers)) < len(self.answers):
            raise BitlensError(
                "Name one answer or two that begin with different tokens; with the space that is "
                "before a word, as in ' yes'."
            )
        limit = min(autoencoder.context_length or CONTEXT, model.longest_context() or CONTEXT)
        self.room = limit - len(self.before) - len(self.prompt)
        if self.room < 1:
            raise BitlensError(f"The prompt fills the {limit} tokens of a context; shorten it.")

    def holds(self, latents: Sequence[int], on: bool) -> dict[int, int]:
        """Latents and the values of their rare, or common, state."""
        return {latent: int(on ^ bool(self.flipped[latent])) for latent in latents}

    def tokens(self, document: Sequence[int]) -> list[int]:
        """Of a document, cut to what there is room for, amid special tokens and the prompt."""
        return [*self.before, *document[: self.room], *self.prompt]

    @torch.inference_mode()
    def on(self, document: Sequence[int]) -> Tensor:
        """Which latents are on in a document, bool `[tokens, n_latents]`; none at a token that no
        intervention changes, as its hidden state is of outlying norm."""
        ids = torch.tensor([self.tokens(document)])
        state = self.model.hidden_states(ids)[self.model.hooks[0].name][0]
        own = state[len(self.before) : ids.shape[1] - len(self.prompt)]
        bits = self.autoencoder.encode_bits(own.float())
        usual = row_norms(own) <= self.autoencoder.outlier_norm
        return self.rates.canonical(bits).unpack().bool() & usual.cpu()[:, None]

    @torch.inference_mode()
    def effects(
        self, document: Sequence[int], holds: Sequence[dict[int, int]], masks: Tensor
    ) -> np.ndarray:
        """What several interventions do, float64 `[2, holds]`: KL divergence, change of the answer.

        masks: bool `[holds, tokens of the document]`, where latents are held, and not in the prompt
        """
        ids = torch.tensor([self.tokens(document)])
        before, after = len(self.before), len(self.prompt)
        masks = torch.nn.functional.pad(masks, (before, after))
        # without a prompt what is said within the document counts, too
        scored = slice(-1, None) if after else slice(before, None)
        usual = self._say(ids, scored)[0]
        vocabulary = usual.shape[-1]
        step = max(1, LOGITS // (4 * ids.shape[1] * vocabulary))
        found = []
        for start in range(0, len(holds), step):
            some = slice(start, start + step)
            held = list(holds[some])
            with intervene(self.model, self.autoencoder, held, masks[some]):
                said = self._say(ids.expand(len(held), -1), scored)
            kl_div = (usual.exp() * (usual - said)).sum(-1).mean(1)
            change = self._answer(said) - self._answer(usual)
            found.append(torch.stack([kl_div.double(), change.double().expand(len(held))]))
        return torch.cat(found, 1).numpy()

    def _say(self, ids: Tensor, scored: slice) -> Tensor:
        """Log-probabilities `[batch, scored, vocabulary]`"""
        logits = self.model.model(**self.model.inputs(ids)).logits[:, scored]
        return logits.float().log_softmax(-1).cpu()

    def _answer(self, said: Tensor) -> Tensor:
        if not self.answers:
            return torch.tensor(torch.nan)
        first, *second = self.answers
        last = said[..., -1, :]
        return last[..., first] - (last[..., second[0]] if second else 0)


@terminal.shown("flip latents")
def flip(
    reader: Reader,
    home: Sequence[Sequence[int]],
    away: Sequence[Sequence[int]],
    latents: Sequence[int],
    shares: Sequence[float],
    seed: int = 0,
    *,
    progress: bool = True,
) -> list[Flipped]:
    """Each latent flipped by itself, and last all together if there are several.

    home: token ids of documents of the group where the latents are on more often, away: of the
    other. shares: of a home document's tokens, by latent. The control of a latent is another one in
    each document, drawn from the ten of the most similar rate: in the document where it is held
    off, in the codes where it is held on, and then at the same tokens.
    """
    random = np.random.default_rng(seed)
    sets = [[latent] for latent in latents] + ([list(latents)] if len(latents) > 1 else [])
    share = dict(zip(latents, shares, strict=True))
    offs: list[list[np.ndarray]] = [[] for _ in sets]
    ons: list[list[np.ndarray]] = [[] for _ in sets]
    for done, document in enumerate(home):
        terminal.at(done, total=len(home) + len(away))
        _flip_off(reader, document, sets, latents, offs, random)
    for done, document in enumerate(away, len(home)):
        terminal.at(done, total=len(home) + len(away))
        _flip_on(reader, document, sets, share, ons, random)
    return [
        Flipped(some, _change(off), _change(on))
        for some, off, on in zip(sets, offs, ons, strict=True)
    ]


def _flip_off(
    reader: Reader,
    document: Sequence[int],
    sets: Sequence[list[int]],
    chosen: Sequence[int],
    found: list[list[np.ndarray]],
    random: np.random.Generator,
) -> None:
    on = reader.on(document).double().mean(0).numpy()
    holds: list[dict[int, int]] = []
    asked = []
    for place, some in enumerate(sets):
        if own := [latent for latent in some if on[latent]]:
            asked.append(place)
            control = _controls(on, own, chosen, random)
            holds += [reader.holds(each, on=False) for each in (own, control)]
    if holds:
        everywhere = torch.ones(len(holds), len(document[: reader.room]), dtype=torch.bool)
        effects = reader.effects(document, holds, everywhere)
        for i, place in enumerate(asked):
            found[place].append(_pair(effects, holds, i))


def _flip_on(
    reader: Reader,
    document: Sequence[int],
    sets: Sequence[list[int]],
    share: dict[int, float],
    found: list[list[np.ndarray]],
    random: np.random.Generator,
) -> None:
    length = len(document[: reader.room])
    holds: list[dict[int, int]] = []
    masks = torch.zeros(2 * len(sets), length, dtype=torch.bool)
    for place, some in enumerate(sets):
        expected = np.mean([share[latent] for latent in some]) * length
        n = min(length, max(1, round(expected)))
        masks[2 * place : 2 * place + 2, random.permutation(length)[:n].tolist()] = True
        control = _controls(reader.rates.rate, some, list(share), random)
        holds += [reader.holds(each, on=True) for each in (some, control)]
    effects = reader.effects(document, holds, masks)
    for place in range(len(sets)):
        found[place].append(_pair(effects, holds, place))


def _pair(effects: np.ndarray, holds: Sequence[dict[int, int]], place: int) -> np.ndarray:
    """What latents and their controls do, `[2, 2]`; not a number for controls that are too few."""
    pair = effects[:, 2 * place : 2 * place + 2].copy()
    if len(holds[2 * place + 1]) < len(holds[2 * place]):
        pair[:, 1] = np.nan
    return pair


def _controls(
    rate: np.ndarray, latents: Sequence[int], chosen: Sequence[int], random: np.random.Generator
) -> list[int]:
    """For each of the latents another of like rate, of those with a rate above 0, all different as
    far as there are any, and none of those chosen."""
    free = rate > 0
    free[list(chosen)] = False
    drawn: list[int] = []
    for latent in latents:
        candidates = random.permutation(np.flatnonzero(free))
        if not len(candidates):
            break
        apart = np.abs(np.log(rate[candidates] / rate[latent]))
        like = candidates[np.argsort(apart, kind="stable")[:LIKE]]
        drawn.append(int(random.choice(like)))
        free[drawn[-1]] = False
    return drawn


def _change(found: Sequence[np.ndarray]) -> Change:
    """found: of each document `[KL and answer, latent and control]`"""
    if not found:
        return Change(0, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN)
    columns = np.stack(found).transpose(1, 2, 0)
    (kl_div, control_kl), (answer, control_answer) = (
        [_mean(column) for column in pair] for pair in columns
    )
    return Change(len(found), kl_div, control_kl, answer, control_answer)


def _mean(column: np.ndarray) -> Estimate:
    known = column[~np.isnan(column)]
    return mean(known.tolist()) if len(known) else UNKNOWN


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []


def _first(tokenizer: Any, answer: str) -> int:
    ids = _ids(tokenizer, answer)
    if not ids:
        raise BitlensError("An answer is empty; name a word.")
    return ids[0]
