"""Training: the objective, pruning and regrowing, and a loop that resumes bit-exactly."""

from bitlens.training.config import PRESETS, TrainConfig
from bitlens.training.trainer import train

__all__ = ["PRESETS", "TrainConfig", "train"]
