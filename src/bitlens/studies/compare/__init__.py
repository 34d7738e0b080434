"""Architectures compared on the same rows, at the same l0."""
