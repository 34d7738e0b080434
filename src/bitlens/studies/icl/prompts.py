"""Prompts of k demonstrations and a query from labelled texts, and what a language model makes of their last token."""

from __future__ import annotations

import gzip
import inspect
import json
import math
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bitlens.errors import BitlensError
from bitlens.hidden import Corpus
from bitlens.hidden.models import LanguageModel
from bitlens.hidden.text import ContextReader
from bitlens.seeding import generator

MOST_LABELS = 100
HELD_OUT = 0.2


@dataclass(frozen=True)
class Examples:
    """Labelled texts, each text once."""

    texts: tuple[str, ...]
    labels: Tensor
    """place in `names` of each text's label, int64 `[texts]`"""
    names: tuple[str, ...]

    def among(self, chosen: Tensor) -> Examples:
        """Those for which bool `chosen [texts]` holds; all names stay."""
        texts = tuple(text for text, kept in zip(self.texts, chosen.tolist(), strict=True) if kept)
        return Examples(texts, self.labels[chosen], self.names)


def read_examples(
    source: str, text_column: str = "text", label_column: str = "label", split: str = "train"
) -> Examples:
    """Labelled texts of a file (.jsonl, .jsonl.gz) or of a Hugging Face dataset (NAME, NAME:CONFIG or a saved folder).

    A class that a dataset keeps as an integer gets its name. Rows without text or label are left out, and so is a text
    that came before.
    """
    found: dict[str, str] = {}
    for where, row in _rows(source, split):
        for column in (text_column, label_column):
            if not isinstance(row, dict) or column not in row:
                names = ", ".join(row) if isinstance(row, dict) else "none"
                raise BitlensError(
                    f"{where} has no column '{column}'; name them with `text_column` and `label_column`: {names}."
                )
        text, label = (
            str(row[c]).strip() if row[c] is not None else "" for c in (text_column, label_column)
        )
        if text and label:
            found.setdefault(text, label)
    names = tuple(sorted(set(found.values())))
    if not 2 <= len(names) <= MOST_LABELS:
        raise BitlensError(
            f"The column '{label_column}' of {source} has {len(names)} different labels, and the study needs 2 to "
            f"{MOST_LABELS}; name another with `label_column`."
        )
    return Examples(
        tuple(found), torch.tensor([names.index(label) for label in found.values()]), names
    )


def _rows(source: str, split: str) -> Iterator[tuple[str, Any]]:
    """(where it is, row) of every row"""
    path = Path(source)
    if path.is_file():
        yield from _lines(path)
    elif path.name.endswith((".jsonl", ".jsonl.gz")):
        raise BitlensError(f"There is no file {path}.")
    else:
        yield from _dataset(source, split)


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    number = 0
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        for number, line in enumerate(raw.decode("utf-8-sig").split("\n"), 1):
            if line.strip():
                yield f"{path}, line {number}", json.loads(line)
    except json.JSONDecodeError as error:
        raise BitlensError(
            f"{path}, line {number} is not JSON ({error}); a text and its label a line are expected."
        ) from None
    except (UnicodeDecodeError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise BitlensError(
            f"{path} is not UTF-8 text ({error}); convert it to JSON lines first."
        ) from None


def _dataset(source: str, split: str) -> Iterator[tuple[str, Any]]:
    try:
        import datasets
    except ImportError:
        raise BitlensError("Reading datasets needs a library: pip install datasets.") from None
    name, _, config = source.removeprefix("hf:").partition(":")
    saved = any((Path(name) / marker).exists() for marker in ("state.json", "dataset_dict.json"))
    try:
        data: Any = (
            datasets.load_from_disk(name)
            if saved
            else datasets.load_dataset(name, config or None, split=split)
        )
        data = data[split] if isinstance(data, datasets.DatasetDict) else data
        classes = {n: f for n, f in data.features.items() if isinstance(f, datasets.ClassLabel)}
        for row in data:
            named = {
                n: f.int2str(row[n]) if (row[n] or 0) >= 0 and row[n] is not None else None
                for n, f in classes.items()
            }
            yield source, {**row, **named}
    except BitlensError:
        raise
    except Exception as error:  # the library raises many kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BitlensError(
            f"'{source}' is neither a file here nor a dataset that could be read: {reason}"
        ) from error


