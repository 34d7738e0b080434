"""What every study measures of an autoencoder on rows in memory."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from bitlens.autoencoders import Autoencoder
from bitlens.bits.packed import PackedBits
from bitlens.errors import BitlensError
from bitlens.evaluation import latent_numbers
from bitlens.information.autoregression import Autoregression
from bitlens.information.entropy import entropy
from bitlens.information.moments import Covariance, Variance, squared_error
from bitlens.information.rate_distortion import gaussian_bound
from bitlens.results import flat

BLOCK = 8192
ESTIMATES = ("bits_marginal", "bits_tree", "code_marginal", "code_tree", "bits_joint")
MOST_UNEXPLAINED = 0.5
"""The fvu on held-out rows above which bits do not stand for their rows: no entropy is reported."""
ENTROPY = re.compile(r"(bits|code)(?!_gaussian)(_|$)")  # names of entropies and code lengths


def why_left_out(fvu: float) -> str | None:
    """Why a code of this held-out fvu gets no entropy, or None where it does: the sentence of a
    row's `left_out`, which `Study.finish` warns of."""
    if fvu <= MOST_UNEXPLAINED:
        return None
    return f"fvu {fvu:.2g} on held-out rows is above {MOST_UNEXPLAINED}"


def entropies_that_count(row: dict[str, Any]) -> dict[str, Any]:
    """A row as `evaluate` gives it, with `left_out`; without entropies where that says why."""
    reason = why_left_out(row["fvu"])
    kept = row if reason is None else row | {n: None for n in row if ENTROPY.match(n)}
    return kept | {"left_out": reason}


def total_bits(row: dict[str, Any]) -> float | None:
    """Everything that a code needs: which latents are on, and their magnitudes."""
    return None if row.get("bits_joint") is None else row["bits_joint"] + row["bits_magnitudes"]


def over_gaussian(row: dict[str, Any], bits: float | None) -> float | None:
    """Bits as a share of the row's Gaussian bound; None where one of them is not known."""
    bound = row.get("bits_gaussian")
    return None if bits is None or not bound else bits / bound


def not_measured(row: dict[str, Any]) -> str | None:
    """What a row lacks and why; None where it lacks nothing."""
    return row.get("error") or (row.get("left_out") and f"no entropies, as {row['left_out']}")


@torch.inference_mode()
def measure_rows(
    autoencoder: Autoencoder,
    rows: Tensor,
    test: Tensor,
    *,
    documents: Tensor | None = None,
    common: Autoregression | None = None,
    seed: int = 0,
) -> tuple[dict[str, Any], PackedBits]:
    """Measure an autoencoder on raw `rows [n, d]` -> numbers by name, and the rows' bits

    test: bool `[n]`: fvu, l0, dense and code lengths are those of these rows, under models fitted
    on the others. common: a model of these latents, fitted on more rows, none of them in `test`:
    bits_joint is the code length under it, with its biases fitted to the other rows. The Gaussian
    bound has the covariance of all rows, and is None below 4 rows a component. The interval of an
    estimate `x` of the entropy is `x_low` to `x_high`; all are None where `left_out` says why.
    """
    variance, error, words = Variance(), 0.0, []
    for block, held in zip(rows.split(BLOCK), test.split(BLOCK), strict=True):
        words.append(autoencoder.encode_bits(block).words.cpu())
        if held.any():
            x_hat = autoencoder(block[held])
            variance.add(block[held].to(x_hat.device))
            error += squared_error(block[held].to(x_hat.device), x_hat)
    if variance.total <= 0:
        raise BitlensError("The held-out rows are all equal, so there is nothing to measure.")
    bits = PackedBits(torch.cat(words), autoencoder.n_latents)
    latents, fvu = latent_numbers(autoencoder, bits[test]), variance.fvu(error)
    numbers: dict[str, Any] = {
        "rows": len(rows),
        "n_latents": autoencoder.n_latents,
        "fvu": fvu,
        "l0": latents["l0"],
        "dense": latents["dense"],
        "bits_gaussian": gaussian_bound(Covariance.of(rows.split(BLOCK)), fvu),
    }
    entropies = (f"{name}{end}" for name in ESTIMATES for end in ("", "_low", "_high"))
    numbers |= dict.fromkeys(("bits_lower", *entropies))
    numbers["left_out"] = why_left_out(fvu)
    if not numbers["left_out"]:
        model = common and common.refitted(bits[~test])
        result = entropy(bits, documents, test, seed=seed, model=model)
        numbers["bits_lower"] = result.bits_lower
        numbers |= flat({name: getattr(result, name) for name in ESTIMATES})
    return numbers, bits
