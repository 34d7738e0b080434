"""What the magnitudes of a sparse autoencoder cost on top of its support, in bits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bitlens.autoencoders import Autoencoder
from bitlens.errors import BitlensError
from bitlens.information.moments import Variance, squared_error
from bitlens.results import brief

RISE = 0.005  # of fvu, relative: less than the spread between seeds
EXACT = 1e-11  # an fvu up to this is rounding, and counts as so much
HALVINGS = 12
FINEST = 30  # halvings of the longest magnitude: symbols are int32
BLOCK = 2048
FEATURES = 256  # of the context that predict a magnitude: those that correlate with it most
FEWEST = 24  # rows in which a latent must be on for a prediction
RIDGE = 30.0  # in rows
UNEXPECTED = 0.001  # chance that a symbol is none that the prediction expects


@dataclass(frozen=True)
class Magnitudes:
    """Quantised magnitudes of the latents that are on."""

    __repr__ = brief

    step: float
    """of the quantiser, a length in the hidden states' own units"""
    bits: float
    """bits a row that an ideal coder needs for the magnitudes, once it knows which latents are on;
    where rows to fit are given, the cheaper of each alone and each in its context"""
    bits_alone: float
    """the same, each magnitude by the frequencies of its latent's alone"""
    fvu: float
    """fraction of variance unexplained with quantised magnitudes"""


class _Block(NamedTuple):
    """Some rows and what is on in them, an entry of the last three each."""

    rows: Tensor
    row: Tensor
    latent: Tensor
    value: Tensor


@torch.inference_mode()
def quantise_magnitudes(
    autoencoder: Autoencoder, rows: Tensor, rise: float = RISE, fit: Tensor | None = None
) -> Magnitudes:
    """The fewest bits for magnitudes whose uniform quantiser raises fvu by at most a share `rise`.

    rows: raw hidden states `[n, d_in]`, of a transcoder with its targets beside them. The
    quantiser's step is one for all latents, as a length along the decoder's row, so that all errors
    weigh the same. Entropies are each latent's own symbols' as counted, with Miller and Madow's
    correction: low, if anything. fit: other rows; with them magnitudes are coded in context, too.
    BitlensError if no latent is on, or no step is fine enough.
    """
    quantiser = _Quantiser(autoencoder)
    blocks = quantiser.blocks(rows)
    longest = max(
        (float((b.value.abs() * quantiser.lengths[b.latent]).max()) for b in blocks if len(b.row)),
        default=0.0,
    )
    if longest == 0:
        raise BitlensError("No latent is on in these rows, so there are no magnitudes to quantise.")
    variance = Variance()
    for block in blocks:
        variance.add(autoencoder.pair(block.rows)[1])

    allowed = (1 + rise) * max(quantiser.error(blocks, None), EXACT * variance.total)
    step = _coarsest(quantiser, blocks, allowed, longest)
    if step is None:
        cure = "leave out the rows of outlying norm, or allow more"
        raise BitlensError(f"No quantiser of 32 bits keeps fvu from rising by {rise:g}: {cure}.")
    latents = torch.cat([block.latent for block in blocks])
    symbols = torch.cat([quantiser.symbols(block, step) for block in blocks]).long()
    alone = bits = _symbol_bits(latents.cpu(), symbols.cpu()) / len(rows)
    if fit is not None:
        known = quantiser.matrix(quantiser.blocks(fit), step)
        bits = min(bits, max(0.0, context_bits(known, quantiser.matrix(blocks, step))))
    return Magnitudes(step, bits, alone, variance.fvu(quantiser.error(blocks, step)))


def _coarsest(
    quantiser: _Quantiser, blocks: list[_Block], allowed: float, longest: float
) -> float | None:
    """The largest step whose squared error is allowed, by bisection; None if that is too fine."""
    low, high = longest / 2**HALVINGS, 2 * longest
    while quantiser.error(blocks, low) > allowed:  # a few magnitudes are far longer than most
        low, high = low / 2, low
        if low < longest / 2**FINEST:
            return None
    for _ in range(HALVINGS):
        step = math.sqrt(low * high)
        if quantiser.error(blocks, step) <= allowed:
            low = step
        else:
            high = step
    return low


