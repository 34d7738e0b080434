"""Everything about a latent that can be counted: when it is on, and what is near to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from bitlens import markup, terminal
from bitlens.bits.codes import Codes
from bitlens.bits.entropies import binary_entropy
from bitlens.bits.shards import AnyBits
from bitlens.bits.statistics import DENSE, co_occurrence, firing_rates
from bitlens.errors import BitlensError
from bitlens.features.examples import drawn_contexts
from bitlens.features.habits import PlaceHabits, Preference, TokenHabits
from bitlens.features.on_rows import canonical, on_rows
from bitlens.features.plan import TREE_ROWS, features_plan
from bitlens.features.token_scores import clearest, rows_on
from bitlens.files import finite, replacing, write_json_lines
from bitlens.hidden.pieces import token_texts
from bitlens.information.tree import chow_liu
from bitlens.memory import require
from bitlens.results import brief, token

BLOCK = 256  # latents whose cosines with all others are in memory at a time
EFFECTS = 64  # latents whose effects on all logits are in memory at a time

Order = Literal["clear", "rate", "rare", "again", "dispersion", "index"]
Effect = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Near:
    """Another latent, and the cosine of its decoder row."""

    latent: int
    value: float


@dataclass(frozen=True)
class Promoted:
    """A token whose logit the latent raises, above that of the mean token, per unit of the code."""

    token: int
    text: str
    logit: float


@dataclass(frozen=True)
class Profile:
    """One latent; "on" is its rare state. A list is empty where nothing is known of it: without
    tokens, a decoder or a model."""

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
    """variance of the on-rows of a document over that of independent rows (binomial)"""
    again: float
    """rate in the next 16 rows of the document after an on-row, over the rate; 1 for independent
    rows"""
    positions: dict[str, float] = field(default_factory=dict)
    """rate at positions 0, 1, 2, 3, 4-7, 8-15, ... of the context, over the rate"""
    tokens: list[Preference] = field(default_factory=list)
    token_f1: float = math.nan
    """of the set of tokens that predicts the latent best in half of the documents, in the others;
    unknown below 20 on-rows in either half"""
    token_set: int = 0
    """tokens in that set"""
    next_tokens: list[Preference] = field(default_factory=list)
    """of the row after, in the same document"""
    tree: list[int] = field(default_factory=list)
    """neighbours in the Chow-Liu tree, the parent first"""
    similar: list[Near] = field(default_factory=list)
    """highest decoder cosines"""
    promotes: list[Promoted] = field(default_factory=list)
    suppresses: list[Promoted] = field(default_factory=list)
    """the tokens whose logits it lowers most"""
    examples: list[str] = field(default_factory=list)

    def described(self) -> dict[str, str]:
        """What is known, a line for each kind of it."""

        def preferred(tokens: list[Preference]) -> str:
            named = (f"{token(t.text)} {t.share:.0%} (x{t.lift:.3g})" for t in tokens)
            return "  ".join(named) or "none"

        clarity = f"F1 {self.token_f1:.3f} from a set of {self.token_set:,} tokens"
        lines = {
            "on": f"{self.rate:.3%} of rows, {self.surprisal:.2f} bits each time; entropy "
            f"{self.bits:.4f} bits a row",
            "clustering": f"burstiness {self.burstiness:.4f}, dispersion {self.dispersion:.3g}, "
            f"again {self.again:.3g}",
            "positions": "  ".join(f"{name}: x{lift:.2f}" for name, lift in self.positions.items()),
            "clarity": "" if math.isnan(self.token_f1) else clarity,
            "tokens": preferred(self.tokens),
            "next tokens": preferred(self.next_tokens),
            "tree": " ".join(map(str, self.tree)) or "none",
            "decoder": "  ".join(f"{near.latent} ({near.value:.2f})" for near in self.similar),
            "promotes": "  ".join(f"{token(t.text)} {t.logit:+.2f}" for t in self.promotes),
        }
        return {name: line for name, line in lines.items() if line}

    def _repr_html_(self) -> str:
        """All that is known of the latent, for a notebook."""
        lines = self.described()
        del lines["tokens"]
        return markup.render(
            "latent.html",
            name=f"Latent {self.latent}",
            facts=["on is 0 in the codes"] if self.flipped else [],
            tokens=[preference.text for preference in self.tokens],
            more=0,
            lines=list(lines.items()),
            examples=self.examples,
        )


@terminal.shown("profiles")
def profiles(
    codes: Codes,
    *,
    tokenizer: Any = None,
    W_dec: Tensor | None = None,
    effect: Effect | None = None,
    top: int = 8,
    examples: int = 5,
    window: int = 8,
    tree: bool = True,
    seed: int = 0,
    progress: bool = True,
) -> list[Profile]:
    """A profile of every latent of these codes, from their rows of usual norm.

    W_dec: `[n_latents, d]`. effect: directions `[n, d]` -> logits `[n, vocabulary]`, as a
    `causal.direct.DirectEffect` does. top: entries of each list; examples: of each latent, with
    `window` tokens on each side; tree: on up to 131,072 rows.
    """
    require(lambda: features_plan(codes), "encode fewer rows")
    bits = codes.parts.where(codes.usual)
    if W_dec is not None and (W_dec.ndim != 2 or len(W_dec) != bits.n_latents):
        raise BitlensError(
            f"W_dec of shape {list(W_dec.shape)} does not fit codes of {bits.n_latents} latents."
        )
    raw_rates, rare = firing_rates(bits), canonical(bits)
    flipped, rates = raw_rates > 0.5, torch.minimum(raw_rates, 1 - raw_rates)
    places = PlaceHabits(codes)
    tokens = None if tokenizer is None else TokenHabits(codes, tokenizer, top)
    # What is found for all latents at once: for each of these fields a list by latent.
    shared: dict[str, Sequence[Any]] = {}
    if tree:
        shared["tree"] = _tree_neighbours(rare)
    if W_dec is not None:
        directions = W_dec.detach().float().cpu() * torch.where(flipped, -1.0, 1.0)[:, None]
        shared["similar"] = _similar(directions, top)
        if effect is not None:
            both = _promoted(directions, effect, tokenizer, top)
            shared["promotes"], shared["suppresses"] = both
    if tokenizer is not None and examples:
        drawn = on_rows(rare, codes.document[codes.usual], examples, seed=seed)
        shared["examples"] = drawn_contexts(codes, drawn, tokenizer, window)
    entropies = binary_entropy(rates.float())
    basics = zip(flipped.tolist(), rates.tolist(), entropies.tolist(), strict=True)
    return [
        Profile(
            latent,
            is_flipped,
            rate,
            entropy,
            surprisal=-math.log2(rate) if rate else math.inf,
            burstiness=math.log2(1 - rate),
            **places.measure(on),
            **(tokens.measure(on) if tokens else {}),
            **{name: values[latent] for name, values in shared.items()},
        )
        for latent, ((is_flipped, rate, entropy), on) in enumerate(
            zip(basics, rows_on(rare), strict=True)
        )
    ]


def _tree_neighbours(bits: AnyBits) -> list[list[int]]:
    """Each latent's parent and children in the Chow-Liu tree."""
    rows = torch.linspace(0, len(bits) - 1, min(len(bits), TREE_ROWS), dtype=torch.float64)
    sample = bits[rows.long()]
    neighbours: list[list[int]] = [[] for _ in range(bits.n_latents)]
    parents = chow_liu(co_occurrence(sample), len(sample)).parents.tolist()
    for latent, parent in enumerate(parents):
        if parent >= 0:
            neighbours[latent].insert(0, parent)
            neighbours[parent].append(latent)
    return neighbours


