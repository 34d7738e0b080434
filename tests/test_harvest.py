"""A harvest keeps exactly the model's hidden states."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from types import SimpleNamespace

import pytest
import torch
import transformers

import bitlens.hidden.harvest as harvest_module
from bitlens.cli import main
from bitlens.errors import BitlensError
from bitlens.files import sha256
from bitlens.hidden import ActivationStore, Corpus, LanguageModel
from bitlens.hidden.harvest import harvest
from bitlens.hidden.text import ContextReader

HOOKS = ["layers.0", "layers.1.mlp:input", "layers.2"]


@pytest.fixture
def job(tiny_llama, text_folder):
    """`job(hooks..., length=...)` -> (model, reader) of `tiny_llama` on `text_folder`."""

    def make(*hooks, folder=tiny_llama, text=text_folder, length=16, dtype="float32", **settings):
        hooks = list(hooks or ("layers.1",))
        model = LanguageModel.load(str(folder), hooks, device="cpu", dtype=dtype)
        return model, ContextReader(Corpus((str(text),)), model.tokenizer, length, **settings)

    return make


@pytest.fixture
def small_shards(monkeypatch):
    """Shards of about 8 batches of 4 contexts of 16 tokens."""
    monkeypatch.setattr(harvest_module, "SHARD_BYTES", 8 * 4 * 16 * 32 * 4)


def all_rows(store):
    """hidden, token, document, position of all rows, in the order of the text"""
    parts = list(store.read())
    columns = {name: torch.cat([rows.columns[name] for rows in parts]) for name in parts[0].columns}
    return SimpleNamespace(hidden=torch.cat([rows.hidden for rows in parts]), **columns)


def files(folder):
    """Every file below a folder, hidden ones too -> its checksum"""
    return {str(p.relative_to(folder)): sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def refusal(work):
    """The one sentence with which something is refused."""
    with pytest.raises(BitlensError) as error:
        work()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_speed_is_of_all_rows_so_far(job, tmp_path, small_shards, monkeypatch):
    clock = iter(range(10_000))  # a second for each look at it
    ticking = SimpleNamespace(perf_counter=lambda: next(clock))
    monkeypatch.setattr(harvest_module, "time", ticking)
    said = []
    monkeypatch.setattr(harvest_module.terminal, "at", lambda *each: said.append(each))
    model, reader = job()
    (store,) = harvest(model, reader, tmp_path / "out", batch_size=4)
    assert len(store.shards) > 2
    assert [note for _, note, _ in said] == [
        f"{rows / i:,.0f} rows/s" for i, (rows, *_) in enumerate(said, 1)
    ]


# --- what is stored -----------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "one document a context"])
@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_rows_are_the_hidden_states_of_the_model(
    make_model, job, tmp_path, small_shards, kind, packed
):
    model, reader = job(*HOOKS[::2], folder=make_model(kind), packed=packed)
    stores = harvest(model, reader, tmp_path / "out", batch_size=4)
    found = [all_rows(store) for store in stores]
    begin = 0
    for part in reader.runs(8 * 4 * 16):
        states = {hook.name: torch.zeros(*part.tokens.shape, 32) for hook in model.hooks}
        for chosen in part.by_length(4 * 16):
            batch = part.of(chosen)
            for name, state in model.hidden_states(batch.tokens, batch.mask).items():
                states[name][chosen, : state.shape[1]] = state
        end = begin + int(part.keep.sum())
        for hook, rows in zip(model.hooks, found, strict=True):
            assert torch.equal(rows.hidden[begin:end], states[hook.name][part.keep])
            assert torch.equal(rows.token[begin:end], part.tokens[part.keep].int())
            assert torch.equal(rows.document[begin:end], part.document[part.keep])
            assert torch.equal(rows.position[begin:end], part.keep.nonzero()[:, 1].int())
        begin = end
    assert [len(store) for store in stores] == [begin, begin]
    assert len(stores[0].shards) > 1 or not packed


def test_stored_contexts_are_what_the_model_saw(make_model, job, tmp_path, small_shards):
    model, reader = job("layers.1", packed=False, bos=True)
    (store,) = harvest(model, reader, tmp_path / "out", batch_size=4)
    full = transformers.AutoModel.from_pretrained(make_model("llama")).eval()
    hidden = all_rows(store).hidden
    begin = 0
    for contexts, columns in store.contexts():
        for index, context in enumerate(contexts):
            mine = columns["context"] == index
            tokens = context[context >= 0]
            with torch.no_grad():
                states = full(tokens[None], output_hidden_states=True).hidden_states[2][0]
            assert tokens[0] == reader.tokenizer.bos_token_id
            assert torch.equal(
                tokens[columns["position"][mine].long()].int(), columns["token"][mine]
            )
            assert columns["position"][mine].tolist() == list(range(1, len(tokens)))
            expected = hidden[begin : begin + len(mine)][mine]
            torch.testing.assert_close(
                states[1:], expected, rtol=1e-4, atol=1e-5
            )  # batched otherwise
        begin += len(columns["token"])
    assert begin == len(store)


def test_special_tokens_and_padding_make_no_rows(job, tmp_path):
    text = tmp_path / "text"
    text.mkdir()
    (text / "0.txt").write_text("The river <|eos|> and <|pad|> the lamp.")
    (text / "1.txt").write_text("The sailor.")
    model, reader = job("layers.1", text=text, packed=False, bos=True)
    (store,) = harvest(model, reader, tmp_path / "out")
    texts = ["The river <|eos|> and <|pad|> the lamp.", "The sailor."]
    ids = [reader.tokenizer(t)["input_ids"][:15] for t in texts]
    special = set(reader.tokenizer.all_special_ids)
    expected = [
        (t, d, p) for d, row in enumerate(ids) for p, t in enumerate(row, 1) if t not in special
    ]
    rows = all_rows(store)
    assert (
        list(zip(rows.token.tolist(), rows.document.tolist(), rows.position.tolist(), strict=True))
        == expected
    )


@pytest.mark.slow
def test_several_hook_points_share_their_rows(job, tmp_path, small_shards):
    stores = harvest(*job(*HOOKS), tmp_path / "out", batch_size=4)
    assert [store.path.name for store in stores] == ["layers.0", "layers.1.mlp-input", "layers.2"]
    assert [store.manifest["hook"]["module"] for store in stores] == HOOKS
    first, *others = [all_rows(store) for store in stores]
    for other in others:
        assert torch.equal(other.token, first.token)
        assert torch.equal(other.document, first.document)
        assert torch.equal(other.position, first.position)
    for hook, rows in zip(
        HOOKS, [first, *others], strict=True
    ):  # as if each had been harvested alone
        (alone,) = harvest(*job(hook), tmp_path / hook, batch_size=4)
        assert torch.equal(rows.hidden, all_rows(alone).hidden)


@pytest.mark.slow
@pytest.mark.parametrize("max_rows", [1, 16, 500, 513, 10**6])
def test_max_rows_is_exact(job, tmp_path, small_shards, max_rows):
    whole = all_rows(harvest(*job(), tmp_path / "whole", batch_size=4)[0])
    (store,) = harvest(*job(), tmp_path / "some", batch_size=4, max_rows=max_rows)
    rows = all_rows(store)
    n = min(max_rows, len(whole.hidden))
    assert len(store) == len(rows.hidden) == n
    assert torch.equal(rows.hidden, whole.hidden[:n])
    assert torch.equal(rows.position, whole.position[:n])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rows_are_rounded_to_the_dtype_of_the_store(job, tmp_path, dtype):
    (exact,) = harvest(*job(), tmp_path / "exact")
    (store,) = harvest(*job(), tmp_path / "half", store_dtype=dtype)
    assert store.manifest["dtype"] == str(dtype).removeprefix("torch.")
    assert torch.equal(all_rows(store).hidden, all_rows(exact).hidden.to(dtype))


def test_a_source_of_text_may_be_named_by_a_string(job, text_folder, tmp_path):
    model, _ = job()
    (store,) = harvest(model, str(text_folder), tmp_path / "out")
    assert store.manifest["context_length"] == 128  # what the model reads at most
    assert store.manifest["text"] == [str(text_folder)]


def test_the_plan_tells_the_rows(job, tmp_path):
    plans = []
    stores = harvest(*job(*HOOKS), tmp_path / "out", announce=plans.append)
    (plan,) = plans
    size = sum(entry["bytes"] for store in stores for entry in store.shards)
    assert plan.rows == len(stores[0])
    assert plan.store_bytes == pytest.approx(size, rel=0.05)
    assert plan.memory.parts["model"] == job(*HOOKS)[0].memory()
    assert f"about {plan.rows:,} rows; harvest takes " in str(plan)


# --- trouble ------------------------------------------------------------------------------------


def changed_model(folder, out, change):
    """A copy of a saved model whose weights `change` was applied to."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        change(model)
    model.save_pretrained(out)
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(out)
    return out


