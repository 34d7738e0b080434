"""Stores, codes and runs at an address, on fsspec's file system in memory: what they hold, how the
cache keeps its bound and its promise, and what is said of what goes wrong."""

from __future__ import annotations

import functools
import itertools
import logging
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest
import torch

import bitlens as bl
import bitlens.hidden.store as store_module
from bitlens import cache, remote
from bitlens.cli import main
from bitlens.encode import encode_store
from bitlens.errors import BitlensError
from bitlens.files import read_json, read_tensors, replacing, write_json, write_tensors
from bitlens.hidden.writer import StoreWriter
from bitlens.seeding import generator
from bitlens.training import TrainConfig, train
from command import Command

pytest.importorskip("upath")
ROWS, WIDTH, SHARD = 600, 16, 100
CONFIG = TrainConfig(
    n_latents=24, steps=12, batch_size=32, log_every=3, checkpoint_every=5, preset="measure"
)
ABOUT = {"model": "made up", "revision": None, "hook": {"module": "here"}, "context_length": None}


def write(place: Path, seed: int = 0, dtype: torch.dtype = torch.float32) -> bl.ActivationStore:
    """A store of 600 rows in 6 shards."""
    hidden = torch.randn(ROWS, WIDTH, generator=generator("remote", seed)).to(dtype)
    writer = StoreWriter(place, {**ABOUT, "d_in": WIDTH, "dtype": "float32"})
    for rows in torch.arange(ROWS).split(SHARD):
        columns = {"token": rows, "document": rows // 20, "position": rows % 20}
        writer.add(hidden[rows], columns)
    return writer.finish()


@pytest.fixture
def there(tmp_path, monkeypatch):
    """The address of an empty folder; the cache is empty, too."""
    monkeypatch.setenv("BITLENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("BITLENS_CACHE_SIZE", raising=False)
    yield f"memory://{tmp_path.name}"
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def here(tmp_path):
    folder = tmp_path / "here"
    folder.mkdir()
    return write(folder)


@pytest.fixture
def store(here, there):
    """The same store as `here`, copied to `there`."""
    fsspec.filesystem("memory").put(f"{here.path}/", f"{there}/store/", recursive=True)
    return bl.ActivationStore(f"{there}/store")


def copies() -> list[Path]:
    return [file for file in cache.folder().iterdir() if cache.NAME.fullmatch(file.name)]


def in_cache() -> int:
    """Bytes of everything in the cache."""
    return sum(file.stat().st_size for file in cache.folder().iterdir())


def damage(address: str, content: bytes) -> None:
    fsspec.filesystem("memory").pipe_file(address, content)


# --- reading --------------------------------------------------------------------------------------


def test_a_store_at_an_address_gives_the_rows_of_the_same_store_here(here, store):
    assert str(store.path).endswith("/store")
    assert store.about["store"] == str(store.path)
    for mine, theirs in zip(store.read("all"), here.read("all"), strict=True):
        assert torch.equal(mine.hidden, theirs.hidden)
        assert all(torch.equal(mine.columns[k], theirs.columns[k]) for k in mine.columns)
    for part in ("train", "test"):
        ours = torch.cat([rows.hidden for rows in store.read(part)])
        assert torch.equal(ours, torch.cat([rows.hidden for rows in here.read(part)]))


def test_batches_are_the_same_in_every_epoch_whatever_is_fetched_ahead(here, store, monkeypatch):
    monkeypatch.setattr(store_module, "WINDOW_BYTES", int(2.5 * here.shards[0]["bytes"]))
    batches = [itertools.islice(source.batches(37, 5), 60) for source in (here, store)]
    for (mine, at), (theirs, same) in zip(*batches, strict=True):
        assert torch.equal(mine, theirs)
        assert at == same
    assert at.epoch > 2


def test_the_next_window_is_fetched_while_this_one_is_read(store, monkeypatch):
    monkeypatch.setattr(store_module, "WINDOW_BYTES", 1)  # a shard each
    order = [key for (key,) in store.windows(0, 0)]
    store.window((order[0],))
    cache._coming[store.shards[order[1]]["sha256"]].join()
    names = {copy.name for copy in copies()}
    assert names == {store.shards[index]["sha256"] for index in order[:2]}


def test_the_window_after_the_last_is_the_first_of_the_next_epoch(store, monkeypatch):
    monkeypatch.setattr(store_module, "WINDOW_BYTES", 1)
    last = store.windows(0, 0)[-1]
    assert store._next[last] == store._shuffled(0, 1)[0]


def test_columns_that_split_the_rows_are_fetched_alone(here, store):
    assert torch.equal(store.usual(), here.usual())
    for mine, theirs in zip(store.splits(), here.splits(), strict=True):
        assert torch.equal(mine.train, theirs.train)
        assert torch.equal(mine.test, theirs.test)
    assert not copies()


def test_tensors_of_every_kind_are_fetched_alone_as_they_are(there):
    tensors = {
        "a": torch.arange(10).to(torch.uint64),
        "b": torch.randn(3, 5).bfloat16(),
        "empty": torch.empty(0, 4),
        "one": torch.tensor(3.5, dtype=torch.float64),
        **{f"name-{i:04}": torch.full((2,), i) for i in range(400)},  # a header beyond the first
    }
    path = remote.place(f"{there}/x.safetensors")
    from bitlens.files import write_tensors

    write_tensors(path, tensors)
    names = ["name-0399", "empty", "one", "b", "a"]
    for found in (read_tensors(path, names), read_tensors(path)):
        for name in names:
            assert found[name].dtype == tensors[name].dtype
            assert torch.equal(found[name], tensors[name])


def test_pairs_of_stores_are_read_as_they_are_here(tmp_path, there):
    for folder in (remote.place(f"{there}/two"), tmp_path / "two"):
        for seed, name in enumerate(("in", "out")):
            if isinstance(folder, Path):
                (folder / name).mkdir(parents=True)
            write(folder / name, seed)
    mine, theirs = (
        bl.PairedStore(f"{folder}/in", f"{folder}/out")
        for folder in (f"{there}/two", tmp_path / "two")
    )
    batches = [itertools.islice(source.batches(50, 1), 20) for source in (mine, theirs)]
    for (ours, _), (same, _) in zip(*batches, strict=True):
        assert torch.equal(ours, same)


# --- writing --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_is_written_to_an_address_is_byte_for_byte_what_is_written_here(here, there, tmp_path):
    write(remote.place(f"{there}/store"))
    mine, theirs = f"{there}/store", here.path
    autoencoders = [
        train(bl.ActivationStore(source), CONFIG, f"{folder}/run", progress=False)
        for source, folder in ((mine, there), (theirs, tmp_path))
    ]
    for autoencoder, source, folder in zip(
        autoencoders, (mine, theirs), (there, tmp_path), strict=True
    ):
        encode_store(autoencoder, bl.ActivationStore(source), f"{folder}/codes", progress=False)
    memory = fsspec.filesystem("memory")
    for folder in ("codes", "run"):
        names = sorted(path.name for path in (tmp_path / folder).iterdir())
        assert sorted(Path(path).name for path in memory.ls(f"{there}/{folder}", False)) == names
    for name in [*(f"store/{s['file']}" for s in here.shards), "run/sae_weights.safetensors"]:
        same = here.path / Path(name).name if name.startswith("store") else tmp_path / name
        assert memory.cat_file(f"{there}/{name}") == same.read_bytes()
    assert torch.equal(
        bl.Codes(f"{there}/codes").bits.words, bl.Codes(tmp_path / "codes").bits.words
    )
    again = bl.Autoencoder.from_pretrained(f"{there}/run")
    assert torch.equal(again.W_dec, autoencoders[1].W_dec)


def test_a_training_that_was_stopped_goes_on_from_its_address(here, there, tmp_path):
    def stopped(record):
        if record["step"] == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(here, CONFIG, f"{there}/run", report=stopped, progress=False)
    assert "state.safetensors" in str(fsspec.filesystem("memory").ls(f"{there}/run", False))
    resumed = train(here, CONFIG, f"{there}/run", resume=True, progress=False)
    whole = train(here, CONFIG, tmp_path / "run", progress=False)
    assert torch.equal(resumed.W_enc, whole.W_enc)
    lines = remote.place(f"{there}/run/metrics.jsonl").read_bytes().splitlines()
    assert [b'"step": %d,' % step in line for step, line in zip((3, 6, 9, 12), lines, strict=True)]


def test_a_folder_there_is_replaced_only_when_asked_and_ours(store, there):
    model = bl.BinaryAutoencoder(WIDTH, 8)
    model.metadata = {}
    encode_store(model, store, f"{there}/codes", progress=False)
    with pytest.raises(BitlensError, match=r"is not empty; pass `overwrite=True`"):
        encode_store(model, store, f"{there}/codes", progress=False)
    encode_store(model, store, f"{there}/codes", progress=False, rows=40, overwrite=True)
    assert len(bl.Codes(f"{there}/codes")) == 40
    with pytest.raises(BitlensError, match="was not written by this command"):
        encode_store(model, store, f"{there}/store", progress=False, overwrite=True)


def test_a_file_that_was_not_finished_is_not_there(there):
    path = remote.place(f"{there}/x.json")
    write_json(path, {"a": 1})

    def interrupted():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert read_json(path, "x") == {"a": 1}


# --- the cache ------------------------------------------------------------------------------------


def test_the_cache_keeps_its_bound_and_throws_out_what_was_not_used_longest(store, monkeypatch):
    size = store.shards[0]["bytes"]
    monkeypatch.setenv("BITLENS_CACHE_SIZE", str(int(3.5 * size)))
    for index in (0, 1, 2, 0, 3):
        store.shard(index)
        assert in_cache() <= 3.5 * size
    assert {copy.name for copy in copies()} == {store.shards[i]["sha256"] for i in (0, 2, 3)}
    monkeypatch.setenv("BITLENS_CACHE_SIZE", str(int(1.5 * size)))  # less than what is read at once
    rows = torch.cat([rows.hidden for rows in store.read("all")])
    assert len(rows) == ROWS
    assert in_cache() <= 1.5 * size


@pytest.mark.slow
def test_many_readers_at_once_keep_the_bound(here, store, monkeypatch):
    size, most = store.shards[0]["bytes"], []
    monkeypatch.setenv("BITLENS_CACHE_SIZE", str(int(2.5 * size)))
    reserved = cache._reserved

    def counted(path, copy, size):
        part = reserved(path, copy, size)
        with cache._lock(cache.folder() / "lock"):  # nothing comes or goes
            parts = [cache.PART.fullmatch(file.name) for file in cache.folder().iterdir()]
            coming = sum(int(part[2]) for part in parts if part)
            most.append(coming + sum(copy.stat().st_size for copy in copies()))
        return part

    monkeypatch.setattr(cache, "_reserved", counted)

    def read(i):
        return i % 6, store.shard(i % 6)["hidden"].clone()

    with ThreadPoolExecutor(6) as threads:
        for index, hidden in threads.map(read, range(60)):
            assert torch.equal(hidden, here.shard(index)["hidden"])
    assert max(most) <= 2.5 * size
    assert in_cache() <= 2.5 * size


def test_a_file_larger_than_the_bound_is_refused(store, monkeypatch):
    monkeypatch.setenv("BITLENS_CACHE_SIZE", "1kB")
    with pytest.raises(BitlensError, match=r"bounded to 1,000; raise BITLENS_CACHE_SIZE"):
        store.shard(0)


@pytest.mark.parametrize(
    ("text", "bytes_"), [("5", 5), ("1.5 kB", 1500), ("2GiB", 2 << 30), ("3g", 3 * 10**9)]
)
def test_sizes_are_read_as_people_write_them(text, bytes_, monkeypatch):
    monkeypatch.setenv("BITLENS_CACHE_SIZE", text)
    assert cache.limit() == bytes_


@pytest.mark.parametrize("text", ["much", "-1", "5 PB", "1e9"])
def test_what_is_no_size_is_refused(text, monkeypatch):
    monkeypatch.setenv("BITLENS_CACHE_SIZE", text)
    with pytest.raises(BitlensError, match="is no size of a cache"):
        cache.limit()


def test_a_copy_that_the_disk_has_damaged_is_fetched_again(store, here):
    store.shard(0)
    (copy,) = copies()
    copy.write_bytes(copy.read_bytes()[:-7])
    cache._verified.clear()  # as in a new process
    assert torch.equal(store.shard(0)["hidden"], here.shard(0)["hidden"])


def test_what_a_killed_process_left_is_removed_and_counts_no_more(store, monkeypatch):
    size = store.shards[0]["bytes"]
    monkeypatch.setenv("BITLENS_CACHE_SIZE", str(int(1.5 * size)))
    for name in (store.shards[0]["sha256"], "0" * 64):  # its own, and another's
        (cache.folder() / f"{name}.{size}.1-1.part").write_bytes(b"half")
        (cache.folder() / f"{name}.lock").touch()
    store.shard(0)
    assert [file.name for file in cache.folder().iterdir() if "part" in file.name] == []


def test_a_cache_that_cannot_be_written_is_named(store, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("BITLENS_CACHE", str(tmp_path / "file"))
    with pytest.raises(BitlensError, match=r"The cache .*file cannot be written.*BITLENS_CACHE"):
        store.shard(0)


def test_weights_are_fetched_once_and_again_when_they_change(there, tmp_path):
    models = [bl.BinaryAutoencoder(8, 4), bl.BinaryAutoencoder(8, 4)]
    models[1].W_enc.data += 1
    for model in models:
        model.save(f"{there}/run")
        for _ in range(2):
            found = bl.Autoencoder.from_pretrained(f"{there}/run")
            assert torch.equal(found.W_enc, model.W_enc)
    assert len(copies()) == 2


# --- what goes wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["truncated", "altered", "swapped", "missing"])
def test_a_damaged_shard_is_named_and_never_kept(store, there, how):
    file = f"{there}/store/{store.shards[1]['file']}"
    memory = fsspec.filesystem("memory")
    content = memory.cat_file(file)
    if how == "missing":
        memory.rm(file)
    else:
        others = memory.cat_file(f"{there}/store/{store.shards[2]['file']}")
        changed = content[:-1] + bytes([content[-1] ^ 1])
        damage(file, {"truncated": content[:-8], "altered": changed, "swapped": others}[how])
    sentence = "there is no such file" if how == "missing" else "is truncated or altered"
    for read in (lambda: list(store.read("train")), lambda: list(store.batches(300, 0))):
        with pytest.raises(BitlensError, match=f"{store.shards[1]['file']}.*{sentence}"):
            read()
    assert store.shards[1]["sha256"] not in {copy.name for copy in copies()}
    damage(file, content)  # restored, it is read
    assert len(store.shard(1)["hidden"]) == SHARD


@pytest.mark.parametrize(
    "head", [b"", b"\xff" * 40, b"\x02\0\0\0\0\0\0\0{}", b"\x04\0\0\0\0\0\0\0null"]
)
def test_a_shard_that_is_none_is_refused_where_a_part_of_it_is_read(store, there, head):
    damage(f"{there}/store/{store.shards[0]['file']}", head)
    with pytest.raises(BitlensError, match=r"shard-00000.safetensors is damaged"):
        store.splits()


def test_a_manifest_cannot_name_a_copy_outside_the_cache(store, tmp_path):
    (tmp_path / "secret").write_bytes(b"x")
    store.shards[0]["sha256"] = "../secret"
    with pytest.raises(BitlensError, match="is damaged: a checksum of it is none"):
        store.shard(0)


def test_folders_that_are_not_there_are_said_to_be_none(there):
    for open_, what in (
        (bl.ActivationStore, "is not a store of hidden states"),
        (bl.Codes, "is not a folder of codes"),
        (bl.Autoencoder.from_pretrained, "is not an autoencoder"),
    ):
        with pytest.raises(BitlensError, match=f"{there}/nothing {what}"):
            open_(f"{there}/nothing")


def test_packages_and_protocols_that_are_missing_are_named(monkeypatch):
    with pytest.raises(BitlensError, match="'nonsense://' is no protocol"):
        remote.place("nonsense://a/b")
    monkeypatch.setitem(sys.modules, "adlfs", None)
    with pytest.raises(BitlensError, match="pip install adlfs"):
        remote.place("abfs://a/b")
    monkeypatch.setitem(sys.modules, "upath", None)
    with pytest.raises(BitlensError, match="pip install universal_pathlib"):
        remote.place("memory://a/b")


@pytest.mark.parametrize(
    "address",
    [
        "s3://key:hunter2@bucket/x",
        "s3://key:with/hunter2@bucket/x",
        "zip://a.zip::https://key:hunter2@host/a.zip",
        "https://host/x?X-Amz-Signature=hunter2",
    ],
)
def test_secrets_in_an_address_are_refused_and_not_repeated(address, tmp_path, capsys):
    with pytest.raises(BitlensError) as refused:
        bl.ActivationStore(address)
    assert "hunter2" not in str(refused.value)
    for arguments in (["encode", address, address, "--out", "codes"], ["study", "compare", "x"]):
        with pytest.raises(SystemExit):
            main([*arguments, "--out", address] if arguments[0] == "study" else arguments)
        said = capsys.readouterr()
        assert "hunter2" not in said.out + said.err


@pytest.mark.parametrize("secret", ["key:hunter2@", "key:with/hunter2@", "hunter2@"])
def test_what_is_said_of_an_address_holds_no_secret(secret):
    said = remote.said(OSError(f"no bucket at s3://{secret}bucket/x, nor at s3://a/b:1"))
    assert said == "no bucket at s3://bucket/x, nor at s3://a/b:1"
    for address in (f"s3://{secret}bucket/x", Path(f"s3://{secret}bucket/x")):
        with pytest.raises(BitlensError, match=r"^s3:/+bucket/x is an address"):
            remote.refuse(address)


def test_an_address_alone_is_said_to_be_missing():
    bare = FileNotFoundError("http://host/upload/b/none/o")
    assert remote.said(bare) == "there is no http://host/upload/b/none/o"
    assert remote.said(FileNotFoundError("No such bucket: 'none'")) == "No such bucket: 'none'"


def test_a_port_and_a_revision_are_no_secret(there):
    for address in ("memory://host:9000/a@b", "memory://a/b:1@c"):
        assert str(remote.place(address)) == address


@pytest.mark.parametrize(
    "address", ["sftp://user@host:22/a", "hdfs://host:9000/a", "ftp://host/a", "s3://bucket/a"]
)
def test_an_address_keeps_its_host(address):
    folder = remote._paths()(address)  # without asking the host
    assert (str(folder), f"{folder / 'b'}") == (address, f"{address}/b")


def test_names_of_this_machine_are_paths_as_before(tmp_path):
    for name in ("a/b", "hf:wikitext", "C:/x", "./s3://x", str(tmp_path)):
        assert remote.place(name) == Path(name)
    assert remote.place(f"file://{tmp_path}") == tmp_path
    assert str(remote.place(Path("memory://a/b"))) == "memory://a/b"


def test_a_file_whose_name_leads_out_of_its_folder_is_not_copied(there, tmp_path):
    files = fsspec.filesystem("memory").store
    damage(f"{there}/cfg.json", b"{}")
    files[f"/{tmp_path.name}/../../evil"] = files[f"/{tmp_path.name}/cfg.json"]
    (tmp_path / "a" / "b").mkdir(parents=True)
    with pytest.raises(BitlensError, match="leads out of it"):
        remote.copy_folder(remote.place(there), tmp_path / "a" / "b")
    assert not list((tmp_path / "a").rglob("*.json"))
    assert not (tmp_path / "evil").exists()


@pytest.mark.slow
def test_what_a_web_server_has_changed_is_fetched_again(there, tmp_path):
    pytest.importorskip("aiohttp")
    (tmp_path / "web").mkdir()
    handler = functools.partial(SimpleHTTPRequestHandler, directory=tmp_path / "web")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            for rows in (2, 3):
                write_tensors(tmp_path / "web" / "x.safetensors", {"x": torch.ones(rows)})
                address = f"http://127.0.0.1:{server.server_port}/x.safetensors"
                assert len(read_tensors(remote.place(address))["x"]) == rows
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("left", ["{}", "{}.100.1-1.part"])
def test_files_of_the_cache_may_go_while_it_is_listed(store, monkeypatch, left):
    """What another process fetches in vain, or finds damaged, it removes without waiting."""
    gone = cache.folder() / left.format("0" * 64)
    gone.touch()
    listed = Path.iterdir

    def listing(folder: Path):
        files = list(listed(folder))
        gone.unlink(missing_ok=True)
        return iter(files)

    monkeypatch.setattr(Path, "iterdir", listing)
    assert len(store.shard(0)["hidden"]) == SHARD


def test_a_copy_that_is_thrown_out_and_fetched_again_meanwhile_is_read(store):
    path, seen = store.path / store.shards[0]["file"], []

    def read(copy: Path) -> bytes:
        seen.append(copy)
        if len(seen) == 1:  # as an open of it fails, while another process has fetched it again
            raise FileNotFoundError(copy)
        return copy.read_bytes()

    assert cache.local(path, read, store.shards[0]["sha256"]) == path.read_bytes()


# --- commands -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_commands_take_addresses_and_print_them(store, there, tmp_path, capsys):
    flags = ["--n-latents", "16", "--steps", "4", "--batch-size", "64"]
    main(["train", f"{there}/store", "--out", f"{there}/run", "--preset", "measure", *flags])
    sweep = ["--sweep", "lam=.05,.1", "--steps", "4", "--n-latents", "16"]
    main(["train", f"{there}/store", "--out", f"{there}/sweep", *sweep])
    main(["train", f"{there}/store", "--out", f"{there}/sweep", *sweep, "--resume"])
    for row in read_json(remote.place(f"{there}/sweep/summary.json"), "x")["runs"]:
        assert bl.Autoencoder.from_pretrained(row["run"]).n_latents == row["latents"]
    main(["encode", f"{there}/run", f"{there}/store", "--out", f"{there}/codes"])
    main(["evaluate", f"{there}/run", f"{there}/store", "--cache-size", "1MB"])
    main(["entropy", f"{there}/codes", "--json", str(tmp_path / "entropy.json")])
    main(["match", f"{there}/run", f"{there}/run", f"{there}/store"])
    main(["compress", f"{there}/run", f"{there}/store", "--out", str(tmp_path / "compressed")])
    main(["decompress", str(tmp_path / "compressed"), f"{there}/run", "--out", str(tmp_path / "s")])
    main(["export", "saelens", f"{there}/run", "--out", str(tmp_path / "saelens")])
    said = capsys.readouterr()
    assert f"{there}/run: bae" in said.out
    assert f"{there}/codes" in said.out
    names = {Path(path).name for path in fsspec.filesystem("memory").ls(f"{there}/run", False)}
    assert {"report.html", "evaluation.json", "cfg.json"} <= names
    assert read_json(tmp_path / "entropy.json", "x")["codes"] == f"{there}/codes"
    assert not list(Path().glob("memory:*"))
    os.environ.pop("BITLENS_CACHE_SIZE", None)


@pytest.mark.parametrize(
    "arguments",
    [
        ["compress", "run", "store", "--out", "s3://bucket/x"],
        ["entropy", "codes", "--json", "s3://bucket/x"],
        ["demo", "--out", "s3://bucket/x"],
        ["explore", "run", "--export", "s3://bucket/x"],
        ["import", "x.npy", "--out", "s3://bucket/x"],
        ["study", "synthetic", "--out", "s3://bucket/x"],
    ],
)
def test_commands_that_write_here_refuse_an_address(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as status:
        main(arguments)
    assert status.value.code == 2
    assert "is an address" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def loud():
    """A command on a file system that logs what fails, as paramiko and gcsfs do."""

    class Loud(type(fsspec.filesystem("memory"))):
        def _open(self, *_, **__):
            try:
                raise ConnectionError("no answer")
            except ConnectionError:
                logging.getLogger("loud").exception("it failed")
                raise

    fsspec.register_implementation("memory", Loud, clobber=True)
    main(["entropy", "memory://codes"])


@pytest.mark.slow
def test_what_a_package_logs_stands_not_beside_the_sentence(tmp_path):
    command = Command(loud, tmp_path / "log")
    assert command.wait() == 2
    (sentence,) = [line for line in command.output.splitlines() if not line.startswith("entropy")]
    assert sentence.startswith("memory://codes/manifest.json could not be read: no answer; check")


def test_threads_that_fetch_end_with_the_process(store):
    cache.ahead([(store.path / e["file"], e["sha256"], e["bytes"]) for e in store.shards])
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "fetch")
