"""What is sent to the hub of a run, what its card says, and that another process gets the same
autoencoder back."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from markdown_it import MarkdownIt

from bitlens.autoencoders import Autoencoder
from bitlens.bits.codes import Codes
from bitlens.cli import main
from bitlens.ecosystem.about import About
from bitlens.ecosystem.card import licence_of
from bitlens.ecosystem.hub import push_to_hub
from bitlens.ecosystem.published import FILES, without_paths
from bitlens.errors import BitlensError
from bitlens.evaluation import evaluate
from bitlens.hidden import ActivationStore, Corpus
from bitlens.hidden.hooks import names_elsewhere
from bitlens.hidden.split import documents_of
from bitlens.report import write_report
from hub_server import TOKEN, Hub, run

HOSTILE = (
    "a|b`c](//evil.example) <script>x</script> ![](x) **b** $$ http://evil.example "
    "www.evil.example\n# x"
)
SENT = [name for name in FILES if name != "latents.json"]


@pytest.fixture(scope="module")
def evaluated(codes_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with all that bitlens leaves in its folder; not to be changed."""
    folder = tmp_path_factory.mktemp("alice") / "run"
    shutil.copytree(codes_folder.parent / "run", folder)
    store = ActivationStore(codes_folder.parent / "store")
    numbers = evaluate(Autoencoder.from_pretrained(folder), store, joint=False)
    write_report(folder, evaluation=numbers, codes=Codes(codes_folder))
    assert {*FILES} - {"README.md", "figure.png"} <= {file.name for file in folder.iterdir()}
    return folder


@pytest.fixture
def own(evaluated: Path, tmp_path: Path) -> Path:
    """A copy to change, with files in it that are nobody's business."""
    folder = tmp_path / "alice" / "run"
    shutil.copytree(evaluated, folder)
    for name in (".env", "notes.txt", "sae_weights.old.safetensors"):
        (folder / name).write_text("secret")
    return folder


@pytest.fixture
def hub():
    with Hub() as one:
        yield one


def changed(run: Path, **metadata: Any) -> None:
    config = json.loads((run / "cfg.json").read_text())
    config["metadata"] |= metadata
    (run / "cfg.json").write_text(json.dumps(config))


def head(card: str) -> dict[str, Any]:
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)[1])  # pyright: ignore


def example(card: str) -> str:
    return re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]  # pyright: ignore


# --- without a hub --------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_dry_run_shows_card_and_files_and_writes_nothing(own, capsys):
    before = sorted(own.iterdir())
    main(["push", str(own), "me/run", "--dry-run", "--license", "mit"])
    out = capsys.readouterr().out
    assert sorted(own.iterdir()) == before
    assert all(name in out for name in SENT)
    assert not any(
        name in out for name in (".env", "notes", "old", "latents.json", "training.json")
    )
    assert "alice" not in out
    assert str(own.parent) not in out
    (own / "evaluation.json").unlink()
    main(["push", str(own), "me/run", "--dry-run"])
    assert "`bitlens evaluate RUN STORE`" in capsys.readouterr().err


@pytest.mark.slow
def test_a_card_says_what_is_known(own):
    pushed = push_to_hub(own, "me/run", About(license="mit"), dry_run=True)
    assert list(pushed.files) == SENT
    assert pushed.commit is None
    about = head(pushed.card)
    assert about == {
        "library_name": "bitlens",
        "license": "mit",
        "tags": ["bitlens", "binary-autoencoder", "mechanistic-interpretability"],
    }
    numbers = json.loads((own / "evaluation.json").read_text())["numbers"]
    assert f"| `fvu` | {numbers['fvu']:.4f} |" in pushed.card
    assert "`ce_original`" not in pushed.card  # was not measured
    assert "bundled at layers.2" in pushed.card
    assert "The language model: mit." in pushed.card
    assert "2509.20997" in pushed.card
    for name in ("evaluation.json", "metrics.jsonl", "latents.json"):
        (own / name).unlink()
    bare = push_to_hub(own, "me/run", dry_run=True)
    assert "Nothing was measured." in bare.card
    assert "figure.png" not in bare.card
    assert "No licence was stated" in bare.card
    assert "license" not in head(bare.card)
    assert not {"figure.png", "evaluation.json"} & set(bare.files)


@pytest.mark.slow
def test_names_on_the_hub_are_linked(own):
    given = About(base_model="some/model", datasets=("some/text", "other/text"))
    about = head(push_to_hub(own, "me/run", given, dry_run=True).card)
    assert (about["base_model"], about["datasets"]) == ("some/model", ["some/text", "other/text"])
    own_names = documents_of(Corpus(("some/text:en", "other/text")))["texts"]
    texts = {"texts": [*own_names, "/home/alice/x.txt", "bundled"], "numbering": "x"}
    changed(own, model="some/model", documents_of=texts)
    card = push_to_hub(own, "me/run", dry_run=True).card
    about = head(card)
    assert (about["base_model"], about["datasets"]) == ("some/model", ["some/text", "other/text"])
    assert "The language model has its own licence." in card


