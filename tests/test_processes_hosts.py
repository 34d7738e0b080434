"""Two hosts, which are two network namespaces of this machine with an address each: they train as
one host does, and one that is gone is named."""

import ctypes
import os
import shutil
import subprocess
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from bitlens.autoencoders import Autoencoder
from bitlens.cli import main
from bitlens.hidden.arrays import import_arrays
from bitlens.processes import TIMEOUT
from command import Command, together
from test_resume import logged_steps, rows, same

pytestmark = pytest.mark.slow
if shutil.which("ip") is None:
    pytest.skip("there is no `ip`", allow_module_level=True)
SETTING = ["--n-latents", "40", "--batch-size", "64", "--log-every", "2", "--device", "cpu"]


@pytest.fixture(scope="module")
def hosts():
    """The names of two namespaces and their ends of the cable between them."""
    names = [(f"bl{os.getpid()}{end}", f"bl{os.getpid()}v{end}") for end in "ab"]
    (one, end), (other, far) = names
    links = [["ip", "netns", "add", one], ["ip", "netns", "add", other]]
    links += [["ip", "link", "add", end, "netns", one, "type", "veth"]]
    links[-1] += ["peer", "name", far, "netns", other]
    for number, (host, link) in enumerate(names, start=1):
        links += [["ip", "-n", host, "addr", "add", f"10.77.0.{number}/24", "dev", link]]
        links += [["ip", "-n", host, "link", "set", name, "up"] for name in ("lo", link)]
    made = all(not quietly(command) for command in links)
    if made:
        yield names
    for host, _ in names:
        quietly(["ip", "netns", "del", host])
    if not made:
        pytest.skip("network namespaces are made by root alone, with `ip`")


def quietly(command: list[str]) -> int:
    """-> exit status"""
    return subprocess.run(command, capture_output=True, check=False).returncode


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    np.save(folder / "x.npy", rows(450).numpy())
    import_arrays([folder / "x.npy"], folder / "store")
    return folder / "store"


def on_host(host: str, arguments: list[str]) -> None:
    """The command, in a process that has moved to this namespace."""
    with Path("/run/netns", host).open() as namespace:
        assert ctypes.CDLL(None).setns(namespace.fileno(), 0) == 0
    main(arguments)


def start(hosts, arguments: list[str], folder: Path, **environment: str) -> list[Command]:
    """The command on both, with logs `folder/HOST.log`; the first has the store."""
    environment |= {"MASTER_ADDR": "10.77.0.1", "MASTER_PORT": "29500", "OMP_NUM_THREADS": "1"}
    environment |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    return [
        Command(
            partial(on_host, host, arguments),
            folder / f"{host}.log",
            environment={**environment, "RANK": str(rank), "GLOO_SOCKET_IFNAME": link},
        )
        for rank, (host, link) in enumerate(hosts)
    ]


def work(store: Path, out: Path, steps: int) -> list[str]:
    return ["train", str(store), *SETTING, "--steps", str(steps), "--out", str(out)]


def test_two_hosts_train_as_one_does(hosts, store, tmp_path):
    for command in start(hosts, work(store, tmp_path / "two", 20), tmp_path):
        assert command.wait() == 0, command.output
    for command in together(2, work(store, tmp_path / "one", 20), tmp_path):
        assert command.wait() == 0, command.output
    assert same(*(Autoencoder.from_pretrained(tmp_path / name) for name in ("one", "two")))


@pytest.mark.parametrize("gone", [0, 1])
def test_a_host_that_is_gone_is_named_by_the_other(hosts, store, tmp_path, gone):
    commands = start(hosts, work(store, tmp_path / "run", 100_000), tmp_path)
    commands[0].wait_until(lambda: len(logged_steps(tmp_path / "run")) > 4)
    commands[gone].kill()
    left = commands[1 - gone]
    assert left.wait() == 2
    sentence = f"Process {gone} of 2 ended; what was saved is whole: start again with --resume."
    assert sentence in left.output.splitlines()


def test_hosts_whose_cable_is_cut_name_each_other(hosts, store, tmp_path):
    """The second asks a store that does not answer."""
    commands = start(hosts, work(store, tmp_path / "run", 100_000), tmp_path, **{TIMEOUT: "5"})
    commands[0].wait_until(lambda: len(logged_steps(tmp_path / "run")) > 4)
    host, link = hosts[0]
    quietly(["ip", "-n", host, "link", "set", link, "down"])
    try:
        for other, command in zip((1, 0), commands, strict=True):
            assert command.wait() == 2
            sentence = f"Process {other} of 2 did not come within 5 s ({TIMEOUT}); what was saved"
            assert sentence in command.output
    finally:
        quietly(["ip", "-n", host, "link", "set", link, "up"])
