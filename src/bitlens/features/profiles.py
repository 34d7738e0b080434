"""Everything about a latent that can be counted: how often, where and on which tokens it is on, and what is near to it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from bitlens import terminal
from bitlens.bits.codes import Codes
from bitlens.bits.packed import PackedBits
from bitlens.bits.statistics import DENSE, binary_entropy, co_occurrence, firing_rates
from bitlens.bits.words import WORD
from bitlens.features.sampling import canonical, explainers_part, on_rows
from bitlens.errors import BitlensError
from bitlens.features.examples import contexts
from bitlens.features.token_scores import MIN_ON, clearest, predicted
from bitlens.files import finite, replacing
from bitlens.hidden.pieces import token_texts
from bitlens.information.tree import chow_liu
from bitlens.labels.sources import following
from bitlens.results import brief

NEXT = 16  # rows in which a latent may be on again
TREE_ROWS = 1 << 17
BLOCK = 256  # latents whose cosines are in memory at a time
EFFECTS = 64  # latents whose effects on all logits are in memory at a time

Order = Literal["clear", "rate", "rare", "again", "dispersion", "index"]


@dataclass(frozen=True)
class Preference:
    """A token that a latent is on at, or before, more often than at others."""

    token: int
    text: str
    count: int
    """on-rows"""
    share: float
    """of the latent's on-rows"""
    lift: float
    """the latent's rate at this token over its rate"""


@dataclass(frozen=True)
class Near:
    """Another latent, and how near it is."""

    latent: int
    value: float


@dataclass(frozen=True)
class Promoted:
    """A token whose logit the latent raises, above the mean over all tokens, per unit of the code."""

    token: int
    text: str
    logit: float


@dataclass(frozen=True)
class Profile:
    """One latent; "on" is its rare state. A list is empty where nothing is known: no tokens, no decoder, no model."""

    __repr__ = brief

    latent: int
    flipped: bool
    """on is 0 in the codes, as the latent is 1 in more than half of the rows"""
    rate: float
    bits: float
    """entropy a row"""
    surprisal: float
    """bits of the on-state: -log2 rate"""
    burstiness: float
    """log2 |h - mean| of the on-state, as in arXiv 2509.20997: log2(1 - rate), at most 0"""
    dispersion: float
    """variance of the on-rows of a document over that of independent rows (binomial), which gives 1"""
    again: float
    """rate in the next 16 rows of the same document after an on-row, over the rate; 1 for independent rows"""
    positions: dict[str, float] = field(default_factory=dict)
    """rate at positions 0, 1, 2, 3, 4-7, 8-15, ... of the context, over the rate"""
    tokens: list[Preference] = field(default_factory=list)
    token_f1: float = math.nan
    """of the set of tokens that predicts the latent best in half of the documents, in the others: 1 is the set itself.
    Unknown below 20 on-rows in either half"""
    token_set: int = 0
    """tokens in that set"""
    next_tokens: list[Preference] = field(default_factory=list)
    """of the row after, in the same document"""
    tree: list[int] = field(default_factory=list)
    """neighbours in the Chow-Liu tree, the parent first"""
    similar: list[Near] = field(default_factory=list)
    """highest decoder cosines"""
    promotes: list[Promoted] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)


@terminal.shown("profiles")
def profiles(
    codes: Codes,
    *,
    tokenizer: Any = None,
    W_dec: Tensor | None = None,
    effect: Callable[[Tensor], Tensor] | None = None,
    top: int = 8,
    examples: int = 5,
    window: int = 8,
    tree: bool = True,
    seed: int = 0,
    progress: bool = True,
) -> list[Profile]:
    """A profile of every latent of these codes, from their rows of usual norm.

    tokenizer: of the language model, for tokens and examples; W_dec `[n_latents, d]`, of which the sign is turned where
    the latent's is; effect: directions `[n, d]` -> what each does to the logits, `[n, vocabulary]`, as a
    `causal.direct.DirectEffect` does. top: entries of each list; examples: of each latent, with `window` tokens on each
    side; tree: on up to 131,072 rows, evenly spaced.
    """
    places = codes.usual.nonzero()[:, 0]
    bits = codes.bits[codes.usual]
    raw, rare = firing_rates(bits), canonical(bits)
    if W_dec is not None and (W_dec.ndim != 2 or len(W_dec) != bits.n_latents):
        raise BitlensError(
            f"W_dec of shape {list(W_dec.shape)} does not fit codes of {bits.n_latents} latents."
        )
    counted = _Counted(codes, tokenizer, top)
    drawn = None
    if tokenizer is not None and examples:
        drawn = on_rows(rare, codes.document[codes.usual], examples, seed=seed)
    neighbours = _tree(rare) if tree else [[]] * bits.n_latents
    sign = torch.where(raw > 0.5, -1.0, 1.0)[:, None]
    directions = None if W_dec is None else W_dec.detach().float().cpu() * sign
    similar = _similar(directions, top) if directions is not None else [[]] * bits.n_latents
    promotes: Sequence[list[Promoted]] = [[]] * bits.n_latents
    if directions is not None and effect is not None:
        promotes = _promoted(directions, effect, tokenizer, top)
    found = []
    for latent, rows in enumerate(_rows_on(rare)):
        rate = float(torch.minimum(raw, 1 - raw)[latent])
        texts = [] if drawn is None else places[drawn[latent][drawn[latent] >= 0]].tolist()
        shown = contexts(codes, texts, tokenizer, window) if texts else {}
        found.append(
            Profile(
                latent, bool(raw[latent] > 0.5), rate, float(binary_entropy(torch.tensor(rate))),
                -math.log2(rate) if rate else math.inf, math.log2(1 - rate), **counted.of(rows),
                tree=neighbours[latent], similar=similar[latent], promotes=promotes[latent],
                examples=[shown[row] for row in texts],
            )
        )  # fmt: skip
    return found


