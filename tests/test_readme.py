"""The README and the docs say what is so: their code runs, their commands and links exist."""

import ast
import importlib
import importlib.util
import operator
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import bitlens
from bitlens.cli import COMMANDS

ROOT = Path(__file__).parent.parent
NEIGHBOURS = {"sae_lens"}
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


SMALLER = {  # the same code on less, as time goes
    "bash": {
        "--hook layers.2": "--hook layers.2 --max-rows 60000",
        "--n-latents 1024 --steps 1000": "--n-latents 512 --steps 200",
    },
    "python": {
        'model, "bundled", "store"': 'model, "bundled", "store", max_rows=60_000',
        "n_latents=1024, steps=1000": "n_latents=512, steps=200",
    },
}


def block(language: str) -> str:
    """The one block of README code in this language, made smaller."""
    (code,) = re.findall(
        rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL
    )
    for large, small in SMALLER[language].items():
        assert large in code
        code = code.replace(large, small)
    return code


def execute(command: list[str], folder: Path) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_python_of_the_readme_runs(tmp_path: Path) -> None:
    said = execute([sys.executable, "-c", block("python")], tmp_path)
    assert re.search(r"fvu 0\.[012]\d* with \d+ bits; loss kept 0\.9\d*", said)
    assert (tmp_path / "codes" / "manifest.json").exists()


@pytest.mark.slow
def test_commands_of_the_readme_run(tmp_path: Path) -> None:
    said = execute(["bash", "-euo", "pipefail", "-c", block("bash")], tmp_path)
    assert "ce_loss_score" in said
    assert {"store", "run", "codes"} <= {p.name for p in tmp_path.iterdir()}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert set(re.findall(r"^(?: {4}|.*`)bitlens ([a-z]+)", text, re.MULTILINE)) <= set(COMMANDS)
    assert all((ROOT / script).exists() for script in re.findall(r"benchmarks/\w+\.py", text))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_what_python_code_imports_exists(page: Path) -> None:
    for code in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom):
                if node.module in NEIGHBOURS and importlib.util.find_spec(node.module) is None:
                    continue  # looked at where it is installed
                module = importlib.import_module(node.module or "")
                assert not [a.name for a in node.names if not hasattr(module, a.name)], node.module
            elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "bl":
                assert hasattr(bitlens, node.attr), node.attr


def test_the_tour_of_the_architecture_names_what_is_there() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    steps = re.findall(r"^ *([a-z_/]+\.py) ([\w.]+)", page, re.MULTILINE)
    assert len(steps) > 25
    for file, name in steps:
        module = importlib.import_module("bitlens." + file[:-3].replace("/", "."))
        assert operator.attrgetter(name)(module), (file, name)


def test_style() -> None:
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "."], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout
