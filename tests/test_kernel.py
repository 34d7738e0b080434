"""Kernels compile and run wherever the package lies, and say so when they compile."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import bitlens
from bitlens.bits import kernel, words

USE = """
import numpy as np
from bitlens.bits import {modules}
from bitlens.bits.words import add_row
total = np.zeros(3)
for _ in range(2):
    add_row(np.arange(3.0), total)
assert total.tolist() == [0, 2, 4]
"""
MODULES = "covariance_cpu, cpu, descent, descent_cpu, products, words"


def use(package: Path, home: str, code: str = USE.format(modules=MODULES), **more: str) -> str:
    """Run the code with the package of that folder -> its standard error"""
    environment = {
        k: v for k, v in os.environ.items() if k not in ("XDG_CACHE_HOME", "NUMBA_CACHE_DIR")
    }
    environment |= {"PYTHONPATH": str(package.parent), "HOME": home, **more}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.fixture
def unwritable(tmp_path: Path) -> Path:
    """A copy of the package in which no cache can be written, not even by root: a file lies where
    its folder would."""
    copy = tmp_path / "bitlens"
    shutil.copytree(
        Path(bitlens.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__", "bundled")
    )
    for folder in [copy, *(path for path in copy.rglob("*") if path.is_dir())]:
        (folder / "__pycache__").write_text("")
    return copy


@pytest.mark.slow
def test_without_a_home_and_in_a_read_only_package_kernels_go_on_without_a_cache(
    unwritable: Path,
) -> None:
    said = use(unwritable, home="/dev/null")
    assert said.count("Compiling kernels") == 1
    assert "NUMBA_CACHE_DIR" in said


@pytest.mark.slow
def test_a_cache_is_used_where_there_is_one_and_only_compiling_is_announced(
    unwritable: Path, tmp_path: Path
) -> None:
    first, second = (use(unwritable, home=str(tmp_path)) for _ in range(2))
    assert "Compiling kernels" in first
    assert "Compiling" not in second


@pytest.mark.slow
def test_a_damaged_or_full_cache_is_gone_without(unwritable: Path, tmp_path: Path) -> None:
    use(unwritable, home="/dev/null", NUMBA_CACHE_DIR=str(tmp_path / "cache"))
    kept = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert kept
    for path in kept:
        path.write_bytes(path.read_bytes()[:40])
    assert "Compiling" in use(unwritable, home="/dev/null", NUMBA_CACHE_DIR=str(tmp_path / "cache"))
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))" + USE.format(
        modules=MODULES
    )
    use(unwritable, home="/dev/null", code=full, NUMBA_CACHE_DIR=str(tmp_path / "other"))


def test_every_kernel_is_made_by_the_one_decorator() -> None:
    for path in Path(bitlens.__file__).parent.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert path.name == "kernel.py" or ("njit" not in text and "numba.jit" not in text), path
    total = np.zeros(2)
    words.add_row(np.ones(2), total)
    assert isinstance(words.add_row._cache, kernel._Cache)
