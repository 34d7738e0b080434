"""How commands are called: flags are parsed, and results written where `--json` says.

A command is a function of its flags that prints what a person wants to see and returns what a
program wants to read, a dictionary for `--json`. Errors name what can be done in Python; on the
command line the same is a flag.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import os
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import tyro

from bitlens import memory, processes, terminal

Command = Callable[..., Any]
# arguments that name a store, codes or a run, which may be remote, and commands that write there
FOLDERS = {"run", "other", "store", "codes", "target", "downstream", "beside", "beside_codes"}
REMOTE_OUT = {"harvest", "train", "encode"}
PLANNED = {"harvest", "train", "encode", "evaluate", "entropy", "features", "interpret"}
PLANNED |= {"compress", "decompress"}
# arguments that memory grows with
SMALLER = ("batch_size", "batch", "n_latents", "contexts", "max_rows", "rows", "sample", "workers")
OUT_IS_A_FILE = {"effects", "faithfulness", "features", "labels", "compress"}
# what arguments of many commands are, where a command's own docstring says no more
USUAL = {
    "run": "an autoencoder.",
    "codes": "folder of codes, from `bitlens encode`.",
    "store": "hidden states of its hook point.",
    "device": "auto, cpu, cuda.",
    "overwrite": "replace what is there.",
    "cache_size": "bytes that copies of remote files may take, such as 50GB (default: "
    "BITLENS_CACHE_SIZE).",
    "json": "also write the numbers to this file.",
    "plan": "say what memory this will take, and stop.",
}
QUOTES = "'\""
RENAMED = {"length": "context", "unit": "documents", "hooks": "hook", "column": "text_column"}


def call(command: Command, prog: str, arguments: Sequence[str]) -> None:
    """Run `command` with these arguments of the command line; prog: what help calls it.

    It gets a flag --json, where it plans its memory a flag --plan, and runs under a bar of its
    name, after what takes seconds to import.
    """
    name = prog.split()[-1]

    def called(
        *args: Any,
        json: Path | None = None,
        plan: bool = False,
        cache_size: str | None = None,
        **kwargs: Any,
    ) -> None:
        with terminal.bar(name):
            terminal.stage("load torch")
            importlib.import_module("bitlens.bits")
            terminal.stage("")
            terminal.interrupt.listen()

            if cache_size is not None:
                os.environ["BITLENS_CACHE_SIZE"] = cache_size
            bound = inspect.signature(command).bind(*args, **kwargs)
            given = bound.arguments
            given.update(_placed(name, given))
            as_one = name in processes.AS_ONE
            with processes.together() if as_one else contextlib.nullcontext():
                if as_one and not processes.is_first():
                    from bitlens import show

                    show.out.quiet = show.err.quiet = True
                out = given.get("out") if name in OUT_IS_A_FILE else None
                own = json if processes.is_first() or name in processes.SHARED else None
                _write(lambda: command(*bound.args, **bound.kwargs), own, out, plan)

    added = functools.partial(inspect.Parameter, kind=inspect.Parameter.KEYWORD_ONLY)
    flags = {"json": added("json", default=None, annotation=Path | None)}
    if name in PLANNED:
        flags["plan"] = added("plan", default=False, annotation=bool)
    if FOLDERS & set(inspect.signature(command).parameters):
        flag = added("cache_size", default=None, annotation=str | None)
        flags = {"cache_size": flag, **flags}
    hints = typing.get_type_hints(command, include_extras=True)
    for flag in inspect.signature(command).parameters.values():
        if flag.default in ((), ""):  # help says nothing of a default that is nothing
            unsaid = typing.Annotated[hints[flag.name], tyro.conf.arg(help_behavior_hint="")]
            flags[flag.name] = flag.replace(annotation=unsaid)
    show_as(called, command, **flags)
    said = str(called.__doc__)
    said += "" if "\nArgs:\n" in said else "\n\nArgs:"
    for flag in inspect.signature(called).parameters.keys() & USUAL:
        said += "" if f"\n    {flag}: " in said else f"\n    {flag}: {USUAL[flag]}"
    called.__doc__ = said
    options = ("OmitArgPrefixes", "OmitSubcommandPrefixes", "FlagCreatePairsOff")
    config = tuple(getattr(tyro.conf, option) for option in options)
    speaks = processes.speaks(name)
    tyro.cli(called, prog=prog, args=arguments, config=config, console_outputs=speaks)


def _write(command: Callable[[], Any], json: Path | None, out: Path | None, plan: bool) -> None:
    """What the command returns, to this file, if there is one; out: another file, of its own. None:
    another of several processes has the numbers. plan: end where its memory is known."""
    from bitlens.files import refuse_unwritable, write_json

    for path in (json, out):
        if path is not None:  # said now, not after the work
            refuse_unwritable(path)
    result: Any
    token = memory.only_plan.set(plan)
    try:
        result = command()
    except memory.PlanOnly as stopped:
        if not processes.is_first():
            return
        print(stopped)
        result = stopped.plan.as_dict()
    finally:
        memory.only_plan.reset(token)
    if json is not None and result is not None:
        write_json(json, result.as_dict() if hasattr(result, "as_dict") else result)


def _placed(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Of the arguments of the command of this name, those folders that are remote, as such.
    BitlensError for others where only a folder here will do."""
    from bitlens import remote

    placed = {}
    for argument, value in given.items():
        paths = value if isinstance(value, tuple) else (value,)
        if not any(isinstance(path, Path) and remote.is_address(path) for path in paths):
            continue
        if argument in FOLDERS or (argument == "out" and name in REMOTE_OUT):
            found = tuple(remote.place(path) for path in paths)
            placed[argument] = found if isinstance(value, tuple) else found[0]
            if argument == "out" and getattr(found[0], "protocol", "") == "memory":
                from bitlens import show

                show.warn(f"{found[0]} is gone when this process ends.")
        else:
            remote.refuse(next(path for path in paths if remote.is_address(path)))
    return placed


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
