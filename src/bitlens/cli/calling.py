"""How commands are called: flags are parsed, and results written where `--json` says.

A command is a function of its flags that prints what a person wants to see and returns what a
program wants to read, a dictionary for `--json`. Errors name what can be done in Python; on the
command line the same is a flag.
"""

from __future__ import annotations

import importlib
import inspect
import re
import typing
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import tyro

from bitlens import memory, terminal

Command = Callable[..., Any]
PLANNED = {"harvest", "train", "encode", "evaluate", "entropy", "features", "interpret"}
OUT_IS_A_FILE = {"effects", "faithfulness", "features", "labels", "compress"}
JSON_HELP = "also write the numbers to this file."
PLAN_HELP = "say what memory this will take, and stop."
QUOTES = "'\""
RENAMED = {"length": "context", "unit": "documents", "hooks": "hook", "column": "text_column"}


def call(command: Command, prog: str, arguments: Sequence[str]) -> None:
    """Run `command` with these arguments of the command line; prog: what help calls it.

    It gets a flag --json, where it plans its memory a flag --plan, and runs under a bar of its
    name, after what takes seconds to import.
    """
    name = prog.split()[-1]

    def called(*args: Any, json: Path | None = None, plan: bool = False, **kwargs: Any) -> None:
        with terminal.bar(name):
            terminal.stage("load torch")
            importlib.import_module("bitlens.bits")
            terminal.stage("")
            terminal.interrupt.listen()

            from bitlens.files import refuse_unwritable, write_json

            given = inspect.signature(command).bind(*args, **kwargs).arguments
            for path in (json, given.get("out") if name in OUT_IS_A_FILE else None):
                if path is not None:  # said now, not after the work
                    refuse_unwritable(path)
            memory.only_plan.set(plan)
            result: Any
            try:
                result = command(*args, **kwargs)
            except memory.PlanOnly as stopped:
                print(stopped)
                result = stopped.plan.as_dict()
            if json is not None:
                write_json(json, result.as_dict() if hasattr(result, "as_dict") else result)

    kind = inspect.Parameter.KEYWORD_ONLY
    flags = {"json": inspect.Parameter("json", kind, default=None, annotation=Path | None)}
    if name in PLANNED:
        flags["plan"] = inspect.Parameter("plan", kind, default=False, annotation=bool)
    show_as(called, command, **flags)
    heading = "" if "\nArgs:\n" in str(called.__doc__) else "\n\nArgs:"
    called.__doc__ = f"{called.__doc__}{heading}\n    json: {JSON_HELP}\n    plan: {PLAN_HELP}"
    options = ("OmitArgPrefixes", "OmitSubcommandPrefixes", "FlagCreatePairsOff")
    config = tuple(getattr(tyro.conf, option) for option in options)
    tyro.cli(called, prog=prog, args=arguments, config=config)


def show_as(function: Command, command: Command, **changed: inspect.Parameter) -> None:
    """Let tyro read of `function` the docstring and parameters of `command`, but for those that
    are changed or added. (`functools.wraps` would lead it on to the command itself.)"""
    signature = inspect.signature(command)
    parameters = {**signature.parameters, **changed}
    hints = {name: parameter.annotation for name, parameter in changed.items()}
    function.__doc__ = inspect.getdoc(command) or ""
    function.__annotations__ = {**typing.get_type_hints(command, include_extras=True), **hints}
    vars(function)["__signature__"] = signature.replace(parameters=list(parameters.values()))


def flags_of(command: Command) -> set[str]:
    """Names of a command's arguments that are flags, with underscores."""
    flags: set[str] = set()
    for name, hint in typing.get_type_hints(command).items():
        if name in inspect.signature(command).parameters:
            flags |= {field.name for field in fields(hint)} if is_dataclass(hint) else {name}
    return flags


def in_flags(sentence: str, command: Command) -> str:
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
