"""Run the demo and keep what it prints as a picture and as text, for the README.

python tools/render_demo.py docs/demo.svg docs/demo.txt
"""

import sys
import tempfile
from pathlib import Path

from rich.console import Console

from bitlens import show
from bitlens.demo import run_demo


def main() -> None:
    picture, text = map(Path, sys.argv[1:3])
    show.out = Console(record=True, width=120, highlight=False)
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "bitlens-demo"
        run_demo(out)
        shown = show.out.export_text(clear=False)
        svg = show.out.export_svg(title="bitlens demo", font_aspect_ratio=0.61)
    text.write_text(shown.replace(f"{scratch}/", ""), encoding="utf-8")
    picture.write_text(svg.replace(f"{scratch}/", ""), encoding="utf-8")


if __name__ == "__main__":
    main()