def _rows_on(bits: PackedBits) -> Iterator[np.ndarray]:
    """The rows in which each latent is on, in order; 64 latents are turned at a time."""
    for word in range(bits.words.shape[1]):
        n = min(WORD, bits.n_latents - word * WORD)
        for column in (
            PackedBits(bits.words[:, word : word + 1].contiguous(), n).transpose().numpy()
        ):
            yield np.flatnonzero(
                np.unpackbits(column.view(np.uint8), count=len(bits), bitorder="little")
            )


class _Counted:
    """What is counted over a latent's on-rows, against all rows of usual norm."""

    def __init__(self, codes: Codes, tokenizer: Any, top: int) -> None:
        usual = codes.usual
        self.tokenizer, self.top, self.rows = tokenizer, top, int(usual.sum())
        changes = np.flatnonzero(np.diff(codes.document[usual].numpy())) + 1
        ends = np.append(changes, self.rows)
        self.sizes = np.diff(ends, prepend=0)
        self.document = np.repeat(np.arange(len(ends)), self.sizes)
        self.end = np.repeat(ends, self.sizes)
        self.position = _bucket(codes.position[usual].numpy())
        self.of_position = np.bincount(self.position)
        if tokenizer is not None and codes.token.min() < 0:
            raise BitlensError(
                "These codes have no tokens to decode: they come from hidden states imported without them."
            )
        if tokenizer is not None:
            self.size = int(codes.token.max()) + 1
            self.token, self.next = (
                codes.token[usual].long().numpy(),
                following(codes)[usual].numpy(),
            )
            self.of_token = np.bincount(self.token, minlength=self.size)
            self.of_next = np.bincount(self.next[self.next >= 0], minlength=self.size)
            self.text = token_texts(
                tokenizer, np.flatnonzero(self.of_token + self.of_next).tolist()
            )
            self.half = explainers_part(codes.document[usual]).numpy()
            self.of_half = np.bincount(self.token[self.half], minlength=self.size)

    def of(self, rows: np.ndarray) -> dict[str, Any]:
        rate = len(rows) / self.rows
        places = np.bincount(self.position[rows], minlength=len(self.of_position))
        positions = {
            _bucket_name(i): float(k / n / rate) if rate else math.nan
            for i, (k, n) in enumerate(zip(places, self.of_position, strict=True))
            if n
        }
        found = {
            "dispersion": self._dispersion(rows, rate),
            "again": self._again(rows, rate),
            "positions": positions,
        }
        if self.tokenizer is None:
            return found
        tokens = self._preferred(self.token[rows], self.of_token)
        after = self.next[rows]
        next_tokens = self._preferred(after[after >= 0], self.of_next)
        return {**found, **self._predicted(rows), "tokens": tokens, "next_tokens": next_tokens}

    def _predicted(self, rows: np.ndarray) -> dict[str, Any]:
        """How well tokens tell the latent, learned in half of the documents and tried in the others."""
        fit, check = (
            np.bincount(self.token[rows[self.half[rows] == half]], minlength=self.size)
            for half in (True, False)
        )
        if min(fit.sum(), check.sum()) < MIN_ON:
            return {}
        chosen, f1 = predicted(fit, check, self.of_half, self.of_token - self.of_half)
        return {"token_f1": f1, "token_set": len(chosen)}

    def _dispersion(self, rows: np.ndarray, rate: float) -> float:
        """Pearson's index over documents, which are of different lengths."""
        if len(self.sizes) < 2 or not 0 < rate < 1:
            return math.nan
        counts = np.bincount(self.document[rows], minlength=len(self.sizes))
        return float(
            ((counts - self.sizes * rate) ** 2 / (self.sizes * rate * (1 - rate))).sum()
            / (len(self.sizes) - 1)
        )

    def _again(self, rows: np.ndarray, rate: float) -> float:
        stop = np.minimum(rows + NEXT + 1, self.end[rows])
        chances = (stop - rows - 1).sum()
        on = (np.searchsorted(rows, stop) - np.arange(len(rows)) - 1).sum()
        return float(on / chances / rate) if chances else math.nan

    def _preferred(self, tokens: np.ndarray, seen: np.ndarray) -> list[Preference]:
        """By count * log2(lift): lift alone would put what was seen once first, and count what is common anyway."""
        if not len(tokens):
            return []
        counts = np.bincount(tokens, minlength=self.size)
        present = np.flatnonzero(counts)
        k = counts[present]
        lift = k / seen[present] * (seen.sum() / len(tokens))
        best = np.argsort(-k * np.log2(lift), kind="stable")[: self.top]
        return [
            Preference(int(present[i]), self.text[int(present[i])], int(k[i]), float(k[i] / len(tokens)), float(lift[i]))
            for i in best if lift[i] > 1
        ]  # fmt: skip


