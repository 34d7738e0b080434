"""What is released: wheel and sdist are whole, and the wheel works where nothing else is."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.version import Version

from bitlens.version import __version__

ROOT = Path(__file__).parent.parent
shape = runpy.run_path(str(ROOT / "tools" / "render_demo.py"))["shape"]
SITE_PACKAGES = Path(pytest.__file__).parent.parent
DATA = {  # what the package has beside its modules
    "py.typed",
    "bundled/corpus.jsonl.gz",
    "bundled/model/model.safetensors",
    "bundled/model/tokenizer.json",
    "explorer/page/index.html",
    "explorer/page/app.js",
    "explorer/page/base.css",
    "templates/report.html",
    "templates/palette.css",
}
PROGRAM = """\
from typing import assert_type

import torch

import bitlens as bl

rows = torch.zeros(8, 4)
found = bl.train(bl.TensorSource(rows), bl.TrainConfig(n_latents=8, steps=1))
assert_type(found, bl.Autoencoder)
assert_type(found.encode_bits(rows), bl.PackedBits)
assert_type(bl.Autoencoder.from_pretrained("run"), bl.Autoencoder)
"""
WRONG = 'bl.TrainConfig(n_latents="many")\n'


def command(*words: object, cwd: Path, check: bool = True, **environment: str) -> str:
    """What a program says that sees nothing of this checkout."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env=kept | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 or not check, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel and the sdist of what git has of this checkout."""
    pytest.importorskip("build")
    copy, out = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("dist")
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in command(*listed, cwd=ROOT).split("\0"):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    command(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ".", cwd=copy)
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, sdist


@pytest.fixture(scope="module")
def installed(released: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel, and with the libraries of this one but for bitlens."""
    home = tmp_path_factory.mktemp("installed") / "env"
    command(sys.executable, "-m", "venv", "--without-pip", home, cwd=home.parent)
    pip = (sys.executable, "-m", "pip", "-q", "--python", home / "bin" / "python", "install")
    command(*pip, "--no-deps", "--no-index", released[0], cwd=home.parent)
    (site,) = home.glob("lib/python*/site-packages")
    (site / "libraries.pth").write_text(f"{SITE_PACKAGES}\n")  # .pth files there are not read
    return home


@pytest.mark.slow
def test_the_wheel_is_whole_and_has_nothing_else(released: tuple[Path, Path]) -> None:
    wheel, _ = released
    assert wheel.name == f"bitlens-{__version__}-py3-none-any.whl"
    names = zipfile.ZipFile(wheel).namelist()
    info = f"bitlens-{__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {"bitlens", info}
    assert {f"bitlens/{name}" for name in DATA} <= set(names)
    assert f"{info}/licenses/LICENSE" in names
    here = {str(p.relative_to(ROOT / "src")) for p in (ROOT / "src" / "bitlens").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == here
    assert [name for name in names if name.endswith(".safetensors")] == [
        "bitlens/bundled/model/model.safetensors"
    ]
    assert wheel.stat().st_size < 15e6


@pytest.mark.slow
def test_the_sdist_has_the_same_package_and_no_tests(released: tuple[Path, Path]) -> None:
    wheel, sdist = released
    with tarfile.open(sdist) as archive:
        inside = [name.partition("/")[2] for name in archive.getnames()]
    names = {name for name in inside if name}
    package = {n for n in zipfile.ZipFile(wheel).namelist() if n.startswith("bitlens/")}
    assert {f"src/{name}" for name in package} <= names
    assert {"LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff"} <= names
    assert not [name for name in names if name.split("/")[0] in ("tests", "docs", "benchmarks")]


@pytest.mark.slow
def test_an_index_would_take_them(released: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("twine")
    said = command(sys.executable, "-m", "twine", "check", "--strict", *released, cwd=tmp_path)
    assert said.count("PASSED") == 2


@pytest.mark.slow
def test_the_demo_runs_from_the_wheel_with_an_empty_home(installed: Path, tmp_path: Path) -> None:
    offline = {"HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    python, bitlens = installed / "bin" / "python", installed / "bin" / "bitlens"
    where = "import bitlens; print(bitlens.__file__, bitlens.__version__)"
    said = command(python, "-c", where, cwd=tmp_path, **offline)
    assert said.startswith(str(installed))
    assert said.split()[1] == __version__
    small = ("--max-rows", "60000", "--steps", "150", "--n-latents", "256")
    line = (bitlens, "demo", "--out", "bitlens-demo", *small, "--json", "it.json")
    shown = command(*line, cwd=tmp_path, **offline)
    assert shown.count("\nlatent ") == 10
    assert shape(shown) == shape((ROOT / "docs" / "demo.txt").read_text(encoding="utf-8"))
    out, numbers = tmp_path / "bitlens-demo", json.loads((tmp_path / "it.json").read_text())
    assert numbers.items() <= json.loads((out / "demo.json").read_text()).items()
    for name in ("store", "bae/report.html", "topk", "codes-bae", "codes-topk"):
        assert (out / name).exists()
    assert numbers["BAE"]["fvu"] < 0.4
    assert numbers["BAE"]["ce_loss_score"] > 0.8


@pytest.mark.slow
def test_programs_that_use_it_are_checked_by_its_types(installed: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyright")
    (tmp_path / "right.py").write_text(PROGRAM)
    (tmp_path / "wrong.py").write_text(PROGRAM + WRONG)
    pyright = (sys.executable, "-m", "pyright", "--pythonpath", installed / "bin" / "python")
    assert "0 errors" in command(*pyright, "right.py", cwd=tmp_path)
    said = command(*pyright, "wrong.py", cwd=tmp_path, check=False)
    assert "1 error" in said
    assert '"n_latents"' in said


def test_the_lowest_versions_are_those_of_the_project_file() -> None:
    lowest = runpy.run_path(str(ROOT / "tools" / "list_lowest.py"))["lowest"]()
    assert (ROOT / "constraints-lowest.txt").read_text(encoding="utf-8") == lowest
    pins = pinned("constraints.txt")
    for name, version in pinned("constraints-lowest.txt").items():
        assert Version(version) <= Version(pins[name])


def pinned(file: str) -> dict[str, str]:
    lines = re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / file).read_text(), re.MULTILINE)
    return {name.lower(): version for name, version in lines}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schema", "pattern"),
    [("github-workflows", ".github/workflows/*.yml"), ("citation-file-format", "CITATION.cff")],
)
def test_files_for_others_are_valid(schema: str, pattern: str) -> None:
    pytest.importorskip("check_jsonschema")
    files = sorted(ROOT.glob(pattern))
    assert files
    checker = (sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}")
    assert "ok" in command(*checker, *files, cwd=ROOT)


def test_workflows_run_what_the_makefile_has_and_know_no_secret() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w/.-]+):", makefile, re.MULTILINE))
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        text = path.read_text(encoding="utf-8")
        called = re.findall(r"\bmake ([\w-]+)", text)
        assert called, path
        assert set(called) <= targets
        assert "secrets." not in text


def test_the_version_is_said_once() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (\S+)$", citation, re.MULTILINE) == [__version__]
    assert f"\n## [{__version__}]" in changelog
    assert "\n## [Unreleased]" in changelog
