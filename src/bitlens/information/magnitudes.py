"""What the magnitudes of a sparse autoencoder cost on top of its support, in bits."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from bitlens.autoencoders import Autoencoder
from bitlens.errors import BitlensError
from bitlens.information.moments import Variance, squared_error
from bitlens.results import brief

# a `scipy.sparse.csr_array` of whole numbers `[rows, n_latents]`, 0 where a latent is off
Symbols = Any

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


class _Codes(NamedTuple):
    """What is on in a block of rows."""

    counts: Tensor
    """latents in each row `[n]`; below, an entry for each of them, row by row"""
    latent: Tensor
    length: Tensor
    """of what the latent adds to the row, in raw space; negative against the decoder's row"""

    def symbols(self, step: float) -> Tensor:
        """Lengths in whole steps; a latent that is on stays on."""
        steps = (self.length / step).round()
        return torch.where(steps == 0, self.length.sign(), steps)


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
    return Quantiser(autoencoder, rows, fit).magnitudes(rise)


class Quantiser:
    """`quantise_magnitudes` for several rises: rows are encoded once, and each step tried once."""

    @torch.inference_mode()
    def __init__(self, autoencoder: Autoencoder, rows: Tensor, fit: Tensor | None = None) -> None:
        self._autoencoder = autoencoder
        norms = autoencoder.W_dec.norm(dim=1).clamp_min(1e-12)
        self._directions = autoencoder.W_dec / norms[:, None]
        self._lengths = norms * autoencoder.output_scale
        self._codes: list[_Codes] = []
        self._residuals: list[Tensor] = []  # of exact magnitudes
        self._exact, self._variance = 0.0, Variance()
        for block, dense, codes in self._encode(rows):
            x, target = autoencoder.pair(block)
            x_hat = autoencoder.decode(dense, x)
            self._variance.add(target)
            self._exact += squared_error(target, x_hat)
            self._residuals.append(target - x_hat)
            self._codes.append(codes)
        self._longest = max(
            (float(codes.length.abs().max()) for codes in self._codes if len(codes.length)),
            default=0.0,
        )
        if self._longest == 0:
            about = "so there are no magnitudes to quantise"
            raise BitlensError(f"No latent is on in these rows, {about}.")
        self._fit = None if fit is None else [codes for _, _, codes in self._encode(fit)]
        self._error = functools.cache(self._squared_error)

    def _encode(self, rows: Tensor) -> Iterator[tuple[Tensor, Tensor, _Codes]]:
        """-> blocks of rows and their codes, dense `[n, n_latents]` and those that are on"""
        for block in rows.to(self._lengths.device).float().split(BLOCK):
            dense = self._autoencoder.encode(self._autoencoder.pair(block)[0])
            on = dense != 0
            latent = on.nonzero()[:, 1]
            yield block, dense, _Codes(on.sum(1), latent, dense[on] * self._lengths[latent])

    @torch.inference_mode()
    def magnitudes(self, rise: float = RISE) -> Magnitudes:
        """As coarse as a share `rise` of the fvu permits."""
        allowed = (1 + rise) * max(self._exact, EXACT * self._variance.total)
        step = self._coarsest(allowed)
        if step is None:
            cure = "leave out the rows of outlying norm, or allow more"
            raise BitlensError(
                f"No quantiser of 32 bits keeps fvu from rising by {rise:g}: {cure}."
            )
        symbols = self._matrix(self._codes, step)
        alone = bits = _symbol_bits(symbols) / symbols.shape[0]
        if self._fit is not None:
            bits = min(bits, max(0.0, context_bits(self._matrix(self._fit, step), symbols)))
        return Magnitudes(step, bits, alone, self._variance.fvu(self._error(step)))

    def _coarsest(self, allowed: float) -> float | None:
        """The largest step of an allowed squared error, by bisection; None if that is too fine."""
        low, high = self._longest / 2**HALVINGS, 2 * self._longest
        while self._error(low) > allowed:  # a few magnitudes are far longer than most
            low, high = low / 2, low
            if low < self._longest / 2**FINEST:
                return None
        for _ in range(HALVINGS):
            step = math.sqrt(low * high)
            if self._error(step) <= allowed:
                low = step
            else:
                high = step
        return low

    def _squared_error(self, step: float) -> float:
        """Of the reconstructions, summed over rows: only what the quantiser changes is decoded."""
        total = 0.0
        for codes, residual in zip(self._codes, self._residuals, strict=True):
            change = codes.symbols(step) * step - codes.length
            starts = codes.counts.cumsum(0) - codes.counts
            added = embedding_bag(
                codes.latent, self._directions, starts, mode="sum", per_sample_weights=change
            )
            total += squared_error(residual, added)
        return total

    def _matrix(self, codes: list[_Codes], step: float) -> Symbols:
        """What is coded, int32"""
        from scipy.sparse import csr_array

        counts = torch.cat([each.counts for each in codes]).cpu().numpy()
        latents = torch.cat([each.latent for each in codes]).cpu().numpy()
        symbols = torch.cat([each.symbols(step) for each in codes]).int().cpu().numpy()
        starts = np.concatenate([[0], counts.cumsum()])
        return csr_array((symbols, latents, starts), (len(counts), len(self._lengths)))


