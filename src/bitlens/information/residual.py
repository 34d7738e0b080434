"""What bits leave out of hidden states, so that the very floats that were stored come back.

The reconstruction must be the same on every machine. It is a sum of decoder rows in float64, latent after latent, by
additions of numpy: their order is fixed, and no product is left that a processor could fuse with an addition. Two floats
are subtracted as integers of the same order, so that near floats have small differences whatever their exponents.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitlens.autoencoders import BinaryAutoencoder
from bitlens.bits.packed import PackedBits
from bitlens.errors import BitlensError

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
LEVEL = 9  # 19 saves a few percent more at a fifteenth of the speed
BLOCK = 4096  # rows whose float64 sums are held at a time


def zstandard() -> Any:
    """The compressor's library, imported when something is compressed."""
    return import_module("zstandard")


@dataclass(frozen=True)
class Decoder:
    """Bits to raw hidden states, the same to the last bit everywhere. rows `[n_latents, d]`, base `[d]`: float64."""

    rows: np.ndarray
    base: np.ndarray

    @classmethod
    def of(cls, autoencoder: BinaryAutoencoder) -> Decoder:
        """Products of two float32 are exact in float64."""
        w_dec, b_dec, scale, mean = (
            tensor.detach().cpu().float().numpy().astype(np.float64)
            for tensor in (
                autoencoder.W_dec,
                autoencoder.b_dec,
                autoencoder.scale,
                autoencoder.mean,
            )
        )
        rows, base = w_dec * scale, b_dec * scale + mean
        if not (np.isfinite(rows).all() and np.isfinite(base).all()):
            raise BitlensError("The autoencoder has weights that are not finite; train it again.")
        return cls(rows, base)

    def decode(self, bits: PackedBits, dtype: torch.dtype = torch.float32) -> Tensor:
        """-> `[rows, d]`, rounded once"""
        parts = [torch.empty(0, len(self.base), dtype=dtype)]
        for start in range(0, len(bits), BLOCK):
            on = bits[start : start + BLOCK].unpack(torch.bool).numpy()
            sums = np.tile(self.base, (len(on), 1))
            for latent in np.flatnonzero(on.any(0)):
                sums[on[:, latent]] += self.rows[latent]
            parts.append(_rounded(sums, dtype))
        return torch.cat(parts)


def _rounded(values: np.ndarray, dtype: torch.dtype) -> Tensor:
    """The nearest floats, ties to even. bfloat16 by integers: the instruction of some processors drops subnormals."""
    with np.errstate(over="ignore"):
        if dtype == torch.float16:
            return torch.from_numpy(values.astype(np.float16))
        single = values.astype(np.float32)
    if dtype == torch.float32:
        return torch.from_numpy(single)
    bits = single.view(np.uint32)
    upper = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16
    return torch.from_numpy(upper.astype(np.uint16).view(np.int16)).view(torch.bfloat16)


def float_bytes(hidden: Tensor) -> bytes:
    """Little-endian, row by row."""
    integers = _integers(hidden)
    return integers.astype(integers.dtype.newbyteorder("<"), copy=False).tobytes()


def _integers(hidden: Tensor) -> np.ndarray:
    return (
        hidden.contiguous()
        .view(torch.int32 if hidden.dtype == torch.float32 else torch.int16)
        .numpy()
    )


def _ordered(integers: np.ndarray) -> np.ndarray:
    """The bits of floats as integers of the same order, and back: negative floats count downwards."""
    below_sign = np.iinfo(integers.dtype).max
    return np.where(integers < 0, integers ^ below_sign, integers)


def difference(hidden: Tensor, predicted: Tensor) -> bytes:
    """What turns `predicted` into `hidden`, both `[rows, d]` of one dtype: differences with their sign in the lowest bit,
    all first bytes before all second ones, zstd."""
    true = _ordered(_integers(hidden))
    away = true - _ordered(_integers(predicted))  # wraps, and back
    folded = (away << 1) ^ (away >> (8 * away.itemsize - 1))
    little = folded.astype(folded.dtype.newbyteorder("<"), copy=False)
    planes = little.reshape(-1).view(np.uint8).reshape(-1, little.itemsize).T
    return zstandard().ZstdCompressor(level=LEVEL).compress(planes.tobytes())


def corrected(predicted: Tensor, data: bytes) -> Tensor:
    """The hidden states that `difference(hidden, predicted)` was made of. ValueError if it was of other rows."""
    near = _ordered(_integers(predicted))
    raw = np.frombuffer(zstandard().ZstdDecompressor().decompress(data), np.uint8)
    planes = np.ascontiguousarray(raw.reshape(near.itemsize, near.size).T)
    unsigned = near.dtype.str.replace("i", "u")
    folded = planes.view(f"<u{near.itemsize}").reshape(near.shape).astype(unsigned)
    away = ((folded >> 1) ^ (np.zeros_like(folded) - (folded & 1))).view(near.dtype)
    return torch.from_numpy(_ordered(near + away)).view(predicted.dtype)
