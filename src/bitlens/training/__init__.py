"""Training: a loop that resumes bit-exactly, its settings, checkpoints and metrics."""

from typing import TYPE_CHECKING, Any

from bitlens.training.config import PRESETS, TrainConfig

if TYPE_CHECKING:
    from bitlens.training.trainer import train

__all__ = ["PRESETS", "TrainConfig", "train"]


def __getattr__(name: str) -> Any:
    """The loop is imported when first used: settings alone need no torch."""
    if name != "train":
        raise AttributeError(f"module 'bitlens.training' has no attribute '{name}'")
    from bitlens.training.trainer import train

    return train
