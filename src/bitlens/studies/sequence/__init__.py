"""Entropy along a text and through the layers."""