def _bucket(position: np.ndarray) -> np.ndarray:
    """0, 1, 2, 3 and from there on one for each power of two."""
    exponent = np.frexp(position.astype(np.float64))[1] - 1
    return np.where(position < 4, position.clip(0), exponent + 2).astype(np.int64)


def _bucket_name(bucket: int) -> str:
    return str(bucket) if bucket < 4 else f"{2 ** (bucket - 2)}-{2 ** (bucket - 1) - 1}"


def _tree(bits: PackedBits) -> list[list[int]]:
    """Each latent's parent and children."""
    rows = torch.linspace(0, len(bits) - 1, min(len(bits), TREE_ROWS), dtype=torch.float64).long()
    sample = bits[rows]
    found: list[list[int]] = [[] for _ in range(bits.n_latents)]
    parents = chow_liu(co_occurrence(sample), len(sample)).parents.tolist()
    for latent, parent in enumerate(parents):
        if parent >= 0:
            found[latent].insert(0, parent)
            found[parent].append(latent)
    return found


def _similar(directions: Tensor, top: int) -> list[list[Near]]:
    unit = torch.nn.functional.normalize(directions, dim=1)
    found: list[list[Near]] = []
    for start in range(0, len(unit), BLOCK):
        cosine = unit[start : start + BLOCK] @ unit.T
        cosine[torch.arange(len(cosine)), start + torch.arange(len(cosine))] = -math.inf
        value, latent = cosine.topk(min(top, len(unit) - 1), dim=1)
        found += [
            [Near(*pair) for pair in zip(*row, strict=True)]
            for row in zip(latent.tolist(), value.tolist(), strict=True)
        ]
    return found


def _promoted(
    directions: Tensor, effect: Callable[[Tensor], Tensor], tokenizer: Any, top: int
) -> list[list[Promoted]]:
    found: list[tuple[list[int], list[float]]] = []
    for block in directions.split(EFFECTS):
        logits = effect(block)
        value, token = logits.topk(min(top, logits.shape[1]), dim=1)
        found += zip(token.tolist(), (value - logits.mean(1, keepdim=True)).tolist(), strict=True)
    text = (
        {}
        if tokenizer is None
        else token_texts(tokenizer, {i for tokens, _ in found for i in tokens})
    )
    return [
        [Promoted(i, text.get(i, ""), logit) for i, logit in zip(tokens, logits, strict=True)]
        for tokens, logits in found
    ]


def arranged(found: Sequence[Profile], by: Order) -> list[Profile]:
    """The profiles in an order; those that have no such number come last.

    clear: by `token_f1`, those of a single token at most every other one, dense latents (on in more than a tenth of the
    rows) after the others; rate: on most first; rare: on least, but at all; again, dispersion: the most bursting first,
    within a document and among documents; index: as the code has them.
    """
    if by == "index":
        return list(found)
    if by == "clear":
        clear = [p for p in found if p.rate <= DENSE and not math.isnan(p.token_f1)]
        first = clearest(clear, lambda p: p.token_f1, lambda p: p.token_set)
        chosen = {p.latent for p in first}
        return first + sorted(
            (p for p in found if p.latent not in chosen), key=lambda p: (p.rate > DENSE, -p.rate)
        )
    value: dict[str, Callable[[Profile], float]] = {
        "rate": lambda p: -p.rate, "rare": lambda p: p.rate or math.inf, "again": lambda p: -p.again,
        "dispersion": lambda p: -p.dispersion,
    }  # fmt: skip
    return sorted(found, key=lambda p: (math.isnan(value[by](p)), value[by](p)))


def require_ending(path: Path) -> None:
    """Refuse a name that says neither JSON lines nor parquet."""
    if path.suffix not in (".jsonl", ".parquet"):
        raise BitlensError(
            f"Profiles are written as .jsonl or .parquet, not '{path.name}'; choose one of these endings."
        )


def write_profiles(path: Path, found: Sequence[Profile]) -> None:
    """A record for each latent."""
    write_records(path, [asdict(profile) for profile in found])


def write_records(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Write records as JSON lines (.jsonl) or parquet (.parquet), by the name's ending."""
    require_ending(path)
    records = [finite(record) for record in records]
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        if path.suffix == ".jsonl":
            lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
            temporary.write_text("".join(lines), encoding="utf-8")
            return
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), temporary)
