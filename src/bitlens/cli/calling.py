"""How commands are called: flags are parsed, and results written where `--json` says.

A command is a function of its flags that prints what a person wants to see and returns what a
program wants to read: a dictionary, or a result with `as_dict`. It has no flag --json of its own.
"""

from __future__ import annotations

import importlib
import inspect
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tyro

from bitlens import terminal

Command = Callable[..., Any]
OUT_IS_A_FILE = {"faithfulness", "features", "labels", "compress"}
JSON_HELP = "also write the numbers to this file."


def call(command: Command, prog: str, arguments: Sequence[str]) -> None:
    """Run `command` with these arguments of the command line; prog: what help calls it."""
    tyro.cli(
        with_json(command, prog.split()[-1]),
        prog=prog,
        args=arguments,
        config=(
            tyro.conf.OmitArgPrefixes,
            tyro.conf.OmitSubcommandPrefixes,
            tyro.conf.FlagCreatePairsOff,
        ),
    )


def with_json(command: Command, name: str) -> Callable[..., None]:
    """`command` with a flag --json, under a bar of its name, after what takes seconds to import."""

    def called(*args: Any, json: Path | None = None, **kwargs: Any) -> None:
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
            result = command(*args, **kwargs)
            if json is not None:
                write_json(json, result.as_dict() if hasattr(result, "as_dict") else result)

    text = inspect.getdoc(command) or ""
    heading = "" if "\nArgs:\n" in text else "\n\nArgs:"
    flag = inspect.Parameter("json", inspect.Parameter.KEYWORD_ONLY, default=None)
    signature = inspect.signature(command)
    # What tyro reads; `functools.wraps` would lead it on to the command itself.
    called.__doc__ = f"{text}{heading}\n    json: {JSON_HELP}"
    called.__annotations__ = {
        **typing.get_type_hints(command, include_extras=True),
        "json": Path | None,
    }
    vars(called)["__signature__"] = signature.replace(
        parameters=[*signature.parameters.values(), flag]
    )
    return called
