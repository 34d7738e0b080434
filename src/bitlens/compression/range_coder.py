"""A logistic autoregression in integers, and range coding of bits under it.

What is decoded depends on integers only: log-odds are sums of quantised weights, and a table that
is kept with them maps them to probabilities. See docs/codec.md for why it decodes to the same bits
everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any

import numpy as np

from bitlens.bits.kernel import kernel
from bitlens.bits.words import add_row, words_for
from bitlens.errors import BitlensError
from bitlens.information.autoregression import Autoregression

# pyright: reportCallIssue=false, reportArgumentType=false

UNIT_BITS = 8  # log-odds are integers in units of 2^-8
WEIGHT_BITS = 4  # weights are multiples of 2^-4; finer ones cost more bytes than they save
LEVEL_BITS = 4  # one probability for each 2^-4 of log-odds,
LEVELS = 512  # up to 16 either way
PROBABILITY_BITS = 24  # what the range coder resolves, and a float32 holds exactly
FREQUENCY_BITS = 16
SHARES = 1 << FREQUENCY_BITS
LARGEST = (1 << 11) - 1  # a weight, in steps: shifted to units it fits 16 bits
CELLS = 1 << 19  # rows times latents of a chunk: its log-odds stay in cache


def coder() -> Any:
    """The range coder's library, imported when something is compressed."""
    return import_module("constriction").stream


# --- integers -------------------------------------------------------------------------------------


@kernel
def _read_bits(words, order, symbols):
    """symbols[j, r]: bit order[j] of row r"""
    for j in range(len(order)):
        word, shift = order[j] // 64, np.uint64(order[j] % 64)
        for r in range(len(words)):
            symbols[j, r] = (words[r, word] >> shift) & np.uint64(1)


