"""Where labels come from, and the command that scores latents against them."""

import csv
import gzip
import json

import pytest
import torch
from transformers import AutoTokenizer

from bitlens.bits import Codes, PackedBits
from bitlens.cli.labels import labels as command
from bitlens.errors import BitlensError
from bitlens.hidden import Corpus
from bitlens.hidden.named import bundled_folder
from bitlens.hidden.source import held_out
from bitlens.labels.sources import load_tokenizer, own_labels, read_labels, spelling
from bitlens.options import BUNDLED


def write_codes(folder, bits, token, document, position=None, **about) -> Codes:
    position = torch.zeros(len(bits)) if position is None else position
    columns = {"token": token.int(), "document": document.long(), "position": position.int()}
    return Codes.write(folder / "codes", [(PackedBits.pack(bits), columns)], bits.shape[1], about)


def of_texts(folder, tokenizer, texts: dict[int, str], cut: int | None = None) -> Codes:
    """Codes of texts by document, each cut after some tokens."""
    ids = {
        d: tokenizer(text, add_special_tokens=False)["input_ids"][:cut] for d, text in texts.items()
    }
    token = torch.tensor([i for own in ids.values() for i in own])
    document = torch.tensor([d for d, own in ids.items() for _ in own])
    return write_codes(folder, torch.ones(len(token), 1), token, document)


@pytest.fixture(scope="module")
def bundled():
    return AutoTokenizer.from_pretrained(bundled_folder())


# --- labels from the codes ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        (" the", "word"),
        ("ing", "continuation"),
        (" The", "capitalised"),
        ("I", "capitalised"),
        (" NATO", "upper case"),
        ("42", "number"),
        (",", "punctuation"),
        ("'", "punctuation"),
        ("'s", "continuation"),
        ("\n", "newline"),
        ("  ", "space"),
        ("\ufffd", "bytes"),
        (" été", "word"),
        ("'Tis", "capitalised"),
    ],
)
def test_spelling(token, expected):
    assert spelling(token) == expected


def test_own_labels_of_a_small_text(tmp_path, tokenizer):
    text = "The old sailor watched the old river."
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    token, document = torch.tensor(ids * 2), torch.tensor([4] * len(ids) + [7] * len(ids))
    position = torch.arange(2 * len(ids)) % len(ids) + 1
    codes = write_codes(tmp_path, torch.ones(len(token), 1), token, document, position)
    own, following, letters, place = own_labels(codes, tokenizer)
    assert [x.name for x in (own, following, letters, place)] == [
        "token",
        "next token",
        "spelling",
        "position",
    ]
    assert [own.names[i] for i in own.ids] == [tokenizer.decode([i]) for i in ids * 2]
    last = torch.arange(len(token)) % len(ids) == len(ids) - 1
    assert torch.equal(following.ids == -1, last), "the last row of a document has no next token"
    old, before = own.names.index(" old"), following.names.index(" old")
    assert torch.equal(following.ids[:-1] == before, own.ids[1:] == old)
    assert letters.names[letters.ids[0]] == "capitalised"
    assert letters.names[letters.ids[-1]] == "punctuation"
    assert [place.names[i] for i in place.ids[:9]] == [
        "1",
        "2",
        "3",
        "4-7",
        "4-7",
        "4-7",
        "4-7",
        "8-15",
        "8-15",
    ]


def test_codes_without_tokens_or_model_are_refused(tmp_path, tokenizer):
    codes = write_codes(tmp_path, torch.ones(9, 1), torch.full((9,), -1), torch.zeros(9))
    with pytest.raises(BitlensError, match="have no tokens"):
        own_labels(codes, tokenizer)
    with pytest.raises(BitlensError, match="names no language model"):
        load_tokenizer(codes)


# --- labels from a file ---------------------------------------------------------------------------

TEXT = "A café's  cat sat.\n“Oh!”"
SPANS = [
    [0, 1, "DET"],
    [2, 8, "NOUN"],
    [10, 13, "NOUN"],
    [14, 17, "VERB"],
    [17, 18, "."],
    [19, 20, "."],
    [20, 22, "X"],
]


def write_lines(path, lines):
    data = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["labels.jsonl", "labels.jsonl.gz"])
