"""Write the table of what other tools and bitlens give each other into docs/ecosystem.md.

python tools/exchange_table.py docs/ecosystem.md --real bitlens-real

Needs the other tools (`make .venv/ecosystem`), and the folder of `make real`.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent.parent / "tests"))

from exchanged import bundled_runs, exchanges

BEGIN, END = "<!-- made by tools/exchange_table.py -->", "<!-- end -->"
HEAD = (
    "| tool | version | | what | run | codes | reconstruction | on in one alone |\n"
    "| --- | --- | --- | --- | --- | ---: | ---: | ---: |"
)


def at_most(value: float) -> str:
    """A power of ten above twice the value: the same on another processor. Large ones as they
    are, none as a dash."""
    if math.isnan(value):
        return "-"
    if not value or value > 1e-2:
        return f"{value:.2g}"
    return f"{10.0 ** math.ceil(math.log10(2 * value)):.0e}"


def line(row: Any) -> str:
    """A row in Markdown."""
    alone = f"{row.differing:,} of {row.compared:,}" if row.differing else "0"
    codes, reconstruction = at_most(row.codes), at_most(row.reconstruction)
    cells = (row.tool, row.version, row.direction, row.what, row.run, codes, reconstruction, alone)
    return f"| {' | '.join(cells)} |"


def table(rows: Iterable[Any]) -> str:
    """The whole of it, between its marks."""
    return "\n".join([BEGIN, HEAD, *map(line, rows), END])


def main() -> None:
    """Replace what stands between the two marks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("--real", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundled = bundled_runs(Path(folder))
        made = table(exchanges(bundled, given.real))
    text = given.page.read_text(encoding="utf-8")
    new = re.sub(f"{BEGIN}.*{END}", lambda _: made, text, flags=re.DOTALL)
    given.page.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
