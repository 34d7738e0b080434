"""How often latents are on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from bitlens.autoencoders import Autoencoder
from bitlens.autoencoders.binary import NEGLIGIBLE
from bitlens.bits.packed import PackedBits
from bitlens.bits.statistics import DENSE, firing_rates
from bitlens.evaluation.measured import Measured
from bitlens.results import Number


@dataclass(frozen=True, kw_only=True)
class Sparsity:
    """Firing rates. A latent is on where it is not zero, of a BAE in canonical form."""

    l0: Annotated[float, Number("latents on, per row", ".1f")]
    dead: Annotated[int, Number("on in < 1 of 10,000 rows, or pruned")]
    stuck: Annotated[int, Number("off in < 1 of 10,000 rows")]
    dense: Annotated[int, Number("on in more than 10 % of rows")]
    highest_rate: Annotated[float, Number("of the latent that is on most", ".3f")]

    @staticmethod
    def measure(measured: Measured) -> dict[str, Any]:
        """-> the numbers, by name; latents that training removed count as dead"""
        numbers = latent_numbers(measured.autoencoder, measured.bits)
        dead = numbers["dead"] + removed_latents(measured.autoencoder)
        return {name: numbers[name] for name in Sparsity.__dataclass_fields__} | {"dead": dead}


def latent_numbers(autoencoder: Autoencoder, bits: PackedBits) -> dict[str, Any]:
    """l0, live, dead, stuck, dense and highest_rate, from which latents are not zero."""
    p = firing_rates(bits)
    on = autoencoder.on_rates(p)
    dead, stuck = int((p < NEGLIGIBLE).sum()), int((p > 1 - NEGLIGIBLE).sum())
    return {
        "l0": float(on.sum()),
        "live": len(p) - dead - stuck,
        "dead": dead,
        "stuck": stuck,
        "dense": int((on > DENSE).sum()),
        "highest_rate": float(on.max()),
    }


def removed_latents(autoencoder: Autoencoder) -> int:
    """Latents that were trained and are not there any more."""
    n_latents = autoencoder.n_latents
    return autoencoder.metadata.get("n_latents_trained", n_latents) - n_latents