def test_hidden_states_that_are_not_finite_name_row_and_document(
    job, tiny_llama, text_folder, tmp_path, small_shards
):
    text = shutil.copytree(text_folder, tmp_path / "text")
    (text / "13.txt").write_text("The sailor # watched")
    embeddings = "hidden_states[0]"  # attention spreads a NaN over its whole context
    _, reader = job(text=text, packed=False)
    bad = reader.tokenizer("#")["input_ids"][0]
    lengths = [min(16, len(ids)) for _, ids in reader.tokenized()]
    row = sum(lengths[:13]) + reader.tokenizer("The sailor # watched")["input_ids"].index(bad)

    def spoil(model):
        model.get_input_embeddings().weight[bad, 3] = float("nan")

    folder = changed_model(tiny_llama, tmp_path / "spoiled", spoil)
    model, reader = job(embeddings, folder=folder, text=text, packed=False)
    sentence = refusal(lambda: harvest(model, reader, tmp_path / "out", batch_size=1))
    position = row - sum(lengths[:13])
    place = f"Row {row} (document 13, position {position}) has a NaN hidden state at layers.0:input"
    assert f"{place}, as 1 of " in sentence
    assert "leave the document out" in sentence


def test_an_overflow_of_float16_is_told(job, tiny_llama, tmp_path):
    folder = changed_model(
        tiny_llama, tmp_path / "huge", lambda model: model.get_input_embeddings().weight.mul_(1e7)
    )
    sentence = refusal(
        lambda: harvest(*job(folder=folder), tmp_path / "out", store_dtype=torch.float16)
    )
    assert "has an infinite hidden state at layers.1, as " in sentence
    assert "float16 ends at 65,504" in sentence
    assert "store with `store_dtype=torch.float32`" in sentence
    harvest(*job(folder=folder), tmp_path / "out", store_dtype=torch.float32, overwrite=True)


