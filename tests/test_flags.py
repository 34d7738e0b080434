"""Errors name arguments: those of Python in Python, flags on the command line, and never a flag
that the command lacks."""

import ast
import functools
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import bitlens
from bitlens.cli import COMMANDS, GROUPS, main
from bitlens.cli.calling import RENAMED, flags_of, in_flags

ROOT = Path(bitlens.__file__).parent
CLI = sorted((ROOT / "cli").glob("*.py"))
LIBRARY = sorted(path for path in ROOT.rglob("*.py") if not {"cli", "bench"} & set(path.parts))
FLAG = r"(?<![\w-])--([a-z][a-z-]*)"
NAME = r"`([A-Za-z_]+)(?:=[^`]+)?`"


PLACES = {
    **{n: p for n, p in COMMANDS.items() if n not in GROUPS},
    **{f"{group} {n}": p for group, named in GROUPS.items() for n, p in named.items()},
}


@functools.cache
def commands() -> dict[str, object]:
    found = {}
    for name, place in PLACES.items():
        module, _, function = place.partition(":")
        found[name] = getattr(importlib.import_module(f"bitlens.cli.{module}"), function)
    return found


def texts(node: ast.AST) -> str:
    """The text of a string, with … for what is put into it."""
    if isinstance(node, ast.JoinedStr):
        return "".join(map(texts, node.values))
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else "…"


def sentences(path: Path, raised: bool = False) -> Iterator[str]:
    """Texts of a module that a person may read: all but docstrings; or only those of its errors."""
    tree: ast.AST = ast.parse(path.read_text(encoding="utf-8"))
    if raised:
        tree = ast.Module([node for node in ast.walk(tree) if isinstance(node, ast.Raise)], [])
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr | ast.Constant) and id(node) not in alone:
            yield texts(node)


@functools.cache
def arguments() -> set[str]:
    """Names of all arguments and fields in the package."""
    found: set[str] = set()
    for path in LIBRARY:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.arg):
                found.add(node.arg)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found.add(node.target.id)
    return found


@pytest.mark.parametrize("path", LIBRARY, ids=lambda p: str(p.relative_to(ROOT)))
def test_what_python_says_names_arguments_of_python(path: Path) -> None:
    known = arguments()
    for sentence in sentences(path):
        # command lines: the demo's advice, what a page lists, and pip's
        if re.match("bitlens |.*(bitlens harvest MODEL|pip install)", sentence, re.DOTALL):
            continue
        assert not re.findall(FLAG, sentence), sentence
    for sentence in sentences(path, raised=True):
        bare = re.match(r"([a-z_]+) must be", sentence)
        assert not bare or bare[1] not in known or bare[1] in ("words", "test"), (
            sentence
        )  # of Python alone
        for name in re.findall(NAME, sentence):
            assert name in known, sentence


@pytest.mark.slow
def test_every_argument_that_an_error_names_is_a_flag_of_some_command() -> None:
    flags = set().union(*(flags_of(command) for command in commands().values()))
    named = {
        name
        for path in LIBRARY
        for sentence in sentences(path, raised=True)
        for name in re.findall(NAME, sentence)
    }
    assert len(named) > 10
    assert not {name for name in named if not {name, RENAMED.get(name)} & flags}


@pytest.mark.parametrize("path", CLI, ids=lambda p: p.name)
def test_a_command_names_only_flags_of_its_own(path: Path) -> None:
    own = [
        c for c in commands().values() if c.__module__ == f"bitlens.cli.{path.stem}"
    ] or commands().values()
    flags = set().union(*(flags_of(command) for command in own)) | {"help", "version", "plan"}
    for sentence in sentences(path):
        for name in re.findall(FLAG, sentence):
            name = name.replace("-", "_")
            assert name in flags or name.removeprefix("no_") in flags, sentence


def test_names_become_flags_of_the_command_that_is_run() -> None:
    every = commands()
    sentence = (
        "pass `resume=True` to go on, `part='all'`, `joint=False`; lower `length` or `n_latents`."
    )
    assert in_flags(sentence, every["evaluate"]) == (
        "pass resume=True to go on, --part all, --no-joint; lower length or n_latents."
    )
    assert in_flags(sentence, every["train"]) == (
        "pass --resume to go on, part='all', joint=False; lower --context or --n-latents."
    )
    assert in_flags("`store_dtype=torch.float32`", every["harvest"]) == "--store-dtype float32"
    assert in_flags("as `bitlens encode` writes", every["train"]) == "as `bitlens encode` writes"


@pytest.mark.parametrize("command", PLACES)
def test_help_explains_a_command_and_names_only_its_flags(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    shown = capsys.readouterr().out
    assert f"usage: bitlens {command}" in shown
    assert "--json" in shown
    flags = set(re.findall(r"^\W{1,2}(?:-h, )?(--[a-z][a-z0-9-]*)", shown, re.MULTILINE))
    assert "--help" in flags
    assert set(re.findall(r"--[a-z][a-z0-9-]*", shown)) == flags
