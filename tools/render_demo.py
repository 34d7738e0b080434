"""Run the demo and keep what it prints.

python tools/render_demo.py docs/demo.txt
"""

import re
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from bitlens import show
from bitlens.demo import run_demo


def shape(text: str) -> list[str]:
    """What a run prints on every machine: sentences, and a table's names and meanings. Numbers, and
    the latents that training found, differ with the processor."""
    lines = []
    for line in text.splitlines():
        if line.startswith("latent "):
            line = "latent"
        elif line.startswith("   ") and "«" in line:
            line = "   example"
        line = re.sub(r"^Everything is in .*: store,", "Everything is in a folder: store,", line)
        line = re.sub(r"\S*bitlens-demo/|\S*/demo/", "", line)
        line = re.sub(r"-?\d[\d.,]*", "#", line)
        lines.append(re.sub(r"[ ─━═│┃]+", " ", line).strip())
    lines = [line for line in lines if line]
    return [line for line, former in zip(lines, ["", *lines], strict=False) if line != former]


def main() -> None:
    show.out = Console(record=True, width=120, highlight=False, markup=False, emoji=False)
    with tempfile.TemporaryDirectory() as scratch:
        run_demo(Path(scratch) / "bitlens-demo")
    shown = re.sub(r"\S*/bitlens-demo", "bitlens-demo", show.out.export_text())
    Path(sys.argv[1]).write_text(shown, encoding="utf-8")


if __name__ == "__main__":
    main()