@pytest.mark.parametrize("text", ["", "  \n\n", "<|eos|>", "<|pad|> <|bos|>".replace(" ", "")])
def test_text_without_usable_tokens_is_refused(job, tmp_path, text):
    (tmp_path / "text.txt").write_text(text)
    sentence = refusal(lambda: harvest(*job(text=tmp_path / "text.txt"), tmp_path / "out"))
    assert "no usable tokens" in sentence


def test_empty_text_replaces_nothing(job, tmp_path, harvested):
    former = shutil.copytree(harvested, tmp_path / "out")
    (tmp_path / "empty.txt").write_text("")
    refusal(lambda: harvest(*job(text=tmp_path / "empty.txt"), former, overwrite=True))
    assert files(former) == files(harvested)


def test_a_store_that_cannot_fit_the_disk_is_not_begun(job, tmp_path, text_folder, harvested):
    former = shutil.copytree(harvested, tmp_path / "out")
    model, reader = job()
    reader.corpus = Corpus((str(text_folder),), streaming=True)
    sentence = refusal(lambda: harvest(model, reader, former, max_rows=10**15, overwrite=True))
    assert "The disk is too full" in sentence
    assert "lower `max_rows`" in sentence
    assert files(former) == files(harvested)


def test_a_folder_that_is_not_empty_is_refused(job, tmp_path, harvested):
    former = shutil.copytree(harvested, tmp_path / "out")
    sentence = refusal(lambda: harvest(*job(), former))
    ways = "pass `resume=True` to continue it or `overwrite=True` to replace it"
    assert f"{former} is not empty; {ways}" in sentence
    assert files(former) == files(harvested)


def test_overwrite_replaces_a_store(job, tmp_path, harvested):
    former = shutil.copytree(harvested, tmp_path / "out")
    (store,) = harvest(*job("layers.2"), former, max_rows=50, overwrite=True)
    assert len(ActivationStore(former)) == len(store) == 50
    assert store.manifest["hook"]["module"] == "layers.2"


