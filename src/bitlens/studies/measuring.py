"""What every study measures of an autoencoder on rows in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bitlens.autoencoders import Autoencoder
from bitlens.bits.packed import PackedBits
from bitlens.bits.statistics import firing_rates
from bitlens.evaluation import DENSE, Moments
from bitlens.information.entropy import entropy
from bitlens.information.rate_distortion import gaussian_bits

BLOCK = 8192
ESTIMATES = ("bits_marginal", "bits_tree", "code_marginal", "code_tree", "bits_joint")


@torch.inference_mode()
def measure_rows(
    autoencoder: Autoencoder, rows: Tensor, test: Tensor, *, documents: Tensor | None = None, seed: int = 0
) -> tuple[dict[str, Any], PackedBits]:
    """Measure an autoencoder on raw `rows [n, d]` -> numbers under the names of the field, and the rows' bits

    test: bool `[n]`: fvu, l0 and the Gaussian bound are those of these rows, and so are the code lengths, under models
    fitted on the other rows. Of every estimate `x` of the entropy the interval is given as `x_low` and `x_high`.
    """
    moments = Moments(autoencoder.mean.cpu())
    words = []
    for block, held in zip(rows.split(BLOCK), test.split(BLOCK), strict=True):
        words.append(autoencoder.encode_bits(block).words.cpu())
        if held.any():
            moments.add(block[held].cpu(), autoencoder(block[held]).cpu())
    bits = PackedBits(torch.cat(words), autoencoder.n_latents)
    rates = firing_rates(bits[test])
    rare = torch.minimum(rates, 1 - rates)
    fvu = moments.fvu()
    numbers: dict[str, Any] = {
        "rows": len(rows), "n_latents": autoencoder.n_latents, "fvu": fvu, "l0": float(rare.sum()),
        "dense": int((rare > DENSE).sum()), "bits_gaussian": gaussian_bits(moments.covariance(), fvu),
    }  # fmt: skip
    result = entropy(bits, documents, test, seed=seed)
    numbers["bits_lower"] = result.bits_lower
    for name in ESTIMATES:
        estimate = getattr(result, name)
        numbers |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    return numbers, bits