class Template:
    """How an example is written, with {text} and then {label}; a query ends where its label would begin."""

    def __init__(self, pattern: str) -> None:
        parts = re.fullmatch(r"(.*)\{text\}(.*)\{label\}(.*)", pattern, re.DOTALL)
        if parts is None or pattern.count("{text}") + pattern.count("{label}") != 2:
            raise BitlensError(
                f"The template {pattern!r} must have {{text}} and after it {{label}}, each once."
            )
        self.before, self.between, self.after = parts.groups()

    def demonstration(self, text: str, label: str) -> str:
        return f"{self.before}{text}{self.between}{label}{self.after}"

    def query(self, text: str) -> str:
        """Without the spaces before the label: tokenizers count them to the word that follows."""
        return f"{self.before}{text}{self.between.rstrip(' ')}"

    def continuations(self, names: Sequence[str], tokenizer: Any) -> list[list[int]]:
        """Token ids of each label as it follows a query."""
        query = self.query("A text.")
        asked, *answered = _ids(
            [query, *(f"{self.before}A text.{self.between}{name}" for name in names)], tokenizer
        )
        for name, ids in zip(names, answered, strict=True):
            if ids[: len(asked)] != asked or len(ids) == len(asked):
                raise BitlensError(
                    f"The label '{name}' melts into the tokens before it; let a space or a new line precede {{label}}."
                )
        return [ids[len(asked) :] for ids in answered]


