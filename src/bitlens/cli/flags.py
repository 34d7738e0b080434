"""Errors name what can be done in Python; on the command line the same is a flag."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable
from dataclasses import fields, is_dataclass

QUOTES = "'\""
RENAMED = {"length": "context", "unit": "documents", "hooks": "hook", "column": "text_column"}


def flags_of(command: Callable[..., object]) -> set[str]:
    """Names of a command's arguments that are flags, with underscores."""
    flags: set[str] = set()
    for name, hint in typing.get_type_hints(command).items():
        if name in inspect.signature(command).parameters:
            flags |= {field.name for field in fields(hint)} if is_dataclass(hint) else {name}
    return flags


def in_flags(sentence: str, command: Callable[..., object]) -> str:
    """The sentence with every `name` and `name=value` as a flag, where the command has that flag.

    Others lose their quotes.
    """
    flags = flags_of(command)

    def flag(match: re.Match[str]) -> str:
        name, value = match["name"], match["value"]
        name = next((n for n in (name, RENAMED.get(name, "")) if n in flags), None)
        if name is None:
            return match[0].strip("`")
        dashed = name.replace("_", "-")
        if value in (None, "True", "False"):
            return f"--{'no-' if value == 'False' else ''}{dashed}"
        return f"--{dashed} {value.removeprefix('torch.').strip(QUOTES)}"

    return re.sub(r"`(?P<name>[A-Za-z_]+)(=(?P<value>[^`]+))?`", flag, sentence)
