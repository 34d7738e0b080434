"""Planted bits of known entropy."""
