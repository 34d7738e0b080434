"""What a causal language model makes of prompts: states of the last token, scores of labels."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bitlens.errors import BitlensError
from bitlens.hidden import Corpus, LanguageModel
from bitlens.hidden.text import ContextReader
from bitlens.information.intervals import wilson
from bitlens.results import flat
from bitlens.studies.icl.prompts import token_ids


def tokens_before(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before a text, such as BOS."""
    return ContextReader(Corpus(()), tokenizer, 16).before


def longest_example(model: LanguageModel, k: int) -> int | None:
    """Tokens an example may have for k of them and a query to fit into a model that has a limit."""
    limit = model.longest_context()
    # one less each: tokens at the seam of two examples can differ from those of an example alone
    return None if limit is None else (limit - len(tokens_before(model.tokenizer))) // (k + 1) - 1


class Reading(NamedTuple):
    """What a model makes of prompts."""

    states: dict[str, Tensor]
    """hidden states of the last token `[prompts, d]` of every hook point, in the model's dtype"""
    scores: Tensor
    """log-probability of every label in nats, over all its tokens: float32 `[prompts, labels]`"""


@torch.inference_mode()
def read_prompts(
    model: LanguageModel,
    prompts: Sequence[str],
    labels: Sequence[Sequence[int]],
    batch_size: int = 16,
) -> Reading:
    """Run a causal model over prompts, padded on the right, where no token sees it.

    labels: token ids of the continuations.
    """
    before = tokens_before(model.tokenizer)
    ids = [[*before, *i] for i in token_ids(prompts, model.tokenizer)]
    longest, limit = max(map(len, ids)) + max(map(len, labels)), model.longest_context()
    if limit is not None and longest > limit:
        raise BitlensError(
            f"A prompt with its label has {longest} tokens and {model.name} reads {limit}; lower "
            "`ks` or `max_tokens`."
        )
    states = dict[str, Tensor]()
    scores = torch.empty(len(ids), len(labels))
    lengths = torch.tensor([len(i) for i in ids])
    # labels of one token share a pass
    passes = [i for i, label in enumerate(labels) if len(label) > 1] or [0]
    for rows in lengths.argsort().split(batch_size):
        batch, last = [ids[i] for i in rows], lengths[rows] - 1
        hidden: dict[str, Tensor] = {}
        with model.reading(hidden, stop=False):  # of the first pass: later ones leave it as it is
            after = {i: _log_probabilities(model, batch, last, labels[i]) for i in passes}
        for name, state in hidden.items():
            shape = (len(ids), state.shape[-1])
            whole = states.setdefault(name, torch.empty(shape, dtype=state.dtype))
            place = torch.arange(len(batch), device=state.device), last.to(state.device)
            whole[rows] = state[place].cpu()
        for i, label in enumerate(labels):
            chances = after.get(i, after[passes[0]])
            scores[rows, i] = sum(chances[:, place, token] for place, token in enumerate(label))
    return Reading(states, scores)


def _log_probabilities(
    model: LanguageModel, batch: list[list[int]], last: Tensor, label: Sequence[int]
) -> Tensor:
    """Of what follows prompts and the label's tokens -> `[prompts, len(label), vocabulary]`"""
    tokens = torch.zeros(len(batch), int(last.max()) + len(label), dtype=torch.long)
    for row, ids in enumerate(batch):
        tokens[row, : len(ids) + len(label) - 1] = torch.tensor([*ids, *label[:-1]])
    places = last[:, None] + torch.arange(len(label))
    mask = torch.arange(tokens.shape[1]) <= places[:, -1:]
    options: dict[str, Any] = {}
    if not bool(mask.all()):
        options["attention_mask"] = mask.to(model.device)
    # logits of all tokens would be larger than all else; most models can be told which are wanted
    if "logits_to_keep" in inspect.signature(model.model.forward).parameters:
        wanted, places = places.unique(return_inverse=True)
        options["logits_to_keep"] = wanted.to(model.device)
    logits = model.model(input_ids=tokens.to(model.device), **options).logits
    rows = torch.arange(len(batch), device=logits.device)[:, None]
    return logits[rows, places.to(logits.device)].float().log_softmax(-1).cpu()


def answers(scores: Tensor, labels: Tensor) -> tuple[dict[str, float], dict[str, list[float]]]:
    """How often the right label is the likeliest, by scores `[prompts, labels]` -> the shares with
    their intervals, and 1.0 for every prompt that is right

    calibrated: a label's chance among the labels is divided by its mean over all prompts, of which
    no label need be known (batch calibration, Zhou et al. 2023, arXiv 2309.17249). chance: of a
    guess among all labels; majority: of always naming the commonest.
    """
    n, chances = len(labels), scores.double().softmax(1)
    numbers: dict[str, float] = {
        "chance": 1 / scores.shape[1],
        "majority": int(labels.bincount().max()) / n,
    }
    likeliest = {"accuracy": chances, "accuracy_calibrated": chances / chances.mean(0)}
    right = {name: (of.argmax(1) == labels) for name, of in likeliest.items()}
    numbers |= flat({name: wilson(int(each.sum()), n) for name, each in right.items()})
    return numbers, {name: each.double().tolist() for name, each in right.items()}
