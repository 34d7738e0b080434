"""What the explorer keeps in a run's folder, and what it does where something is missing."""

import json
import shutil

import pytest
import torch

from bitlens.autoencoders import Autoencoder
from bitlens.bits.codes import Codes
from bitlens.bits.packed import PackedBits
from bitlens.comsem.calls import Calls, Judgement
from bitlens.comsem.judges import Verdict
from bitlens.errors import BitlensError
from bitlens.evaluation import evaluate
from bitlens.explorer import encoding, gathering, subject
from bitlens.explorer.explorer import Explorer, Sources
from bitlens.files import finite
from bitlens.hidden import ActivationStore
from bitlens.report.kept import keep_evaluation
from explored import LATENTS, ask, served


@pytest.fixture
def copy(made, tmp_path) -> Sources:
    """A run and codes that a test may change."""
    shutil.copytree(made.bae, tmp_path / "run", ignore=shutil.ignore_patterns("explorer"))
    shutil.copytree(made.codes, tmp_path / "codes")
    return Sources(tmp_path / "run", tmp_path / "codes", model=False)


@pytest.mark.slow
def test_what_was_counted_is_kept_until_codes_or_weights_change(copy, monkeypatch):
    counted = []
    original = gathering._measure

    def measure(*arguments):
        counted.append(1)
        return original(*arguments)

    monkeypatch.setattr(gathering, "_measure", measure)
    first = Explorer(copy).latents
    assert Explorer(copy).latents == first
    assert len(counted) == 1
    file = copy.run / "explorer" / "codes.jsonl"
    whole = file.read_text()
    file.write_text(whole[: len(whole) // 2])  # damaged
    assert Explorer(copy).latents == first
    assert len(counted) == 2
    assert file.read_text() == whole
    bits = Codes(copy.codes)
    columns = {name: getattr(bits, name) for name in ("token", "document", "position", "usual")}
    other = PackedBits.pack(bits.bits.unpack().roll(1, 1))
    about = {k: bits.manifest[k] for k in ("model", "revision", "model_digest", "hook")}
    shutil.rmtree(copy.codes)
    Codes.write(copy.codes, [(other, columns)], bits.n_latents, about)
    changed = json.loads(Explorer(copy).latents)["data"]
    assert len(counted) == 3
    assert changed["rate"][1:] == json.loads(first)["data"]["rate"][:-1]
    autoencoder = Autoencoder.from_pretrained(copy.run)
    autoencoder.b_enc.data += 1
    autoencoder.save(copy.run)
    Explorer(copy)
    assert len(counted) == 4


@pytest.mark.slow
def test_what_is_kept_is_taken_only_as_it_was_written(copy):
    first = Explorer(copy).latents
    file = copy.run / "explorer" / "codes.jsonl"
    whole = file.read_bytes()
    head, line = whole.splitlines(keepends=True)[:2]
    for damaged in (
        b"",
        head,
        whole[:-1],
        head + b"{}\n" * LATENTS,
        whole.replace(b'"rate": 0.', b'"rate": 1.', 1),
        head + line * LATENTS,
        b"[1]\n",
        b"\xff" * 99,
    ):
        file.write_bytes(damaged)
        assert Explorer(copy).latents == first
        assert file.read_bytes() == whole


def test_another_start_loads_no_tokenizer_before_texts_are_asked_for(copy, monkeypatch):
    first = Explorer(copy)
    loaded = []
    original = subject.load_tokenizer

    def load(codes):
        loaded.append(codes)
        return original(codes)

    monkeypatch.setattr(subject, "load_tokenizer", load)
    again = Explorer(copy)
    assert again.latents == first.latents
    assert again.run()["rows"] > 0
    assert loaded == []
    assert again.latent(3) == first.latent(3)
    assert again.latent(4) == first.latent(4)
    assert len(loaded) == 2  # one each


def test_damaged_codes_are_refused(copy):
    shard = next(copy.codes.glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(BitlensError, match="altered"):
        Explorer(copy)


def test_where_nothing_can_be_kept_the_page_is_served_all_the_same(copy, capsys):
    (copy.run / "explorer").write_text("a file")
    assert json.loads(Explorer(copy).latents)["data"]["rate"]
    assert "not kept" in capsys.readouterr().err


@pytest.mark.slow
def test_without_codes_the_first_rows_of_the_store_are_encoded_and_kept(made, copy, monkeypatch):
    monkeypatch.setattr(encoding, "ROWS", 500)
    sources = Sources(copy.run, model=False)
    codes = Explorer(sources).subject.codes
    assert len(codes) == 500
    assert torch.equal(codes.bits.words, Codes(made.codes).bits.words[:500])
    monkeypatch.setattr(encoding, "encode_store", lambda *_, **__: pytest.fail("encoded again"))
    assert len(Explorer(sources).subject.codes) == 500
    both = Explorer(Sources(made.bae, made.codes, beside=copy.run, model=False))
    assert json.loads(both.compare)["measured"] <= 500


def test_codes_that_other_settings_would_make_are_made_anew(copy, monkeypatch):
    monkeypatch.setattr(encoding, "ROWS", 200)
    sources, settings = Sources(copy.run, model=False), copy.run / "cfg.json"
    before = Explorer(sources).subject.codes.bits.words.clone()
    config = json.loads(settings.read_text())
    assert config["coding"] == "descent"
    settings.write_text(json.dumps(config | {"coding": "step"}))
    assert not torch.equal(Explorer(sources).subject.codes.bits.words, before)


@pytest.mark.slow
@pytest.mark.newest
def test_what_is_missing_is_named(made, copy, tmp_path):
    nowhere = tmp_path / "nowhere"
    for sources, words in [
        (Sources(nowhere), "not an autoencoder"),
        (Sources(made.bae, nowhere), "not a folder of codes"),
        (Sources(made.bae, made.codes, explanations=nowhere), "explanations"),
        (Sources(made.bae, made.codes, effects=nowhere), "effects"),
        (Sources(made.topk, made.codes), "are of a bae"),
    ]:
        with pytest.raises(BitlensError, match=words):
            Explorer(sources)
    autoencoder = Autoencoder.from_pretrained(copy.run)
    autoencoder.metadata["store"] = str(nowhere)
    autoencoder.save(copy.run)
    with pytest.raises(BitlensError, match="bitlens encode"):
        Explorer(Sources(copy.run))


@pytest.mark.slow
def test_a_folder_that_vanishes_leaves_a_server_that_answers(made, copy):
    with served(Explorer(copy)) as site:
        shutil.rmtree(copy.codes)
        shutil.rmtree(copy.run)
        assert site.get("/api/run.json").status_code == 200
        for latent in range(5):
            answer = site.get(f"/api/latents/{latent}.json")
            assert answer.status_code in (200, 404, 500)
            assert answer.status_code == 200 or set(answer.json()) == {"sentence"}
        assert ask(site, "text", text="a").json() == {
            "sentence": "The language model is not loaded, so no text can be read."
        }


def test_codes_of_a_model_that_is_another_one_now_are_refused(copy):
    manifest = json.loads((copy.codes / "manifest.json").read_text())
    manifest["model_digest"] = "0" * 64
    (copy.codes / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BitlensError, match="another one"):
        Explorer(Sources(copy.run, copy.codes))


def test_codes_of_imported_hidden_states_have_no_texts(copy, tmp_path):
    bits = Codes(copy.codes)
    unknown = torch.full_like(bits.token, -1)
    columns = {"token": unknown, "document": bits.document, "position": bits.position}
    Codes.write(tmp_path / "imported", [(bits.bits, columns)], bits.n_latents, {"model": None})
    explorer = Explorer(Sources(copy.run, tmp_path / "imported"))
    assert explorer.run()["live"] is False
    page = explorer.latent(3)
    assert page["examples"] == page["preferred"] == page["promotes"] == []
    assert page["similar"]
    table = json.loads(explorer.latents)["data"]
    assert set(table["f1"]) == {None}
    with served(explorer) as site:
        assert ask(site, "text", text="a").status_code == 400
        found = ask(site, "find", on=[int(bits.bits.column_counts().argmax())]).json()
        assert found["count"] > 0


@pytest.mark.parametrize("training", [None, {}, {"architecture": "of tomorrow"}, {"k": [1]}])
def test_a_run_that_does_not_say_how_it_was_trained_is_shown(copy, training):
    autoencoder = Autoencoder.from_pretrained(copy.run)
    autoencoder.metadata = {} if training is None else {"training": training}
    autoencoder.save(copy.run)
    (copy.run / "metrics.jsonl").unlink()
    run = Explorer(copy).run()
    assert run["curves"] == {}
    assert [line.split()[1] for line in run["commands"]] == ["encode"]


def test_the_numbers_of_an_evaluation_are_shown(copy, made):
    store = ActivationStore(made.store)
    evaluation = evaluate(Autoencoder.from_pretrained(copy.run), store, joint=False)
    keep_evaluation(copy.run, evaluation)
    explorer = Explorer(copy)
    run = explorer.run()
    numbers = {line["name"]: line for line in run["numbers"]}
    assert numbers["fvu"]["value"] == pytest.approx(evaluation.fvu, rel=1e-4)
    assert numbers["fvu"]["shown"] == f"{evaluation.fvu:.4f}"
    assert "variance" in numbers["fvu"]["meaning"]
    assert run["entropy"]["bits_marginal"] == pytest.approx(evaluation.bits_marginal, rel=1e-4)
    assert run["measured"]
    (copy.run / "evaluation.json").write_text("{")
    assert explorer.run()["numbers"] == []
    assert explorer.run()["made"] == run["made"]


def test_explanations_come_with_their_verdicts(made, tmp_path):
    estimate = {"balanced_accuracy": 0.9, "balanced_accuracy_low": 0.7, "interpretable": True}
    record = {"latent": 3, "explanation": "<b>rivers</b>", "balanced_accuracy_high": 0.97}
    other = {"latent": 4, "explanation": ""}
    lines = [json.dumps(finite(each)) for each in (record | estimate, other)]
    (tmp_path / "scores.jsonl").write_text("\n".join(lines) + "\n")
    with Calls(tmp_path / "calls.sqlite") as calls:
        judgements = [
            Judgement(3, "<b>rivers</b>", "a «river» flows", 10, "positive", Verdict(True)),
            Judgement(3, "<b>rivers</b>", "a «lamp» burns", 20, "hard", Verdict(True)),
            Judgement(3, "of another latent", "a «lamp» burns", 20, "hard", Verdict(False)),
        ]
        calls.record(made.codes.name, "judge", judgements)
    explorer = Explorer(Sources(made.bae, made.codes, explanations=tmp_path, model=False))
    table = json.loads(explorer.latents)["data"]
    assert (table["explanation"][3], table["score"][3]) == ("<b>rivers</b>", 0.9)
    assert (table["explanation"][4], table["score"][4]) == ("", None)
    found = explorer.latent(3)["explanation"]
    assert (found["low"], found["high"], found["judge"]) == (0.7, 0.97, "judge")
    assert found["verdicts"] == [
        {
            "before": "a ",
            "token": "lamp",
            "after": " burns",
            "row": 20,
            "on": False,
            "said": True,
            "kind": "hard",
        },
        {
            "before": "a ",
            "token": "river",
            "after": " flows",
            "row": 10,
            "on": True,
            "said": True,
            "kind": "positive",
        },
    ]
    assert explorer.latent(4)["explanation"] is None


def test_effects_are_shown(made, tmp_path):
    effects = tmp_path / "effects.jsonl"
    effects.write_text(json.dumps({"latent": 5, "kl_div": 0.25, "kl_div_low": 0.125}) + "\n")
    explorer = Explorer(Sources(made.bae, made.codes, effects=effects, model=False))
    assert json.loads(explorer.latents)["data"]["effect"][5] == 0.125
    assert explorer.latent(5)["effect"]["kl_div"] == 0.25
    assert explorer.latent(6)["effect"] is None
    assert explorer.run()["effects"] is True