def _symbol_bits(matrix: Symbols) -> float:
    """Entropy of each latent's symbols times their number, summed over latents, corrected."""
    latents, symbols = (torch.from_numpy(part).long() for part in (matrix.indices, matrix.data))
    span = int(symbols.max() - symbols.min()) + 1
    pairs, counts = (latents * span + symbols - symbols.min()).unique(return_counts=True)
    owner, counts = pairs // span, counts.double()
    ons = torch.zeros(int(latents.max()) + 1, dtype=torch.float64).index_add_(0, owner, counts)
    nats = torch.special.xlogy(ons, ons).sum() - torch.special.xlogy(counts, counts).sum()
    states = len(counts) - int((ons > 0).sum())
    return float(nats / math.log(2)) + states / (2 * math.log(2))


# --- magnitudes in context ------------------------------------------------------------------------


def context_bits(fit: Symbols, symbols: Symbols) -> float:
    """Code length of quantised magnitudes, bits a row, under models fitted on other rows.

    They depend on each other as the latents do: coding each by its own frequencies overstates what
    they cost, as the sum of the bits' entropies overstates the bits.

    Every latent has its own model, of its symbol where it is on: the better on `fit` of (a) its
    smoothed frequencies, (b) a logistic distribution around a ridge regression on the latents that
    are on (all, known beforehand) and the magnitudes of those before it, by index.
    """
    from scipy.sparse import vstack

    both: Symbols = vstack([fit, symbols], "csr")
    columns, reach = both.tocsc(), int(np.abs(both.data).max(initial=0)) + 1
    total = 0.0
    for j in range(both.shape[1]):
        rows = columns.indices[columns.indptr[j] : columns.indptr[j + 1]]
        n = int(rows.searchsorted(fit.shape[0]))
        if n < len(rows):
            total += _latent_bits(both[rows], n, j, reach)
    return total / symbols.shape[0]


def _latent_bits(rows: Symbols, n: int, j: int, reach: int) -> float:
    """Bits of latent j's symbols, of rows in which it is on: the first n of them are to fit."""
    symbols = rows.data[rows.indices == j]
    by_frequency = _frequency_bits(symbols[:n], symbols[n:], reach)
    if n < FEWEST:
        return by_frequency
    context = _Context.of(rows, j)
    half = n // 2  # which of the two is better is decided by rows that neither has seen
    by_half = _frequency_bits(symbols[:half], symbols[half:n], reach)
    if _predicted_bits(context.before(n), symbols[:n], half) < by_half:
        return _predicted_bits(context, symbols, n)
    return by_frequency


def _frequency_bits(fit: np.ndarray, symbols: np.ndarray, reach: int) -> float:
    """Under frequencies mixed with a geometric distribution, so that any symbol can be coded."""
    geometric = _tail(symbols) / (2.5 - 2 * 0.5**reach)  # of all symbols from -reach to reach
    if not len(fit):
        return float(-np.log2(geometric).sum())
    values, counts = np.unique(fit, return_counts=True)
    place = values.searchsorted(symbols).clip(max=len(values) - 1)
    seen = np.where(values[place] == symbols, counts[place], 0)
    return float(-np.log2((seen + 2 * geometric) / (len(fit) + 2)).sum())