class _Quantiser:
    """Magnitudes in whole steps. lengths `[n_latents]`: of the decoder's rows, in raw space."""

    def __init__(self, autoencoder: Autoencoder) -> None:
        self.autoencoder = autoencoder
        lengths = autoencoder.W_dec.norm(dim=1).clamp_min(1e-12)
        self.lengths = lengths * autoencoder.output_scale

    def blocks(self, rows: Tensor) -> list[_Block]:
        rows = rows.to(self.lengths.device).float()
        blocks = []
        for block in rows.split(BLOCK):
            codes = self.autoencoder.encode(self.autoencoder.pair(block)[0])
            row, latent = codes.nonzero(as_tuple=True)
            blocks.append(_Block(block, row, latent, codes[codes != 0]))
        return blocks

    def symbols(self, block: _Block, step: float) -> Tensor:
        """Values in whole steps; a latent that is on stays on."""
        steps = (block.value * self.lengths[block.latent] / step).round()
        return torch.where(steps == 0, block.value.sign(), steps)

    def error(self, blocks: list[_Block], step: float | None) -> float:
        """Summed squared error of the reconstructions; without a step with exact magnitudes"""
        total = 0.0
        for block in blocks:
            values = block.value
            if step is not None:
                values = self.symbols(block, step) * step / self.lengths[block.latent]
            codes = values.new_zeros(len(block.rows), self.autoencoder.n_latents)
            codes.index_put_((block.row, block.latent), values)
            x, target = self.autoencoder.pair(block.rows)
            total += squared_error(target, self.autoencoder.decode(codes, x))
        return total

    def matrix(self, blocks: list[_Block], step: float) -> Tensor:
        """Symbols of all rows, 0 where a latent is off, int32 `[n, n_latents]`"""
        parts = []
        for block in blocks:
            shape = len(block.rows), len(self.lengths)
            symbols = torch.zeros(shape, dtype=torch.int32, device=self.lengths.device)
            values = self.symbols(block, step).int()
            parts.append(symbols.index_put_((block.row, block.latent), values))
        return torch.cat(parts)


def _symbol_bits(latents: Tensor, symbols: Tensor) -> float:
    """Entropy of each latent's symbols times their number, summed over latents, corrected."""
    span = int(symbols.max() - symbols.min()) + 1
    pairs, counts = (latents * span + symbols - symbols.min()).unique(return_counts=True)
    owner, counts = pairs // span, counts.double()
    ons = torch.zeros(int(latents.max()) + 1, dtype=torch.float64).index_add_(0, owner, counts)
    nats = torch.special.xlogy(ons, ons).sum() - torch.special.xlogy(counts, counts).sum()
    states = len(counts) - int((ons > 0).sum())
    return float(nats / math.log(2)) + states / (2 * math.log(2))


# --- magnitudes in context ------------------------------------------------------------------------


def context_bits(fit: Tensor, symbols: Tensor) -> float:
    """Code length of quantised magnitudes, bits a row, under models fitted on other rows.

    They depend on each other as the latents do: coding each by its own frequencies overstates what
    they cost, as the sum of the bits' entropies overstates the bits.

    fit `[n, m]`, symbols `[rows, m]`: magnitudes as whole numbers, 0 where a latent is off. Every
    latent has its own model, of its symbol where it is on: the better on `fit` of (a) its smoothed
    frequencies, (b) a logistic distribution around a ridge regression on the latents that are on
    (all, known beforehand) and the magnitudes of those before it, by index.
    """
    reach = max(int(values.abs().max()) if values.numel() else 0 for values in (fit, symbols)) + 1
    total = 0.0
    for j in range(fit.shape[1]):
        rows = symbols[symbols[:, j] != 0]
        if len(rows):
            total += _latent_bits(fit[fit[:, j] != 0], rows, j, reach)
    return total / len(symbols)