@pytest.mark.parametrize("hooks", [HOOKS[:1], HOOKS])
def test_overwrite_deletes_nothing_but_a_store(job, tmp_path, hooks):
    (tmp_path / "thesis.txt").write_text("years of work")
    assert "was not written by this command" in refusal(
        lambda: harvest(*job(*hooks), tmp_path, overwrite=True)
    )
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_file_is_no_output(job, tmp_path):
    (tmp_path / "out").write_text("")
    assert "is a file; name a folder" in refusal(lambda: harvest(*job(), tmp_path / "out"))


def test_resuming_a_finished_store_changes_nothing(job, tmp_path, small_shards):
    (store,) = harvest(*job(), tmp_path / "out", batch_size=4)
    times = {p.name: p.stat().st_mtime_ns for p in store.path.iterdir()}
    (again,) = harvest(*job(), tmp_path / "out", batch_size=4, resume=True)
    assert again.manifest == store.manifest
    assert {p.name: p.stat().st_mtime_ns for p in store.path.iterdir()} == times


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"length": 8}, "context_length"),
        ({"hook": "layers.0"}, "hook"),
        ({"max_rows": 70}, "max_rows"),
        ({"batch_size": 2}, "batch_size"),
        ({"store_dtype": torch.float16}, "dtype"),
        ({"dtype": "bfloat16", "store_dtype": torch.float32}, "model_dtype"),
        ({"packed": False}, "packed"),
        ({"bos": True}, "prepend_bos"),
    ],
)
def test_resuming_with_other_settings_is_refused(job, tmp_path, small_shards, change, named):
    def run(hook="layers.1", length=16, packed=True, bos=None, dtype="float32", **settings):
        model, reader = job(hook, length=length, packed=packed, bos=bos, dtype=dtype)
        return harvest(model, reader, tmp_path / "out", **{"batch_size": 4, **settings})

    run()
    before = files(tmp_path / "out")
    assert f"was begun with other settings ({named} differ)" in refusal(
        lambda: run(resume=True, **change)
    )
    assert files(tmp_path / "out") == before