def test_the_licence_of_a_model_in_a_folder_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # whose README.md is no model's
    assert licence_of(str(tmp_path)) is None
    for text, licence in (
        ("---\nlicense: apache-2.0\n---\n", "apache-2.0"),
        ("---\n[\n---\n", None),
    ):
        (tmp_path / "README.md").write_text(text)
        assert licence_of(str(tmp_path)) == licence
    assert licence_of(None) is None
    assert licence_of("") is None
    assert licence_of("bundled") == "mit"


@pytest.mark.slow
def test_only_names_of_the_hook_point_that_are_known_are_shown(own):
    changed(own, hook=names_elsewhere("blocks.2.ln2.hook_normalized"))
    card = push_to_hub(own, "me/run", dry_run=True).card
    assert "| hook point | `blocks.2.ln2.hook_normalized` |" in card
    assert "LanguageModel.load" not in card  # of a place that is not read here
    changed(own, hook=names_elsewhere("blocks.2.hook_resid_post"))
    card = push_to_hub(own, "me/run", dry_run=True).card
    assert "| hook point | `layers.2 = blocks.2.hook_resid_post` |" in card
    changed(own, model="bundled", hook=names_elsewhere("blocks.2.hook_mlp_out"))
    code = example(push_to_hub(own, "me/run", dry_run=True).card).replace(
        "'me/run'", repr(str(own))
    )
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["x"].shape == names["x_hat"].shape


@pytest.mark.slow
def test_nothing_from_data_is_markup(own):
    hook = {"module": HOSTILE, "transformers": HOSTILE}
    changed(own, model=HOSTILE, hook=hook, documents_of={"texts": [HOSTILE], "numbering": "x"})
    clean = push_to_hub(own.parent / "run", "me/run", dry_run=True).card
    parser = MarkdownIt("gfm-like", {"linkify": False})
    body = clean.split("\n---\n", 1)[1]
    tokens = [t for token in parser.parse(body) for t in (token, *(token.children or []))]
    assert not [t.content for t in tokens if t.type in ("html_block", "html_inline")]
    links = {t.attrs["href"] for t in tokens if t.type == "link_open"}
    assert links == {"https://arxiv.org/abs/2509.20997"}
    assert {t.attrs["src"] for t in tokens if t.type == "image"} == {"figure.png"}
    assert not [t for t in tokens if t.type == "strong_open"]
    assert [t.tag for t in tokens if t.type == "heading_open"] == ["h1", *["h2"] * 5]
    compile(example(clean), "card", "exec")
    assert "://evil" not in re.sub(r"```.*?```", "", body, flags=re.DOTALL).replace("\\://", "")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("/home/alice/stores/a", "a"),
        ("C:\\Users\\alice\\store", "store"),
        ("\\\\server\\alice\\store", "store"),
        ("~/alice/store/", "store"),
        ("../alice/store", "store"),
        ("file:///home/alice/x.txt", "x.txt"),
        ("/x/hub/models--some--model-1/snapshots/0123/", "some/model-1"),
        ("some/model", "some/model"),
        ("blocks.2.hook_resid_post", "blocks.2.hook_resid_post"),
        ("hidden_states[3]", "hidden_states[3]"),
        ("", ""),
        (3, 3),
    ],
)
def test_paths_lose_all_but_their_end(value, shown):
    assert without_paths({"a": [value]}) == {"a": [shown]}
    assert without_paths({"store": "alice/store"}) == {"store": "store"}


def test_what_cannot_be_pushed_is_a_sentence(own, tmp_path):
    with pytest.raises(BitlensError, match="owner/name"):
        push_to_hub(own, "run", dry_run=True)
    with pytest.raises(BitlensError, match="is not an autoencoder"):
        push_to_hub(tmp_path / "none", "me/run", dry_run=True)


# --- with one -------------------------------------------------------------------------------------

PUSHES = """
import json, os, sys
from huggingface_hub import constants
from bitlens.ecosystem.about import About
from bitlens.ecosystem.hub import push_to_hub
from bitlens.errors import BitlensError
for settings in json.loads(sys.argv[2]):
    os.environ["HF_TOKEN"] = settings.pop("token", "VALID")
    constants.HF_HUB_OFFLINE = settings.pop("offline", False)
    try:
        run = settings.pop("run", sys.argv[1])
        push_to_hub(run, "me/run", About(license=settings.pop("license", None)), **settings)
        print("done")
    except BitlensError as error:
        print(error)
""".replace("VALID", TOKEN)
LOADS = """
import sys
import bitlens as bl
for revision in sys.argv[2:]:
    bl.Autoencoder.from_pretrained("me/run", revision=revision).save(f"{sys.argv[1]}/{revision}")
"""


