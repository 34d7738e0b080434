"""Write the lowest versions that pyproject.toml allows of what users install, for pip's `-c`.

python tools/list_lowest.py constraints-lowest.txt
"""

import re
import sys
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parent.parent / "pyproject.toml"
EXTRAS = ("data", "device-map", "explore", "remote", "tensorboard", "wandb")
HEAD = """\
# The lowest versions that pyproject.toml allows, tested by `make lowest`. By tools/list_lowest.py.
# The extra [gguf] is not among them, as it asks for a newer transformers. boto3 is there because
# pip would try all of its versions, one after the other, for moto and the lowest s3fs.
boto3==1.41.5
"""


def lowest() -> str:
    """The lines of a constraints file."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    extras = (project["optional-dependencies"][name] for name in EXTRAS)
    bounds: dict[str, str] = {}
    for requirement in [*project["dependencies"], *(r for extra in extras for r in extra)]:
        found = re.match(r"([\w.-]+)>=([\w.]+)(,<[\w.]+)?$", requirement)
        if found is None:
            raise SystemExit(f"{requirement} has no lowest version.")
        bounds.setdefault(found[1], found[2])
    return HEAD + "".join(f"{name}=={bounds[name]}\n" for name in sorted(bounds))


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(lowest(), encoding="utf-8")
