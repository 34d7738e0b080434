"""The files of an unfinished run: what it is, and a state from which it goes on bit-exactly.

The state is one safetensors file: the weights, Adam's moments, the learner's own state, and in its
header the step and the position in the data. Every random draw is seeded by its name (`seeding`).
It is the same for any number of processes: the first writes and reads it, and tells the others.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bitlens import processes
from bitlens.autoencoders.learner import Learner
from bitlens.autoencoders.settings import Settings
from bitlens.errors import BitlensError
from bitlens.files import read_manifest, read_tensors, write_json, write_tensors
from bitlens.hidden.source import Position
from bitlens.training.config import TrainConfig

RUN, STATE = "training.json", "state.safetensors"
SCHEMA = 1  # of both
MAY_DIFFER = {"log_every", "checkpoint_every", "store", "target", "documents_of"}
START_AGAIN = "start again with `overwrite=True`"


class Progress(NamedTuple):
    """Steps done, and where in the data the next batch begins."""

    step: int
    position: Position


def _state(learner: Learner, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors = {f"model.{k}": v for k, v in learner.model.state_dict().items()}
    tensors |= {f"learner.{k}": v for k, v in learner.state.items()}
    for name, parameter in learner.model.named_parameters():
        tensors |= {f"adam.{name}.{k}": v for k, v in optimizer.state[parameter].items()}
    return tensors


def save_checkpoint(
    folder: Path, learner: Learner, optimizer: torch.optim.Optimizer, progress: Progress
) -> None:
    """Write `state.safetensors`; a kill at any moment leaves the former or the new one, whole."""
    if not processes.is_first():
        return
    tensors = _state(learner, optimizer)
    header = {"schema": SCHEMA, "step": progress.step, "position": list(progress.position)}
    write_tensors(
        folder / STATE, {k: v.cpu() for k, v in tensors.items()}, {"bitlens": json.dumps(header)}
    )


def load_checkpoint(
    folder: Path, learner: Learner, optimizer: torch.optim.Optimizer
) -> Progress | None:
    """Put a saved state back into the learner and the optimiser; None where there is none yet."""
    path = folder / STATE
    header, tensors = _read(path) if processes.is_first() else (None, {})
    header = processes.from_first(header)
    if header is None:
        return None
    tensors = processes.tensors_from_first(tensors)
    try:
        learner.model.load_state_dict(_below("model.", tensors))
        for name, value in learner.state.items():
            value.copy_(tensors[f"learner.{name}"])
        for name, parameter in learner.model.named_parameters():
            state = _below(f"adam.{name}.", tensors)
            # Fused Adam wants its step count, too, where the parameter is.
            optimizer.state[parameter] = {k: v.to(parameter.device) for k, v in state.items()}
        return Progress(header["step"], Position(*header["position"]))
    except (KeyError, RuntimeError) as error:
        raise BitlensError(f"{path} does not fit this run ({error}); {START_AGAIN}.") from error


def take_state_from_first(learner: Learner, optimizer: torch.optim.Optimizer) -> None:
    """All processes go on with the weights, moments and learner's state of the first."""
    if processes.world_size() > 1:
        processes.take_from_first(*_state(learner, optimizer).values())


def _read(path: Path) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
    """-> header and tensors of a saved state; None and none where there is none yet"""
    if not path.exists():
        return None, {}
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("bitlens", "{}"))
    except SafetensorError as error:
        raise BitlensError(f"{path} is damaged ({error}); {START_AGAIN}.") from error
    if header.get("schema", 0) > SCHEMA:
        newer = f"has schema {header['schema']}, newer than {SCHEMA}"
        raise BitlensError(f"{path} {newer}; upgrade bitlens to resume it.")
    return header, read_tensors(path)


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def write_or_compare(folder: Path, settings: Settings, about: dict[str, Any]) -> None:
    """Record what the run is in `training.json`; a resumed run must be the same one. about: what
    the source says of its rows."""
    path = folder / RUN
    run = {"schema": SCHEMA, "config": asdict(settings), "source": about}
    if not path.exists():
        write_json(path, run)
        return
    before = _flat(read_manifest(path, SCHEMA, "a training run"))
    now = _flat(json.loads(json.dumps(run)))
    may_differ = set(MAY_DIFFER)
    if now.get("model_digest") is not None and now["model_digest"] == before.get("model_digest"):
        may_differ.add("model")
    changed = [
        f"{name} was {before.get(name)!r} and is {value!r}"
        for name, value in now.items()
        if name not in may_differ and value != before.get(name)
    ]
    if changed:
        cure = "resume it with the same ones, or replace it with `overwrite=True`"
        raise BitlensError(
            f"{folder} holds a run with other settings ({'; '.join(changed)}); {cure}."
        )


def _flat(run: dict[str, Any]) -> dict[str, Any]:
    """A setting that a run's version did not have yet was as it is by default."""
    return {**asdict(TrainConfig()), **run.get("source", {}), **run.get("config", {})}
