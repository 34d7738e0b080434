"""Which settings of a training apply to an architecture: its help shows these, others are named."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable
from dataclasses import fields, make_dataclass
from typing import Annotated, Any, get_type_hints

import tyro

from bitlens.training.config import PRESETS, TrainConfig, settings_that_apply


def name_without_effect(config: TrainConfig) -> None:
    """Print the flags that were given and that the architecture does not read."""
    from bitlens import show

    coding = PRESETS.get(config.preset, {}).get("coding")
    applying = settings_that_apply(config.architecture, coding)
    idle = [
        f"--{field.name.replace('_', '-')}"
        for field in fields(config)
        if field.name not in applying and getattr(config, field.name) != field.default
    ]
    if idle:
        show.err.print(f"Without effect on this run: {', '.join(idle)}.", soft_wrap=True)


def for_help(train: Callable[..., Any], arguments: list[str]) -> Callable[..., Any]:
    """`train` as its help should show it: with the settings of the architecture that the arguments
    name."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--architecture", default="bae")
    applying = settings_that_apply(parser.parse_known_args(arguments)[0].architecture)
    hints = get_type_hints(TrainConfig)
    hidden = [
        (field.name, tyro.conf.Suppress[hints[field.name]], field.default)
        for field in fields(TrainConfig)
        if field.name not in applying
    ]
    config = make_dataclass("Config", hidden, bases=(TrainConfig,), frozen=True)

    def shown(*args: Any, **kwargs: Any) -> None:
        """Never called: the help is read off what is set below."""

    annotation = Annotated[config, tyro.conf.arg(name="")]
    signature = inspect.signature(train)
    parameters = dict(signature.parameters)
    parameters["config"] = parameters["config"].replace(annotation=annotation, default=config())
    shown.__doc__ = train.__doc__
    shown.__signature__ = signature.replace(parameters=list(parameters.values()))  # pyright: ignore[reportFunctionMemberAccess]
    shown.__annotations__ = {**get_type_hints(train, include_extras=True), "config": annotation}
    return shown
