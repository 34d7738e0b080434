"""Corpora of every kind give the same documents, as a stream; what is no text is refused."""

from __future__ import annotations

import gzip
import json
import shutil
import tempfile

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from bitlens.errors import BitlensError
from bitlens.hidden import Corpus

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
    datasets.DatasetDict(
        {k: datasets.Dataset.from_dict({"text": v}) for k, v in splits.items()}
    ).save_to_disk(path)


LOCAL = {
    "files": write_files,
    "lines.jsonl": write_jsonl,
    "lines.json": write_jsonl,
    "lines.jsonl.gz": write_jsonl_gz,
    "table.parquet": write_parquet,
    "saved": write_saved,
    "splits": write_saved_splits,
}
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


# --- documents ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOCAL)
def test_every_format_gives_the_same_documents(tmp_path, name):
    LOCAL[name](tmp_path / name, TEXTS)
    corpus = Corpus((str(tmp_path / name),), unit="file")
    assert list(corpus.documents()) == DOCUMENTS
    sample = corpus.sample()
    assert sample is not None
    texts, shares = zip(*sample, strict=True)
    assert list(texts) == [text for _, text in DOCUMENTS]
    assert list(shares) == sorted(shares)
    assert shares[-1] == 1


@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "streaming"])
@pytest.mark.parametrize("kind", DATASETS)
def test_datasets_by_name(tmp_path, monkeypatch, kind, streaming):
    source = dataset(tmp_path, kind, TEXTS, monkeypatch)
    corpus = Corpus((source,), streaming=streaming)
    assert list(corpus.documents()) == DOCUMENTS
    assert (corpus.sample() is None) == (kind == "loaded")


def test_a_split_and_a_column_are_chosen(tmp_path):
    write_saved_splits(tmp_path / "splits", TEXTS)
    assert list(Corpus((str(tmp_path / "splits"),), split="test").documents()) == [
        (0, "something else")
    ]
    (tmp_path / "other.jsonl").write_text(json_lines(["hello"], column="body"))
    assert list(Corpus((str(tmp_path / "other.jsonl"),), text_column="body").documents()) == [
        (0, "hello")
    ]


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
    assert [text for _, text in Corpus((str(tmp_path),)).documents()] == [
        "first",
        "second",
        "third",
    ]


MIXED = "One.\nTwo.\n \t \n\n\nThree.\u2028still three.\r\n\r\nFour.\n\x0c\nFive."


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("file", [MIXED]),
        ("auto", [MIXED]),
        ("paragraph", ["One.\nTwo.", "Three.\u2028still three.", "Four.", "Five."]),
        ("line", ["One.", "Two.", "Three.\u2028still three.", "Four.", "Five."]),
    ],
)
@pytest.mark.parametrize("kind", ["a.txt", "a.jsonl"])
def test_what_a_document_is(tmp_path, kind, unit, expected):
    text = b"\xef\xbb\xbf" + MIXED.encode() if kind == "a.txt" else json_lines([MIXED]).encode()
    (tmp_path / kind).write_bytes(text)  # with a byte order mark
    assert [text for _, text in Corpus((str(tmp_path),), unit=unit).documents()] == expected


BOOK = "".join(
    f"Chapter {i}\r\n\r\n" + f"Line {i} of a book.\r\n" * (5 + i * 13 % 50) + " \t\r\n"
    for i in range(90)
)
LONG_TEXTS = {
    "a book": BOOK,
    "paragraphs a line": BOOK.replace("\r\n\r\n", " ").replace("\r\n \t\r\n", "\r\n"),
    "one line": " ".join(BOOK.split()),
    "one word": "x" * 50_000,
    "no spaces": "雪が降る。" * 5_000,
    "blank lines": BOOK + "\n" * 20_000,
}


@pytest.mark.parametrize("kind", ["a.txt", "a.jsonl"])
@pytest.mark.parametrize("name", LONG_TEXTS)
def test_a_long_text_is_many_documents_and_a_short_one_is_one(tmp_path, name, kind):
    def documents(text):
        (tmp_path / kind).write_bytes(
            text.encode() if kind == "a.txt" else json_lines([text]).encode()
        )
        return [document for _, document in Corpus((str(tmp_path / kind),)).documents()]

    text = LONG_TEXTS[name]
    assert documents(text[:8000]) == [text[:8000]]
    found = documents(text)
    assert len(found) >= len(text.strip()) / 6000
    assert "".join(found) == text or name == "blank lines"
    assert all(2000 <= len(part) <= 8000 for part in found)
    if name == "a book":
        assert all(part.endswith("\r\n \t\r\n") or part.endswith("\r\n\r\n") for part in found)


@pytest.mark.parametrize("unit", ["auto", "paragraph", "line"])
def test_a_text_is_cut_alike_however_it_is_read(tmp_path, unit):
    (tmp_path / "a.txt").write_bytes(BOOK.encode())
    (tmp_path / "b.jsonl").write_bytes(json_lines([BOOK]).encode())
    plain, table = (
        list(Corpus((str(tmp_path / name),), unit=unit).documents())
        for name in ("a.txt", "b.jsonl")
    )
    assert plain == table


