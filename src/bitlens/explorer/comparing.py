"""Two runs side by side: which latents of one are those of the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bitlens import matching, terminal
from bitlens.bits.codes import Codes
from bitlens.errors import BitlensError
from bitlens.explorer.keeping import Record
from bitlens.explorer.subject import Subject
from bitlens.files import finite
from bitlens.hidden.source import held_out
from bitlens.matching.latents import CATEGORIES

ROWS = 1 << 17  # at most, spread over all


@terminal.shown("compare")
def comparison(a: Subject, b: Subject) -> Record:
    """Every latent of A with its counterpart in B, by the rows of both codes."""
    rows = common_rows(a.codes, b.codes)
    bits_a, bits_b = (subject.rare(subject.codes.bits[rows]) for subject in (a, b))
    decoders = None
    if a.autoencoder.d_out == b.autoencoder.d_out:
        decoders = _directions(a), _directions(b)
    found = matching.match(bits_a, bits_b, decoders)
    best = torch.where(found.best >= 0, found.best, found.container)
    lines: list[Record] = []
    columns = (best, found.jaccard, found.partner, found.partner_cosine, found.implication)
    values = zip(found.category, *(column.tolist() for column in columns), strict=True)
    for latent, (category, other, jaccard, partner, cosine, implication) in enumerate(values):
        other = other if other >= 0 else None
        same = cosine if partner == other else None
        lines.append(
            {
                "a": latent,
                "b": other,
                "category": category,
                "jaccard": jaccard,
                "cosine": same if same is not None else _cosine(decoders, latent, other),
                "implication": implication,
                "a_tokens": a.tokens_of(latent),
                "b_tokens": [] if other is None else b.tokens_of(other),
                "a_rate": a.records[latent]["rate"],
                "b_rate": None if other is None else b.records[other]["rate"],
            }
        )
    counts = {k: found.category.count(k) for k in CATEGORIES}
    return finite({"rows": lines, "counts": counts, "measured": len(rows)})


def _directions(subject: Subject) -> Tensor:
    """What each latent writes when it goes to its rare state, up to scale."""
    sign = torch.where(subject.flipped, -1.0, 1.0)[:, None]
    return subject.autoencoder.W_dec.detach().float().cpu() * sign


def _cosine(decoders: Any, latent: int, other: int | None) -> float | None:
    if decoders is None or other is None:
        return None
    return float(torch.nn.functional.cosine_similarity(decoders[0][latent], decoders[1][other], 0))


def common_rows(a: Codes, b: Codes) -> Tensor:
    """Rows of usual norm that both codes have: of documents held out from training, if there are
    any. Codes of the first rows of a store go with codes of all."""
    n = min(len(a), len(b))
    columns = zip((a.token, a.document, a.position), (b.token, b.document, b.position), strict=True)
    if not n or any(not torch.equal(x[:n], y[:n]) for x, y in columns):
        raise BitlensError(
            f"{a.path} and {b.path} are not codes of the same rows; encode one store with both."
        )
    usual = a.usual[:n] & b.usual[:n]
    share = min(float(codes.manifest.get("test_fraction") or 0) for codes in (a, b))
    if share:
        test = torch.from_numpy(held_out(a.document[:n].numpy(), share))
        usual = usual & test if bool((usual & test).any()) else usual
    rows = usual.nonzero()[:, 0]
    chosen = torch.linspace(0, len(rows) - 1, min(len(rows), ROWS), dtype=torch.float64)
    return rows[chosen.long()]
