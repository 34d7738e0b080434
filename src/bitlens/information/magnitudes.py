"""What the magnitudes of a sparse autoencoder cost on top of its support, in bits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from bitlens.autoencoders import Autoencoder
from bitlens.errors import BitlensError

RISE = 0.005  # of fvu, relative: less than the spread between seeds
HALVINGS = 12


@dataclass(frozen=True)
class Magnitudes:
    """Quantised magnitudes of the latents that are on."""

    step: float
    """of the quantiser, as a length in the hidden states' own units"""
    bits: float
    """bits a row that an ideal coder needs for the magnitudes, once it knows which latents are on"""
    fvu: float
    """fraction of variance unexplained with quantised magnitudes"""


@torch.inference_mode()
def magnitude_bits(autoencoder: Autoencoder, rows: Callable[[], Iterable[Tensor]], rise: float = RISE) -> Magnitudes:
    """The fewest bits for magnitudes with a uniform quantiser whose error raises fvu by no more than the share `rise`.

    rows: gives blocks of raw hidden states `[n, d_in]`, the same each time it is called. One step for all latents,
    as a length along the decoder's row, so that all errors weigh the same. Entropies are each latent's own symbols' as
    counted, with Miller and Madow's correction: low, if anything.
    """
    lengths = autoencoder.W_dec.norm(dim=1).clamp_min(1e-12) * autoencoder.scale
    squares, largest = _sum(rows, lambda x: (x - autoencoder(x)).double().square().sum()), 0.0
    for x in rows():
        largest = max(largest, float((autoencoder.encode(x).abs() * lengths).max()))
    n, mean = 0, torch.zeros(autoencoder.d_in, dtype=torch.float64)
    for x in rows():
        n, mean = n + len(x), mean + x.double().sum(0).cpu()
    if n == 0 or largest == 0:
        raise BitlensError("There are no latents on in these rows, so there are no magnitudes to quantise.")
    mean = (mean / n).to(autoencoder.mean.device)
    variance = _sum(rows, lambda x: (x.double() - mean).square().sum())

    def error(step: float) -> float:
        return _sum(
            rows,
            lambda x: (
                (x - autoencoder.decode(_rounded(autoencoder.encode(x), lengths, step) * step / lengths))
                .double()
                .square()
                .sum()
            ),
        )

    low, high = largest / 2**HALVINGS, 2 * largest
    for _ in range(HALVINGS):
        step = math.sqrt(low * high)
        low, high = (step, high) if error(step) <= (1 + rise) * squares else (low, step)
    return Magnitudes(low, _symbol_bits(autoencoder, rows, lengths, low) / n, error(low) / variance)


def _rounded(codes: Tensor, lengths: Tensor, step: float) -> Tensor:
    """Whole steps; a latent that is on stays on."""
    steps = (codes * lengths / step).round()
    return torch.where((codes != 0) & (steps == 0), codes.sign(), steps)


def _sum(rows: Callable[[], Iterable[Tensor]], of: Callable[[Tensor], Tensor]) -> float:
    return sum(float(of(x)) for x in rows())


def _symbol_bits(autoencoder: Autoencoder, rows: Callable[[], Iterable[Tensor]], lengths: Tensor, step: float) -> float:
    """Bits of all magnitudes together."""
    latents, symbols = [], []
    for x in rows():
        steps = _rounded(autoencoder.encode(x), lengths, step)
        on = steps.nonzero(as_tuple=True)
        latents.append(on[1].cpu())
        symbols.append(steps[on].long().cpu())
    latent, symbol = torch.cat(latents), torch.cat(symbols)
    width = int(symbol.max() - symbol.min()) + 1
    kinds, counts = (latent * width + symbol - symbol.min()).unique(return_counts=True)
    counts, owner = counts.double(), kinds // width
    ons = torch.zeros(autoencoder.n_latents, dtype=torch.float64).index_add_(0, owner, counts)
    kinds_of = owner.bincount(minlength=autoencoder.n_latents)
    plug_in = torch.special.xlogy(ons, ons).sum() - torch.special.xlogy(counts, counts).sum()
    return float(plug_in / math.log(2)) + float((kinds_of - 1).clamp_min(0).sum()) / (2 * math.log(2))
