"""Every file is read for what it is, and what is no text is refused by name."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import tracemalloc
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

import bitlens.hidden.reading as reading_module
from bitlens.errors import BitlensError
from bitlens.hidden import Corpus
from bitlens.hidden.text import ContextReader
from test_documents import (
    DOCUMENTS,
    TEXTS,
    dataset,
    json_lines,
    write_files,
    write_parquet,
    write_saved_splits,
)

# --- what is read ---------------------------------------------------------------------------------


def compressed(name, raw):
    pack = {
        ".gz": gzip.compress,
        ".bz2": bz2.compress,
        ".xz": lzma.compress,
        ".zst": zstandard.ZstdCompressor().compress,
    }
    return pack.get(Path(name).suffix.lower(), bytes)(raw)


def array_of(texts, **settings):
    return json.dumps(
        [{"id": i, "text": text} for i, text in enumerate(texts)], **settings
    ).encode()


def table_of(texts, delimiter=","):
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=delimiter).writerows([["id", "text"], *enumerate(texts)])
    return file.getvalue().encode()


KINDS = {
    "jsonl": lambda texts: json_lines(texts).encode(),
    "ndjson": lambda texts: json_lines(texts).encode(),
    "jsonlines": lambda texts: json_lines(texts).encode(),
    "json": array_of,
    "csv": table_of,
    "tsv": lambda texts: table_of(texts, "\t"),
}


@pytest.mark.parametrize("packed", ["", ".gz", ".zst", ".bz2", ".xz", ".GZ"])
@pytest.mark.parametrize("kind", [*KINDS, "JSONL", "Csv"])
def test_a_table_is_read_for_what_it_is(tmp_path, kind, packed):
    name = f"a.b.{kind}{packed}"
    (tmp_path / name).write_bytes(compressed(name, KINDS[kind.lower()](TEXTS)))
    for source in (tmp_path / name, tmp_path):
        assert list(Corpus((str(source),)).documents()) == DOCUMENTS


@pytest.mark.parametrize(
    "name", ["a.TXT", "a.md", "a.markdown", "a.Text", "a.txt.zst", "a.txt.bz2"]
)
def test_plain_text_is_read_for_what_it_is(tmp_path, name):
    (tmp_path / name).write_bytes(compressed(name, TEXTS[2].encode()))
    assert list(Corpus((str(tmp_path),)).documents()) == [(0, TEXTS[2])]


def test_frames_of_zstandard_follow_one_another(tmp_path):
    pack = zstandard.ZstdCompressor().compress
    (tmp_path / "a.jsonl.zst").write_bytes(
        b"".join(pack(json_lines([text]).encode()) for text in TEXTS)
    )
    assert list(Corpus((str(tmp_path / "a.jsonl.zst"),)).documents()) == DOCUMENTS


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("block", [1, 7, 1 << 18])
def test_json_may_be_an_array_or_objects_in_any_layout(tmp_path, monkeypatch, indent, block):
    monkeypatch.setattr(reading_module, "BLOCK", block)
    objects = "\n".join(json.dumps({"text": text}, indent=indent) for text in TEXTS)
    for raw in (
        array_of(TEXTS, indent=indent),
        objects.encode(),
        b"\xef\xbb\xbf  \n" + array_of(TEXTS) + b"\n",
    ):
        (tmp_path / "a.json").write_bytes(raw)
        assert list(Corpus((str(tmp_path / "a.json"),)).documents()) == DOCUMENTS
    for raw in (b"[]", b"", b" [ ] "):
        (tmp_path / "a.json").write_bytes(raw)
        assert list(Corpus((str(tmp_path / "a.json"),)).documents()) == []


def test_a_field_of_a_table_may_be_long_and_hold_lines(tmp_path):
    texts = ['He said "no",\r\nand\tleft.', "x" * 200_000]
    for name, raw in (("a.csv", table_of(texts)), ("a.tsv", table_of(texts, "\t"))):
        (tmp_path / name).write_bytes(raw)
        assert [
            text for _, text in Corpus((str(tmp_path / name),), unit="file").documents()
        ] == texts


@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_a_lone_surrogate_becomes_the_replacement_character(tmp_path, kind, tokenizer):
    line = '{"text": "lost \\ud83d half, \\ud83d\\ude00 whole \\udc00"}'
    (tmp_path / f"a.{kind}").write_text(line)
    corpus = Corpus((str(tmp_path / f"a.{kind}"),))
    assert list(corpus.documents()) == [(0, "lost \ufffd half, \U0001f600 whole \ufffd")]
    assert len(list(ContextReader(corpus, tokenizer, 64).contexts())) == 1


def test_what_is_passed_over_in_a_folder_is_named_and_the_rest_read_once(tmp_path):
    folder, other = tmp_path / "text", tmp_path / "other"
    (folder / "deep").mkdir(parents=True)
    (folder / ".git").mkdir()
    other.mkdir()
    for name in (
        "a.txt",
        "README.md",
        "deep/readme",
        "License.txt",
        "picture.png",
        "script.py",
        "deep/b.txt",
        ".hidden.txt",
        ".git/c.txt",
    ):
        (folder / name).write_text(name)
    (other / "linked.txt").write_text("linked")
    (folder / "z").symlink_to(other)  # a folder elsewhere
    (folder / "y.txt").symlink_to(other / "linked.txt")  # the same text again
    (folder / "deep" / "up").symlink_to(folder)  # a circle
    corpus = Corpus((str(folder),))
    assert [text for _, text in corpus.documents()] == ["a.txt", "deep/b.txt", "linked"]
    assert corpus.left_out() == [
        "License.txt",
        "README.md",
        "deep/readme",
        "picture.png",
        "script.py",
    ]
    assert [text for _, text in Corpus((str(folder / "README.md"),)).documents()] == [
        "README.md"
    ]  # by its own name


@pytest.mark.slow
@pytest.mark.parametrize("files", [1000])
def test_a_folder_of_many_files(tmp_path, files):
    write_files(tmp_path / "many", [f"text {i}" for i in range(files)])
    corpus = Corpus((str(tmp_path / "many"),))
    assert [text for _, text in corpus.documents()] == [f"text {i}" for i in range(files)]
    assert corpus.fingerprint() == Corpus((str(tmp_path / "many"),)).fingerprint()


# --- text that cannot be read ---------------------------------------------------------------------


def refuse(source, sentence):
    with pytest.raises(BitlensError, match=sentence) as error:
        list(Corpus((str(source),)).documents())
    assert "\n" not in str(error.value)


def write_damaged_parquet(path):
    write_parquet(path, TEXTS)
    path.write_bytes(path.read_bytes()[:-50])


UTF16 = "plain".encode("utf-16-le")  # without its mark
BAD_FILES = {
    "not JSON": ("a.jsonl", '{"text": "good"}\n{"text": \n', r"a\.jsonl, line 2 is not JSON"),
    "JSON without columns": ("a.jsonl", '["text"]\n', r"line 1 has no column 'text'"),
    "wrong column": ("a.jsonl", json_lines(["x"], "body"), r"no column 'text'.*: id, body"),
    "not UTF-8": ("a.txt", "naïve".encode("latin-1"), r"a\.txt is not UTF-8 text"),
    "not gzip": ("a.txt.gz", "plain text", r"a\.txt\.gz could not be decompressed"),
    "cut gzip": ("a.txt.gz", gzip.compress(b"text" * 99)[:-9], r"could not be decompressed"),
    "altered gzip": ("a.txt.gz", gzip.compress(b"a")[:10] + b"\xff" * 20, r"be decompressed"),
    "cut zst": ("a.txt.zst", compressed(".zst", b"text" * 99)[:-3], r"could not be decompressed"),
    "not zst": ("a.jsonl.zst", "plain text", r"could not be decompressed"),
    "cut xz": ("a.txt.xz", compressed(".xz", b"text" * 99)[:-9], r"could not be decompressed"),
    "not bz2": ("a.txt.bz2", "plain text", r"a\.txt\.bz2 could not be read"),
    "array not closed": ("a.json", '[{"text": "a"}, ', r"a\.json ends before its array"),
    "array cut": ("a.json", '[{"text": "a"}, {"te', r"a\.json, document 2 is not JSON"),
    "more than an array": ("a.json", '[{"text": "a"}]\n[{"text": "b"}]', r"goes on after its"),
    "far after an array": ("a.json", '[{"text": "a"}]' + " " * 600_000 + "x", r"goes on after its"),
    "an object of columns": (
        "a.json",
        '{"data": ["a"]}',
        r"document 1 has no column 'text'.*: data",
    ),
    "strings": ("a.json", '["a", "b"]', r"document 1 has no column 'text'"),
    "UTF-16": ("a.csv", "text\nnaïve".encode("utf-16"), r"a\.csv is not UTF-8 text"),
    "UTF-16 without its mark": ("a.txt", UTF16, r"a\.txt is not UTF-8 text"),
    "compressed UTF-16": ("a.txt.gz", gzip.compress(UTF16), r"not UTF-8"),
    "csv without names": ("a.csv", "1,hello\n", r"a\.csv has no column 'text'.*: 1, hello"),
    "csv unquoted": ("a.csv", "id,text\n1,one, two\n", r"line 2 has 3 fields and the header 2"),
    "csv short": ("a.csv", "text,id\na,1\nb\n", r"line 3 has 1 fields and the header 2"),
    "csv cut": ("a.csv", 'id,text\n1,"one', r"a\.csv could not be read"),
    "unknown kind": ("a.docx", "PK", r"a\.docx has none of the endings"),
    "no ending": ("words", "a", r"words has none of the endings"),
    "code": ("a.py", "a = 1", r"a\.py has none of the endings"),
    "compressed parquet": ("a.parquet.gz", gzip.compress(b"PAR1"), r"none of the endings"),
}


@pytest.mark.parametrize("trouble", BAD_FILES)
def test_a_file_that_cannot_be_read_is_refused_in_a_sentence(tmp_path, trouble):
    name, content, sentence = BAD_FILES[trouble]
    raw = content.encode() if isinstance(content, str) else content
    (tmp_path / name).write_bytes(raw)
    refuse(tmp_path / name, sentence)


def write_table(path):
    pyarrow.parquet.write_table(pyarrow.table({"body": ["x"]}), path)


def write_pictures(path):
    path.mkdir()
    (path / "a.png").write_bytes(b"")


def write_link(path):
    path.mkdir()
    (path / "a.txt").symlink_to("gone")


def write_dataset(path):
    datasets.Dataset.from_dict({"body": ["x"]}).save_to_disk(path)


BAD = {
    "wrong parquet column": ("a.parquet", write_table, r"no column 'text'.*body"),
    "wrong dataset column": ("saved", write_dataset, r"no column 'text'.*body"),
    "damaged parquet": ("a.parquet", write_damaged_parquet, r"a\.parquet could not be read"),
    "a pipe": ("pipe", os.mkfifo, r"pipe is neither a file nor a folder"),
    "a folder of pictures": ("f", write_pictures, r"holds no text: expected files"),
    "a broken link": ("f", write_link, r"a\.txt is a broken link"),
    "nothing in it": ("folder", Path.mkdir, r"holds no text: expected files"),
}


@pytest.mark.parametrize("trouble", BAD)
def test_text_that_cannot_be_read_is_refused_in_a_sentence(tmp_path, trouble):
    name, write, sentence = BAD[trouble]
    write(tmp_path / name)
    refuse(tmp_path / name, sentence)


@pytest.mark.parametrize(
    "name", ["a.txt", "a.jsonl", "a.json", "a.csv", "a.tsv", "a.txt.gz", "a.txt.zst"]
)
def test_a_file_of_nothing_has_no_documents(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    (tmp_path / "b.txt").write_text("words")
    corpus = Corpus((str(tmp_path),))
    assert [text for _, text in corpus.documents()] == ["words"]
    assert list(corpus.sample() or ()) == [("words", 1.0)]


VALUES = {
    "bytes": b"text",
    "list": ["te", "xt"],
    "dict": {"te": "xt"},
    "int": 12,
    "float": 0.5,
    "bool": True,
}


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("kind", ["a.parquet", "a.jsonl", "a.json", "saved"])
def test_nothing_but_text_is_taken_for_text(tmp_path, kind, value):
    if value == "bytes" and kind.startswith("a.json"):
        return
    path, rows = tmp_path / kind, [{"text": None}, {"text": VALUES[value]}]
    if kind == "saved":
        datasets.Dataset.from_list(rows).save_to_disk(path)
    elif kind == "a.parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(
        BitlensError,
        match=f"(row|line|document) 2 holds {value} in the column 'text' where text is",
    ):
        list(Corpus((str(path),)).documents())


@pytest.mark.parametrize(
    "source",
    [
        "./nowhere",
        "nowhere.txt",
        "nowhere.jsonl.gz",
        "nowhere.CSV",
        "nowhere.zst",
        "~/nowhere",
        "/nowhere/at/all",
    ],
)
def test_text_that_is_not_there(source):
    with pytest.raises(BitlensError, match=f"There is no text at {source}"):
        list(Corpus((source,)).documents())


@pytest.mark.slow
def test_ten_kilobytes_that_stand_for_much_are_read_piece_by_piece(tmp_path):
    packer = zstandard.ZstdCompressor().compressobj()
    line = b" " * (1 << 20) + b"\n"
    packed = b"".join(packer.compress(line) for _ in range(256)) + packer.flush()
    (tmp_path / "blank.jsonl.zst").write_bytes(packed)
    assert len(packed) < 1 << 14
    tracemalloc.start()
    try:
        assert list(Corpus((str(tmp_path / "blank.jsonl.zst"),)).documents()) == []
        assert tracemalloc.get_traced_memory()[1] < 128 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "source", ["nobody/no-such-dataset", "hf:./nowhere", "A text itself. " * 200, "a\0b"]
)
def test_a_dataset_that_is_not_there(source):
    with pytest.raises(
        BitlensError, match="is neither a file here nor a dataset that could be read"
    ) as error:
        list(Corpus((source,)).documents())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "streaming"])
def test_a_dataset_that_breaks_off(tmp_path, monkeypatch, streaming):
    source = dataset(tmp_path, "loaded", ["good"], monkeypatch)
    (tmp_path / "loaded" / "train.jsonl").write_text('{"text": "good"}\n{"text": \n')
    with pytest.raises(
        BitlensError, match="is neither a file here nor a dataset that could be read"
    ):
        list(Corpus((source,), streaming=streaming).documents())


def test_a_split_that_is_not_there(tmp_path):
    write_saved_splits(tmp_path / "splits", TEXTS)
    with pytest.raises(BitlensError, match="validation"):
        list(Corpus((str(tmp_path / "splits"),), split="validation").documents())
