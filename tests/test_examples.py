"""The notebooks of examples/ run, and read well as they are committed."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
executed = runpy.run_path(str(ROOT / "tools" / "run_notebooks.py"))["executed"]


def said(notebook: Any) -> str:
    """All that its cells print and show, as text."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "\n".join(o.get("text") or o["data"]["text/plain"] for o in outputs)


@pytest.fixture
def ran(tmp_path: Path) -> Any:
    """`ran("audit")`: what the notebook prints when it runs now, in an empty folder."""
    return lambda name: said(executed(ROOT / "examples" / f"{name}.ipynb", tmp_path))


@pytest.mark.slow
def test_first_steps(ran: Any, tmp_path: Path) -> None:
    text = ran("first_steps")
    assert float(re.findall(r"fvu=([\d.]+)", text)[0]) < 0.35
    before, after = re.findall(r"^ .* \d\.\d\d\n +The king .*", text, re.MULTILINE)
    assert her_to_his(after) > 1.5 * her_to_his(before)
    assert (tmp_path / "run" / "report.html").exists()


def her_to_his(line: str) -> float:
    """Chance of her over that of him and his, among the likeliest next words of a line."""
    chances = {word: float(p) for word, p in re.findall(r"(\w+) (\d\.\d\d)", line)}
    return chances.get("her", 0) / (chances.get("him", 0) + chances.get("his", 0) + 0.01)


@pytest.mark.slow
def test_audit(ran: Any) -> None:
    number = r"(\d\.\d\d)"
    line = rf"as it is {number} .* at [01]: {number} .*: {number}, from {number} to {number}"
    men, women = (list(map(float, found)) for found in re.findall(line, ran("audit")))
    as_it_is, flipped, _, _, highest = men
    assert flipped > 2 * max(as_it_is, highest)
    as_it_is, flipped, _, lowest, _ = women
    assert flipped < min(as_it_is, lowest) - 0.2


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_committed_was_run_and_names_no_machine(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < 100_000
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [o for cell in code for o in cell.outputs if o.output_type == "error"]
    assert not re.search(r"/(tmp|root|home|work|usr|var)\b", path.read_text(encoding="utf-8"))
    links = [re.findall(r"\]\(([^)#]+)\)", c.source) for c in notebook.cells]
    assert all((path.parent / link).exists() for found in links for link in found)


def test_both_notebooks_are_there() -> None:
    assert {path.stem for path in NOTEBOOKS} == {"first_steps", "audit"}
