"""Corpora of every kind give the same documents, and contexts are cut so that only real text makes rows."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import torch

from bitlens.errors import BitlensError
from bitlens.hidden import Corpus
from bitlens.hidden.text import ContextReader

TEXTS = [
    "The sea was calm.",
    "",
    "Ein Mädchen – naïve?\nTwo lines.",
    "   ",
    "A line\u2028separator and \x0b a tab.",
    "雪が降る。",
]
DOCUMENTS = [(i, text) for i, text in enumerate(TEXTS) if text.strip()]


def json_lines(texts, column="text"):
    return "".join(json.dumps({"id": 7, column: text}, ensure_ascii=False) + "\n" for text in texts)


def write_files(folder, texts):
    folder.mkdir()
    for index, text in enumerate(texts):
        (folder / f"{index:03d}.txt").write_bytes(text.encode())


def write_jsonl(path, texts):
    path.write_bytes(json_lines(texts).encode())


def write_jsonl_gz(path, texts):
    path.write_bytes(gzip.compress(json_lines(texts).encode()))


def write_parquet(path, texts):
    table = pyarrow.table({"id": list(range(len(texts))), "text": [text or None for text in texts]})
    pyarrow.parquet.write_table(table, path, row_group_size=2)


def write_saved(path, texts):
    datasets.Dataset.from_dict({"text": texts}).save_to_disk(path)


def write_saved_splits(path, texts):
    splits = {"train": texts, "test": ["something else"]}
    datasets.DatasetDict({k: datasets.Dataset.from_dict({"text": v}) for k, v in splits.items()}).save_to_disk(path)


LOCAL = {
    "files": write_files, "lines.jsonl": write_jsonl, "lines.json": write_jsonl, "lines.jsonl.gz": write_jsonl_gz,
    "table.parquet": write_parquet, "saved": write_saved, "splits": write_saved_splits,
}  # fmt: skip
DATASETS = {"saved": write_saved, "splits": write_saved_splits, "loaded": None}


def dataset(folder, kind, texts, monkeypatch):
    """-> the source `hf:FOLDER` of a dataset that was saved, or of a folder of data files"""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
    if kind == "loaded":
        (folder / kind).mkdir()
        write_jsonl(folder / kind / "train.jsonl", texts)
    else:
        DATASETS[kind](folder / kind, texts)
    return f"hf:{folder / kind}"


# --- documents -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOCAL)
def test_every_format_gives_the_same_documents(tmp_path, name):
    LOCAL[name](tmp_path / name, TEXTS)
    corpus = Corpus((str(tmp_path / name),), unit="file")
    assert list(corpus.documents()) == DOCUMENTS
    assert corpus.text_bytes() == sum(len(text.encode()) for _, text in DOCUMENTS)


@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "streaming"])
@pytest.mark.parametrize("kind", DATASETS)
def test_datasets_by_name(tmp_path, monkeypatch, kind, streaming):
    source = dataset(tmp_path, kind, TEXTS, monkeypatch)
    corpus = Corpus((source,), streaming=streaming)
    assert list(corpus.documents()) == DOCUMENTS
    assert corpus.text_bytes() is None


def test_a_split_and_a_column_are_chosen(tmp_path):
    write_saved_splits(tmp_path / "splits", TEXTS)
    assert list(Corpus((str(tmp_path / "splits"),), split="test").documents()) == [(0, "something else")]
    (tmp_path / "other.jsonl").write_text(json_lines(["hello"], column="body"))
    assert list(Corpus((str(tmp_path / "other.jsonl"),), text_column="body").documents()) == [(0, "hello")]


def test_columns_that_hold_numbers_are_read_as_text(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"text": [12, None, 0]}), tmp_path / "n.parquet")
    assert list(Corpus((str(tmp_path / "n.parquet"),)).documents()) == [(0, "12"), (2, "0")]


def test_sources_follow_one_another_with_ids_that_go_on(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", ["one", "", "two"])
    write_parquet(tmp_path / "b.parquet", ["three"])
    corpus = Corpus((str(tmp_path / "b.parquet"), str(tmp_path / "a.jsonl")))
    assert list(corpus.documents()) == [(0, "three"), (1, "one"), (3, "two")]


def test_folders_are_read_in_the_order_of_names_with_what_lies_deeper(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "b.md").write_text("second")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"first"))
    (tmp_path / "z.jsonl").write_text(json_lines(["third"]))
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    assert [text for _, text in Corpus((str(tmp_path),)).documents()] == ["first", "second", "third"]


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("file", ["One.\nTwo.\n\n\nThree.\r\n\r\nFour."]), ("paragraph", ["One.\nTwo.", "\nThree.", "Four."]),
        ("line", ["One.", "Two.", "Three.", "Four."]), ("auto", ["One.\nTwo.", "\nThree.", "Four."]),
    ],
)  # fmt: skip
def test_what_a_document_is_in_plain_text(tmp_path, unit, expected):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfOne.\nTwo.\n\n\nThree.\r\n\r\nFour.")  # with a byte order mark
    assert [text for _, text in Corpus((str(tmp_path),), unit=unit).documents()] == expected


def test_in_a_folder_of_many_files_a_document_is_a_file(text_folder):
    texts = [text for _, text in Corpus((str(text_folder),)).documents()]
    assert texts == [file.read_text() for file in sorted(text_folder.iterdir())]


def test_the_bundled_corpus_is_installed():
    documents = list(Corpus(("bundled",)).documents())
    assert len(documents) > 100
    assert all(isinstance(text, str) and text.strip() for _, text in documents)


# --- order -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "streaming"])
@pytest.mark.parametrize("kind", ["lines.jsonl", *DATASETS])
def test_shuffling_is_reproducible_from_its_seed(tmp_path, monkeypatch, kind, streaming):
    texts = [f"document {i}" for i in range(50)]
    if kind in DATASETS:
        source = dataset(tmp_path, kind, texts, monkeypatch)
    else:
        source = str(tmp_path / kind)
        write_jsonl(tmp_path / kind, texts)

    def order(seed):
        return [text for _, text in Corpus((source,), streaming=streaming, shuffle_seed=seed).documents()]

    assert order(None) == texts
    assert order(1) == order(1)
    assert sorted(order(1)) == sorted(texts)
    assert len({tuple(order(seed)) for seed in (None, 1, 2)}) == 3


def test_a_shuffled_document_keeps_its_id(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", TEXTS)
    shuffled = list(Corpus((str(tmp_path / "a.jsonl"),), shuffle_seed=3).documents())
    assert shuffled != DOCUMENTS
    assert sorted(shuffled) == DOCUMENTS


def test_the_fingerprint_changes_with_settings_and_files(tmp_path):
    path = tmp_path / "a.jsonl"
    write_jsonl(path, ["one"])
    plain = Corpus((str(path),)).fingerprint()
    assert Corpus((str(path),)).fingerprint() == plain
    assert Corpus((str(path),), shuffle_seed=0).fingerprint() != plain
    write_jsonl(path, ["one and more"])
    assert Corpus((str(path),)).fingerprint() != plain


# --- contexts --------------------------------------------------------------------------------------------------------


@pytest.fixture
def reader_of(tmp_path, make_tokenizer):
    """`reader_of(texts, length, packed=..., bos=..., around=...)`: contexts of these documents."""

    def make(texts, length, around="nothing", **settings):
        write_jsonl(tmp_path / "texts.jsonl", texts)
        return ContextReader(Corpus((str(tmp_path / "texts.jsonl"),)), make_tokenizer(around), length, **settings)

    return make


def kept_tokens(reader, batch=3):
    """The (document, token) pairs that make rows, in order."""
    found = []
    for contexts in reader.batches(batch):
        found += zip(contexts.document[contexts.keep].tolist(), contexts.tokens[contexts.keep].tolist(), strict=True)
    return found


def plain_tokens(reader, texts):
    ids = [reader.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    return [(document, token) for document, tokens in enumerate(ids) for token in tokens]


PROSE = ["The old sailor watched the river.", "A lamp.", "Snow fell on the quiet garden before the storm.", "Yes"] * 3


@pytest.mark.parametrize("around", ["nothing", "bos", "bert"])
@pytest.mark.parametrize("bos", [None, False, True])
@pytest.mark.parametrize("length", [4, 16, 500])
def test_packed_contexts_hold_every_token_once(reader_of, around, bos, length):
    if around == "bert" and bos:
        with pytest.raises(BitlensError, match="has no BOS token"):
            reader_of(PROSE, length, around, bos=bos)
        return
    reader = reader_of(PROSE, length, around, bos=bos)
    assert kept_tokens(reader) == plain_tokens(reader, PROSE)
    lengths = [int(mask.sum()) for contexts in reader.batches(5) for mask in contexts.mask]
    assert all(n == length for n in lengths[:-1])
    assert lengths[-1] <= length


def test_documents_of_a_packed_context_are_separated_by_the_end_token(reader_of):
    reader = reader_of(["The river.", "A lamp."], 64)
    (contexts,) = reader.batches(8)
    one, other = (reader.tokenizer(text)["input_ids"] for text in ("The river.", "A lamp."))
    end = reader.tokenizer.eos_token_id
    assert contexts.tokens.tolist() == [[*one, end, *other, end]]
    assert contexts.keep.tolist() == [[True] * len(one) + [False] + [True] * len(other) + [False]]
    assert contexts.document.tolist() == [[0] * (len(one) + 1) + [1] * (len(other) + 1)]


@pytest.mark.parametrize("around", ["nothing", "bos", "bert"])
def test_one_document_a_context_is_its_beginning(reader_of, around):
    reader = reader_of(PROSE, 8, around, packed=False)
    batch = next(iter(reader.batches(len(PROSE))))
    for row, text in enumerate(PROSE):
        own = reader.tokenizer(text, add_special_tokens=False)["input_ids"]
        before, after = {
            "nothing": ([], []), "bos": ([reader.tokenizer.bos_token_id], []),
            "bert": ([reader.tokenizer.cls_token_id], [reader.tokenizer.sep_token_id]),
        }[around]  # fmt: skip
        own = own[: 8 - len(before) - len(after)]
        seen = [*before, *own, *after]
        assert batch.tokens[row, : len(seen)].tolist() == seen
        assert batch.mask[row].tolist() == [True] * len(seen) + [False] * (batch.mask.shape[1] - len(seen))
        assert batch.tokens[row][batch.keep[row]].tolist() == own
        assert batch.document[row, : len(seen)].tolist() == [row] * len(seen)


@pytest.mark.parametrize(("bos", "begins"), [(None, False), (True, True), (False, False)])
def test_bos_begins_every_context_when_asked_for(reader_of, bos, begins):
    reader = reader_of(PROSE, 8, bos=bos)
    assert reader.prepends_bos == begins
    for contexts in reader.batches(4):
        assert ((contexts.tokens[:, 0] == reader.tokenizer.bos_token_id) == begins).all()


def test_special_tokens_are_masked_by_id_wherever_they_stand(reader_of):
    text = "The <|eos|> river <|pad|> and <|bos|><|bos|> the lamp"
    reader = reader_of([text, "lamp <|eos|>"], 16, bos=True)
    special = set(reader.tokenizer.all_special_ids)
    ordinary = [(d, t) for d, t in plain_tokens(reader, [text, "lamp <|eos|>"]) if t not in special]
    assert kept_tokens(reader) == ordinary
    for contexts in reader.batches(2):
        assert torch.equal(contexts.keep, contexts.mask & ~torch.isin(contexts.tokens, torch.tensor([*special])))


def test_a_first_token_that_is_not_special_makes_a_row(reader_of):
    assert all(contexts.keep[:, 0].all() for contexts in reader_of(["The river"] * 5, 8, packed=False).batches(2))


def test_padding_is_told_from_an_equal_token_in_the_text(reader_of):
    reader = reader_of(["a b c d e f", "a"], 32, packed=False)
    reader.pad = reader.tokenizer("a")["input_ids"][0]  # as with tokenizers that have no padding token
    (contexts,) = reader.batches(2)
    assert contexts.mask.sum(1).tolist() == [len(reader.tokenizer("a b c d e f")["input_ids"]), 1]
    assert contexts.keep[1].tolist() == [True] + [False] * (contexts.keep.shape[1] - 1)


@pytest.mark.parametrize("packed", [True, False])
def test_skipping_contexts_gives_the_rest(reader_of, packed):
    reader = reader_of(PROSE, 8, packed=packed)
    whole = [c.tokens[c.mask].tolist() for c in reader.batches(1)]
    for skip in (0, 1, 5, len(whole), len(whole) + 3):
        assert [c.tokens[c.mask].tolist() for c in reader.batches(1, skip=skip)] == whole[skip:]


def test_the_size_is_known_beforehand(reader_of):
    reader = reader_of(PROSE, 8)
    assert reader.estimate_rows() == len(plain_tokens(reader, PROSE))


@pytest.mark.parametrize(("around", "length"), [("nothing", 0), ("bos", 1), ("bert", 2)])
def test_a_context_without_room_for_text(reader_of, around, length):
    with pytest.raises(BitlensError, match=f"context of {length} tokens has no room"):
        reader_of(PROSE, length, around, packed=False)


# --- text that cannot be read ----------------------------------------------------------------------------------------


def write_damaged_parquet(path):
    write_parquet(path, TEXTS)
    path.write_bytes(path.read_bytes()[:-50])


BAD = {
    "not JSON": ("a.jsonl", lambda p: p.write_text('{"text": "good"}\n{"text": \n'), r"a\.jsonl, line 2 is not JSON"),
    "JSON without columns": ("a.jsonl", lambda p: p.write_text('["text"]\n'), r"line 1 has no column 'text'"),
    "wrong column": ("a.jsonl", lambda p: p.write_text(json_lines(["x"], "body")), r"no column 'text'.*: id, body"),
    "wrong parquet column": (
        "a.parquet", lambda p: pyarrow.parquet.write_table(pyarrow.table({"body": ["x"]}), p), r"no column 'text'.*body",
    ),
    "wrong dataset column": (
        "saved", lambda p: datasets.Dataset.from_dict({"body": ["x"]}).save_to_disk(p), r"no column 'text'.*body",
    ),
    "not UTF-8": ("a.txt", lambda p: p.write_bytes("naïve".encode("latin-1")), r"a\.txt is not UTF-8 text"),
    "not gzip": ("a.txt.gz", lambda p: p.write_bytes(b"plain text"), r"a\.txt\.gz is not UTF-8 text"),
    "truncated gzip": ("a.txt.gz", lambda p: p.write_bytes(gzip.compress(b"text" * 99)[:-9]), r"is not UTF-8 text"),
    "altered gzip": (
        "a.txt.gz", lambda p: p.write_bytes(gzip.compress(b"text")[:10] + b"\xff" * 20), r"is not UTF-8 text",
    ),
    "damaged parquet": ("a.parquet", write_damaged_parquet, r"a\.parquet could not be read"),
    "nothing in it": ("folder", Path.mkdir, r"holds no text: expected files"),
}  # fmt: skip


@pytest.mark.parametrize("trouble", BAD)
def test_text_that_cannot_be_read_is_refused_in_a_sentence(tmp_path, trouble):
    name, write, sentence = BAD[trouble]
    write(tmp_path / name)
    with pytest.raises(BitlensError, match=sentence) as error:
        list(Corpus((str(tmp_path / name),)).documents())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("source", ["./nowhere", "nowhere.txt", "nowhere.jsonl.gz", "/nowhere/at/all"])
def test_text_that_is_not_there(source):
    with pytest.raises(BitlensError, match=f"There is no text at {source}"):
        list(Corpus((source,)).documents())


@pytest.mark.parametrize("source", ["nobody/no-such-dataset", "hf:./nowhere"])
def test_a_dataset_that_is_not_there(source):
    with pytest.raises(BitlensError, match="is neither a file here nor a dataset that could be read") as error:
        list(Corpus((source,)).documents())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "streaming"])
def test_a_dataset_that_breaks_off(tmp_path, monkeypatch, streaming):
    source = dataset(tmp_path, "loaded", ["good"], monkeypatch)
    (tmp_path / "loaded" / "train.jsonl").write_text('{"text": "good"}\n{"text": \n')
    with pytest.raises(BitlensError, match="is neither a file here nor a dataset that could be read"):
        list(Corpus((source,), streaming=streaming).documents())


def test_a_split_that_is_not_there(tmp_path):
    write_saved_splits(tmp_path / "splits", TEXTS)
    with pytest.raises(BitlensError, match="validation"):
        list(Corpus((str(tmp_path / "splits"),), split="validation").documents())


@pytest.mark.parametrize("texts", [[], ["", "  \n"]])
def test_empty_text_has_no_documents(reader_of, texts):
    reader = reader_of(texts, 8)
    assert list(reader.batches(2)) == []
    assert reader.estimate_rows() == 0
