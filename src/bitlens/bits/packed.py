"""Bits packed 64 to a machine word."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from bitlens.bits import cpu
from bitlens.bits.words import WORD, words_for
from bitlens.errors import BitlensError

BLOCK_BYTES = 64 << 20  # of rows that are looked at together


@dataclass(frozen=True)
class PackedBits:
    """A bit matrix, row-major: bit `j` of row `i` is bit `j % 64` of `words[i, j // 64]`.

    words: int64 `[rows, ceil(n_latents / 64)]`, read as unsigned; bits beyond `n_latents` are zero.
    """

    words: torch.Tensor
    n_latents: int

    def __post_init__(self) -> None:
        words, width = self.words, words_for(self.n_latents)
        if words.dtype != torch.int64 or words.ndim != 2 or words.shape[1] != width:
            raise ValueError(
                f"words must be int64 [rows, {width}] for {self.n_latents} latents, "
                f"not {words.dtype} {list(words.shape)}"
            )

    @classmethod
    def from_numpy(cls, words: np.ndarray, n_latents: int) -> PackedBits:
        """words: uint64 `[rows, ceil(n_latents / 64)]`, of which no copy is made."""
        return cls(torch.from_numpy(words.view(np.int64)), n_latents)

    @classmethod
    def pack(cls, bits: torch.Tensor) -> PackedBits:
        """1 where not zero, of `[..., n_latents]` of any dtype; leading dimensions become rows."""
        n_latents = bits.shape[-1]
        if not n_latents:
            raise BitlensError(
                f"There are no latents to pack: the bits have the shape {list(bits.shape)}."
            )
        on = (bits != 0).reshape(-1, n_latents)
        padded = torch.nn.functional.pad(on, (0, words_for(n_latents) * WORD - n_latents))
        if bits.device.type == "cpu":
            octets = np.packbits(padded.contiguous().numpy(), axis=1, bitorder="little")
            return cls.from_numpy(octets, n_latents)
        return cls(_packed(padded), n_latents)

    @classmethod
    def step(cls, z: torch.Tensor) -> PackedBits:
        """1 where z > 0, of pre-activations `[..., n_latents]`; leading dimensions become rows."""
        z = z.detach().reshape(-1, z.shape[-1])
        if z.device.type != "cpu" or z.dtype != torch.float32:
            return cls.pack(z > 0)
        return cls.from_numpy(cpu.pack(z.contiguous().numpy()), z.shape[1])

    @classmethod
    def window(cls, z: torch.Tensor, width: torch.Tensor) -> PackedBits:
        """1 where |z| < width: float32 `[rows, n_latents]` and `[n_latents]`, on the CPU."""
        words = cpu.pack(z.contiguous().numpy(), width.contiguous().numpy())
        return cls.from_numpy(words, z.shape[1])

    def turned(self, latents: torch.Tensor) -> PackedBits:
        """With 0 for 1 and 1 for 0 at these latents, bool `[n_latents]`"""
        return PackedBits(self.words ^ PackedBits.pack(latents[None]).words, self.n_latents)

    def unpack(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """-> `[rows, n_latents]` of 0 and 1"""
        if self.words.device.type == "cpu":
            octets = self.numpy().view(np.uint8)
            bits = np.unpackbits(octets, axis=1, count=self.n_latents, bitorder="little")
            return torch.from_numpy(bits).to(dtype)
        octets = self.words.contiguous().view(torch.uint8)
        shifts = torch.arange(8, dtype=torch.uint8, device=octets.device)
        bits = (octets[:, :, None] >> shifts) & 1
        return bits.flatten(1)[:, : self.n_latents].to(dtype)

    def numpy(self) -> np.ndarray:
        """The words as uint64 `[rows, words]`, in memory order; no copy where that can be."""
        return np.ascontiguousarray(self.words.cpu().numpy()).view(np.uint64)

    def __repr__(self) -> str:
        return f"PackedBits({len(self):,} rows of {self.n_latents:,} bits)"

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, rows: slice | torch.Tensor) -> PackedBits:
        """The bits of some rows: a slice, an index tensor or a boolean mask."""
        return PackedBits(self.words[rows], self.n_latents)

    @property
    def device(self) -> torch.device:
        """Where the words are"""
        return self.words.device

    def where(self, rows: torch.Tensor) -> PackedBits:
        """The rows of a mask, bool `[rows]`."""
        return self[rows]

    def blocks(self) -> Iterator[PackedBits]:
        """All rows, some at a time."""
        rows = block_rows(self.n_latents)
        return (self[start : start + rows] for start in range(0, len(self), rows))

    def word(self, index: int) -> PackedBits:
        """The 64 latents from `64 * index` on, of all rows."""
        column = self.words[:, index : index + 1].contiguous()
        return PackedBits(column, self.latents_of_word(index))

    def latents_of_word(self, index: int) -> int:
        """Latents in one word of a row: fewer in the last"""
        return min(WORD, self.n_latents - index * WORD)

    def permuted(self, places: torch.Tensor) -> PackedBits:
        """With each latent at another place, int64 `[n_latents]`"""
        return self.transpose()[places.argsort()].transpose()

    def column(self, latent: int) -> torch.Tensor:
        """One latent's bits in all rows -> int64 0 and 1, `[rows]`"""
        return (self.words[:, latent // WORD] >> (latent % WORD)) & 1

    def row_counts(self) -> torch.Tensor:
        """Bits on in each row -> int64 `[rows]`"""
        return torch.from_numpy(np.bitwise_count(self.numpy()).sum(1, dtype=np.int64))

    def column_counts(self) -> torch.Tensor:
        """Rows in which each latent is on -> int64 `[n_latents]`"""
        return torch.from_numpy(cpu.column_counts(self.numpy(), self.n_latents))

    def transpose(self) -> PackedBits:
        """Latent-major: row `j` holds the bits of latent `j` over all rows, `[n_latents, rows]`"""
        columns = PackedBits.from_numpy(cpu.transpose(self.numpy(), self.n_latents), len(self))
        return PackedBits(columns.words.to(self.words.device), len(self))


def _packed(on: torch.Tensor) -> torch.Tensor:
    """Bools `[rows, 64 k]` -> int64 words `[rows, k]`, on any device."""
    places = torch.arange(8, dtype=torch.uint8, device=on.device)
    separate = on.contiguous().view(torch.uint8).view(len(on), on.shape[1] // 8, 8) << places
    octets = separate.sum(-1, dtype=torch.uint8)  # of distinct bits the sum is the or
    return octets.view(torch.int64)


def block_rows(n_latents: int) -> int:
    """Rows of a block: a multiple of 64, that fill a part of memory, 64 at least."""
    return max(1, BLOCK_BYTES // (8 * words_for(n_latents)) // WORD) * WORD
