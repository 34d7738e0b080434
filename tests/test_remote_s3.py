"""A real S3 server on this machine: stores, runs and codes on it, servers that go away, credentials
that are wrong, and processes that share a cache and are killed."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tests.test_remote import CONFIG, write

import bitlens as bl
from bitlens import cache, remote
from bitlens.cli import main
from bitlens.errors import BitlensError
from bitlens.hidden import LanguageModel
from bitlens.hidden import harvest as harvest_module
from bitlens.hidden.documents import Corpus
from bitlens.hidden.harvest import harvest
from bitlens.hidden.text import ContextReader
from bitlens.training import train

pytestmark = pytest.mark.slow
s3fs = pytest.importorskip("s3fs")
moto_server = pytest.importorskip("moto.server")
SECRET = "hunter2hunter2"
READER = """
import sys, torch, bitlens as bl
store = bl.ActivationStore(sys.argv[1])
print("ready", flush=True)
for _ in range(int(sys.argv[2])):
    for rows in store.read("all"):
        print(float(rows.hidden.double().sum()), flush=True)
"""


class Server:
    """One that can go away and come back; what it holds, stays."""

    def __init__(self) -> None:
        self.port = 0
        self.start()

    def start(self) -> None:
        self._server = moto_server.ThreadedMotoServer("127.0.0.1", self.port, verbose=False)
        self._server.start()
        self.port = self._server.get_host_and_port()[1]

    def stop(self) -> None:
        self._server.stop()


@pytest.fixture(scope="module")
def server():
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("AWS_", "FSSPEC_"))]:
            patch.delenv(name)
        running = Server()
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{running.port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setattr(s3fs.S3FileSystem, "retries", 2)  # of a server that is gone
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir("bucket")
        yield running
        s3fs.S3FileSystem.clear_instance_cache()
        running.stop()


@pytest.fixture
def there(server, tmp_path, monkeypatch):
    monkeypatch.setenv("BITLENS_CACHE", str(tmp_path / "cache"))
    return f"s3://bucket/{tmp_path.name}"


@pytest.fixture
def store(there):
    return write(remote.place(f"{there}/store"))


def reader(tiny_llama, text_folder, hook="layers.1"):
    model = LanguageModel.load(str(tiny_llama), [hook, "layers.0"])
    return model, ContextReader(Corpus((str(text_folder),)), model.tokenizer, 32)


def same_files(there: str, here: Path) -> None:
    fs = s3fs.S3FileSystem()
    files = [file for file in sorted(here.rglob("*")) if file.is_file()]
    assert files
    fs.invalidate_cache()
    names = sorted(path.removeprefix(f"{there}/".removeprefix("s3://")) for path in fs.find(there))
    assert names == [str(file.relative_to(here)) for file in files]
    for file in files:
        assert fs.cat_file(f"{there}/{file.relative_to(here)}") == file.read_bytes()


def test_every_step_of_the_job_on_a_bucket(there, tiny_llama, text_folder, tmp_path, capsys):
    text = ["--text", str(text_folder), "--context", "32"]
    main(["harvest", str(tiny_llama), *text, "--hook", "layers.1", "--out", f"{there}/store"])
    flags = ["--n-latents", "16", "--steps", "6", "--batch-size", "64", "--preset", "measure"]
    main(["train", f"{there}/store", "--out", f"{there}/run", *flags])
    main(["encode", f"{there}/run", f"{there}/store", "--out", f"{there}/codes"])
    main(["evaluate", f"{there}/run", f"{there}/store"])
    main(["entropy", f"{there}/codes"])
    main(["features", f"{there}/codes", "--run", f"{there}/run"])
    main(["search", f"{there}/codes", "--row", "5"])
    main(["explore", f"{there}/run", "--codes", f"{there}/codes", "--export", str(tmp_path / "x")])
    assert f"{there}/run" in capsys.readouterr().out
    names = {path.name for path in remote.place(f"{there}/run").iterdir()}
    assert {"cfg.json", "sae_weights.safetensors", "report.html", "evaluation.json"} <= names
    for path in s3fs.S3FileSystem().find(there):
        assert SECRET.encode() not in s3fs.S3FileSystem().cat_file(path)


def test_a_harvest_whose_server_goes_away_is_resumed(
    server, there, tiny_llama, text_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(harvest_module, "SHARD_BYTES", 1 << 14)
    begun = itertools.count()

    def away():
        if next(begun) == 5:
            server.stop()

    model, text = reader(tiny_llama, text_folder)
    harvest(model, text, tmp_path / "store", batch_size=2, max_rows=900, progress=False)
    settings = {"batch_size": 2, "max_rows": 900, "progress": False}
    try:
        with pytest.raises(BitlensError, match=r"could not be (read|written): Could not connect"):
            harvest(model, text, f"{there}/store", stop=away, **settings)
    finally:
        server.start()
    harvest(model, text, f"{there}/store", resume=True, **settings)
    same_files(f"{there}/store", tmp_path / "store")


def test_a_harvest_and_a_training_that_are_killed_go_on(
    there, tiny_llama, text_folder, tmp_path, bitlens_command
):
    """Twice each, at a random moment after they have sent something more."""
    text = ["--text", text_folder, "--context", "32", "--batch-size", "2", "--device", "cpu"]
    given = ["harvest", tiny_llama, *text, "--hook", "layers.1", "--max-rows", "900"]
    train_flags = ["--n-latents", "24", "--steps", "60", "--batch-size", "32", "--device", "cpu"]
    train_flags += ["--checkpoint-every", "5", "--log-every", "5"]
    changed = {"bitlens.hidden.harvest.SHARD_BYTES": 1 << 13}
    own = {k: v for k, v in os.environ.items() if k.startswith(("AWS_", "BITLENS_"))}
    files, draw = s3fs.S3FileSystem(), random.Random(0)

    def sent(name):
        time.sleep(0.05)
        files.invalidate_cache()
        each = files.find(f"{there}/{name}", detail=True).values()
        return sorted((file["name"], str(file.get("ETag"))) for file in each)

    def with_kills(name, arguments):
        killed = 0
        for again in range(20):
            resume, before = ["--resume"] * bool(again), sent(name)
            command = bitlens_command(*arguments, *resume, constants=changed, environment=own)
            if killed < 2:
                command.wait_until(lambda before=before: sent(name) != before)
                time.sleep(draw.uniform(0, 0.3))
                killed += command.kill() == -signal.SIGKILL
            elif command.wait() == 0:
                return
        raise AssertionError(command.output)

    with_kills("store", [*given, "--out", f"{there}/store"])
    whole = bitlens_command(*given, "--out", tmp_path / "store", constants=changed)
    assert whole.wait() == 0, whole.output
    same_files(f"{there}/store", tmp_path / "store")
    with_kills("run", ["train", f"{there}/store", "--out", f"{there}/run", *train_flags])
    whole = bitlens_command("train", tmp_path / "store", "--out", tmp_path / "run", *train_flags)
    assert whole.wait() == 0, whole.output
    weights = "sae_weights.safetensors"
    files.invalidate_cache()
    found = files.cat_file(f"{there}/run/{weights}")
    assert found == (tmp_path / "run" / weights).read_bytes()


def test_a_training_whose_server_goes_away_is_resumed(server, there, store, tmp_path):
    def away(record):
        if record["step"] == 6:
            server.stop()

    try:
        with pytest.raises(BitlensError, match=f"{there}/run/.* could not be written: Could not"):
            train(store, CONFIG, f"{there}/run", report=away, progress=False)
    finally:
        server.start()
    resumed = train(store, CONFIG, f"{there}/run", resume=True, progress=False)
    assert torch.equal(resumed.W_enc, train(store, CONFIG, progress=False).W_enc)


def test_reading_from_a_server_that_is_gone_is_one_sentence(server, store, capsys):
    server.stop()
    try:
        with pytest.raises(SystemExit) as status:
            main(["evaluate", str(store.path), str(store.path)])
    finally:
        server.start()
    assert status.value.code == 2
    said = capsys.readouterr().err
    assert "could not be read: Could not connect" in said
    assert "Traceback" not in said


def test_a_missing_bucket_is_named(there):
    for use in (
        lambda: bl.ActivationStore("s3://no-such-bucket/store"),
        lambda: bl.Codes("s3://no-such-bucket/codes"),
        lambda: write(remote.place("s3://no-such-bucket/store")),
    ):
        with pytest.raises(BitlensError, match=r"s3://no-such-bucket.*bucket does not exist"):
            use()


@pytest.mark.parametrize("wrong", [True, False])
def test_wrong_and_missing_credentials_are_one_sentence_without_them(there, monkeypatch, wrong):
    from moto.core import set_initial_no_auth_action_count

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAWRONG")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    if not wrong:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.setenv("HOME", "/nonexistent")
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        with set_initial_no_auth_action_count_of(set_initial_no_auth_action_count):
            with pytest.raises(BitlensError, match="check the address, the credentials") as said:
                bl.ActivationStore(f"{there}/store")
            assert "AKIAWRONG" not in str(said.value)
            assert "not-the-secret" not in str(said.value)
            with pytest.raises(BitlensError, match=f"{there}/other/manifest.json could not be"):
                write(remote.place(f"{there}/other"))
    finally:
        s3fs.S3FileSystem.clear_instance_cache()


@contextlib.contextmanager
def set_initial_no_auth_action_count_of(decorator):
    """moto's switch, which asks for credentials from the first request on, as a context."""
    from moto.core.responses import ActionAuthenticatorMixin

    before = ActionAuthenticatorMixin.request_count
    import moto.settings

    count, moto.settings.INITIAL_NO_AUTH_ACTION_COUNT = (
        moto.settings.INITIAL_NO_AUTH_ACTION_COUNT,
        0,
    )
    try:
        yield
    finally:
        moto.settings.INITIAL_NO_AUTH_ACTION_COUNT = count
        ActionAuthenticatorMixin.request_count = before


