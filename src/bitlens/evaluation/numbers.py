"""The groups of numbers: what was measured, how near, how sparse, how many bits, what is lost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch

from bitlens import terminal
from bitlens.autoencoders import Autoencoder
from bitlens.autoencoders.binary import NEGLIGIBLE
from bitlens.bits.packed import PackedBits
from bitlens.bits.shards import AnyBits
from bitlens.bits.statistics import DENSE, firing_rates
from bitlens.evaluation.measured import Measured
from bitlens.hidden.source import held_out
from bitlens.information.autoregression import Autoregression
from bitlens.information.entropy import plug_in_bits
from bitlens.information.magnitudes import quantise_magnitudes
from bitlens.information.moments import Covariance
from bitlens.information.rate_distortion import gaussian_bound
from bitlens.information.tree import Blocks
from bitlens.results import Number

# Of training documents, about: more of them lower bits_joint by a little, and take longer.
FIT_ROWS = 65536
MAGNITUDE_ROWS = 16384
SAMPLE = 0x5EED  # makes this choice of documents another one than that of the held-out ones
Loss = float | None  # of a language model, where there is one


def trained_latents(autoencoder: Autoencoder) -> int:
    """With those that training has removed since."""
    return autoencoder.metadata.get("n_latents_trained", autoencoder.n_latents)


def latent_numbers(autoencoder: Autoencoder, bits: AnyBits) -> dict[str, Any]:
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


@terminal.shown("bits_joint")
def _joint(measured: Measured) -> float | None:
    """Mean code length of the measured rows under a model of training documents.

    Without held-out rows: of the last documents under a model of the others.
    """
    bits, ids = measured.bits, measured.documents
    if measured.part != "test":
        test = Blocks.of(len(bits), ids).last_fifth()
        bits, fit, ids = bits[test], bits[~test], ids[~test]
    else:
        fit, ids = _training_bits(measured)
    if len(fit) < 2 or not len(bits):
        return None
    device = measured.autoencoder.mean.device
    return float(Autoregression.fit(fit, ids, device=device).code_lengths(bits).mean())


def _training_bits(measured: Measured) -> tuple[PackedBits, torch.Tensor]:
    """Bits and documents of a sample of the training documents."""
    autoencoder, store = measured.autoencoder, measured.store
    share = FIT_ROWS / max(1, len(store) - measured.rows)
    words = [measured.bits[:0].words]
    documents = [measured.documents[:0]]
    for rows in store.read("train"):
        ids = rows.columns["document"]
        chosen = _drawn(ids, share)
        words.append(autoencoder.encode_bits(autoencoder.pair(rows.hidden[chosen])[0]).words.cpu())
        documents.append(ids[chosen])
    return PackedBits(torch.cat(words), autoencoder.n_latents), torch.cat(documents)


def _drawn(documents: torch.Tensor, share: float) -> torch.Tensor:
    """Which rows are of about this share of all documents, bool `[rows]`."""
    return torch.from_numpy(held_out(documents.numpy() ^ SAMPLE, share))


@terminal.shown("bits_magnitudes")
def _magnitudes(measured: Measured) -> float:
    if measured.autoencoder.binary or not measured.bits.column_counts().any():
        return 0.0
    rows = some_rows(measured.store, measured.part, MAGNITUDE_ROWS, measured.rows)
    return quantise_magnitudes(measured.autoencoder, rows).bits


def some_rows(store: Any, part: Any, n: int, of: int) -> torch.Tensor:
    """About n of so many rows of a part of a store, of documents from everywhere in it, raw,
    float32 `[rows, d]`; all where they are fewer, or so few documents that none is drawn."""
    rows = []
    for block in store.read(part) if n < of else ():
        rows.append(block.hidden[_drawn(block.columns["document"], n / of)].float())
    return torch.cat(rows) if any(map(len, rows)) else first_rows(store, part, n)


def first_rows(store: Any, part: Any, n: int) -> torch.Tensor:
    """At most n rows of a part of a store, raw, float32 `[rows, d]`."""
    rows, found = [], 0
    for block in store.read(part):
        rows.append(block.hidden[: n - found].float())
        found += len(rows[-1])
        if found == n:
            break
    return torch.cat(rows)


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
class Bits:
    """Bits a row. Of a sparse autoencoder the first three are about the support alone."""

    bits_marginal: Annotated[float, Number("sum of the latents' entropies", ".1f")]
    bits_tree: Annotated[float, Number("the same, each given one other", ".1f")]
    bits_joint: Annotated[float | None, Number("code length, each given all before it", ".1f")]
    bits_magnitudes: Annotated[float, Number("floats on top, at 1.005 of the fvu", ".1f")]
    bits_gaussian: Annotated[float | None, Number("rate-distortion bound at this fvu", ".1f")]

    @staticmethod
    def measure(measured: Measured) -> dict[str, Any]:
        """-> the numbers, by name; None without `joint`, or with too few rows for a covariance"""
        covariance = measured.covariance
        if covariance is None:
            # of training and held-out rows: the estimate needs many
            blocks = measured.store.read("all" if measured.part == "all" else "usual")
            pair, device = measured.autoencoder.pair, measured.autoencoder.mean.device
            covariance = Covariance.of(pair(rows.hidden.to(device))[1] for rows in blocks)
        marginal, tree = plug_in_bits(measured.bits, measured.documents)
        return {
            "bits_marginal": marginal,
            "bits_tree": tree,
            "bits_joint": _joint(measured) if measured.joint else None,
            "bits_magnitudes": _magnitudes(measured),
            "bits_gaussian": gaussian_bound(covariance, measured.fvu),
        }


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Of this machine, in the pass over the rows."""

    rows_per_second: Annotated[float, Number("encode and decode", ",.0f")]

    @staticmethod
    def measure(measured: Measured) -> dict[str, Any]:
        """-> the numbers, by name"""
        return {"rows_per_second": measured.rows / measured.seconds}


@dataclass(frozen=True, kw_only=True)
class ModelLosses:
    """As `bitlens.causal.losses.SpliceLosses`, in nats a token; None without a language model.

    `_low` and `_high` are the ends of 95 % intervals over contexts; None: too few of them.
    """

    ce_original: Annotated[Loss, Number("next-token loss of the model, nats", ".3f")] = None
    ce_spliced: Annotated[Loss, Number("the same through the autoencoder", ".3f")] = None
    ce_zero: Annotated[Loss, Number("the same with hidden states zeroed", ".3f")] = None
    ce_mean: Annotated[Loss, Number("the same with hidden states at their mean", ".3f")] = None
    ce_loss_score: Annotated[Loss, Number("1: nothing lost, 0: as bad as zeros", ".3f")] = None
    ce_loss_score_mean: Annotated[Loss, Number("the same against the mean", ".3f")] = None
    kl_div: Annotated[Loss, Number("nats a token", ".3f")] = None
    top1: Annotated[Loss, Number("likeliest next token unchanged", ".3f")] = None
    ce_loss_score_low: Loss = None
    ce_loss_score_high: Loss = None
    ce_loss_score_mean_low: Loss = None
    ce_loss_score_mean_high: Loss = None
    kl_div_low: Loss = None
    kl_div_high: Loss = None

    @staticmethod
    def measure(measured: Measured) -> dict[str, Any]:
        """-> the numbers, by name; none without a splice"""
        if measured.splice is None:
            return {}
        losses = measured.splice.losses(measured.autoencoder)._asdict()
        return {name: losses[name] for name in ModelLosses.__dataclass_fields__}
