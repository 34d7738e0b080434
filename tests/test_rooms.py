"""The layering of the package, read from its imports."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import bitlens

ROOT = Path(bitlens.__file__).parent
MODULES = sorted(path for path in ROOT.rglob("*.py") if "bundled" not in path.parts)
# From the top; a room imports only from below itself. Names on one line are of the same height.
ROOMS = [
    ["__main__"],
    ["cli"],
    ["demo", "explorer", "saelens"],
    ["ecosystem"],
    ["show", "report"],
    ["studies"],
    ["compression"],
    ["evaluation", "encode", "sweeping"],
    ["causal", "comsem", "matching"],
    ["features"],
    ["labels"],
    ["information"],
    ["training"],
    ["autoencoders"],
    ["hidden"],
    ["bits"],
]
HEIGHT = {room: -level for level, rooms in enumerate(ROOMS) for room in rooms}
FOUNDATION = {
    "cache",
    "devices",
    "errors",
    "files",
    "forms",
    "hub",
    "markup",
    "memory",
    "options",
    "processes",
    "remote",
    "results",
    "seeding",
    "shards",
    "terminal",
    "version",
    "writing",
    "__init__",
}
CORE = {"hidden", "autoencoders", "training", "bits", "information"}
CORE_LIBRARIES = {
    "torch",
    "numpy",
    "safetensors",
    "transformers",
    "numba",
    "llvmlite",
    "bitlens",
    "__future__",
}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST) -> Iterator[str]:
    """Full dotted names of everything imported in this tree, `from a import b` as a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def run_on_import(body: list[ast.stmt]) -> Iterator[str]:
    """Names imported when the module is: not those in functions."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from imports(node)
        for inner in ("body", "orelse", "finalbody", "handlers"):
            yield from run_on_import(getattr(node, inner, []))


def test_every_module_has_a_place():
    assert len(MODULES) > 30
    assert {room_of(path) for path in MODULES} == set(HEIGHT) | FOUNDATION


@pytest.mark.slow
def test_no_modules_import_one_another_in_a_circle():
    """Neither when they are imported nor in a function, inside rooms as between them."""
    modules = {module_of(path): path for path in MODULES}
    below = {}
    for module, path in modules.items():
        names = imports(ast.parse(path.read_text(encoding="utf-8")))
        below[module] = {n if n in modules else n.rpartition(".")[0] for n in names}
        below[module] &= set(modules) - {module, "bitlens"}
    TopologicalSorter(below).prepare()  # raises CycleError with the modules of a circle


@pytest.mark.parametrize(
    "path", [path for path in MODULES if path != ROOT / "__init__.py"], ids=name_of
)
def test_a_room_imports_only_rooms_below_it(path):
    here = room_of(path)
    for name in imports(ast.parse(path.read_text(encoding="utf-8"))):
        parts = name.split(".")
        there = parts[1] if parts[0] == "bitlens" and len(parts) > 1 else here
        if there == here or there in FOUNDATION or there == "__version__":
            continue
        assert here not in FOUNDATION, f"{name_of(path)} is a foundation and imports {name}"
        assert HEIGHT[there] < HEIGHT[here], f"{name_of(path)} imports {name} from above"


@pytest.mark.parametrize(
    "path", [path for path in MODULES if room_of(path) in CORE | FOUNDATION], ids=name_of
)
def test_the_core_needs_only_its_few_libraries(path):
    found = {
        name.split(".")[0]
        for name in run_on_import(ast.parse(path.read_text(encoding="utf-8")).body)
    }
    allowed = {"triton"} if path.name == "descent_triton.py" else set()  # torch's, with a GPU
    assert found <= CORE_LIBRARIES | allowed | set(sys.stdlib_module_names)


def test_importing_the_package_imports_none_of_its_rooms():
    body = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8")).body
    rooms = [name for name in run_on_import(body) if name.startswith("bitlens")]
    assert rooms == ["bitlens.version.__version__"]
    for name in bitlens.__all__:
        assert getattr(bitlens, name).__name__ == name


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nothing_that_could_be_code_is_loaded(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    forbidden = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    assert not {name.split(".")[0] for name in imports(tree)} & forbidden
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            empty = ast.unparse(node) == "exec('')"  # see the command's end
            assert empty or called not in {"torch.save", "eval", "exec"}, called
            if called == "torch.load":  # into tensors alone, of what a neighbour has written
                assert "weights_only=True" in ast.unparse(node)
            for keyword in node.keywords:
                value = ast.unparse(keyword.value)
                assert (keyword.arg, value) not in {
                    ("allow_pickle", "True"),
                    ("trust_remote_code", "True"),
                }, called


@pytest.mark.slow
def test_every_library_is_declared_and_none_is_advised_from_a_registry_that_lacks_it():
    project = tomllib.loads((ROOT.parent.parent / "pyproject.toml").read_text(encoding="utf-8"))[
        "project"
    ]
    base = {re.split(r"[^A-Za-z0-9_.-]", line)[0] for line in project["dependencies"]}
    optional = {
        "datasets",
        "fastapi",
        "gguf",
        "h5py",
        "pandas",
        "sae_bench",
        "sae_lens",
        "transformer_lens",
        "triton",
        "upath",
        "uvicorn",
        "wandb",
    }  # each is named by a sentence where it is missing
    known = base | optional | {"bitlens", "llvmlite", "cycler", "pydantic", "starlette", "filelock"}
    known |= set(sys.stdlib_module_names)
    known |= {"fsspec"}  # huggingface_hub's and torch's
    # llvmlite is numba's, cycler matplotlib's, pydantic and starlette fastapi's
    for path in MODULES:
        text = path.read_text(encoding="utf-8")
        found = {name.split(".")[0] for name in imports(ast.parse(text))}
        found |= {
            name.split(".")[0] for name in re.findall(r"(?:import_module|library)\(\"(\w+)", text)
        }
        assert found <= known, path
        assert not re.search(r"pip install '?bitlens", text), path
    for page in [ROOT.parent.parent / "README.md", *(ROOT.parent.parent / "docs").glob("*.md")]:
        assert not re.search(r"pip install '?bitlens", page.read_text(encoding="utf-8")), page
