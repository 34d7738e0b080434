"""Fetching from the hub with its own client, from a server on this machine that speaks as it does;
each fetch in a process of its own, as the client reads its settings once."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest

from bitlens import hub as bitlens_hub
from bitlens.errors import BitlensError
from hub_server import TOKEN, Ended, Hub, run

FETCH = """
import json, sys
from bitlens.errors import BitlensError
from bitlens.hub import fetch
try:
    print(fetch(sys.argv[1], **json.loads(sys.argv[2])))
except BitlensError as error:
    sys.exit(str(error))
"""
FILES = {
    "cfg.json": b'{"a": 1}',
    "sae_weights.safetensors": bytes(range(256)) * 400,
    "layer.3/cfg.json": b"{}",
    "layer.3/deep/more.txt": b"more",
    "[odd]/cfg.json": b"[]",
}


@pytest.fixture
def hub():
    with Hub() as one:
        one.add("some/repo", FILES)
        yield one


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


def fetch(hub: Hub, home: Path, repository="some/repo", environment=None, **settings) -> Ended:
    asked = json.dumps(settings)
    return run(hub, home, "-c", FETCH, repository, asked, **(environment or {}))


def sentence(ended: Ended) -> str:
    """The one sentence that a failure says."""
    assert ended.status == 1
    assert not ended.out
    assert ended.err.count("\n") == 1, ended.err
    assert ended.err.endswith(".\n")
    return ended.err


@pytest.mark.slow
def test_a_repository_is_fetched_and_kept(hub, home):
    ended = fetch(hub, home)
    assert ended.status == 0, ended.err
    folder = Path(ended.out.strip())
    assert folder.is_relative_to(home)
    for name, content in FILES.items():
        assert (folder / name).read_bytes() == content
    # without a network, with and without saying so
    offline = fetch(hub, home, environment={"HF_HUB_OFFLINE": "1"})
    assert offline == ended
    hub.faults.append((".", "hang up", 1000))
    gone = fetch(hub, home, environment={"HF_ENDPOINT": "http://127.0.0.1:9"})
    assert (gone.status, gone.out) == (0, ended.out)
    assert "What was fetched before is used" in gone.err


@pytest.mark.slow
def test_patterns_and_subfolder_choose_files(hub, home):
    chosen = fetch(hub, home, subfolder="layer.3", patterns=["cfg.json", "*.npz"])
    folder = Path(chosen.out.strip())
    assert [file.name for file in folder.iterdir()] == ["cfg.json"]
    assert not (folder.parent / "sae_weights.safetensors").exists()
    odd = Path(fetch(hub, home, subfolder="[odd]").out.strip())
    assert (odd / "cfg.json").read_bytes() == b"[]"


@pytest.mark.slow
def test_a_revision_is_a_branch_or_a_commit(hub, home):
    repository = hub.repositories["some/repo"]
    first = repository.refs["main"]
    repository.refs["old"] = first
    repository.commit("main", {"cfg.json": b'{"a": 2}'})
    for revision, content in (("old", b'{"a": 1}'), (first, b'{"a": 1}'), (None, b'{"a": 2}')):
        ended = fetch(hub, home, revision=revision, patterns=["cfg.json"])
        assert Path(ended.out.strip(), "cfg.json").read_bytes() == content
    assert "no branch, tag or commit 'new'" in sentence(fetch(hub, home, revision="new"))


@pytest.mark.slow
def test_a_token_goes_to_the_hub_alone_and_is_kept_nowhere(hub, home):
    hub.add("some/secret", FILES, private=True)
    without = sentence(fetch(hub, home, "some/secret"))
    assert "no repository 'some/secret' to no token" in without
    ended = fetch(hub, home, "some/secret", {"HF_TOKEN": TOKEN})
    assert ended.status == 0, ended.err
    with_token = {seen.place for seen in hub.seen if seen.token == TOKEN}
    assert with_token == {"hub"}
    assert {seen.place for seen in hub.seen} == {"hub", "storage"}
    wrong = fetch(hub, home, "some/secret", {"HF_TOKEN": "hf_wrong", "HF_HOME": str(home / "2")})
    assert "to the token that is set" in sentence(wrong)
    kept = [file.read_bytes() for file in home.rglob("*") if file.is_file()]
    assert kept
    assert not any(secret in text for text in kept for secret in (TOKEN.encode(), b"hf_wrong"))
    assert not any("hf_" in text for one in (ended, wrong) for text in (one.out, one.err))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (("GET /api/models", "500", 1), None),
        (("GET /api/models", "hang up", 1), None),
        (("GET /api/models", "slow", 9), None),
        (("GET /objects", "cut", 1), None),
        (("GET /objects", "slow", 9), None),
        (("GET /api/models", "403", 9), "answered 403 about 'some/repo' (as the test wishes)"),
        (("GET /api/models", "500", 99), "answered 500 about 'some/repo' (as the test wishes)"),
        (("GET /api/models", "hang up", 99), "could not be asked for 'some/repo'"),
    ],
)
def test_what_fails_for_a_moment_is_tried_again(hub, home, fault, said):
    hub.faults.append(fault)
    ended = fetch(hub, home)
    if said is None:
        assert ended.status == 0, ended.err
        assert not ended.err
        folder = Path(ended.out.strip())
        assert all((folder / name).read_bytes() == content for name, content in FILES.items())
    else:
        assert said in sentence(ended)


@pytest.mark.slow
def test_what_cannot_be_fetched_is_a_sentence(hub, home):
    none = sentence(fetch(hub, home, "some/other"))
    assert "shows no repository 'some/other'" in none
    away = fetch(hub, home, environment={"HF_ENDPOINT": "http://127.0.0.1:9"})
    assert "could not be asked for 'some/repo', which was not fetched before" in sentence(away)
    offline = fetch(hub, home, environment={"HF_HUB_OFFLINE": "1"})
    assert "HF_HUB_OFFLINE is set and 'some/repo' (main) was not fetched before" in sentence(
        offline
    )
    assert "has none of the files x.npz in its top" in sentence(
        fetch(hub, home, patterns=["x.npz"])
    )
    assert "has none of files in layer.4" in sentence(fetch(hub, home, subfolder="layer.4"))


@pytest.mark.slow
def test_a_full_disk_is_named(hub, home):
    limited = textwrap.dedent("""
        import resource, signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    """)
    ended = run(hub, home, "-c", limited + FETCH, "some/repo", "{}")
    assert "The disk is full: 'some/repo' could not be written to" in sentence(ended)
    assert fetch(hub, home).status == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["../../../evil.txt", "/evil.txt", "layer.3/../../../../evil.txt"])
def test_no_file_leaves_the_snapshot(hub, home, name):
    hub.add("some/trap", {name: b"evil", "cfg.json": b"{}"})
    ended = fetch(hub, home, "some/trap")
    if ended.status:
        assert "'some/trap' cannot be taken" in sentence(ended)
    found = {file for file in home.parent.rglob("*") if file.name == "evil.txt"}
    # some versions of the client take a name from the top as one in the repository
    assert found == {Path(ended.out.strip(), "evil.txt")} & found
    assert not found or name.startswith("/")
    assert not Path("/evil.txt").exists()
    assert fetch(hub, home, "some/trap", patterns=["cfg.json"]).status == 0


@pytest.mark.parametrize("subfolder", ["..", "a/../..", "/etc", "a\\b"])
def test_a_subfolder_stays_in_the_repository(subfolder):
    with pytest.raises(BitlensError, match="leads out of the repository"):
        bitlens_hub.fetch("some/repo", subfolder=subfolder)


@pytest.mark.parametrize(
    "name", ["", "repo", "a/b/c", "/tmp/run", "../x", "./x", "a/b c", "a//b", "~/run", "a/.."]
)
def test_what_is_no_name_is_said_without_asking(name):
    with pytest.raises(BitlensError, match="neither a folder here nor the name of a repository"):
        bitlens_hub.fetch(name)


MODEL = """
import sys
from bitlens.errors import BitlensError
from bitlens.hidden.models import LanguageModel
for name in sys.argv[1:]:
    try:
        LanguageModel.load(name, ["layers.0"])
    except BitlensError as error:
        print(error)
