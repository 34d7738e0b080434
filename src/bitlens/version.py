"""The version of bitlens, for what it writes."""

__version__ = "0.1.0"
