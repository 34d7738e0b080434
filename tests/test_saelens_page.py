"""docs/for-saelens-users.md against what is installed: every name exists, its code runs."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import bitlens
from bitlens.cli import runs, stores
from bitlens.cli.calling import flags_of

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "for-saelens-users.md").read_text(encoding="utf-8")
OTHER = r"bitlens |autoencoders/|autoencoder\.|with$|harvest$|\w+=(True)?$"  # not a name


def cells() -> list[list[str]]:
    """The lines of all tables but their heads."""
    lines = [line for line in PAGE.splitlines() if line.startswith("| ")]
    found = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [line for line in found if line[0].strip() not in ("SAELens", "field", "---")]


def named(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def exists(root: Any, name: str) -> bool:
    for part in name.split("."):
        if not hasattr(root, part):
            return False
        root = getattr(root, part)
    return True


def test_every_name_of_saelens_is_there() -> None:
    sae_lens = pytest.importorskip("sae_lens")
    configs = ("LanguageModelSAERunner", "TopKTrainingSAE", "StandardTrainingSAE")
    configs += ("JumpReLUTrainingSAE",)
    kinds = [getattr(sae_lens, f"{name}Config") for name in configs]
    fields = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    names = [name for line in cells() for name in named(line[0])]
    assert len(names) > 45
    for name in (n for n in names if not n.startswith("sae.") and n != "use_error_term"):
        assert exists(sae_lens, name) or name in fields, name


def test_every_name_of_ours_is_there() -> None:
    import bitlens.autoencoders as autoencoders
    import bitlens.causal.intervene as intervene

    flags = functools.reduce(set.union, map(flags_of, (stores.harvest, runs.train, runs.evaluate)))
    for name in (name for line in cells() for name in named(line[1])):
        if name.startswith("--"):
            assert name[2:].replace("-", "_") in flags, name
        elif not re.match(OTHER, name):
            name = name.removeprefix("bl.").partition("(")[0]
            homes = (bitlens, autoencoders, intervene)
            assert any(exists(home, name) for home in homes), name


def test_the_program_runs(codes_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("sae_lens")
    for name in ("store", "run"):
        shutil.copytree(codes_folder.parent / name, tmp_path / name)
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    share = re.search(r"(\S+) of the bits differ", done.stdout)
    assert share is not None
    assert float(share[1]) < 1e-4
