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

from bitlens import memory, processes, shards
from bitlens.autoencoders.learner import Learner
from bitlens.autoencoders.settings import Settings
from bitlens.cache import local
from bitlens.errors import BitlensError
from bitlens.files import read_manifest, write_json, write_tensors
from bitlens.forms import fits
from bitlens.hidden.source import Position
from bitlens.training.config import TrainConfig

RUN, STATE = "training.json", "state.safetensors"
SCHEMA = 1  # of both
ADAM = ("step", "exp_avg", "exp_avg_sq")  # what it keeps of a parameter
LATER = {"outlier_norm"}  # which streamed runs begun by earlier versions do not say
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
    tensors = _state(learner, optimizer)
    header = {"schema": SCHEMA, "step": progress.step, "position": list(progress.position)}
    if learner.parts:
        shards.write(folder / STATE, tensors, learner.parts, json.dumps(header))
    elif processes.is_first():
        here = {k: v.cpu() for k, v in tensors.items()}
        write_tensors(folder / STATE, here, {"bitlens": json.dumps(header)})


def load_checkpoint(
    folder: Path, learner: Learner, optimizer: torch.optim.Optimizer
) -> Progress | None:
    """Put a saved state back into the learner and the optimiser; None where there is none yet."""
    path = folder / STATE
    header = processes.from_first(_header(path) if processes.is_first() else None)
    if header is None:
        return None
    tensors = shards.read(path, learner.parts)
    try:
        learner.model.load_state_dict(_below("model.", tensors))
        for name, value in learner.state.items():
            value.copy_(tensors[f"learner.{name}"])
        for name, parameter in learner.model.named_parameters():
            state = _below(f"adam.{name}.", tensors)
            shapes = [tuple(state[k].shape) for k in ADAM if state]  # none without a gradient
            if state and shapes != [(), *[tuple(parameter.shape)] * 2]:
                raise KeyError(f"adam.{name}")
            # Fused Adam wants its step count, too, where the parameter is.
            optimizer.state[parameter] = {k: v.to(parameter.device) for k, v in state.items()}
        return Progress(header["step"], Position(*header["position"]))
    except (KeyError, RuntimeError, TypeError) as error:
        memory.refuse(error, path)
        raise BitlensError(f"{path} does not fit this run ({error}); {START_AGAIN}.") from error


def take_state_from_first(learner: Learner, optimizer: torch.optim.Optimizer) -> None:
    """All processes go on with the weights, moments and learner's state of the first; not those
    that hold other latents each."""
    if processes.world_size() > 1 and not learner.parts:
        processes.take_from_first(*_state(learner, optimizer).values())


def _header(path: Path) -> dict[str, Any] | None:
    """Of a saved state; None where there is none yet"""
    if not path.exists():
        return None
    try:
        header = json.loads(local(path, _metadata).get("bitlens", "{}"))
        if not isinstance(header, dict) or not fits(header.get("schema", 0), int):
            raise ValueError("no header")
    except (SafetensorError, ValueError, RecursionError) as error:
        raise BitlensError(f"{path} is damaged ({error}); {START_AGAIN}.") from error
    if header.get("schema", 0) > SCHEMA:
        newer = f"has schema {header['schema']}, newer than {SCHEMA}"
        raise BitlensError(f"{path} {newer}; upgrade bitlens to resume it.")
    if not fits(header, {"step": int, "position": [int]}):
        raise BitlensError(f"{path} is damaged (its header); {START_AGAIN}.")
    return header


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


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
    may_differ = MAY_DIFFER | (LATER - before.keys())
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
