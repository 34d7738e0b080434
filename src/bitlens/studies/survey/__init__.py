"""The whole job on a language model and a text."""