def pushes(hub: Hub, home: Path, own: Path, *settings: dict[str, Any]) -> list[str]:
    """What each of some pushes ends with, all in one process."""
    ended = run(hub, home, "-c", PUSHES, str(own), json.dumps(settings))
    assert (ended.status, ended.err) == (0, "")
    said = ended.out.splitlines()
    assert len(said) == len(settings)
    assert TOKEN not in ended.out
    return said


@pytest.mark.slow
def test_another_process_gets_the_same_autoencoder(hub, own, tmp_path):
    home, again = tmp_path / "home", tmp_path / "again"
    command = ("-m", "bitlens", "push", str(own), "me/run", "--license", "mit")
    ended = run(hub, home, *command, HF_TOKEN=TOKEN)
    assert ended.status == 0, ended.err
    repository = hub.repositories["me/run"]
    assert len(repository.history) == 2  # the hub's own, and one of all files
    assert f"{hub.url}/me/run/commit/{repository.history[-1]}" in ended.out
    files = repository.commits[repository.refs["main"]]
    assert set(files) == {*SENT, ".gitattributes"}
    machine = (b"alice", str(tmp_path).encode(), str(Path.home()).encode(), b"/tmp/")
    for name, content in files.items():
        assert not any(secret in content for secret in machine), name

    # the card's own example, elsewhere
    code = f"{example(files['README.md'].decode())}autoencoder.save({str(again)!r})\n"
    shown = run(hub, tmp_path / "there", "-c", f"{code}print(list(x_hat.shape))")
    assert shown.status == 0, shown.err
    ours, theirs = (Autoencoder.from_pretrained(one) for one in (own, again))
    assert shown.out.splitlines()[-1] == f"[1, 5, {ours.d_in}]"
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[name]), name
    assert theirs.metadata == without_paths(ours.metadata)
    x = torch.randn(16, ours.d_in)
    assert torch.equal(ours(x), theirs(x))

    assert {seen.place for seen in hub.seen if seen.token} == {"hub"}
    assert {seen.place for seen in hub.seen} == {"hub", "storage"}
    kept = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert not any(TOKEN.encode() in file.read_bytes() for file in kept)
    assert TOKEN not in ended.out + ended.err + shown.out + shown.err


@pytest.mark.slow
def test_pushes_are_commits_and_branches(hub, own, tmp_path):
    other, home = tmp_path / "other", tmp_path / "home"
    shutil.copytree(own, other)
    autoencoder = Autoencoder.from_pretrained(own)
    with torch.no_grad():
        autoencoder.b_dec += 1
    autoencoder.save(other)
    changed = {"run": str(other), "license": "mit"}
    said = pushes(
        hub,
        home,
        own,
        {"latents": True},
        {"latents": True},  # changes nothing
        {**changed, "keep_card": True},
        {**changed, "revision": "trial"},
    )
    assert said == ["done"] * 4
    repository = hub.repositories["me/run"]
    _, old, *later = repository.history
    assert later == [repository.refs["main"], repository.refs["trial"]]
    first, second, trial = (repository.commits[commit] for commit in (old, *later))
    assert b"alice" not in first["latents.json"]
    assert "latents.json" not in second  # what is not sent any more does not stay
    assert second["README.md"] == first["README.md"]
    assert second["sae_weights.safetensors"] != first["sae_weights.safetensors"]
    assert b"license: mit" in trial["README.md"]
    ended = run(hub, home, "-c", LOADS, str(tmp_path), old, "trial")
    assert ended.status == 0, ended.err
    former, new = (Autoencoder.from_pretrained(tmp_path / name) for name in (old, "trial"))
    assert torch.equal(former.b_dec + 1, new.b_dec)


@pytest.mark.slow
def test_what_fails_is_said_or_tried_again(hub, own, tmp_path):
    hub.faults += [
        ("repos/create", "403", 1),
        ("/commit/", "hang up", 3),
        ("/commit/", "500", 1),
        ("repos/create", "hang up", 1),
        ("PUT", "500", 1),
    ]
    refused, none, wrong, offline, broken, well = pushes(
        hub,
        tmp_path / "home",
        own,
        {},
        {"token": ""},
        {"token": "hf_wrong"},
        {"offline": True},
        {"private": True},
        {},
    )
    assert "answered 403 about 'me/run' (as the test wishes); the token" in refused
    assert "takes a token that may: `hf auth login`" in none
    assert "shows no repository 'me/run' to the token that is set" in wrong
    assert offline == "HF_HUB_OFFLINE is set and nothing is sent; unset it."
    assert "broke off" in broken
    assert well == "done"
    assert not any(left for _, _, left in hub.faults)
    repository = hub.repositories["me/run"]
    assert repository.private
    assert len(repository.history) == 2
    assert set(repository.commits[repository.refs["main"]]) > set(SENT)
