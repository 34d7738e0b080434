"""The `bitlens` command: parses, calls one function, prints.

Nothing heavy is imported before a command is called. Commands are registered in `COMMANDS`, those
of a group, such as `bitlens study NAME`, in `GROUPS`.
"""

from __future__ import annotations

import ast
import importlib
import io
import logging
import os
import sys
import time
from pathlib import Path

from bitlens import memory, processes, terminal
from bitlens.errors import BitlensError, Interrupted
from bitlens.studies import registry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

COMMANDS = {  # name: module of this package and its function
    "demo": "runs:demo",
    "harvest": "stores:harvest",
    "import": "stores:import_",
    "train": "runs:train",
    "encode": "runs:encode",
    "evaluate": "runs:evaluate",
    "faithfulness": "faithfulness:faithfulness",
    "saebench": "saebench:saebench",
    "effects": "effects:effects",
    "entropy": "codes:entropy",
    "features": "features:features",
    "interpret": "interpret:interpret",
    "search": "search:search",
    "explore": "explore:explore",
    "labels": "labels:labels",
    "contrast": "contrast:contrast",
    "match": "match:match",
    "compress": "codes:compress",
    "decompress": "codes:decompress",
    "export": "export:",
    "push": "hub:push",
    "study": "studies:",
}
GROUPS = {  # name: its commands
    "export": {
        "saelens": "export:saelens",
        "delphi": "export:delphi",
        "neuronpedia": "export:neuronpedia",
        "vector": "export:vector",
    },
    "study": {name: f"studies:{name}" for name in registry.STUDIES},
}


