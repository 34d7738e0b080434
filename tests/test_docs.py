"""The code of docs/ is so: Python runs on what the quick start leaves, commands have these flags.

A fenced block that cannot run says why in a comment before it: <!-- not run: REASON -->
"""

import importlib
import operator
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tyro

import bitlens
from bitlens import cli
from bitlens.cli import calling

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))
QUICK = ROOT / "docs" / "quick-start.md"
OTHERS = {  # what pages open beside the quick start's store, run and codes: how it is made
    "topk": "train store --architecture topk --k 8 --n-latents 64 --steps 20",
    "other-run": "train store --n-latents 64 --steps 20 --seed 1",
}
SMALLER = {  # the same code on less, as time goes
    "--max-rows 60000": "--max-rows 37000",
    "--n-latents 1024 --steps 700": "--n-latents 800 --steps 150",
    "max_rows=100_000": "max_rows=5000",
    "n_latents=256, steps=500": "n_latents=64, steps=50",
}
ALSO = {"run_a": "run", "run_b": "other-run"}
FENCED = re.compile(r"(?:<!-- not run: (.*?) -->\n)?```(\w+)\n(.*?)```", re.DOTALL)
INDENTED = re.compile(r"(?:^ {4}.*\n)+", re.MULTILINE)


class Block(NamedTuple):
    why_not: str
    language: str
    code: str


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    for large, small in SMALLER.items():
        text = text.replace(large, small)
    return [Block(*found) for found in FENCED.findall(text)]


def python(page: Path) -> str:
    """All Python of a page that runs, as one program."""
    return "\n".join(b.code for b in blocks(page) if b.language == "python" and not b.why_not)


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every line of a shell on a page, fenced or indented."""
    text = page.read_text(encoding="utf-8")
    indented = ["\n".join(line[4:] for line in b.splitlines()) for b in INDENTED.findall(text)]
    for code in [b.code for b in blocks(page) if b.language == "bash"] + indented:
        for line in code.replace("\\\n", " ").splitlines():
            if re.match(r"(bitlens|make|pip|python) [\w.'-]", line):
                yield shlex.split(line, comments=True)


def run(folder: Path, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    cli.main(shlex.split(line))


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the quick start's commands leave, and what other pages open beside it."""
    folder = tmp_path_factory.mktemp("docs")
    with pytest.MonkeyPatch.context() as patch:
        for words in (w for b in blocks(QUICK) if b.language == "bash" for w in lines(b.code)):
            run(folder, shlex.join(words[1:]), patch)
        for name, line in OTHERS.items():
            run(folder, f"{line} --out {name}", patch)
    return folder


def lines(code: str) -> list[list[str]]:
    return [shlex.split(line) for line in code.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if python(p)], ids=lambda p: p.stem)
def test_python_runs(
    page: Path, begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in begun.iterdir():
        (tmp_path / path.name).symlink_to(path)
    for name, path in ALSO.items():
        (tmp_path / name).symlink_to(begun / path)
    (tmp_path / "model").symlink_to(Path(bitlens.__file__).parent / "bundled" / "model")
    monkeypatch.chdir(tmp_path)
    program = tmp_path / f"{page.stem}.py"  # a library may look its caller up
    program.write_text(python(page), encoding="utf-8")
    exec(compile(program.read_text(encoding="utf-8"), program, "exec"), {})


def test_what_does_not_run_says_why() -> None:
    left_out = {page.stem: b.why_not for page in PAGES for b in blocks(page) if b.why_not}
    assert set(left_out) <= {"judges", "study-icl", "remote", "ecosystem-hub", "ecosystem-import"}
    assert all(len(reason.split()) > 3 for reason in left_out.values())


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_commands_have_these_flags(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are parsed as when they run, and then nothing is done."""
    made, parsed = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)), []
    monkeypatch.setattr(tyro, "cli", parse_only(tyro.cli, parsed))
    monkeypatch.setattr(calling.tyro, "cli", tyro.cli)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for words in commands(page):
        match words:
            case ["make", target, *_]:
                assert target in made, words
            case ["pip", "install", what, *_]:
                extras = re.findall(r"\[(.*)\]", what)
                assert set(extras) <= set(project["optional-dependencies"]), words
            case ["python", *rest]:
                has_flags(rest)
            case ["bitlens", *rest, "--help"]:
                with pytest.raises(SystemExit, match="0"):
                    cli.main([*rest, "--help"])
            case ["bitlens", *rest]:
                before = len(parsed)
                cli.main([word for word in rest if word != "..."])
                assert len(parsed) == before + 1, words


def parse_only(parse: Any, parsed: list[str]) -> Any:
    """`tyro.cli` of a command that does nothing."""

    def cli(command: Any, **settings: Any) -> None:
        def nothing(*args: Any, **kwargs: Any) -> None:
            parsed.append(settings["prog"])

        calling.show_as(nothing, command)
        parse(nothing, **settings)

    return cli


def has_flags(words: list[str]) -> None:
    """A script of this repository that knows each of these flags."""
    path = words[0] if words[0] != "-m" else words[1].replace(".", "/") + ".py"
    source = "".join(f.read_text(encoding="utf-8") for f in sources(ROOT / path))
    for flag in (word[2:] for word in words if word.startswith("--")):
        assert f"--{flag}" in source or flag.replace("-", "_") in source, (path, flag)


def sources(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(path.with_suffix("").glob("*.py"))


def test_the_way_from_the_paper_to_the_code_names_what_is_there() -> None:
    text = (ROOT / "docs" / "paper-to-code.md").read_text(encoding="utf-8")
    named = re.findall(r"`([a-z_/]+)\.py` `([\w.]+)`", text)
    rows = [line for line in text.splitlines() if line.startswith("| **")]
    assert len(rows) > 9
    assert all(re.search(r"\.py` `[\w.]+` \|$", row) for row in rows)
    for file, name in named:
        module = importlib.import_module("bitlens." + file.replace("/", "."))
        assert operator.attrgetter(name)(module), (file, name)


def test_every_public_name_is_on_a_page_of_the_reference() -> None:
    text = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "docs" / "api").glob("*.md"))
    shown = set(re.findall(r"^::: bitlens\.(\w+)$", text, re.MULTILINE))
    assert shown == set(bitlens.__all__)
    for name in re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE):
        module, _, attribute = name.rpartition(".")
        assert getattr(importlib.import_module(module), attribute), name
