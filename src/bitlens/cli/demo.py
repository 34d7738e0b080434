"""The command that does the whole job on the bundled model."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def demo(
    out: Path = Path("bitlens-demo"),
    n_latents: int = 1024,
    steps: int = 2000,
    overwrite: bool = False,
) -> dict[str, Any]:
    """The whole job on the bundled model and text, offline, in minutes.

    Args:
        out: folder for everything that is made.
        n_latents: width of both autoencoders.
        steps: training steps of both.
        overwrite: replace a former demo.
    """
    from bitlens.demo import run_demo

    return run_demo(out, n_latents, steps, overwrite)