def main(arguments: list[str] | None = None) -> None:
    """Entry point. Exit status: 0 done, 1 stopped and saved, 2 bad input, 130 interrupted, 143
    terminated."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # threads that spin cost a busy machine most of its speed
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    arguments = sys.argv[1:] if arguments is None else arguments
    _mend_streams()
    # a package that fetches files may log each try with a traceback; the command says what failed
    logging.lastResort = logging.NullHandler()
    if not processes.speaks("".join(arguments[:1])):
        terminal.hide()
    with terminal.interrupt.guarded():
        status = _status(arguments)
    if status and processes.world_size() > 1:
        sys.stderr.flush()
        if "TORCHELASTIC_RUN_ID" in os.environ and not processes.speaks("".join(arguments[:1])):
            # torchrun stops all once one has ended, and the first has yet to say what was wrong
            time.sleep(processes.ROLL_CALL)
        os._exit(status)  # threads of a group that has failed may wait for ever
    if status:
        # Python ends by SIGINT instead if one came while it ran code from a string, as importing
        # dataclasses does, whatever was made of it; the next such code resets that.
        exec("")
        sys.exit(status)


def _status(arguments: list[str]) -> int:
    """Runs the command -> the exit status, after the sentence that says what was wrong."""
    try:
        try:
            _call(arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # who read the output has seen enough
        terminal.silence(sys.stdout)
    except processes.Elsewhere:  # said by the process where it happened
        return 1
    except Interrupted as stopped:
        return _fail(str(stopped), 1, arguments)
    except BitlensError as error:
        return _fail(str(error), 2, arguments)
    except SystemExit as ended:  # of the parser, which has said why
        if processes.world_size() == 1:
            raise
        return int(ended.code or 0)
    except OSError as error:
        if error.filename is None:
            terminal.silence(sys.stdout)  # what could not be written is not tried again
        path, reason = error.filename or "The output", error.strerror or error
        return _fail(f"{path} could not be read or written: {reason}.", 2, arguments)
    except (MemoryError, RuntimeError) as error:
        asked = memory.asked_for(error)
        if asked is None:
            raise
        error.__traceback__ = None  # frees what its frames hold
        return _fail(_out_of_memory(asked, arguments), 2, arguments)
    except KeyboardInterrupt:
        status = 128 + terminal.interrupt.signal
        return _fail("Stopped.", status, arguments)
    return 0


def _out_of_memory(asked: str, arguments: list[str]) -> str:
    """The sentence, with the options of the command that make what it takes smaller."""
    name, _, place = _find(arguments)
    options, planned = "", False
    if place:
        from bitlens.cli.calling import PLANNED, SMALLER, flags_of

        flags = [f"`{flag}`" for flag in SMALLER if flag in flags_of(_load(place))]
        options = f"lower {', '.join(flags)} or " if flags else ""
        planned = name == "bitlens" and arguments[0] in PLANNED
    what = f": {asked} was asked for" if asked else ""
    plan = "; --plan says beforehand what it takes" if planned else ""
    return f"Memory ran out{what}; {options}take a larger machine{plan}."


def _fail(sentence: str, status: int, arguments: list[str]) -> int:
    if not processes.speaks("".join(arguments[:1])):
        return status
    _, _, place = _find(arguments)
    if place:
        from bitlens.cli.calling import in_flags

        sentence = in_flags(sentence, _load(place))
    print(sentence, file=sys.stderr)
    return status


def _mend_streams() -> None:
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by who started this process
            setattr(sys, name, io.TextIOWrapper(io.FileIO(os.devnull, "w")))
        elif isinstance(stream, io.TextIOWrapper):
            # a terminal without Unicode loses a sign, not the result
            stream.reconfigure(errors="replace")


def _find(arguments: list[str]) -> tuple[str, Mapping[str, str], str | None]:
    """-> `bitlens` or, say, `bitlens study`, what can be called there, and the place of what is
    named."""
    group = "".join(arguments[:1])
    if group in GROUPS:
        return f"bitlens {group}", GROUPS[group], GROUPS[group].get("".join(arguments[1:2]))
    return "bitlens", COMMANDS, COMMANDS.get(group)


def _load(place: str) -> Callable[..., Any]:
    module, _, function = place.partition(":")
    return getattr(importlib.import_module(f"bitlens.cli.{module}"), function)


def _call(arguments: list[str]) -> None:
    if arguments in (["--version"], ["-V"]):
        from bitlens.version import __version__

        print(f"bitlens {__version__}")
        return
    name, commands, place = _find(arguments)
    rest = arguments[len(name.split()) - 1 :]
    if not rest or rest[0] in ("--help", "-h"):
        print(_help(name, commands), file=sys.stdout if rest else sys.stderr)
        sys.exit(0 if rest else 2)
    if place is None:
        raise BitlensError(
            f"There is no '{name} {rest[0]}'; choose one of: {', '.join(commands)}; "
            "each explains itself with --help."
        )
    if processes.world_size() > 1 and rest[0] not in processes.AS_ONE | processes.SHARED:
        raise BitlensError(f"'{name} {rest[0]}' runs in one process: start it without torchrun.")
    command = _load(place)

    from bitlens.cli.calling import call

    if rest[0] == "train" and {"-h", "--help"} & set(rest):
        from bitlens.cli.runs import train_for_help

        command = train_for_help(rest)

    call(command, f"{name} {rest[0]}", rest[1:])


def _help(name: str, commands: Mapping[str, str]) -> str:
    """First paragraphs of docstrings, from the sources: importing the modules takes longer."""
    lines = [f"usage: {name} [-h] {{{','.join(commands)}}} ...", ""]
    for command, place in commands.items():
        module, _, function = place.partition(":")
        tree = ast.parse((Path(__file__).parent / f"{module}.py").read_text(encoding="utf-8"))
        functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
        text = ast.get_docstring(functions.get(function, tree)) or ""
        text = registry.STUDIES.get(command, text)
        summary = " ".join(text.partition("\n\n")[0].split())
        lines.append(f"  {command:<14}{summary}")
    return "\n".join([*lines, "", f"Each explains itself: {name} {next(iter(commands))} --help"])
