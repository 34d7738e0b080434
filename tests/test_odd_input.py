"""Arguments of the wrong kind, damaged or with odd names get a sentence and no traceback."""

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from bitlens.cli import COMMANDS, GROUPS, main
from bitlens.errors import BitlensError
from bitlens.files import write_json
from test_cli import run

NAME = "odd [/bold] [red]name :cat:"
COMMAND = [sys.executable, "-m", "bitlens"]
IN_GROUPS = [f"{group} {name}" for group, commands in GROUPS.items() for name in commands]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, harvested: Path) -> Path:
    """A folder whose name is odd, with a store, a run, codes and a compressed file."""
    folder = tmp_path_factory.mktemp("odd") / NAME
    folder.mkdir(parents=True)
    shutil.copytree(harvested, folder / "store")
    small = ["--n-latents", 16, "--steps", 20, "--batch-size", 64]
    for arguments in (
        ["train", folder / "store", "--out", folder / "run", *small],
        ["encode", folder / "run", folder / "store", "--out", folder / "codes"],
        ["compress", folder / "run", folder / "store", "--out", folder / "states.bits"],
    ):
        assert run(*arguments) == 0
    return folder


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one sentence that this command ends with."""
    capsys.readouterr()
    status = run(*arguments)
    said = capsys.readouterr().err.strip().splitlines()
    assert status == 2, (arguments, said)
    assert said[-1].endswith("."), said
    return said[-1]


def reading(
    store: object, of_run: object, codes: object, file: object, out: Path
) -> Iterator[list[object]]:
    """Every command that reads one of these; None leaves its commands out."""
    if of_run and store:
        yield from (
            ["evaluate", of_run, store, "--no-joint", "--no-ce"],
            ["match", of_run, of_run, store],
        )
        yield from (
            ["encode", of_run, store, "--out", out],
            ["compress", of_run, store, "--out", out],
        )
        yield ["faithfulness", of_run, store]
        yield ["effects", of_run, store]
    if store and not of_run:
        yield ["train", store, "--out", out, "--steps", 5, "--n-latents", 8]
    if codes:
        yield from (
            ["entropy", codes],
            ["features", codes],
            ["labels", codes],
            ["interpret", codes, "--out", out],
        )
    if file and of_run:
        yield ["decompress", file, of_run, "--out", out]


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["nothing", "empty", "a file", "store", "run", "codes", "states.bits"]
)
def test_what_is_of_the_wrong_kind_is_refused(
    kind: str, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a file").write_text("text")
    odd = next((p for p in (made / kind, tmp_path / kind) if p.exists()), tmp_path / "nothing")
    out, good = tmp_path / "out", made / "run"
    commands = [
        *(reading(odd, None, None, None, out) if kind != "store" else ()),
        *(reading(made / "store", odd, None, None, out) if kind != "run" else ()),
        *(reading(odd, good, None, None, out) if kind != "store" else ()),
        *(reading(None, None, odd, None, out) if kind != "codes" else ()),
        *(reading(None, good, None, odd, out) if kind != "states.bits" else ()),
        ["import", odd, "--out", out],
        ["harvest", odd, "--text", "bundled", "--hook", "layers.0", "--out", out],
    ]
    for arguments in commands:
        refused(capsys, *arguments)
    assert not (out / "manifest.json").exists()


def variants(text: str) -> Iterator[tuple[str, str]]:
    """A manifest, damaged in every way that is likely."""
    yield "half", text[: len(text) // 2]
    yield from (("list", "[1, 2]"), ("nothing", "{}"), ("empty", ""), ("nested", "[" * 100_000))
    values = json.loads(text)
    for key in values:
        yield f"{key} missing", json.dumps({k: v for k, v in values.items() if k != key})
        for odd in ("x", None, -5, 10**400, {}, [None]):
            yield f"{key} is {odd}", json.dumps({**values, key: odd})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "file"), [("store", "manifest.json"), ("codes", "manifest.json"), ("run", "cfg.json")]
)
def test_a_damaged_manifest_is_refused_or_read_but_never_a_traceback(
    kind: str, file: str, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(made / kind, tmp_path / kind)
    whole = (copy / file).read_text()
    places = {name: made / name for name in ("store", "run", "codes")} | {kind: copy}
    for number, (what, text) in enumerate(variants(whole)):
        (copy / file).write_text(text)
        if kind == "codes":
            status = run("labels", copy, "--no-probes")
        elif kind == "store" and number % 2:
            status = run(
                "train", copy, "--out", tmp_path / f"o{number}", "--steps", 2, "--n-latents", 8
            )
        else:
            status = run("evaluate", places["run"], places["store"], "--no-joint", "--no-ce")
        said = capsys.readouterr().err.strip().splitlines()
        assert status == 0 or said[-1].endswith("."), (what, said)


@pytest.mark.slow
def test_names_with_brackets_and_colons_are_shown_as_they_are(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in (
        ["encode", made / "run", made / "store", "--out", tmp_path / NAME],
        ["evaluate", made / "run", made / "store", "--no-joint", "--no-ce"],
        ["features", made / "codes"],
        ["entropy", made / "codes"],
        ["match", made / "run", made / "run", made / "store"],
        ["faithfulness", made / "run", made / "store", "--contexts", 2],
    ):
        assert run(*arguments) == 0
        shown = "".join(capsys.readouterr().out.split())
        assert "".join(NAME.split()) in shown, arguments


def test_arrays_of_no_rows_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, shape in enumerate([(0, 5), (5, 0), (0, 3, 5), (2, 0, 5), (0, 0)]):
        np.save(tmp_path / f"{number}.npy", np.zeros(shape, np.float32))
        assert "no rows" in refused(
            capsys, "import", tmp_path / f"{number}.npy", "--out", tmp_path / "out"
        )


def test_a_device_is_written_to_and_never_replaced(made: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_json(tmp_path / "pipe", {"a": 1})
    assert json.loads(os.read(reader, 100)) == {"a": 1}
    os.close(reader)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    with pytest.raises(BitlensError, match="is a folder"):
        write_json(tmp_path, {})


@pytest.mark.slow
def test_help_imports_no_torch() -> None:
    heavy = {"torch", "transformers", "numba", "scipy", "matplotlib"}
    lines = [[*name.split(), "--help"] for name in ("", *COMMANDS, *IN_GROUPS)]
    code = (
        "import sys\nfrom bitlens.cli import main\n"
        f"for line in {lines}:\n"
        "    try: main(line)\n"
        "    except SystemExit as stop: assert not stop.code\n"
        f"    found = {heavy} & set(sys.modules)\n"
        "    assert not found, (line, found)\n"
        "    print(line, 'is explained')"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.count("usage: bitlens") == done.stdout.count("is explained") == len(lines)


@pytest.mark.slow
def test_a_reader_that_leaves_early_costs_no_result(made: Path, tmp_path: Path) -> None:
    for arguments in (
        ["--help"],
        ["train", "--help"],
        ["entropy", made / "codes", "--json", tmp_path / "numbers.json"],
    ):
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(
            [*COMMAND, *map(str, arguments)], stdout=writer, stderr=subprocess.PIPE, text=True
        )
        os.close(writer)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        assert "Error" not in done.stderr
    assert json.loads((tmp_path / "numbers.json").read_text())["rows"] > 0


def test_output_that_cannot_be_written_is_told() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*COMMAND, "--help"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr == "The output could not be read or written: No space left on device.\n"


@pytest.mark.slow
def test_no_terminal_and_no_streams_at_all(made: Path, tmp_path: Path) -> None:
    arguments = f"entropy '{made / 'codes'}' --json '{tmp_path / 'n.json'}'"
    line = f"{sys.executable} -m bitlens {arguments} >&- 2>&-"
    assert subprocess.run(["bash", "-c", line]).returncode == 0
    assert (tmp_path / "n.json").exists()


def test_an_unknown_command_names_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert "features" in refused(capsys, "feature")
    assert "synthetic" in refused(capsys, "study", "sintetic")
    assert run() == 2
    with pytest.raises(SystemExit):
        main(["train"])


def test_rows_that_are_none_get_a_sentence_in_python() -> None:
    from bitlens.bits import PackedBits
    from bitlens.features.token_scores import token_scores

    with pytest.raises(BitlensError, match="no latents"):
        PackedBits.pack(torch.zeros(5, 0))
    with pytest.raises(BitlensError, match="no rows"):
        token_scores(
            PackedBits.pack(torch.zeros(0, 3)), torch.zeros(0), torch.zeros(0, dtype=torch.bool)
        )


@pytest.mark.parametrize("command", [*(c for c in COMMANDS if c not in GROUPS), *IN_GROUPS])
def test_a_file_that_cannot_be_written_is_told_before_the_work(
    command: str, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {
        "harvest": ["nowhere", "--text", "nothing", "--hook", "layers.0", "--out", tmp_path / "o"],
        "import": [tmp_path / "none.npy", "--out", tmp_path / "o"],
        "train": [made / "store", "--out", tmp_path / "o"],
        "encode": ["no", "no", "--out", tmp_path / "o"],
        "match": ["no", "no", "no"],
        "compress": ["no", "no", "--out", tmp_path / "o"],
        "decompress": ["no", "no", "--out", tmp_path / "o"],
        "demo": ["--out", tmp_path / "o"],
        "bench": [],
        "interpret": ["no", "--out", tmp_path / "o"],
        "contrast": ["no", "--positive", "0-9", "--negative", "10-19"],
        "study icl": ["--data", "no", "--out", tmp_path / "o"],
        "push": ["no", "me/run"],
        "saebench": ["no", "--out", tmp_path / "o"],
        "export saelens": ["no", "--out", tmp_path / "o"],
        "export delphi": ["no", "no", "--out", tmp_path / "o"],
        "export neuronpedia": ["no", "no", "--out", tmp_path / "o"],
        "export vector": ["no", "1", "--out", tmp_path / "o"],
    }.get(command, ["no", "no"] if command in ("evaluate", "faithfulness", "effects") else ["no"])
    given = (
        ["--out", tmp_path / "o"]
        if command.startswith("study") and command != "study icl"
        else given
    )
    (tmp_path / "file").touch()
    said = refused(capsys, *command.split(), *given, "--json", tmp_path / "file" / "n.json")
    assert "cannot be written" in said
    assert f"{tmp_path / 'file' / 'n.json'}" in said
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("command", ["faithfulness", "effects", "features", "labels", "compress"])
def test_so_is_a_file_of_results(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    given = ["no", "no"] if command in ("faithfulness", "effects", "compress") else ["no"]
    assert "cannot be written" in refused(
        capsys, command, *given, "--out", tmp_path / "file" / "n.csv"
    )


@pytest.mark.parametrize("option", ["--n-latents", "--steps", "--max-rows"])
def test_a_demo_of_nothing_is_refused_before_anything_is_written(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, "demo", "--out", tmp_path / "demo", option, "0")
    assert f"{option} must be at least 1" in said
    assert not (tmp_path / "demo").exists()


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_to_is_named(made: Path, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir(mode=0o555)
    as_others = (
        ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override"]
        if os.getuid() == 0
        else []
    )
    if as_others and (
        not shutil.which("setpriv")
        or subprocess.run([*as_others, "true"], stderr=subprocess.DEVNULL).returncode
    ):
        pytest.skip("root may write everywhere")
    command = [
        *as_others,
        *COMMAND,
        "train",
        made / "store",
        "--out",
        tmp_path / "kept",
        "--steps",
        5,
    ]
    done = subprocess.run([str(c) for c in command], stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert f"The folder {tmp_path / 'kept'} cannot be written to" in done.stderr