def _latent_bits(fit: Tensor, rows: Tensor, j: int, reach: int) -> float:
    """Bits of latent j's symbols in rows in which it is on."""
    by_frequency = _frequency_bits(fit[:, j], rows[:, j], reach)
    if len(fit) < FEWEST:
        return by_frequency
    half = len(fit) // 2  # which of the two is better is decided by rows that neither has seen
    first, second = fit[:half], fit[half:]
    if _predicted_bits(first, second, j) < _frequency_bits(first[:, j], second[:, j], reach):
        return _predicted_bits(fit, rows, j)
    return by_frequency


def _frequency_bits(fit: Tensor, symbols: Tensor, reach: int) -> float:
    """Under frequencies mixed with a geometric distribution, so that any symbol can be coded."""
    geometric = _tail(symbols) / (2.5 - 2 * 0.5**reach)  # of all symbols from -reach to reach
    if not len(fit):
        return float(-torch.log2(geometric).sum())
    values, counts = fit.unique(return_counts=True)
    place = torch.searchsorted(values, symbols.contiguous()).clamp_max(len(values) - 1)
    seen = torch.where(values[place] == symbols, counts[place], 0)
    return float(-torch.log2((seen + 2 * geometric) / (len(fit) + 2)).sum())


def _tail(symbols: Tensor) -> Tensor:
    """A half for each unit of size, float64; beyond 64, where next to nothing is left, no less."""
    return 0.5 ** symbols.double().abs().clamp(1, 64)


def _predicted_bits(fit: Tensor, rows: Tensor, j: int) -> float:
    """Under a discretised logistic distribution around a ridge regression on the context."""
    predicted, scale = _regression(fit, rows, j)
    symbol = rows[:, j].double()

    def mass(at: Tensor | float) -> Tensor:
        """Of the whole number `at`"""
        upper, lower = (at + 0.5 - predicted) / scale, (at - 0.5 - predicted) / scale
        return torch.sigmoid(upper) - torch.sigmoid(lower)

    # where the latent is on, 0 is impossible
    logistic = (1 - UNEXPECTED) * mass(symbol).clamp_min(0) / (1 - mass(0.0)).clamp_min(1e-3)
    chance = logistic + UNEXPECTED * _tail(symbol) / 2
    return float(-torch.log2(chance).sum())


def _regression(fit: Tensor, rows: Tensor, j: int) -> tuple[Tensor, float]:
    """-> latent j's symbol as predicted in each row, and the scale of the logistic error"""
    context, others = _context(fit, j), _context(rows, j)
    y = fit[:, j].double()
    middle, spread = context.mean(0), context.std(0)
    centred = context - middle
    strength = (centred.T @ (y - y.mean())).abs() / (spread * math.sqrt(len(fit)) + 1e-9)
    best = strength.topk(min(FEATURES, len(fit) // 4 + 1, len(strength))).indices
    A = centred[:, best]
    penalty = RIDGE * spread[best].square() + 1e-6
    weights = torch.linalg.solve(A.T @ A + torch.diag(penalty), A.T @ (y - y.mean()))
    residual = y - y.mean() - A @ weights
    freedom = max(1.0, len(fit) - len(best) / 2)
    deviation = float(residual.square().sum() / freedom) ** 0.5
    scale = max(deviation * math.sqrt(3) / math.pi, 0.05)
    return y.mean() + (others[:, best] - middle[best]) @ weights, scale


def _context(rows: Tensor, j: int) -> Tensor:
    """Which latents are on, and the magnitudes of those before latent j, float64 `[n, m + j]`"""
    return torch.cat([(rows != 0).double(), rows[:, :j].double()], 1)
