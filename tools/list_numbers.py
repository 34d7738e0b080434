"""Write the list of the numbers of `bitlens evaluate` into docs/numbers.md, from their annotations.

python tools/list_numbers.py docs/numbers.md
"""

import re
import sys
from pathlib import Path

from bitlens.evaluation import Evaluation
from bitlens.results import numbers_of

BEGIN, END = "<!-- made by tools/list_numbers.py -->", "<!-- end -->"


def listed() -> str:
    """The table in Markdown."""
    rows = [f"| `{name}` | {n.meaning} |" for name, n in numbers_of(Evaluation).items()]
    return "\n".join([BEGIN, "| name | meaning |", "| --- | --- |", *rows, END])


def main() -> None:
    """Replace what stands between the two marks."""
    page = Path(sys.argv[1])
    text = page.read_text(encoding="utf-8")
    new = re.sub(f"{BEGIN}.*{END}", lambda _: listed(), text, flags=re.DOTALL)
    page.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
