"""The groups of numbers: what was measured, how near, how sparse, how fast, and what it costs a
language model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from bitlens.autoencoders import Autoencoder
from bitlens.autoencoders.binary import NEGLIGIBLE
from bitlens.bits.packed import PackedBits
from bitlens.bits.statistics import dense, firing_rates
from bitlens.evaluation.measured import Measured
from bitlens.results import Number


def trained_latents(autoencoder: Autoencoder) -> int:
    """With those that training has removed since."""
    return autoencoder.metadata.get("n_latents_trained", autoencoder.n_latents)


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
        "dense": int(dense(on).sum()),
        "highest_rate": float(on.max()),
    }


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The autoencoder, its width and how many rows the numbers are from."""

    architecture: str
    rows: Annotated[int, Number("measured", ",d")]
    outliers: Annotated[int, Number("rows of outlying norm, left out", ",d")]
    n_latents: Annotated[int, Number("latents trained")]
    live: Annotated[int, Number("neither dead nor stuck")]

    @staticmethod
    def measure(measured: Measured) -> dict[str, Any]:
        """-> the numbers, by name"""
        autoencoder, store = measured.autoencoder, measured.store
        documents = [store.shard(i, ["document"])["document"] for i in range(len(store.shards))]
        test = measured.part == "test"
        rows = sum(int(store.is_test(ids).sum()) if test else len(ids) for ids in documents)
        return {
            "architecture": autoencoder.architecture,
            "rows": measured.rows,
            "outliers": rows - measured.rows,
            "n_latents": trained_latents(autoencoder),
            "live": latent_numbers(autoencoder, measured.bits)["live"],
        }


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """Errors, and what they are a fraction of."""

    fvu: Annotated[float, Number("fraction of variance unexplained", ".4f")]
    explained_variance: Annotated[float, Number("1 - fvu", ".4f")]
    mse: Annotated[float, Number("in the model's own units", ".4g")]
    cosine: Annotated[float, Number("of hidden state and reconstruction", ".4f")]

    @staticmethod
    def measure(measured: Measured) -> dict[str, Any]:
        """-> the numbers, by name"""
        return {
            "fvu": measured.fvu,
            "explained_variance": 1 - measured.fvu,
            "mse": measured.squared_error / measured.rows / measured.autoencoder.d_out,
            "cosine": measured.cosine / measured.rows,
        }


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
        autoencoder = measured.autoencoder
        numbers = latent_numbers(autoencoder, measured.bits)
        numbers["dead"] += trained_latents(autoencoder) - autoencoder.n_latents
        return {name: numbers[name] for name in Sparsity.__dataclass_fields__}


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Of this machine, in the pass over the rows."""

    rows_per_second: Annotated[float, Number("encode and decode", ",.0f")]

    @staticmethod
    def measure(measured: Measured) -> dict[str, Any]:
        """-> the numbers, by name"""
        return {"rows_per_second": measured.rows / measured.seconds}


@dataclass(frozen=True, kw_only=True)
class Losses:
    """As `bitlens.causal.losses.SpliceLosses`, in nats a token; None without a language model.

    `_low` and `_high` are the ends of 95 % intervals over contexts; None: too few of them.
    """

    ce_original: Annotated[float | None, Number("next-token loss of the model, nats", ".3f")] = None
    ce_spliced: Annotated[float | None, Number("the same through the autoencoder", ".3f")] = None
    ce_zero: Annotated[float | None, Number("the same with hidden states zeroed", ".3f")] = None
    ce_mean: Annotated[float | None, Number("the same with hidden states at their mean", ".3f")] = (
        None
    )
    ce_loss_score: Annotated[float | None, Number("1: nothing lost, 0: as bad as zeros", ".3f")] = (
        None
    )
    ce_loss_score_mean: Annotated[float | None, Number("the same against the mean", ".3f")] = None
    kl_div: Annotated[float | None, Number("nats a token", ".3f")] = None
    top1: Annotated[float | None, Number("likeliest next token unchanged", ".3f")] = None
    ce_loss_score_low: float | None = None
    ce_loss_score_high: float | None = None
    ce_loss_score_mean_low: float | None = None
    ce_loss_score_mean_high: float | None = None
    kl_div_low: float | None = None
    kl_div_high: float | None = None

    @staticmethod
    def measure(measured: Measured) -> dict[str, Any]:
        """-> the numbers, by name; none without a splice"""
        if measured.splice is None:
            return {}
        losses = measured.splice.losses(measured.autoencoder)._asdict()
        return {name: losses[name] for name in Losses.__dataclass_fields__}
