"""What the magnitudes of a sparse autoencoder cost on top of its support, in bits."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bitlens.autoencoders import Autoencoder
from bitlens.errors import BitlensError
from bitlens.information.context import context_bits
from bitlens.information.moments import Variance, squared_error
from bitlens.results import brief

RISE = 0.005  # of fvu, relative: less than the spread between seeds
EXACT = 1e-11  # an fvu up to this is rounding, and counts as so much
HALVINGS = 12
FINEST = 30  # halvings of the longest magnitude: symbols are int32
BLOCK = 2048


@dataclass(frozen=True)
class Magnitudes:
    """Quantised magnitudes of the latents that are on."""

    __repr__ = brief

    step: float
    """of the quantiser, a length in the hidden states' own units"""
    bits: float
    """bits a row that an ideal coder needs for the magnitudes, once it knows which latents are on; where rows to fit are
    given, the cheaper of each alone and each in its context"""
    bits_alone: float
    """the same, each magnitude by the frequencies of its latent's alone"""
    fvu: float
    """fraction of variance unexplained with quantised magnitudes"""


@torch.inference_mode()
def quantise_magnitudes(
    autoencoder: Autoencoder, rows: Tensor, rise: float = RISE, fit: Tensor | None = None
) -> Magnitudes:
    """The fewest bits for magnitudes with a uniform quantiser whose error raises fvu by no more than the share `rise`.

    rows: raw hidden states `[n, d_in]`, of a transcoder with its targets beside them. The quantiser's step is one for all latents, as a length along the decoder's
    row, so that all errors weigh the same; an fvu below 1e-11 may rise as one of 1e-11 may. Entropies are each latent's
    own symbols' as counted, with Miller and Madow's correction: low, if anything. fit: other rows; with them magnitudes
    are coded in context, too (`context.py`).
    """
    scale = autoencoder.get_buffer("scale_out" if autoencoder.transcodes else "scale")
    lengths = autoencoder.W_dec.norm(dim=1).clamp_min(1e-12) * scale
    rows = rows.to(lengths.device).float()
    on = _sparse(autoencoder, rows)
    longest = max(
        (float((values.abs() * lengths[where[1]]).max()) for where, values in on if len(values)),
        default=0.0,
    )
    if longest == 0:
        raise BitlensError("No latent is on in these rows, so there are no magnitudes to quantise.")

    variance = Variance()
    for block in rows.split(BLOCK):
        variance.add(autoencoder.pair(block)[1])

    def error(step: float | None) -> float:
        squares = 0.0
        for block, (where, values) in zip(rows.split(BLOCK), on, strict=True):
            if step is not None:
                values = _steps(values, lengths[where[1]], step) * step / lengths[where[1]]
            codes = values.new_zeros(len(block), autoencoder.n_latents).index_put_(where, values)
            x, target = autoencoder.pair(block)
            squares += squared_error(target, autoencoder.decode(codes, x))
        return squares

    allowed = (1 + rise) * max(error(None), EXACT * variance.total)
    low, high = longest / 2**HALVINGS, 2 * longest
    while error(low) > allowed:  # a few magnitudes are far longer than most
        low, high = low / 2, low
        if low < longest / 2**FINEST:
            raise BitlensError(
                "No quantiser of 32 bits keeps the rise of fvu within the share "
                f"{rise:g}: leave out the rows of outlying norm, or allow more."
            )
    for _ in range(HALVINGS):
        step = math.sqrt(low * high)
        low, high = (step, high) if error(step) <= allowed else (low, step)
    latents = torch.cat([where[1] for where, _ in on])
    symbols = torch.cat([_steps(values, lengths[where[1]], low) for where, values in on]).long()
    alone = bits = _symbol_bits(latents.cpu(), symbols.cpu()) / len(rows)
    if fit is not None:
        others = _sparse(autoencoder, fit.to(lengths.device).float())
        bits = min(
            bits,
            context_bits(
                _whole(others, len(fit), lengths, low), _whole(on, len(rows), lengths, low)
            ),
        )
    return Magnitudes(low, bits, alone, variance.fvu(error(low)))


Sparse = list[
    tuple[tuple[Tensor, ...], Tensor]
]  # for each block of rows: (row, latent) of what is on, and its value


def _sparse(autoencoder: Autoencoder, rows: Tensor) -> Sparse:
    codes = (autoencoder.encode(autoencoder.pair(block)[0]) for block in rows.split(BLOCK))
    return [(block.nonzero(as_tuple=True), block[block != 0]) for block in codes]


def _whole(on: Sparse, n: int, lengths: Tensor, step: float) -> Tensor:
    """Symbols of all n rows, 0 where a latent is off, int32 `[n, n_latents]`"""
    symbols = torch.zeros(n, len(lengths), dtype=torch.int32)
    for first, (where, values) in zip(range(0, n, BLOCK), on, strict=True):
        row, latent = (index.cpu() for index in where)
        symbols[first + row, latent] = _steps(values, lengths[where[1]], step).int().cpu()
    return symbols


def _steps(values: Tensor, lengths: Tensor, step: float) -> Tensor:
    """Values in whole steps; a latent that is on stays on."""
    steps = (values * lengths / step).round()
    return torch.where(steps == 0, values.sign(), steps)


def _symbol_bits(latents: Tensor, symbols: Tensor) -> float:
    """Entropy of each latent's symbols times their number, summed over the latents, with Miller and Madow's correction."""
    pairs = latents * (int(symbols.max() - symbols.min()) + 1) + symbols - symbols.min()
    owner, counts = pairs.unique(return_counts=True)
    owner, counts = owner // (int(symbols.max() - symbols.min()) + 1), counts.double()
    ons = torch.zeros(int(latents.max()) + 1, dtype=torch.float64).index_add_(0, owner, counts)
    bits = (
        torch.special.xlogy(ons, ons).sum() - torch.special.xlogy(counts, counts).sum()
    ) / math.log(2)
    return float(bits) + (len(counts) - int((ons > 0).sum())) / (2 * math.log(2))
