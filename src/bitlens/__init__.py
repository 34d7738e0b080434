"""bitlens turns the hidden states of a language model into bits, and measures, explains and shows them."""

__version__ = "0.1.0"