def test_in_a_folder_of_many_files_a_document_is_a_file(text_folder):
    texts = [text for _, text in Corpus((str(text_folder),)).documents()]
    assert texts == [file.read_text() for file in sorted(text_folder.iterdir())]


def test_the_bundled_corpus_is_installed():
    documents = list(Corpus(("bundled",)).documents())
    assert len(documents) > 100
    assert all(isinstance(text, str) and text.strip() for _, text in documents)


# --- order ----------------------------------------------------------------------------------------


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
        return [
            text
            for _, text in Corpus((source,), streaming=streaming, shuffle_seed=seed).documents()
        ]

    assert order(None) == texts
    assert order(1) == order(1)
    assert sorted(order(1)) == sorted(texts)
    assert len({tuple(order(seed)) for seed in (None, 1, 2)}) == 3


def test_a_shuffled_document_keeps_its_id(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", TEXTS)
    shuffled = list(Corpus((str(tmp_path / "a.jsonl"),), shuffle_seed=3).documents())
    assert shuffled != DOCUMENTS
    assert sorted(shuffled) == DOCUMENTS


def test_the_fingerprint_changes_with_settings_and_what_the_files_hold(tmp_path):
    path = tmp_path / "a.jsonl"
    write_jsonl(path, ["one"])
    plain = Corpus((str(path),)).fingerprint()
    assert Corpus((str(path),)).fingerprint() == plain
    for settings in ({"shuffle_seed": 0}, {"unit": "file"}, {"text_column": "body"}):
        assert Corpus((str(path),), **settings).fingerprint() != plain
    state = path.stat()
    write_jsonl(path, ["two"])
    assert path.stat().st_size == state.st_size
    assert Corpus((str(path),)).fingerprint() != plain
    shutil.copy(path, tmp_path / "a.txt")
    assert Corpus((str(tmp_path / "a.txt"),)).fingerprint() != Corpus((str(path),)).fingerprint()


@pytest.mark.parametrize("change", ["a", "b", "order", "name"])
def test_the_fingerprint_of_a_folder_is_that_of_its_texts_in_their_order(tmp_path, change):
    folder = tmp_path / "a"
    write_files(folder, ["one", "two"])
    before = Corpus((str(folder),)).fingerprint()
    if change == "name":
        (folder / "000.txt").rename(folder / "000 more.txt")
    elif change == "order":
        (folder / "000.txt").rename(folder / "002.txt")
    else:
        (folder / f"00{'ab'.index(change)}.txt").write_text("six")
    assert (Corpus((str(folder),)).fingerprint() == before) == (change == "name")


def test_a_saved_dataset_that_changed_is_another_text(tmp_path):
    source = str(tmp_path / "saved")
    write_saved(tmp_path / "saved", ["one"])
    before = [Corpus((name,)).fingerprint() for name in (source, f"hf:{source}")]
    shutil.rmtree(tmp_path / "saved")
    write_saved(tmp_path / "saved", ["two"])
    assert not {Corpus((name,)).fingerprint() for name in (source, f"hf:{source}")} & set(before)


@pytest.mark.parametrize("kind", ["file", "folder", "dataset"])
def test_a_text_is_the_same_wherever_it_lies_and_however_it_is_called(tmp_path, monkeypatch, kind):
    write = {"file": write_jsonl, "folder": write_files, "dataset": write_saved}[kind]
    name = {"file": "a.jsonl", "folder": "a", "dataset": "a"}[kind]
    home = tmp_path / "home"
    home.mkdir()
    write(home / name, ["one", "two"])
    (tmp_path / "link.jsonl").symlink_to(home / name)
    copy = shutil.copytree if (home / name).is_dir() else shutil.copy
    copy(home / name, tmp_path / f"copy-{name}")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    names = [
        f"home/{name}",
        f"./home/{name}",
        f"home/../home/{name}",
        f"~/{name}",
        str(home / name),
        "link.jsonl",
        f"./copy-{name}",
    ]
    corpora = [Corpus((source,)) for source in names]
    assert len({corpus.fingerprint() for corpus in corpora}) == 1
    assert len({tuple(corpus.documents()) for corpus in corpora}) == 1
    assert {tuple(corpus.origin()) for corpus in corpora[:-1]} == {(str(home / name),)}


@pytest.mark.slow
def test_shuffling_keeps_texts_on_the_disk(tmp_path):
    """An order needs all places of all documents, not the documents themselves."""
    import tracemalloc

    write_jsonl(tmp_path / "a.jsonl", (f"{i} " + "word " * 800 for i in range(5000)))
    corpus = Corpus((str(tmp_path / "a.jsonl"),), shuffle_seed=1)
    tracemalloc.start()
    first = next(corpus.documents())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert first[1].startswith(f"{first[0]} word")
    assert peak < 4e6 < (tmp_path / "a.jsonl").stat().st_size / 4


def test_no_room_for_the_temporary_file_is_told(tmp_path, monkeypatch):
    write_jsonl(tmp_path / "a.jsonl", ["one", "two"])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(BitlensError, match=r"temporary file as large as the text.*TMPDIR"):
        next(Corpus((str(tmp_path / "a.jsonl"),), shuffle_seed=1).documents())