def _ids(texts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    return (
        tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        if texts
        else []
    )


def tokens_before(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before a text, such as BOS."""
    return ContextReader(Corpus(()), tokenizer, 16).before


def longest_example(model: LanguageModel, k: int) -> int | None:
    """Tokens that an example may have for k of them and a query to fit into the model's context, where it has one."""
    limit = model.longest_context()
    # one less each: tokens at the seam of two examples can differ from those of an example alone
    return None if limit is None else (limit - len(tokens_before(model.tokenizer))) // (k + 1) - 1


def short_enough(
    texts: Sequence[str], names: Sequence[str], template: Template, tokenizer: Any, limit: int
) -> Tensor:
    """Which texts make, with the longest label, demonstrations of up to `limit` tokens -> bool `[texts]`"""
    longest = max(
        zip(template.continuations(names, tokenizer), names, strict=True),
        key=lambda pair: len(pair[0]),
    )[1]
    ids = _ids([template.demonstration(text, longest) for text in texts], tokenizer)
    return torch.tensor([len(i) <= limit for i in ids], dtype=torch.bool)


class Draw(NamedTuple):
    """Which texts make the prompts: int64 places in the examples."""

    queries: Tensor
    """`[prompts]`, all different"""
    held_out: Tensor
    """bool `[prompts]`: the prompts to measure on; their queries are in no other prompt"""
    demonstrations: Tensor
    """`[prompts, k]`, within a prompt all different and none the query; fewer are the first of these"""


def draw_prompts(labels: Tensor, n_prompts: int, k: int, balanced: bool, seed: int) -> Draw:
    """Draw queries and, anew for every prompt, k demonstrations.

    labels: of all texts. balanced: every label equally often among the demonstrations of a prompt, to within one.
    """
    order = torch.randperm(len(labels), generator=generator(seed, "queries"))
    queries = order[:n_prompts]
    held_out = torch.arange(n_prompts) >= n_prompts - int(HELD_OUT * n_prompts)
    free = torch.ones(len(labels), dtype=torch.bool)
    free[queries[held_out]] = False
    piles = (
        [(free & (labels == i)).nonzero()[:, 0] for i in labels.unique()]
        if balanced
        else [free.nonzero()[:, 0]]
    )
    rounds = -(-k // len(piles))
    if min(map(len, piles)) <= rounds:
        raise BitlensError(
            f"A prompt needs {rounds} demonstrations {'of every label' if balanced else 'besides its query'}, and there "
            f"are {min(map(len, piles))}; give more texts, or lower `ks` or `n_prompts`."
        )
    chosen = [
        _demonstrations(piles, query, rounds, generator(seed, "demonstrations", i))[:k]
        for i, query in enumerate(queries)
    ]
    return Draw(queries, held_out, torch.stack(chosen))


def _demonstrations(
    piles: list[Tensor], query: Tensor, rounds: int, random: torch.Generator
) -> Tensor:
    """In every round one of each pile, the piles in random order."""
    mixed = [pile[torch.randperm(len(pile), generator=random)] for pile in piles]
    taken = torch.stack([pile[pile != query][:rounds] for pile in mixed], 1)
    turns = (
        torch.stack([torch.randperm(len(piles), generator=random) for _ in range(rounds)])
        if rounds
        else taken
    )
    return taken.gather(1, turns).flatten()


def permuted_labels(labels: Tensor, seed: int) -> Tensor:
    """The labels `[prompts, k]` of demonstrations dealt anew over the prompts: as frequent as before, right by chance only."""
    columns = [
        column[torch.randperm(len(labels), generator=generator(seed, "permuted labels", place))]
        for place, column in enumerate(labels.T)
    ]
    return torch.stack(columns, 1) if columns else labels


def word_salad(texts: Sequence[str], seed: int) -> list[str]:
    """As many texts, as long in words, with all words of all texts dealt over them at random: no grammar, no meaning."""
    words = [word for text in texts for word in text.split()]
    dealt = iter(torch.randperm(len(words), generator=generator(seed, "word salad")).tolist())
    return [" ".join(words[next(dealt)] for _ in text.split()) for text in texts]


def sentences(source: str, text_column: str, split: str) -> list[str]:
    """Sentences of any text that `Corpus` reads, each once."""
    texts = (text for _, text in Corpus((source,), text_column, split, unit="file").documents())
    parts = (part.strip() for text in texts for part in re.split(r"(?<=[.!?])\s+|\n+", text))
    return list(dict.fromkeys(part for part in parts if part))


class Prompts(NamedTuple):
    """Prompts of one condition and number of demonstrations."""

    texts: list[str]
    labels: Tensor
    """of the queries, int64 `[prompts]`"""
    held_out: Tensor
    """bool `[prompts]`"""


def make_prompts(
    examples: Examples,
    drawn: Draw,
    template: Template,
    condition: str,
    k: int,
    others: Sequence[str],
    seed: int,
) -> Prompts:
    """Write prompts of the first k demonstrations drawn.

    condition: shuffled gives the demonstrations permuted labels, unrelated the texts of `others` under their own labels.
    The queries are the same under every condition and for every k, and a larger k only adds demonstrations.
    """
    labels, texts, places = (
        examples.labels[drawn.demonstrations],
        examples.texts,
        drawn.demonstrations.tolist(),
    )
    if condition == "shuffled":
        labels = permuted_labels(labels, seed)
    if condition == "unrelated":
        texts = others
        places = [
            torch.randperm(len(others), generator=generator(seed, "unrelated", i)).tolist()
            for i in range(len(labels))
        ]
    written = []
    for query, own, named in zip(
        drawn.queries.tolist(), places, labels[:, :k].tolist(), strict=True
    ):
        pairs = [
            template.demonstration(texts[int(p)], examples.names[n])
            for p, n in zip(own[:k], named, strict=True)
        ]
        written.append("".join([*pairs, template.query(examples.texts[query])]))
    return Prompts(written, examples.labels[drawn.queries], drawn.held_out)


class Reading(NamedTuple):
    """What a model makes of prompts."""

    states: dict[str, Tensor]
    """hidden states of the last token `[prompts, d]` of every hook point, in the model's dtype"""
    scores: Tensor
    """log-probability of every label as continuation, in nats, summed over its tokens: float32 `[prompts, labels]`"""


@torch.inference_mode()
def read_prompts(
    model: LanguageModel,
    prompts: Sequence[str],
    labels: Sequence[Sequence[int]],
    batch_size: int = 16,
) -> Reading:
    """Run a causal model over prompts. labels: token ids of the continuations.

    Padding is on the right, where no token before it can see it, so all states are those of the prompt alone.
    """
    before = tokens_before(model.tokenizer)
    ids = [[*before, *i] for i in _ids(prompts, model.tokenizer)]
    longest, limit = max(map(len, ids)) + max(map(len, labels)), model.longest_context()
    if limit is not None and longest > limit:
        raise BitlensError(
            f"A prompt with its label has {longest} tokens and {model.name} reads {limit}; lower `ks` or `max_tokens`."
        )
    states = dict[str, Tensor]()
    scores = torch.empty(len(ids), len(labels))
    by_length = torch.tensor([len(i) for i in ids]).argsort()
    several = [i for i, label in enumerate(labels) if len(label) > 1]
    for rows in by_length.split(batch_size):
        batch = [ids[i] for i in rows]
        last = torch.tensor([len(i) - 1 for i in batch])
        found: dict[str, Tensor] = {}
        with model.reading(found, stop=False):  # of the first pass: later ones leave it as it is
            after = {i: _log_probabilities(model, batch, last, labels[i]) for i in several or [0]}
        for name, state in found.items():
            whole = states.setdefault(
                name, torch.empty(len(ids), state.shape[-1], dtype=state.dtype)
            )
            whole[rows] = state[
                torch.arange(len(batch), device=state.device), last.to(state.device)
            ].cpu()
        first = next(iter(after.values()))
        for i, label in enumerate(labels):
            scores[rows, i] = sum(
                after.get(i, first)[:, place, token] for place, token in enumerate(label)
            )
    return Reading(states, scores)


def _log_probabilities(
    model: LanguageModel, batch: list[list[int]], last: Tensor, label: Sequence[int]
) -> Tensor:
    """Of the tokens that follow the prompts and each token of the label but its last -> `[prompts, len(label), vocabulary]`"""
    tokens = torch.zeros(len(batch), int(last.max()) + len(label), dtype=torch.long)
    for row, ids in enumerate(batch):
        tokens[row, : len(ids) + len(label) - 1] = torch.tensor([*ids, *label[:-1]])
    places = last[:, None] + torch.arange(len(label))
    mask = torch.arange(tokens.shape[1]) <= places[:, -1:]
    wanted, where = places.unique(return_inverse=True)
    # logits of all tokens would be larger than all else; most models can be told which are wanted
    spare = "logits_to_keep" in inspect.signature(model.model.forward).parameters
    logits = model.model(
        input_ids=tokens.to(model.device), attention_mask=None if bool(mask.all()) else mask.to(model.device),
        **({"logits_to_keep": wanted.to(model.device)} if spare else {}),
    ).logits  # fmt: skip
    chosen = logits[
        torch.arange(len(batch))[:, None].to(logits.device),
        (where if spare else places).to(logits.device),
    ]
    return chosen.float().log_softmax(-1).cpu()


def accuracy(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """How often the label of the highest score `[prompts, labels]` is right, with its 95 % interval (Wilson 1927).

    chance: of a guess among all labels; majority: of always naming the commonest.
    """
    n, z = len(labels), 1.96
    share = float((scores.argmax(1) == labels).double().mean())
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    interval = {"accuracy_low": middle - half, "accuracy_high": middle + half}
    return {
        "accuracy": share,
        **interval,
        "chance": 1 / scores.shape[1],
        "majority": int(labels.bincount().max()) / n,
    }
