"""The `bitlens` command: parses, calls one function, prints. Nothing heavy is imported before a command is called."""

from __future__ import annotations

import os
import signal
import sys

from bitlens.errors import BitlensError, Interrupted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    Command = Callable[..., None]

COMMANDS = {
    "demo": "demo:demo", "harvest": "stores:harvest", "import": "stores:import_", "train": "runs:train", "encode": "runs:encode",
    "evaluate": "runs:evaluate", "faithfulness": "faithfulness:faithfulness", "entropy": "codes:entropy",
    "features": "features:features", "interpret": "interpret:interpret", "labels": "labels:labels", "match": "match:match",
    "compress": "codes:compress", "decompress": "codes:decompress", "study": "studies:",
}  # fmt: skip
STUDIES = {
    "synthetic": "studies:synthetic", "sequence": "studies:sequence", "icl": "studies:icl", "compare": "studies:compare",
}  # fmt: skip

OUT_IS_A_FILE = {"faithfulness", "features", "labels", "compress"}


def main(arguments: list[str] | None = None) -> None:
    """Entry point. Exit status: 0 done, 1 stopped or failed, 2 bad input, 130 interrupted."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault(
        "OMP_WAIT_POLICY", "PASSIVE"
    )  # threads that spin cost a busy machine most of its speed
    arguments = sys.argv[1:] if arguments is None else arguments
    _mend_streams()
    former = signal.getsignal(signal.SIGINT)
    if former is signal.default_int_handler:
        signal.signal(signal.SIGINT, _die)
    called: list[Command] = []
    status = 0
    try:
        try:
            _call(arguments, called)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # who read the output has seen enough
        _silence_stdout()
    except Interrupted as stopped:
        status = _fail(str(stopped), 1, called)
    except BitlensError as error:
        status = _fail(str(error), 2, called)
    except OSError as error:
        if error.filename is None:
            _silence_stdout()  # what could not be written is not tried again
        status = _fail(
            f"{error.filename or 'The output'} could not be read or written: {error.strerror or error}.",
            2,
            called,
        )
    except KeyboardInterrupt:
        status = _fail("Stopped.", 128 + signal.SIGINT, called)
    finally:
        if former is signal.default_int_handler:
            from bitlens.terminal import interrupt

            interrupt.ignore()
            signal.signal(signal.SIGINT, former)
    if status:
        sys.exit(status)


def _die(number: int, frame: Any) -> None:
    """An interrupt before the work has begun: in the middle of an import an exception could become anything."""
    os.write(
        2, b"\x1b[?25hStopped.\n" if os.isatty(2) else b"Stopped.\n"
    )  # the cursor may be hidden
    os._exit(128 + signal.SIGINT)


def _mend_streams() -> None:
    import io

    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by who started this process
            setattr(sys, name, io.TextIOWrapper(io.FileIO(os.devnull, "w")))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(
                errors="replace"
            )  # a terminal without Unicode loses a sign, not the result


def _silence_stdout() -> None:
    from bitlens.terminal import silence

    silence(sys.stdout)


def _fail(sentence: str, status: int, called: list[Command]) -> int:
    if called:
        from bitlens.cli.flags import in_flags

        sentence = in_flags(sentence, called[0])
    print(sentence, file=sys.stderr)
    return status


def _call(arguments: list[str], called: list[Command]) -> None:
    """called: takes the command's function, once it is known"""
    if arguments in (["--version"], ["-V"]):
        from bitlens.version import __version__

        return print(f"bitlens {__version__}")
    commands, name = COMMANDS, "bitlens"
    if arguments[:1] == ["study"]:
        commands, name, arguments = STUDIES, "bitlens study", arguments[1:]
    if not arguments or arguments[0] in ("--help", "-h"):
        print(_help(name, commands), file=sys.stdout if arguments else sys.stderr)
        sys.exit(0 if arguments else 2)
    if arguments[0] not in commands:
        known = ", ".join(commands)
        raise BitlensError(
            f"There is no '{name} {arguments[0]}'; choose one of: {known}; each explains itself with --help."
        )
    import importlib

    module, _, function = commands[arguments[0]].partition(":")
    command = getattr(importlib.import_module(f"bitlens.cli.{module}"), function)
    called.append(command)
    if arguments[0] == "train" and {"-h", "--help"} & set(arguments):
        from bitlens.cli.train_help import for_help

        command = for_help(command, arguments)

    import tyro

    return tyro.cli(
        _announced(command, arguments[0]), prog=f"{name} {arguments[0]}", args=arguments[1:],
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff),
    )  # fmt: skip


def _announced(command: Command, name: str) -> Command:
    """The command, under a bar of its name; first it imports what takes seconds."""
    import functools
    import importlib
    import inspect

    @functools.wraps(command)
    def call(*args: Any, **kwargs: Any) -> None:
        from bitlens import terminal

        with terminal.bar(name):
            terminal.stage("load torch")
            importlib.import_module("bitlens.bits")
            terminal.stage("")
            if signal.getsignal(signal.SIGINT) is _die:
                terminal.interrupt.listen()
            _refuse_unwritable(inspect.signature(command).bind(*args, **kwargs).arguments, name)
            command(*args, **kwargs)

    return call


def _refuse_unwritable(given: Mapping[str, Any], name: str) -> None:
    """Files that a command ends with are told to be out of reach before its work, not after."""
    from bitlens.files import refuse_unwritable

    files = [given.get("json"), getattr(given.get("options"), "json", None)]
    files += [given.get("out")] if name in OUT_IS_A_FILE else []
    for path in files:
        if path is not None:
            refuse_unwritable(path)


def _help(name: str, commands: Mapping[str, str]) -> str:
    """What there is to call, read from the sources: importing them takes longer."""
    import ast
    from pathlib import Path

    lines = [f"usage: {name} [-h] {{{','.join(commands)}}} ...", ""]
    for command, place in commands.items():
        module, _, function = place.partition(":")
        tree = ast.parse((Path(__file__).parent / f"{module}.py").read_text(encoding="utf-8"))
        found = (
            node
            for node in tree.body
            if isinstance(node, ast.FunctionDef) and node.name == function
        )
        text = next(
            (ast.get_docstring(node) or "" for node in found), ast.get_docstring(tree) or ""
        )
        lines.append(f"  {command:<14}{text.splitlines()[0]}")
    return "\n".join([*lines, "", f"Each explains itself: {name} {next(iter(commands))} --help"])
