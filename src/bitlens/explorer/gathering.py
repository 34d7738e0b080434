"""All that is counted of a run's latents, once: kept in the run's folder until its codes or weights
change."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bitlens import terminal
from bitlens.autoencoders import Autoencoder
from bitlens.bits.codes import Codes
from bitlens.bits.packed import PackedBits
from bitlens.bits.statistics import co_occurrence
from bitlens.bits.words import WORD
from bitlens.causal.direct import direct_effect
from bitlens.errors import BitlensError
from bitlens.explorer.keeping import FOLDER, Record, kept, origin
from bitlens.features.on_rows import canonical, on_rows
from bitlens.features.profiles import profiles
from bitlens.files import finite
from bitlens.labels.sources import load_tokenizer
from bitlens.matching import Pairs

EXAMPLES = 20
TOP = 8
TOGETHER_ROWS = 1 << 17
BLOCK = 8 * WORD  # latents whose overlaps with all others are in memory at a time


def gathered(
    codes: Codes, run: Path, autoencoder: Autoencoder, texts: bool, promotes: bool
) -> list[Record]:
    """A record of each latent: its `Profile` without texts of examples, but with `rows` of them,
    and `together`, the latents that are on where it is.

    texts: whether the codes' tokens have texts. The records are read from the run's folder if they
    were made there from these very codes and weights.
    """

    def make() -> list[Record]:
        Codes(codes.path)  # verifies the checksums that the file is known by
        tokenizer = load_tokenizer(codes) if texts else None
        return _measure(codes, autoencoder, tokenizer, promotes)

    made_from = [EXAMPLES, TOP, origin(run, codes), texts]
    file = run / FOLDER / f"{codes.path.name}.jsonl"
    return kept(file, [*made_from, promotes], make, better=[*made_from, True])


@terminal.shown("look at every latent")
def _measure(
    codes: Codes, autoencoder: Autoencoder, tokenizer: Any, promotes: bool
) -> list[Record]:
    W_dec = autoencoder.W_dec.detach() * autoencoder.output_scale
    effect = None
    if promotes:
        try:
            effect = direct_effect(codes, autoencoder.output_hook)
        except BitlensError as error:
            terminal.say(f"Without promoted tokens: {error}")
    found = profiles(codes, tokenizer=tokenizer, W_dec=W_dec, effect=effect, top=TOP, examples=0)
    usual = codes.usual
    rare = canonical(codes.bits[usual])
    absolute = usual.nonzero()[:, 0]
    terminal.stage("examples")
    drawn = on_rows(rare, codes.document[usual], EXAMPLES)
    terminal.stage("which are on together")
    beside = together(rare, TOP)
    records = []
    for profile, rows, near in zip(found, drawn, beside, strict=True):
        record = finite(asdict(profile))
        del record["examples"]
        record["rows"] = absolute[rows[rows >= 0]].tolist()
        records.append(record | {"together": near})
    return records


def together(bits: PackedBits, top: int) -> list[list[Record]]:
    """The latents whose on-rows overlap most with those of each: Jaccard, corrected for chance."""
    rows = torch.linspace(0, len(bits) - 1, min(len(bits), TOGETHER_ROWS), dtype=torch.float64)
    sample = bits[rows.long()]
    counts, found = sample.column_counts(), []
    for start in range(0, bits.n_latents, BLOCK):
        n = min(BLOCK, bits.n_latents - start)
        words = sample.words[:, start // WORD : (start + n + WORD - 1) // WORD].contiguous()
        both = co_occurrence(PackedBits(words, n), sample)
        agreement = Pairs(len(sample), counts[start : start + n], counts, both).agreement()
        agreement.diagonal(start).fill_(0)
        values, latents = agreement.topk(min(top, bits.n_latents), dim=1)
        for row in zip(latents.tolist(), values.tolist(), strict=True):
            found.append(
                [
                    {"latent": latent, "value": value}
                    for latent, value in zip(*row, strict=True)
                    if value > 0
                ]
            )
        terminal.at(start + n, total=bits.n_latents)
    return found
