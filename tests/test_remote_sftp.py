"""A real SFTP server on this machine, OpenSSH's: one connection for all threads, renamed files, and
a server that refuses."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest
import torch
from fsspec.config import conf
from tests.test_remote import CONFIG, ROWS, write

import bitlens as bl
from bitlens import remote
from bitlens.cli import main
from bitlens.encode import encode_store
from bitlens.errors import BitlensError
from bitlens.files import write_json
from bitlens.training import train

pytestmark = pytest.mark.slow
pytest.importorskip("paramiko")
pytest.importorskip("upath")
sftp = pytest.importorskip("fsspec.implementations.sftp")
SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/usr/bin")
if SSHD is None:
    pytest.skip("there is no sshd", allow_module_level=True)


def with_key(monkeypatch, folder: Path, name: str) -> None:
    own = {"username": getpass.getuser(), "key_filename": str(folder / name)}
    monkeypatch.setitem(conf, "sftp", own | {"allow_agent": False, "look_for_keys": False})
    sftp.SFTPFileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Folder of the keys `host` of the server, `mine`, which it lets in, and `other`."""
    folder = tmp_path_factory.mktemp("keys")
    for key in ("host", "mine", "other"):
        subprocess.run(["ssh-keygen", "-qt", "ed25519", "-N", "", "-f", folder / key], check=True)
    return folder


@pytest.fixture(scope="module")
def port(keys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    settings = {"HostKey": keys / "host", "AuthorizedKeysFile": keys / "mine.pub"}
    settings |= {"Port": number, "ListenAddress": "127.0.0.1", "PidFile": "none", "UsePAM": "no"}
    settings |= {"StrictModes": "no", "PermitRootLogin": "yes", "Subsystem": "sftp internal-sftp"}
    file = keys / "sshd_config"
    file.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    if os.geteuid() == 0:  # where it shuts itself in
        Path("/run/sshd").mkdir(exist_ok=True)
    server = subprocess.Popen([SSHD, "-De", "-f", file], stderr=subprocess.DEVNULL)
    while server.poll() is None:
        with socket.socket() as tried:
            if not tried.connect_ex(("127.0.0.1", number)):
                break
        time.sleep(0.05)
    yield number
    sftp.SFTPFileSystem.clear_instance_cache()
    server.terminate()
    server.wait()


@pytest.fixture
def address(port, keys, monkeypatch):
    """The root of this machine."""
    with_key(monkeypatch, keys, "mine")
    return f"sftp://127.0.0.1:{port}"


@pytest.fixture
def there(address, tmp_path, monkeypatch):
    monkeypatch.setenv("BITLENS_CACHE", str(tmp_path / "cache"))
    return f"{address}{tmp_path}/there"


def test_the_whole_job_gives_the_files_of_the_same_job_here(there, tmp_path):
    """Shards enough for threads to read at once, whose answers may not be mistaken."""
    (tmp_path / "here").mkdir()
    here = write(tmp_path / "here")
    store = write(remote.place(f"{there}/store"))
    for mine, theirs in zip(store.read("train"), here.read("train"), strict=True):
        assert torch.equal(mine.hidden, theirs.hidden)
    models = [
        train(source, CONFIG, f"{folder}/run", progress=False)
        for source, folder in ((bl.ActivationStore(store.path), there), (here, tmp_path))
    ]
    assert torch.equal(models[0].W_enc, models[1].W_enc)
    for model, source, folder in zip(models, (store, here), (there, tmp_path), strict=True):
        encode_store(model, source, f"{folder}/codes", progress=False)
        encode_store(model, source, f"{folder}/codes", progress=False, overwrite=True)
    assert len(bl.Codes(f"{there}/codes")) == ROWS
    for name in ("run", "codes"):
        files = {path.name for path in remote.place(f"{there}/{name}").iterdir()}
        assert files == {path.name for path in (tmp_path / name).iterdir()}


def test_a_training_that_was_stopped_goes_on(there, tmp_path):
    store = write(remote.place(f"{there}/store"))

    def stopped(record):
        if record["step"] == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(store, CONFIG, f"{there}/run", report=stopped, progress=False)
    resumed = train(store, CONFIG, f"{there}/run", resume=True, progress=False)
    assert torch.equal(resumed.W_enc, train(store, CONFIG, progress=False).W_enc)


@pytest.mark.parametrize(
    ("key", "place", "sentence"),
    [
        ("other", "/codes", "/codes could not be read: Authentication failed; check the address"),
        ("mine", "/nothing", "/nothing is not a folder of codes: it has no manifest.json"),
    ],
)
def test_what_is_refused_is_one_sentence(
    there, keys, monkeypatch, capsys, caplog, key, place, sentence
):
    with_key(monkeypatch, keys, key)
    with pytest.raises(SystemExit) as status:
        main(["entropy", f"{there}{place}"])
    assert status.value.code == 2
    said = capsys.readouterr().err
    assert f"{there}{sentence}" in said
    assert "Traceback" not in said


def test_where_nothing_can_be_written_is_named(address):
    with pytest.raises(BitlensError, match=r"/proc/x/manifest.json could not be written: .*check"):
        write_json(remote.place(f"{address}/proc/x/manifest.json"), {})
