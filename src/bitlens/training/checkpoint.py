"""The state of an unfinished run: one safetensors file, replaced atomically, from which training goes on bit-exactly.

It holds the weights, Adam's moments, the learner's own state, and in its header the step and the position in the data.
Randomness needs no state: every draw is seeded by its name (see `seeding.py`).
"""

import json
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from bitlens.errors import BitlensError
from bitlens.files import read_tensors, write_tensors
from bitlens.hidden.source import Position
from bitlens.training.learner import Learner

STATE = "state.safetensors"
SCHEMA = 1


class Progress(NamedTuple):
    """Steps done, and where in the data the next batch begins."""

    step: int
    position: Position


def save_checkpoint(
    folder: Path, learner: Learner, optimizer: torch.optim.Optimizer, progress: Progress
) -> None:
    """Write `state.safetensors`; a kill at any moment leaves the former or the new one, never half of one."""
    tensors = {f"model.{k}": v for k, v in learner.model.state_dict().items()}
    tensors |= {f"learner.{k}": v for k, v in learner.state.items()}
    for name, parameter in learner.model.named_parameters():
        tensors |= {f"adam.{name}.{k}": v for k, v in optimizer.state[parameter].items()}
    header = {"schema": SCHEMA, "step": progress.step, "position": list(progress.position)}
    write_tensors(
        folder / STATE, {k: v.cpu() for k, v in tensors.items()}, {"bitlens": json.dumps(header)}
    )


def load_checkpoint(
    folder: Path, learner: Learner, optimizer: torch.optim.Optimizer
) -> Progress | None:
    """Put a saved state back into the learner and the optimiser, in place; None where there is no checkpoint yet."""
    path = folder / STATE
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("bitlens", "{}"))
    except SafetensorError as error:
        raise BitlensError(
            f"The checkpoint {path} is damaged ({error}); start again with `overwrite=True`."
        ) from error
    if header.get("schema", 0) > SCHEMA:
        raise BitlensError(
            f"{path} has schema {header['schema']}, newer than {SCHEMA}; upgrade bitlens to resume it."
        )
    tensors = read_tensors(path)
    try:
        learner.model.load_state_dict(
            {k[6:]: v for k, v in tensors.items() if k.startswith("model.")}
        )
        for name, value in learner.state.items():
            value.copy_(tensors[f"learner.{name}"])
        for name, parameter in learner.model.named_parameters():
            prefix = f"adam.{name}."
            state = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
            # Fused Adam wants its step count, too, where the parameter is.
            optimizer.state[parameter] = {k: v.to(parameter.device) for k, v in state.items()}
        return Progress(header["step"], Position(*header["position"]))
    except (KeyError, RuntimeError) as error:
        raise BitlensError(
            f"The checkpoint {path} does not fit this run ({error}); start again with `overwrite=True`."
        ) from error
