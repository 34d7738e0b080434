"""Packed bits: 64 latents a machine word, and everything that is computed from them."""

from bitlens.bits.codes import Codes
from bitlens.bits.packed import PackedBits

__all__ = ["Codes", "PackedBits"]
