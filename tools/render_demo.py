"""Run the demo and keep what it prints as a picture and as text, for the README.

python tools/render_demo.py docs/demo.svg docs/demo.txt
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
        line = re.sub(r"-?\d[\d.,]*", "#", line)
        lines.append(re.sub(r"[ ─━═│┃]+", " ", line).strip())
    lines = [line for line in lines if line]
    return [line for line, former in zip(lines, ["", *lines], strict=False) if line != former]


def main() -> None:
    picture, text = map(Path, sys.argv[1:3])
    show.out = Console(record=True, width=120, highlight=False, markup=False, emoji=False)
    with tempfile.TemporaryDirectory() as scratch:
        run_demo(Path(scratch) / "bitlens-demo")
    shown = show.out.export_text(clear=False)
    svg = show.out.export_svg(title="bitlens demo", font_aspect_ratio=0.61)
    text.write_text(re.sub(r"\S*/bitlens-demo", "bitlens-demo", shown), encoding="utf-8")
    picture.write_text(re.sub(r"[^\s<>]*/bitlens-demo", "bitlens-demo", svg), encoding="utf-8")


if __name__ == "__main__":
    main()