def test_spans_reach_their_tokens(tmp_path, bundled, name):
    """Spaces before words, bytes of one character, tokens of spaces, documents that are missing,
    empty or cut."""
    lines = [
        {"text": ""},
        "",
        {"text": TEXT, "spans": {"pos": SPANS}, "labels": {"genre": "fiction"}},
        {"text": TEXT},
    ]
    codes = of_texts(tmp_path, bundled, {1: TEXT, 5: "Not in the file."})
    pos, genre = sorted(
        read_labels(write_lines(tmp_path / name, lines), codes, bundled),
        key=lambda x: -len(x.name) % 5,
    )
    pos, genre = (pos, genre) if pos.name == "pos" else (genre, pos)
    offsets = bundled(TEXT, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    for row, (start, end) in enumerate(offsets):
        here = [i for i in range(start, end) if not TEXT[i].isspace()]
        wanted = [label for a, b, label in SPANS if here and a <= here[-1] < b]
        assert [pos.names[i] for i in pos.ids[row : row + 1].tolist() if i >= 0] == wanted
    tokens = [TEXT[a:b] for a, b in offsets]
    assert pos.names[pos.ids[tokens.index(" sat")]] == "VERB"
    assert int((pos.ids[: len(offsets)] == -1).sum()) >= 2, (
        "a newline, and a closing quote without a span"
    )
    assert (genre.names, genre.ids.unique().tolist()) == (["fiction"], [-1, 0])
    assert genre.ids.tolist() == [0] * len(offsets) + [-1] * (len(codes) - len(offsets))


def test_a_document_cut_short_is_still_labelled(tmp_path, bundled):
    codes = of_texts(tmp_path, bundled, {0: TEXT}, cut=3)
    (pos,) = read_labels(
        write_lines(tmp_path / "x.jsonl", [{"text": TEXT, "spans": {"pos": SPANS}}]), codes, bundled
    )
    assert [pos.names[i] for i in pos.ids] == ["DET", "NOUN", "NOUN"]


def test_special_tokens_in_a_text_make_no_rows(tmp_path, tokenizer):
    text = "old<|eos|> river"
    assert tokenizer.eos_token_id in tokenizer(text)["input_ids"]
    token = torch.tensor([i for i in tokenizer(text)["input_ids"] if i != tokenizer.eos_token_id])
    codes = write_codes(tmp_path, torch.ones(len(token), 1), token, torch.zeros(len(token)))
    spans = {"w": [[0, 3, "a"], [10, 16, "b"]]}
    (found,) = read_labels(
        write_lines(tmp_path / "x.jsonl", [{"text": text, "spans": spans}]), codes, tokenizer
    )
    of_first = len(tokenizer("old")["input_ids"])
    assert [found.names[i] for i in found.ids] == ["a"] * of_first + ["b"] * (len(token) - of_first)


def test_later_spans_go_before_earlier_ones_and_labels(tmp_path, bundled):
    line = {
        "text": "one two three",
        "spans": {"n": [[0, 13, "all"], [4, 7, "two"]], "m": [[4, 7, "x"]]},
        "labels": {"m": 3},
    }
    codes = of_texts(tmp_path, bundled, {0: line["text"]})
    found = {
        x.name: [x.names[i] for i in x.ids]
        for x in read_labels(write_lines(tmp_path / "x.jsonl", [line]), codes, bundled)
    }
    where = [bundled.decode([i]).strip() == "two" for i in codes.token.tolist()]
    assert sum(where) == 1
    assert found["n"] == ["two" if w else "all" for w in where]
    assert found["m"] == ["x" if w else "3" for w in where]


@pytest.mark.parametrize(
    ("line", "clue"),
    [
        (
            {"text": "A dog sat there on the mat and slept.", "labels": {"a": "b"}},
            "line 1: its tokens are not those of document 0",
        ),
        ({"text": TEXT, "spans": {"pos": [[2, 99, "NOUN"]]}}, "has the span"),
        ({"text": TEXT, "spans": {"pos": [[2, "NOUN"]]}}, "has the span"),
        ({"text": TEXT}, "labels none of the documents"),
        ({"labels": {"a": "b"}}, "has no 'text'"),
        ("{", "line 1 is not JSON"),
    ],
)
def test_bad_files_are_refused_by_name(tmp_path, bundled, line, clue):
    codes = of_texts(tmp_path, bundled, {0: TEXT})
    with pytest.raises(BitlensError, match=clue):
        read_labels(write_lines(tmp_path / "x.jsonl", [line]), codes, bundled)


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def planted(tmp_path, bundled):
    """Codes of 80 bundled documents; latent 0 is on at commas, 1 at whatever follows " the", 2 in
    shouted documents."""
    texts = dict(list(Corpus((BUNDLED,)).documents())[:80])
    ids = {
        d: bundled(text, add_special_tokens=False)["input_ids"][:100] for d, text in texts.items()
    }
    token = torch.tensor([i for own in ids.values() for i in own])
    document = torch.tensor([d for d, own in ids.items() for _ in own])
    position = torch.cat([torch.arange(1, len(own) + 1) for own in ids.values()])
    comma, the = bundled.convert_tokens_to_ids([",", "Ġthe"])
    after = torch.cat([torch.tensor([False]), token[:-1] == the])
    bits = torch.stack(
        [
            token == comma,
            after,
            document % 3 == 0,
            torch.rand(len(token), generator=torch.Generator().manual_seed(0)) < 0.1,
        ],
        1,
    )
    write_codes(tmp_path, bits, token, document, position, model=BUNDLED, test_fraction=0.3)
    genres = [
        {"text": text, "labels": {"genre": "shout" if d % 3 == 0 else "talk"}}
        for d, text in texts.items()
    ]
    return tmp_path / "codes", write_lines(tmp_path / "genres.jsonl", genres)


@pytest.mark.slow
def test_the_command_finds_what_was_planted(tmp_path, planted, capsys):
    codes, file = planted
    record = command(codes, labels=file, out=tmp_path / "out.csv", top=3)
    shown = capsys.readouterr().out
    assert all(
        name in shown
        for name in ("genre", "next token", "spelling", "position", "k = 1", "95 % interval")
    )
    found = {labelling["labelling"]: labelling for labelling in record["labellings"]}
    assert next(iter(found)) == "genre"
    assert [(s["latent"], s["label"], s["f1"]) for s in found["genre"]["by_latent"][:1]] == [
        (2, "shout", 1.0)
    ]
    assert (found["token"]["by_latent"][0]["latent"], found["token"]["by_latent"][0]["label"]) == (
        0,
        ",",
    )
    assert found["token"]["labels_covered"] == 1
    assert found["genre"]["probes"][0]["auc"] == pytest.approx(1)
    with (tmp_path / "out.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert {"labelling": "genre", "latent": "2", "label": "shout", "f1": "1.0"}.items() <= rows[
        0
    ].items()
    assert len(rows) == sum(len(labelling["by_latent"]) for labelling in record["labellings"])


def test_the_command_leaves_rows_of_outlying_norm_out(tmp_path, planted, capsys):
    """In every tenth row the commas' latent is on at all others: told of the rows, the command does
    not see it."""
    codes, file = planted
    whole = Codes(codes)
    usual = torch.arange(len(whole)) % 10 != 0
    bits = whole.bits.unpack().bool()
    bits[:, 0] ^= ~usual
    columns = {
        "token": whole.token,
        "document": whole.document,
        "position": whole.position,
        "usual": usual,
    }
    Codes.write(
        tmp_path / "sinks",
        [(PackedBits.pack(bits), columns)],
        4,
        {"model": BUNDLED, "test_fraction": 0.3},
    )
    record = command(tmp_path / "sinks", labels=file, probes=False)
    assert f"{int((~usual).sum()):,} rows of outlying norm are left out" in capsys.readouterr().err
    found = {labelling["labelling"]: labelling for labelling in record["labellings"]}
    best = found["token"]["by_latent"][0]
    assert (best["latent"], best["label"], best["f1"]) == (0, ",", 1.0)
    held = torch.from_numpy(held_out(whole.document.numpy(), 0.3))
    assert found["token"]["rows"] == int((held & usual).sum())


def test_the_command_goes_on_after_a_labelling_with_too_few_rows(tmp_path, planted, capsys):
    codes, _ = planted
    first = next(iter(Corpus((BUNDLED,)).documents()))[1]
    file = write_lines(tmp_path / "few.jsonl", [{"text": first, "labels": {"lone": "x"}}])
    command(codes, labels=file, probes=False)
    said = capsys.readouterr()
    assert "No class of 'lone'" in said.err
    assert "spelling: the best latents" in said.out
