"""What goes on a card by its writer's word; flags are made of it, so nothing heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class About:
    """What a card says that a run does not know."""

    base_model: str | None = None
    """the language model's name on the hub, where it was read from a folder or a file"""
    license: str | None = None
    """of the autoencoder, as the hub names licences: mit, apache-2.0, cc-by-4.0"""
    datasets: tuple[str, ...] = ()
    """names on the hub of the data sets that the text is from"""
