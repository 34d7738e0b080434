"""A language model that one device does not hold: its layers on several, or each of them split."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from bitlens import processes
from bitlens.errors import BitlensError
from bitlens.hidden.hooks import HookPoint


def spread_over(device_map: Any, tp_plan: Any) -> dict[str, Any]:
    """What transformers is told of several devices or processes; nothing for one."""
    if device_map is not None and tp_plan is not None:
        raise BitlensError("`device_map` and `tp_plan` exclude each other; leave out one of them.")
    if tp_plan is None:
        return {} if device_map is None else {"device_map": device_map}
    if processes.world_size() == 1:
        raise BitlensError("`tp_plan` splits a model over several processes: start with torchrun.")
    processes.start()
    try:
        from transformers.distributed.configuration_utils import DistributedConfig

        return {"distributed_config": DistributedConfig(tp_plan=tp_plan)}
    except (ImportError, TypeError):  # an earlier transformers
        return {"tp_plan": tp_plan}


def refuse_split(settings: Mapping[str, Any], values: Mapping[HookPoint, torch.Tensor]) -> None:
    """Refuse hook points at which each process has another part of the hidden states.

    settings: that the model was loaded with. values: of two tokens.
    """
    if not {"distributed_config", "tp_plan"} & set(settings):
        return
    for hook, value in values.items():
        own = getattr(value, "to_local", lambda value=value: value)()  # of a DTensor
        if not _alike(own.detach().double().cpu()):
            raise BitlensError(
                f"Each process has another part of {hook.name}, since `tp_plan` splits it; hook a "
                "layer, MLP or attention."
            )


def _alike(own: torch.Tensor) -> bool:
    """Whether all processes have the same, but for rounding."""
    if len(processes.of_each(torch.tensor([own.numel()])).unique()) > 1:
        return False
    first, *others = processes.of_each(own)
    return all(float((each - first).norm()) <= 0.1 * float(first.norm()) for each in others)


def entrance(model: nn.Module) -> torch.device:
    """Where a model takes its tokens."""
    device = next(model.parameters()).device
    return torch.device("cpu") if device.type == "meta" else device  # weights that are on disk