def _similar(directions: Tensor, top: int) -> list[list[Near]]:
    unit = torch.nn.functional.normalize(directions, dim=1)
    nearest: list[list[Near]] = []
    for start in range(0, len(unit), BLOCK):
        cosine = unit[start : start + BLOCK] @ unit.T
        cosine.diagonal(start).fill_(-math.inf)
        values, latents = cosine.topk(min(top, len(unit) - 1), dim=1)
        pairs = zip(latents.tolist(), values.tolist(), strict=True)
        nearest += [list(map(Near, *pair)) for pair in pairs]
    return nearest


def _promoted(
    directions: Tensor, effect: Effect, tokenizer: Any, top: int
) -> tuple[list[list[Promoted]], list[list[Promoted]]]:
    """The tokens whose logits each direction raises most, and those it lowers most."""
    ends: tuple[list[Any], list[Any]] = [], []  # (tokens, logits) of every direction
    for block in directions.split(EFFECTS):
        logits = effect(block)
        logits -= logits.mean(1, keepdim=True)
        for end, largest in zip(ends, (True, False), strict=True):
            found = logits.topk(min(top, logits.shape[1]), dim=1, largest=largest)
            end += zip(found.indices.tolist(), found.values.tolist(), strict=True)
    seen = {token for end in ends for tokens, _ in end for token in tokens}
    text = dict.fromkeys(seen, "") if tokenizer is None else token_texts(tokenizer, seen)
    raised, lowered = (
        [
            [Promoted(token, text[token], logit) for token, logit in zip(*both, strict=True)]
            for both in end
        ]
        for end in ends
    )
    return raised, lowered


def arranged(found: Sequence[Profile], by: Order) -> list[Profile]:
    """The profiles in an order; those that have no such number come last.

    clear: by `token_f1`, those of a single token at most every other one, dense latents last; rate,
    rare: on most, or least, but at all; again, dispersion: the most bursting first.
    """
    if by == "index":
        return list(found)
    if by == "clear":
        known = [p for p in found if p.rate <= DENSE and not math.isnan(p.token_f1)]
        first = clearest(known, lambda p: p.token_f1, lambda p: p.token_set)
        chosen = {p.latent for p in first}
        others = [p for p in found if p.latent not in chosen]
        return first + sorted(others, key=lambda p: (p.rate > DENSE, -p.rate))

    def value(p: Profile) -> float:
        return (p.rate or math.inf) if by == "rare" else -getattr(p, by)

    return sorted(found, key=lambda p: (math.isnan(value(p)), value(p)))


def require_ending(path: Path) -> None:
    """Refuse a name that says neither JSON lines nor parquet."""
    if path.suffix not in (".jsonl", ".parquet"):
        raise BitlensError(f"Profiles are written as .jsonl or .parquet, not '{path.name}'.")


def write_profiles(path: Path, found: Sequence[Profile]) -> None:
    """A record for each latent, as `write_records` does."""
    write_records(path, map(asdict, found))


def write_records(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write records as JSON lines (.jsonl) or parquet (.parquet), by the name's ending."""
    require_ending(path)
    if path.suffix == ".jsonl":
        write_json_lines(path, records)
        return
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        table = pyarrow.Table.from_pylist([finite(record) for record in records])
        pyarrow.parquet.write_table(table, temporary)
