"""Several processes make one store, bit for bit that of one; two that do not belong together do not
write one output."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import bitlens.hidden.harvest as harvest_module
from bitlens import processes
from bitlens.devices import pick_device
from bitlens.errors import BitlensError
from bitlens.files import sha256
from bitlens.hidden import ActivationStore, Corpus, LanguageModel
from bitlens.hidden.harvest import harvest
from bitlens.hidden.hooks import HookPoint
from bitlens.hidden.spread import refuse_split
from bitlens.hidden.text import ContextReader
from bitlens.writing import Share, locked
from command import together

SHARDS = {"bitlens.hidden.harvest.SHARD_BYTES": 1}  # a shard a batch: some 50
HOOKS = ["layers.0", "layers.2"]


def files(folder):
    """Every file below a folder, hidden ones too -> its checksum"""
    return {str(p.relative_to(folder)): sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def shards_in(folder):
    return len(list(folder.glob("*/shard-*.json")))


def refusal(work):
    with pytest.raises(BitlensError) as error:
        work()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture(scope="module")
def model(tiny_llama):
    return LanguageModel.load(str(tiny_llama), HOOKS, device="cpu")


@pytest.fixture
def run(model, text_folder, monkeypatch):
    """`run(out, ...)`: harvest small shards in this process"""
    monkeypatch.setattr(harvest_module, "SHARD_BYTES", 1)

    def work(out, packed=True, corpus=None, **settings):
        corpus = Corpus((str(text_folder),), **(corpus or {}))
        reader = ContextReader(corpus, model.tokenizer, 8, packed)
        return harvest(model, reader, out, batch_size=4, **settings)

    return work


@pytest.fixture
def arguments(tiny_llama, text_folder):
    """A harvest of two hook points, as a command that lacks its output."""
    text = ["--text", text_folder, "--context", 8, "--batch-size", 4, "--device", "cpu"]
    return ["harvest", tiny_llama, *text, "--hook", *HOOKS, "--out"]


@pytest.fixture
def undisturbed(run, tmp_path):
    """The files of one process."""
    run(tmp_path / "undisturbed")
    return files(tmp_path / "undisturbed")


# --- ranks --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_rows": 137},
        {"packed": False},
        {"corpus": {"shuffle_seed": 3}},
        {"corpus": {"streaming": True}, "max_rows": 200},
        {"max_rows": 40},  # fewer shards than ranks
    ],
    ids=str,
)
def test_ranks_in_any_order_make_the_store_of_one_process(run, tmp_path, settings):
    run(tmp_path / "one", **settings)
    for rank in (2, 0):
        assert run(tmp_path / "many", rank=rank, ranks=3, **settings) == []
        assert "is unfinished" in refusal(lambda: ActivationStore(tmp_path / "many" / "layers.0"))
    stores = run(tmp_path / "many", rank=1, ranks=3, **settings)
    assert [store.path.name for store in stores] == HOOKS
    assert files(tmp_path / "many") == files(tmp_path / "one")
    again = run(tmp_path / "many", rank=0, ranks=3, **settings)
    assert [len(store) for store in again] == [len(store) for store in stores]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["many", "one"]  # no lock is left


@pytest.mark.slow
def test_processes_at_once_make_the_store_of_one(bitlens_command, arguments, undisturbed, tmp_path):
    out = tmp_path / "out"
    numbers = tmp_path / "numbers.json"
    commands = [
        bitlens_command(
            *arguments, out, "--rank", rank, "--ranks", 3, "--json", numbers, constants=SHARDS
        )
        for rank in range(3)
    ]
    for command in commands:
        assert command.wait() == 0, command.output
    said = json.loads(numbers.read_text())["stores"]  # by who completed them
    assert [Path(store["store"]).name for store in said] == HOOKS
    assert any(f"{out}/layers.2: " in command.output for command in commands)
    assert files(out) == undisturbed


@pytest.mark.slow
def test_a_rank_that_was_killed_is_started_again_alone(
    bitlens_command, arguments, undisturbed, tmp_path
):
    out = tmp_path / "out"
    killed = bitlens_command(*arguments, out, "--rank", 1, "--ranks", 2, constants=SHARDS)
    killed.wait_until(lambda: shards_in(out) > 8)
    assert killed.kill() == -signal.SIGKILL
    other = bitlens_command(*arguments, out, "--rank", 0, "--ranks", 2, constants=SHARDS)
    assert other.wait() == 0
    assert re.search(r"rank 0 is done, .* to come, of rank 1\.", " ".join(other.output.split()))
    whole = [{p.stem for p in (out / hook).glob("shard-*.json")} for hook in HOOKS]
    shards = [f"{stem}.safetensors" for stem in set.intersection(*whole)]
    paths = [out / hook / name for hook in HOOKS for name in shards]
    made = {path: path.stat().st_mtime_ns for path in paths}
    again = bitlens_command(*arguments, out, "--rank", 1, "--ranks", 2, constants=SHARDS)
    assert again.wait() == 0, again.output
    assert files(out) == undisturbed
    assert {path: path.stat().st_mtime_ns for path in made} == made  # nothing is made twice
    assert sum(int(path.stem[-5:]) % 2 for path in made) > 4  # of what was killed


@pytest.mark.slow
@pytest.mark.parametrize("after", [["--resume"], ["--rank", 2, "--ranks", 3]])
def test_another_number_of_processes_goes_on(
    bitlens_command, arguments, run, undisturbed, tmp_path, after
):
    out = tmp_path / "out"
    killed = bitlens_command(*arguments, out, "--rank", 1, "--ranks", 2, constants=SHARDS)
    killed.wait_until(lambda: shards_in(out) > 8)
    killed.kill()
    command = bitlens_command(*arguments, out, *after, constants=SHARDS)
    assert command.wait() == 0, command.output
    if "--ranks" in after:
        for rank in (0, 1):
            run(out, rank=rank, ranks=3)
    assert files(out) == undisturbed


@pytest.mark.slow
def test_a_lost_shard_of_an_unfinished_store_is_made_again(run, undisturbed, tmp_path):
    out = tmp_path / "out"
    run(out, rank=0, ranks=2)
    (out / "layers.0" / "shard-00002.safetensors").unlink()
    with (out / "layers.2" / "shard-00004.safetensors").open("ab") as file:
        file.truncate(100)
    (out / "layers.2" / "shard-00006.json").write_text("{")
    run(out, rank=1, ranks=2)
    run(out, rank=0, ranks=2)
    assert files(out) == undisturbed


def _without(key):
    return lambda said: {k: v for k, v in said.items() if k != key}


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        lambda said: said | {"contexts": said["contexts"] + 1},
        lambda said: said | {"rows": said["rows"] - 1},
        lambda said: said | {"file": "../shard-00002.safetensors"},
        *map(_without, ("sha256", "contexts", "rows", "seal")),
        lambda said: [said],
        lambda said: json.loads(Path(said["beside"]).read_text()),  # another shard's
    ],
)
def test_what_is_not_said_of_a_shard_to_the_last_digit_is_made_again(
    run, undisturbed, tmp_path, change
):
    out = tmp_path / "out"
    run(out, rank=0, ranks=2)
    file = out / "layers.0" / "shard-00002.json"
    said = json.loads(file.read_text()) | {"beside": str(file.with_name("shard-00004.json"))}
    changed = change(said)
    file.write_text(json.dumps(_without("beside")(changed) if "beside" in changed else changed))
    for rank in (1, 0):
        run(out, rank=rank, ranks=2)
    assert files(out) == undisturbed


@pytest.mark.slow
def test_what_an_earlier_version_began_goes_on(run, undisturbed, tmp_path):
    """It kept what it had written in the manifest."""
    out, stops = tmp_path / "out", iter([None] * 9 + ["a test"])
    refusal(lambda: run(out, stop=lambda: next(stops)))
    for manifest in out.glob("*/manifest.json"):
        entries = sorted(manifest.parent.glob("shard-*.json"))
        each = [json.loads(entry.read_text()) for entry in entries]
        listed = ",".join(json.dumps(_without("seal")(one)) for one in each)
        text = manifest.read_text()
        assert '"shards": []' in text
        manifest.write_text(text.replace('"shards": []', f'"shards": [{listed}]'))
        for entry in entries:
            entry.unlink()
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.safetensors")}
    assert len(before) > 10
    run(out, resume=True)
    assert files(out) == undisturbed
    assert {p: p.stat().st_mtime_ns for p in before} == before


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rank": 3, "ranks": 3}, "not 3 of 3"),
        ({"rank": 1}, "needs `rank` and `ranks`"),
        ({"ranks": 0, "rank": 0}, "not 0 of 0"),
        ({"rank": 0, "ranks": 2, "overwrite": True}, "delete .* first, and leave it out"),
    ],
)
def test_ranks_that_cannot_be_are_refused(run, tmp_path, settings, said):
    assert re.search(said, refusal(lambda: run(tmp_path / "out", **settings)))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_ranks_do_not_write_into_a_folder_of_something_else(run, tmp_path):
    left = tmp_path / "left" / HOOKS[0]  # by a rank that was killed as it began
    (left / ".manifest.json.tmp").mkdir(parents=True)
    assert run(left.parent, rank=1, ranks=2) == []
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    assert "is not empty" in refusal(lambda: run(tmp_path / "out", rank=0, ranks=2))
    run(tmp_path / "store", max_rows=9)
    sentence = refusal(lambda: run(tmp_path / "store", rank=0, ranks=2, max_rows=8))
    assert "was begun with other settings (max_rows differ)" in sentence


@pytest.mark.slow
def test_the_environment_of_torchrun_says_which_rank_it_is(run, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert Share.of(None, None) == Share(1, 2)
    assert run(tmp_path / "out") == []
    monkeypatch.setenv("RANK", "0")
    assert [len(store) > 100 for store in run(tmp_path / "out")] == [True, True]


def test_each_process_on_a_computer_takes_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("auto") == "cuda"
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert pick_device("auto") == "cuda:1"
    assert pick_device("cpu") == "cpu"


@pytest.fixture
def torchrun(tmp_path):
    """`torchrun(arguments...)` -> two processes of the command with small shards, ended"""
    script = tmp_path / "script.py"
    small = "import bitlens.hidden.harvest as harvest\nharvest.SHARD_BYTES = 1\n"
    script.write_text(f"{small}from bitlens.cli import main\nmain()\n")
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(script)]
    return lambda *arguments: subprocess.run(
        [*start, *map(str, arguments)], capture_output=True, text=True
    )


@pytest.mark.slow
def test_torchrun_makes_the_store_of_one_process(torchrun, arguments, undisturbed, tmp_path):
    done = torchrun(*arguments, tmp_path / "many")
    assert done.returncode == 0, done.stderr
    assert files(tmp_path / "many") == undisturbed


# --- two that do not belong together ------------------------------------------------------------

HELD = rf"is being written by process (\d+) on {re.escape(socket.gethostname())}; wait for it"


@pytest.mark.slow
def test_a_second_harvest_of_one_store_is_refused_and_the_first_goes_on(
    bitlens_command, arguments, undisturbed, tmp_path
):
    out = tmp_path / "out"
    first = bitlens_command(*arguments, out, constants=SHARDS)
    first.wait_until(lambda: shards_in(out) > 8)
    first.send(signal.SIGSTOP)
    for flags in (["--resume"], ["--overwrite"], ["--rank", 0, "--ranks", 2], []):
        second = bitlens_command(*arguments, out, *flags, constants=SHARDS)
        assert second.wait() == 2
        assert re.search(HELD, " ".join(second.output.split())), second.output
    first.send(signal.SIGCONT)
    assert first.wait() == 0, first.output
    assert files(out) == undisturbed


@pytest.mark.slow
def test_the_same_rank_and_other_numbers_of_ranks_are_refused(
    bitlens_command, arguments, run, tmp_path
):
    out = tmp_path / "out"
    first = bitlens_command(*arguments, out, "--rank", 1, "--ranks", 2, constants=SHARDS)
    first.wait_until(lambda: shards_in(out) > 8)
    first.send(signal.SIGSTOP)
    for settings in ({"rank": 1, "ranks": 2}, {"rank": 0, "ranks": 3}, {"resume": True}):
        assert re.search(HELD, refusal(lambda settings=settings: run(out, **settings)))
    assert run(out, rank=0, ranks=2) == []
    first.kill()
    assert run(out, resume=True)  # what is dead holds nothing
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "encode", "compress", "interpret", "study", "import"])
def test_an_output_that_another_process_writes_is_refused(bitlens_command, command, made, tmp_path):
    out = tmp_path / "out"
    store, run, codes = made.store, made.bae, made.codes
    arguments = {
        "train": ["train", store, "--steps", 5],
        "encode": ["encode", run, store],
        "compress": ["compress", run, store],
        "interpret": ["interpret", codes],
        "study": ["study", "synthetic"],
        "import": ["import", next(Path(store).glob("*.safetensors"))],
    }[command]
    with locked(out):
        held = bitlens_command(*arguments, "--out", out)
        assert held.wait() == 2, held.output
    said = " ".join(held.output.split())
    assert int(re.search(HELD, said)[1]) == os.getpid()
    assert not out.exists()


def test_a_folder_of_no_permission_around_an_output_is_locked_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr("bitlens.writing.os.access", lambda path, mode: False)
    with locked(tmp_path / "out"):
        assert not list(tmp_path.iterdir())
        with (
            pytest.raises(BitlensError, match="is being written by process"),
            locked(tmp_path / "out"),
        ):
            pass
    with locked(tmp_path / "out"):
        pass


def test_what_a_killed_process_left_is_looked_at_by_several_at_once(tmp_path):
    """Of ranks that start together each looks whether another number of processes is at it."""
    out = tmp_path / "out"
    with ThreadPoolExecutor(1) as thread:

        def start():
            with Share(0, 2).held(out):
                return True

        with locked(out):  # as another rank does, for a moment
            rank = thread.submit(start)
            time.sleep(0.2)
        assert rank.result()


def test_a_file_system_without_locks_goes_without(tmp_path, monkeypatch):
    def missing(*_: Any) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", missing)
    with locked(tmp_path / "out"), locked(tmp_path / "out"):
        pass
    assert not any(file.read_text() for file in tmp_path.iterdir())  # an empty file holds nothing


# --- rows that are no numbers, whoever wrote them -------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("norm", [True, False])
def test_a_nan_in_a_store_is_named_by_all_who_read_it(bitlens_command, made, tmp_path, norm):
    from safetensors.torch import load_file, save_file

    store = shutil.copytree(made.store, tmp_path / "store")
    file = store / "shard-00000.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}  # not the file's
    tensors["hidden"][7, 3] = torch.nan
    if norm:
        tensors["norm"][7] = torch.nan
    save_file(tensors, file)
    readers = {
        "train": [store, "--steps", 5, "--out", tmp_path / "run"],
        "encode": [made.bae, store, "--out", tmp_path / "codes"],
        "evaluate": [shutil.copytree(made.bae, tmp_path / "bae"), store],
    }
    altered = {name: bitlens_command(name, *arguments) for name, arguments in readers.items()}
    for command in altered.values():
        assert command.wait() == 2, command.output
        assert "is truncated or altered" in command.output
    manifest = store / "manifest.json"
    former = ActivationStore(made.store).shards[0]["sha256"]
    manifest.write_text(manifest.read_text().replace(former, sha256(file)))
    place = f"document {int(tensors['document'][7])}, position {int(tensors['position'][7])}"
    for name, arguments in readers.items():
        flags = [] if name == "evaluate" else ["--overwrite"]
        command = bitlens_command(name, *arguments, *flags)
        assert command.wait() == 2, command.output
        assert f"Row 7 ({place}) has a NaN hidden state at" in " ".join(command.output.split())


# --- models that one device or process does not hold ----------------------------------------------

TOKENS = torch.arange(10, 42).reshape(2, 16)
SOME_ON_DISK = dict.fromkeys(["embed_tokens", "norm", "rotary_emb", "layers.0", "layers.2"], "cpu")
SOME_ON_DISK |= {"layers.1": "disk", "layers.3": "disk"}


ALL_ON_DISK = pytest.param({"": "disk"}, marks=pytest.mark.newest)  # of accelerate


@pytest.mark.parametrize("device_map", ["auto", ALL_ON_DISK, SOME_ON_DISK], ids=str)
def test_a_model_spread_over_memory_and_disk_gives_the_same_bits(tiny_llama, device_map):
    pytest.importorskip("accelerate")
    hooks = ["hidden_states[2]", "layers.1.mlp", "blocks.2.hook_resid_post"]
    whole = LanguageModel.load(str(tiny_llama), hooks, device="cpu")
    spread = LanguageModel.load(str(tiny_llama), hooks, device="cpu", device_map=device_map)
    assert [hook.names() for hook in spread.hooks] == [hook.names() for hook in whole.hooks]
    expected, found = whole.hidden_states(TOKENS), spread.hidden_states(TOKENS)
    assert {name: torch.equal(found[name], expected[name]) for name in expected} == dict.fromkeys(
        expected, True
    )


def test_what_splits_a_model_is_refused_where_it_cannot_be(tiny_llama):
    def load(**settings):
        return lambda: LanguageModel.load(str(tiny_llama), HOOKS, device="cpu", **settings)

    assert "start with torchrun" in refusal(load(tp_plan="auto"))
    assert "exclude each other" in refusal(load(tp_plan="auto", device_map="auto"))


@pytest.mark.slow
def test_processes_that_share_one_model_write_the_same_rows(torchrun, arguments, run, tmp_path):
    one, two, flags = tmp_path / "one", tmp_path / "two", ["--tp-plan", "auto"]
    run(one)
    done = torchrun(*arguments, two, *flags)
    assert done.returncode == 0, done.stderr
    for hook in HOOKS:
        whole, split = ActivationStore(one / hook), ActivationStore(two / hook)
        for ours, theirs in zip(whole.read(), split.read(), strict=True):
            torch.testing.assert_close(theirs.hidden, ours.hidden, rtol=1e-4, atol=1e-5)
            assert all(torch.equal(ours.columns[k], theirs.columns[k]) for k in ours.columns)
    part = ["layers.1.mlp.gate_proj" if a == "layers.0" else a for a in arguments]
    done = torchrun(*part, tmp_path / "part", *flags)
    assert done.returncode != 0
    assert "has another part of layers.1.mlp.gate_proj" in done.stderr


def harvest_split(arguments: list[Any]) -> None:
    from bitlens.cli import main

    harvest_module.SHARD_BYTES = 1
    main([*map(str, arguments), "--tp-plan", "auto"])


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_processes_that_share_one_model_end_together(arguments, tmp_path, sent):
    out = tmp_path / "out"
    commands = together(2, partial(harvest_split, [*arguments, out]), tmp_path)
    commands[0].wait_until(lambda: shards_in(out) > 3)
    commands[1].send(sent)
    assert commands[1].wait() == (-sent if sent == signal.SIGKILL else 1)
    assert commands[0].wait() == (2 if sent == signal.SIGKILL else 1)
    output = commands[0].output
    assert "Traceback" not in output
    if sent == signal.SIGKILL:
        assert output.splitlines()[-1] == (
            "Process 1 of 2 ended; what was saved is whole: start again with --resume."
        )
    else:
        assert (output + commands[1].output).count("Stopped by SIGTERM after ") == 1
    commands = together(2, partial(harvest_split, [*arguments, out, "--resume"]), tmp_path)
    assert [command.wait() for command in commands] == [0, 0], commands[0].output
    assert all(len(ActivationStore(out / hook)) > 0 for hook in HOOKS)


def parts_of_one_norm(folder: Path) -> None:
    """In each of two processes: what is split may be as large in both; what is whole, rounded."""
    processes.start()
    whole = torch.arange(12.0).reshape(2, 6)
    part = whole.roll(processes.rank(), 1)
    hook = HookPoint("layers.0", "output")
    settings = {"tp_plan": "auto"}
    refuse_split(settings, {hook: whole * (1 + 1e-3 * processes.rank())})
    for own in (part, whole[:, : 5 + processes.rank()]):
        with pytest.raises(BitlensError, match=r"another part of layers\.0"):
            refuse_split(settings, {hook: own})


@pytest.mark.slow
def test_a_part_of_the_hidden_states_is_none_of_their_size_alone(tmp_path):
    commands = together(2, partial(parts_of_one_norm, tmp_path), tmp_path)
    assert [command.wait() for command in commands] == [0, 0], [c.output for c in commands]