@kernel
def _probabilities(sums, j, shift, table, out):
    """Of latent j being off and on in every row."""
    levels = len(table)
    for r in range(len(sums)):
        level = min(max((sums[r, j] >> shift) + levels // 2, 0), levels - 1)
        out[r, 0], out[r, 1] = table[level, 0], table[level, 1]


@kernel
def _learn(symbols, j, weights, sums):
    """Add the weights of latent j where it is on."""
    for r in range(len(symbols)):
        if symbols[r]:
            add_row(weights[j, j + 1 :], sums[r, j + 1 :])


@kernel
def _all_probabilities(symbols, weights, sums, shift, table, out):
    for j in range(len(symbols)):
        _probabilities(sums, j, shift, table, out[j])
        _learn(symbols[j], j, weights, sums)


@kernel
def _write_bits(words, latent, symbols):
    """The inverse of `_read_bits`, for one latent."""
    word, shift = latent // 64, np.uint64(latent % 64)
    for r in range(len(symbols)):
        words[r, word] |= np.uint64(symbols[r]) << shift


# --- the model ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Quantised:
    """An autoregression in integers: log-odds in units of 2^-8."""

    order: np.ndarray
    """int64 `[n_latents]`: the latents as they are predicted"""
    biases: np.ndarray
    """int32 `[n_latents]`: log-odds where all latents are off"""
    weights: np.ndarray
    """int16 `[n_latents, n_latents]`, zero on and below the diagonal"""
    table: np.ndarray
    """uint32 `[levels]`: probabilities of being on, in 2^-24"""
    weight_shift: int
    """bits of a weight that are always zero"""
    level_shift: int
    """bits of a sum that its level leaves out"""
    chunk: int
    """rows coded side by side"""

    @classmethod
    def of(cls, model: Autoregression) -> Quantised:
        """The nearest integers; what the rates subtract becomes part of the biases."""
        n, shift = len(model.order), UNIT_BITS - WEIGHT_BITS
        weights, first = np.zeros((n, n), np.int16), 0
        for block in model.weights:
            end = len(block)
            upper = np.triu(block.detach().numpy(), 1 - first)
            steps = np.rint(upper * np.float32(1 << WEIGHT_BITS))
            if not np.isfinite(steps).all():
                raise BitlensError("The autoregression's weights are not finite; fit it again.")
            weights[:end, first:end] = np.clip(steps, -LARGEST, LARGEST).astype(np.int16) << shift
            first = end
        rates, biases = model.rates.double().numpy(), model.biases.detach().double().numpy()
        offset = np.array([rates[:j] @ weights[:j, j] for j in range(n)])
        biases = np.rint(np.clip(biases * (1 << UNIT_BITS) - offset, -(1 << 29), 1 << 29))
        middles = (np.arange(LEVELS) - LEVELS // 2 + 0.5) / (1 << LEVEL_BITS)
        one = 1 << PROBABILITY_BITS
        table = np.clip(np.rint(one / (1 + np.exp(-middles))), 1, one - 1)
        return cls(
            model.order.numpy().astype(np.int64),
            biases.astype(np.int32),
            weights,
            table.astype(np.uint32),
            weight_shift=shift,
            level_shift=UNIT_BITS - LEVEL_BITS,
            chunk=max(1, CELLS // n),
        )

    @cached_property
    def pairs(self) -> np.ndarray:
        """Probabilities of off and on, float32 `[levels, 2]`, exact: over a power of two."""
        one = np.int64(1) << PROBABILITY_BITS
        on = self.table.astype(np.int64)
        return (np.stack([one - on, on], 1) / one).astype(np.float32)

    def chunks(self, words: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Bits `[latents, rows]` and probabilities `[latents, rows, 2]` of some rows at a time, as
        they are coded."""
        n = len(self.order)
        for start in range(0, len(words), self.chunk):
            part = words[start : start + self.chunk]
            symbols = np.empty((n, len(part)), np.int32)
            probabilities = np.empty((n, len(part), 2), np.float32)
            _read_bits(part, self.order, symbols)
            sums = np.tile(self.biases, (len(part), 1))
            table = self.pairs
            _all_probabilities(symbols, self.weights, sums, self.level_shift, table, probabilities)
            yield symbols, probabilities

    def encode(self, words: np.ndarray) -> np.ndarray:
        """Rows, uint64 `[rows, words]` -> a stream of 32-bit words"""
        stream = coder()
        encoder, family = stream.queue.RangeEncoder(), stream.model.Categorical(perfect=False)
        for symbols, probabilities in self.chunks(words):
            encoder.encode(symbols.reshape(-1), family, probabilities.reshape(-1, 2))
        return encoder.get_compressed()

    def decode(self, code: np.ndarray, rows: int) -> np.ndarray:
        """A stream of 32-bit words -> its rows, uint64 `[rows, words]`"""
        stream = coder()
        decoder, family = stream.queue.RangeDecoder(code), stream.model.Categorical(perfect=False)
        words = np.zeros((rows, words_for(len(self.order))), np.uint64)
        for start in range(0, rows, self.chunk):
            part = words[start : start + self.chunk]
            sums = np.tile(self.biases, (len(part), 1))
            probabilities = np.empty((len(part), 2), np.float32)
            for j, latent in enumerate(self.order):
                _probabilities(sums, j, self.level_shift, self.pairs, probabilities)
                symbols = decoder.decode(family, probabilities)
                _write_bits(part, latent, symbols)
                _learn(symbols, j, self.weights, sums)
        return words

    def to_bytes(self) -> bytes:
        """The model as the file holds it: order, biases, table, the least weight and how many
        values there are up to the greatest, their frequencies, and the weights above the diagonal,
        row by row, range coded under those frequencies."""
        n, stream = len(self.order), coder()
        steps = self.weights >> self.weight_shift
        counts = np.zeros(2 * LARGEST + 1, np.int64)
        for i in range(n):
            weights = steps[i, i + 1 :].astype(np.int64)
            counts += np.bincount(weights + LARGEST, minlength=len(counts))
        used = np.flatnonzero(counts) if n > 1 else np.array([LARGEST])
        first, last = int(used[0]), int(used[-1])
        least = first - LARGEST
        values = max(2, last - first + 1)  # a coder needs two
        used_counts = np.zeros(values, np.int64)
        used_counts[: last - first + 1] = counts[first : last + 1]
        shares = (used_counts << FREQUENCY_BITS) // max(1, used_counts.sum())
        frequencies = np.maximum(shares, used_counts > 0)
        frequencies[frequencies.argmax()] += (1 << FREQUENCY_BITS) - frequencies.sum()
        encoder, model = stream.queue.RangeEncoder(), _frequency_model(stream, frequencies)
        for i in range(n - 1):
            encoder.encode(steps[i, i + 1 :].astype(np.int32) - least, model)
        parts = [
            self.order.astype("<u4"),
            self.biases.astype("<i4"),
            self.table.astype("<u4"),
            np.array([least, values], "<i4"),
            frequencies.astype("<u4"),
            encoder.get_compressed().astype("<u4"),
        ]
        return b"".join(part.tobytes() for part in parts)

    @classmethod
    def from_bytes(cls, data: bytes, n: int, about: dict[str, Any]) -> Quantised:
        """What `to_bytes` made of a model of `n` latents; about: `model` of the file's header.
        ValueError for what it cannot have made."""
        stream, numbers = coder(), np.frombuffer(data, "<u4").astype(np.uint32)
        order, biases, table, (least, values), rest = np.split(
            numbers, np.cumsum([n, n, about["levels"], 2])
        )
        least, values = int(least.astype(np.int32)), int(values)
        shift, level_shift = (about["unit_bits"] - about[k] for k in ("weight_bits", "level_bits"))
        whole = np.array_equal(np.sort(order), np.arange(n)) and rest[:values].sum() == SHARES
        if not (whole and abs(least) <= LARGEST and 2 <= values <= 2 * LARGEST + 1 and len(table)):
            raise ValueError("order, table or frequencies")  # kernels trust them
        if not (0 <= shift <= UNIT_BITS and 0 <= level_shift <= UNIT_BITS and about["chunk"]):
            raise ValueError("bits")
        if table.min() < 1 or table.max() >= 1 << PROBABILITY_BITS:
            raise ValueError("probabilities")
        decoder = stream.queue.RangeDecoder(rest[values:])
        model = _frequency_model(stream, rest[:values].astype(np.int64))
        weights = np.zeros((n, n), np.int16)
        for i in range(n - 1):
            weights[i, i + 1 :] = (decoder.decode(model, n - 1 - i) + least) << shift
        return cls(
            order.astype(np.int64),
            biases.view(np.int32),
            weights,
            table,
            weight_shift=shift,
            level_shift=level_shift,
            chunk=about["chunk"],
        )


def _frequency_model(stream: Any, frequencies: np.ndarray) -> Any:
    """Frequencies add up to a power of two: the division is exact."""
    exact = (frequencies / (1 << FREQUENCY_BITS)).astype(np.float32)
    return stream.model.Categorical(exact, perfect=False)