def _tail(symbols: np.ndarray) -> np.ndarray:
    """A half for each unit of size, float64; beyond 64, where next to nothing is left, no less."""
    return np.exp2(-np.abs(symbols).clip(1, 64).astype(np.float64))


def _predicted_bits(context: _Context, symbols: np.ndarray, n: int) -> float:
    """Of the symbols after the first n, under a discretised logistic distribution around a ridge
    regression on the context, which the first n fit."""
    from scipy.special import expit

    predicted, scale = _regression(context, symbols[:n])
    coded = symbols[n:]

    def mass(at: np.ndarray | float) -> np.ndarray:
        """Of the whole number `at`"""
        return expit((at + 0.5 - predicted) / scale) - expit((at - 0.5 - predicted) / scale)

    # where the latent is on, 0 is impossible
    logistic = (1 - UNEXPECTED) * mass(coded).clip(0) / (1 - mass(0.0)).clip(1e-3)
    chance = logistic + UNEXPECTED * _tail(coded) / 2
    return float(-np.log2(chance).sum())


def _regression(context: _Context, y: np.ndarray) -> tuple[np.ndarray, float]:
    """y `[n]`: symbols of the first rows of the context -> those of the others as predicted, and
    the scale of the logistic error"""
    n, mean = len(y), y.mean()
    y, fit = y - mean, context.before(n)
    middle = fit.sums(fit.value) / n
    squares = fit.sums((fit.value - middle[fit.feature]) ** 2)
    squares += (n - fit.sums()) * middle**2  # of rows in which a feature is 0
    spread = np.sqrt(squares / (n - 1))
    strength = np.abs(fit.sums(fit.value * y[fit.row])) / (spread * math.sqrt(n) + 1e-9)
    strength[spread == 0] = 0
    # many are equally strong: in float32 and stable, so that rounding does not choose among them
    order = np.argsort(strength.astype(np.float32), kind="stable")
    best = order[: -1 - min(FEATURES, n // 4 + 1) : -1]
    features = context.dense(best) - middle[best]
    A, others = features[:n], features[n:]
    penalty = RIDGE * spread[best] ** 2 + 1e-6
    weights = np.linalg.solve(A.T @ A + np.diag(penalty), A.T @ y)
    residual = y - A @ weights
    freedom = max(1.0, n - len(best) / 2)
    deviation = float(residual @ residual / freedom) ** 0.5
    return mean + others @ weights, max(deviation * math.sqrt(3) / math.pi, 0.05)


class _Context(NamedTuple):
    """What latent j's symbols are predicted from: m features, whether each latent is on, and j
    more, the symbols of those before it. An entry of each array for each that is not 0."""

    rows: int
    features: int
    row: np.ndarray
    feature: np.ndarray
    value: np.ndarray

    @classmethod
    def of(cls, rows: Symbols, j: int) -> _Context:
        """Of symbols `[n, m]`"""
        (n, m), latent = rows.shape, rows.indices
        row, earlier = np.repeat(np.arange(n), np.diff(rows.indptr)), latent < j
        feature = np.concatenate([latent, m + latent[earlier]])
        value = np.concatenate([np.ones(len(latent)), rows.data[earlier]])
        return cls(n, m + j, np.concatenate([row, row[earlier]]), feature, value)

    def before(self, row: int) -> _Context:
        """The rows before this one"""
        chosen = self.row < row
        parts = (part[chosen] for part in (self.row, self.feature, self.value))
        return _Context(row, self.features, *parts)

    def sums(self, weights: np.ndarray | None = None) -> np.ndarray:
        """Of each feature: of weights, one an entry, or without them how often it is not 0"""
        return np.bincount(self.feature, weights, self.features)

    def dense(self, features: np.ndarray) -> np.ndarray:
        """Some of the features, float64 `[rows, len(features)]`"""
        column = np.full(self.features, -1)
        column[features] = np.arange(len(features))
        column = column[self.feature]
        chosen = column >= 0
        matrix = np.zeros((self.rows, len(features)))
        matrix[self.row[chosen], column[chosen]] = self.value[chosen]
        return matrix
