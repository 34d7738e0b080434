"""What a latent does to what a language model says, in numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

from bitlens.causal.switches import Switch
from bitlens.results import Number, brief


@dataclass(frozen=True)
class TokenEffect:
    """A token, and by how much the latent's being on raises its log-probability (nats, mean over
    rows)."""

    token: int
    text: str
    logp: float


@dataclass(frozen=True)
class LatentEffect:
    """A latent of the second autoencoder, and by how much the first one's being on raises it (of a
    bit: the share of rows where it goes on, less that where it goes off)."""

    latent: int
    value: float


@dataclass(frozen=True)
class Effect:
    """What a latent does, as means over the rows where it was switched; in nats, with 95 %
    intervals over documents (NaN: too few, or no rows)."""

    __repr__ = brief

    latent: int
    rate: Annotated[float, Number("how often it is on in these contexts", ".4f")]
    rows: Annotated[int, Number("where it was switched", ",d")]
    switched: Switch
    """off where it was on, or on where it was off"""
    kl_div: Annotated[float, Number("of the next token's distribution, nats", ".4f")]
    kl_div_low: float
    kl_div_high: float
    kl_control: Annotated[float, Number("the same of another latent's direction", ".4f")]
    """as long a step at the same rows along the decoder row of another latent, drawn for each"""
    loss: Annotated[float, Number("rise of the cross-entropy of the next tokens", "+.4f")]
    loss_low: float
    loss_high: float
    raises: list[TokenEffect]
    """tokens whose log-probability the latent raises most where it is on"""
    lowers: list[TokenEffect]
    downstream: list[LatentEffect]
    """latents of the second autoencoder that it moves most"""


def of_record(record: dict[str, Any]) -> Effect:
    """An effect from its record, where None is NaN."""
    known: dict[str, Any] = {
        name: math.nan if value is None else value for name, value in record.items()
    }
    for name in ("raises", "lowers"):
        known[name] = [TokenEffect(**each) for each in record[name]]
    known["downstream"] = [LatentEffect(**each) for each in record["downstream"]]
    return Effect(**known)
