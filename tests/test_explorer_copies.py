"""Static copies of the explorer, and its command."""

import json
import sys

import httpx2
import pytest

from bitlens.errors import BitlensError
from bitlens.explorer import serving
from bitlens.explorer.export import export
from explored import TEXT


@pytest.mark.slow
def test_a_static_copy_has_what_the_server_answers(explorer, site, tmp_path):
    written = export(explorer, tmp_path / "site")
    files = [path for path in (tmp_path / "site").rglob("*") if path.is_file()]
    assert written == (len(files), sum(path.stat().st_size for path in files))
    assert [path.name for path in tmp_path.iterdir()] == ["site"]
    for name in ("latents.json", "latents/7.json", "compare.json", "beside/0.json"):
        content = json.loads((tmp_path / "site" / "api" / name).read_text(encoding="utf-8"))
        assert content == site.get(f"/api/{name}").json()
    run = json.loads((tmp_path / "site" / "api" / "run.json").read_text())
    assert run["live"] is False
    assert site.get("/").text == (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    with pytest.raises(BitlensError, match="overwrite=True"):
        export(explorer, tmp_path / "site")
    (tmp_path / "site" / "old.html").write_text("")
    export(explorer, tmp_path / "site", overwrite=True)
    assert not (tmp_path / "site" / "old.html").exists()


@pytest.mark.slow
def test_a_copy_is_written_whole_or_not_at_all(explorer, tmp_path, monkeypatch):
    other = tmp_path / "mine"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(BitlensError, match="not written by this command"):
        export(explorer, other, overwrite=True)
    former = export(explorer, tmp_path / "site")
    original = explorer.latent

    def fails(latent: int):
        if latent == 40:
            raise OSError(28, "No space left on device")
        return original(latent)

    monkeypatch.setattr(explorer, "latent", fails)
    for out in (tmp_path / "new", tmp_path / "site"):
        with pytest.raises(BitlensError, match="No space left"):
            export(explorer, out, overwrite=True)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"mine", "site"}
    assert sum(1 for path in (tmp_path / "site").rglob("*") if path.is_file()) == former.files


def test_a_port_that_is_taken_is_replaced_by_a_free_one():
    with serving.listen(0) as first:
        port = first.getsockname()[1]
        assert first.getsockname()[0] == "127.0.0.1"
        with serving.listen(port) as second:
            assert second.getsockname()[1] not in (0, port)
    with pytest.raises(BitlensError, match="65535"):
        serving.listen(70_000)


def test_a_missing_extra_is_named(made, monkeypatch):
    from bitlens.cli.explore import explore

    for name in [name for name in sys.modules if name.startswith("bitlens.explorer")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(BitlensError, match=r"\[explore\]"):
        explore(made.bae, made.codes)


@pytest.mark.slow
def test_the_command_serves_until_it_is_interrupted_and_ends_quietly(made, bitlens_command):
    with serving.listen(0) as taken:
        port = taken.getsockname()[1]
        command = bitlens_command(
            "explore", made.bae, "--codes", made.codes, "--port", port, "--no-browser"
        )
        command.wait_until(lambda: "http://" in command.output and "Ctrl-C" in command.output)
        assert f"Port {port} is taken" in command.output
        address = next(w for w in command.output.split() if w.startswith("http://"))
        assert httpx2.get(f"{address}api/latents/0.json").json()["latent"] == 0
        answer = httpx2.post(f"{address}api/text", json={"text": TEXT}, timeout=60)
        assert answer.json()["tokens"]
        command.send(2)
        assert command.wait() == 130, command.output
    assert "Traceback" not in command.output


@pytest.mark.slow
def test_the_command_writes_a_copy(made, bitlens_command, tmp_path):
    out = tmp_path / "site"
    arguments = ("explore", made.bae, "--codes", made.codes, "--no-model", "--export", out)
    command = bitlens_command(*arguments)
    assert command.wait() == 0, command.output
    assert (out / "index.html").is_file()
    assert "files" in command.output
    again = bitlens_command(*arguments)
    assert again.wait() == 2
    assert "--overwrite" in again.output