"""


@pytest.mark.slow
def test_a_language_model_that_the_hub_does_not_give_is_a_sentence(hub, home):
    hub.add("some/secret", {"config.json": b"{}"}, private=True)
    names = ("some/secret", "some/none")
    ended = run(hub, home, "-c", MODEL, *names)
    start = "could not be loaded: it is neither a folder here nor a model that the Hub gave"
    for name, said in zip(names, ended.out.splitlines(), strict=True):
        assert said.startswith(
            f"The model '{name}' {start}: {hub.url} shows no repository '{name}'"
        )
    offline = run(hub, home, "-c", MODEL, "some/none", HF_HUB_OFFLINE="1").out
    assert f"{start}: HF_HUB_OFFLINE is set and 'some/none' (main) was not fetched" in offline


def test_no_token_and_no_password_is_repeated(monkeypatch):
    """A server may say what it was sent; HF_ENDPOINT may hold a password."""
    from huggingface_hub import constants

    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(constants, "ENDPOINT", "https://me:secret@hub.example")
    long = f"{'x' * 190} Bearer hf_secret"  # the token is cut where letters are
    for error in (ValueError(long), OSError(long), OSError("at https://me:secret@hub.example/x")):
        said = bitlens_hub._sentence(error, "some/repo", "main", sent=False)
        assert "secret" not in said
        assert "hf_" not in said


@pytest.mark.parametrize("revision", ["../../main", "/etc/passwd"])
def test_a_revision_is_no_path(revision):
    with pytest.raises(BitlensError, match="has no branch, tag or commit"):
        bitlens_hub.fetch("some/repo", revision=revision)