def start(store, times, **variables):
    arguments = [sys.executable, "-c", READER, str(store.path), str(times)]
    return subprocess.Popen(
        arguments, stdout=subprocess.PIPE, text=True, env={**os.environ, **variables}
    )


def test_two_processes_share_a_cache_smaller_than_the_store(store):
    sums = [float(rows.hidden.double().sum()) for rows in store.read("all")]
    for copy in cache.folder().iterdir():
        copy.unlink()
    bound = int(2.5 * store.shards[0]["bytes"])
    readers = [start(store, 3, BITLENS_CACHE_SIZE=str(bound)) for _ in range(2)]
    for process in readers:
        said = process.communicate(timeout=100)[0].split()
        assert process.returncode == 0
        assert [float(each) for each in said[1:]] == 3 * sums
    assert sum(file.stat().st_size for file in cache.folder().iterdir()) <= bound


def test_processes_that_are_killed_leave_no_damaged_copy(store):
    bound = str(int(2.5 * store.shards[0]["bytes"]))
    readers = [start(store, 100_000, BITLENS_CACHE_SIZE=bound) for _ in range(2)]
    for process in readers:
        process.stdout.readline()
        process.stdout.readline()  # the first rows
    time.sleep(0.3)
    for process in readers:
        process.send_signal(signal.SIGKILL)
        process.wait()
    files = list(cache.folder().iterdir())
    assert [file for file in files if file.suffix != ".lock"]  # copies, or parts of them
    for copy in (file for file in files if cache.NAME.fullmatch(file.name)):
        assert hashlib.sha256(copy.read_bytes()).hexdigest() == copy.name
    process = start(store, 1, BITLENS_CACHE_SIZE=bound)
    process.communicate(timeout=100)
    assert process.returncode == 0


def test_a_full_disk_of_the_cache_is_one_sentence(store, tmp_path):
    """On a file system of 64 KiB, mounted for this process's child alone."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12k", "tmpfs", disk], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip("a file system can be mounted by root alone")
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("BITLENS_CACHE", str(disk))
            with pytest.raises(
                BitlensError, match=r"The disk is full: .* are free in .*BITLENS_CACHE"
            ):
                list(store.read("all"))
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)