# --- killed, stopped, full: the command as a process --------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(tiny_llama, text_folder, tmp_path_factory):
    """The files of the same harvest, to which nothing happened."""
    out = tmp_path_factory.mktemp("undisturbed")
    model = LanguageModel.load(str(tiny_llama), ["layers.0", "layers.2"], device="cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(harvest_module, "SHARD_BYTES", 1)
        harvest(
            model, ContextReader(Corpus((str(text_folder),)), model.tokenizer, 8), out, batch_size=4
        )
    assert shards_in(out) > 80
    return files(out)


def shards_in(folder):
    return len(list(folder.glob("*/shard-*.safetensors")))


def write_large(path, size):
    """About so many bytes of text."""
    sentence = "The old sailor watched the quiet river before the storm. "
    line = json.dumps({"text": sentence * 40}) + "\n"
    if path.name == "one line.jsonl":
        path.write_text(json.dumps({"text": sentence * (size // len(sentence))}))
    elif path.suffix == ".txt":
        path.write_text(f"{sentence}\n" * (size // len(sentence)))
    elif path.suffix == ".csv":
        path.write_text("text\n" + f"{sentence * 40}\n" * (size // 40 // len(sentence)))
    elif path.suffix == ".json":
        path.write_text("[" + (line + ",") * (size // len(line)) + line + "]")
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress((line * (size // len(line))).encode(), 1))
    else:
        path.write_text(line * (size // len(line)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "unit"),
    [(name, 1 << 27, "auto") for name in ("a.jsonl", "a.txt", "a.csv", "a.json", "a.jsonl.gz")]
    + [("one line.jsonl", 10_000_000, unit) for unit in ("auto", "file")],
)
def test_what_is_not_asked_for_is_not_held_in_memory(
    bitlens_command, tiny_llama, tmp_path, name, size, unit
):
    """A large text costs no more memory than a small one, but for one document of it."""
    peaks = []
    for part, bytes_of_text in (("small", 1 << 16), ("large", size)):
        (tmp_path / part).mkdir()
        write_large(tmp_path / part / name, bytes_of_text)
        out = tmp_path / part / "out"
        text = ["--text", tmp_path / part / name, "--context", 64, "--documents", unit]
        model = [tiny_llama, "--hook", "layers.0", "--device", "cpu"]
        command = bitlens_command("harvest", *model, *text, "--max-rows", 500, "--out", out)
        peaks.append(command.peak_memory())
        assert len(ActivationStore(out)) == 500
    assert peaks[1] - peaks[0] < (150e6 if name == "one line.jsonl" else 50e6)


def test_no_rows_are_not_asked_for(job, tmp_path):
    for rows in (0, -3):
        sentence = refusal(lambda rows=rows: harvest(*job(), tmp_path / "out", max_rows=rows))
        assert f"`max_rows` must be at least 1, not {rows}" in sentence
    assert not (tmp_path / "out").exists()


def test_a_link_as_output_stays_one(job, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "store")
    for settings in ({}, {"overwrite": True}, {"resume": True}):
        harvest(*job(), tmp_path / "link", max_rows=50, **settings)
        assert (tmp_path / "link").is_symlink()
        assert len(ActivationStore(tmp_path / "store")) == 50


@pytest.mark.slow
def test_a_harvest_goes_on_from_the_same_text_by_another_name(
    tiny_llama, text_folder, undisturbed, tmp_path, monkeypatch
):
    """Begun with a path, continued with a link, from another folder, and with a copy."""
    monkeypatch.setattr(harvest_module, "SHARD_BYTES", 1)
    (tmp_path / "link").symlink_to(text_folder)
    shutil.copytree(text_folder, tmp_path / "copy")
    names = [text_folder, tmp_path / "link", os.path.relpath(text_folder), tmp_path / "copy"]
    model = LanguageModel.load(str(tiny_llama), ["layers.0", "layers.2"], device="cpu")
    for name in names:
        reader = ContextReader(Corpus((str(name),)), model.tokenizer, 8)
        stops = iter([None] * 9 + ["a test"])
        last = name == names[-1]

        def work(reader=reader, stops=stops, last=last):
            return harvest(
                model,
                reader,
                tmp_path / "out",
                batch_size=4,
                resume=True,
                stop=lambda: None if last else next(stops),
            )

        assert work() if last else "Stopped by a test after" in refusal(work)
    assert files(tmp_path / "out") == undisturbed


@pytest.mark.slow
def test_another_text_of_the_same_size_is_told_apart(job, tmp_path, text_folder):
    text = shutil.copytree(text_folder, tmp_path / "text")
    harvest(*job(text=text), tmp_path / "out")
    edited = text / "03.txt"
    edited.write_text(edited.read_text().replace("e", "a"))
    assert "corpus differ" in refusal(
        lambda: harvest(*job(text=text), tmp_path / "out", resume=True)
    )


@pytest.mark.slow
def test_the_command_says_what_was_not_read_and_how_few_documents_there_are(
    bitlens_command, tiny_llama, text_folder, tmp_path
):
    text = shutil.copytree(text_folder, tmp_path / "text")
    (text / "picture.png").write_bytes(b"")
    (text / "README.md").write_text("About these texts.")
    command = bitlens_command(
        "harvest",
        tiny_llama,
        "--text",
        text,
        "--hook",
        "layers.0",
        "--out",
        tmp_path / "out",
        "--context",
        64,
    )
    assert command.wait() == 0, command.output
    said = " ".join(command.output.split())
    assert "not read as text: README.md, picture.png" in said
    assert "from 20 documents" in said
    assert (
        "Only 20 documents: the split into training and test and all intervals rest on documents"
        in said
    )


def test_the_help_of_a_flag_says_what_the_flag_does(capsys):
    with pytest.raises(SystemExit):
        main(["harvest", "--help"])
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "with --no-packed, each begins one" in said


@pytest.mark.slow
def test_bad_input_ends_with_one_sentence_and_status_2(
    bitlens_command, tiny_llama, text_folder, tmp_path
):
    bad = {
        "There is no hook point 'layers.7'": [
            tiny_llama,
            "--text",
            text_folder,
            "--hook",
            "layers.7",
        ],
        "could not be loaded": [tmp_path / "nowhere", "--text", text_folder, "--hook", "layers.1"],
        "There is no text at": [tiny_llama, "--text", tmp_path / "nowhere", "--hook", "layers.1"],
    }
    commands = {
        s: bitlens_command("harvest", *a, "--out", tmp_path / "out") for s, a in bad.items()
    }
    for sentence, command in commands.items():
        assert command.wait() == 2
        lines = [line for line in command.output.splitlines() if not line.startswith("harvest")]
        assert len(lines) == 1, "but for how far it is, where that takes long"
        assert sentence in lines[0]
    assert not (tmp_path / "out").exists()
