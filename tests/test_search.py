"""Search in packed codes, against brute force on unpacked bits."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitlens.autoencoders import Autoencoder
from bitlens.bits import Codes, PackedBits, search_cpu
from bitlens.cli import main
from bitlens.errors import BitlensError
from bitlens.features import search as searching
from bitlens.features.habits import Preference
from bitlens.features.search import matching, nearest, rates, rows_of
from bitlens.features.texts import encode_texts, row_of_mark
from bitlens.features.words import find_latents
from bitlens.hidden import LanguageModel

property_test = settings(max_examples=40, deadline=None)


def write(
    folder: Path, bits: np.ndarray, document: np.ndarray, usual: np.ndarray, shards: int = 1
) -> Codes:
    parts = []
    for rows in np.array_split(np.arange(len(bits)), shards):
        columns = {
            "token": torch.from_numpy(rows).int(),
            "document": torch.from_numpy(document[rows]),
            "position": torch.zeros(len(rows)).int(),
            "usual": torch.from_numpy(usual[rows]),
        }
        parts.append((PackedBits.pack(torch.from_numpy(bits[rows])), columns))
    return Codes.write(folder, parts, bits.shape[1], {})


@st.composite
def corpora(draw) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Bits, documents (which may come back later), usual rows, shards."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows, width = draw(st.integers(3, 120)), draw(st.sampled_from((1, 5, 63, 64, 65, 130)))
    rate = random.choice([0.0, 0.05, 0.4, 0.9, 1.0], width)
    bits = (random.random((rows, width)) < rate).astype(np.uint8)
    document = random.integers(0, 9, rows)
    if draw(st.booleans()):
        document = np.sort(document)
    usual = random.random(rows) < draw(st.sampled_from((0.3, 1.0)))
    usual[0] = True
    return bits, document, usual, draw(st.integers(1, 3))


def reference(
    bits: np.ndarray, usual: np.ndarray, queries: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(similarities `[queries, rows]`, canonical bits) in float64"""
    mean = bits[usual].astype(np.float64).mean(0)
    flip = mean > 0.5
    p = np.maximum(np.where(flip, 1 - mean, mean), 0.5 / usual.sum())
    weight, rare, asked = -np.log2(p), bits ^ flip, queries ^ flip
    both = (asked[:, None] & rare[None]) @ weight
    either = (asked[:, None] | rare[None]) @ weight
    return np.where(both > 0, both / np.maximum(either, 1e-300), 0), rare


@pytest.mark.slow
@given(corpora(), st.integers(1, 4), st.booleans())
@property_test
def test_nearest_is_what_brute_force_finds(tmp_path_factory, corpus, n, per_document) -> None:
    bits, document, usual, shards = corpus
    codes = write(tmp_path_factory.mktemp("codes"), bits, document, usual, shards)
    queries = bits[np.arange(n) % len(bits)]
    similar, rare = reference(bits, usual, queries)
    hits = nearest(codes, PackedBits.pack(torch.from_numpy(queries)), 5, per_document=per_document)
    groups = {}
    for row in np.flatnonzero(usual):
        groups.setdefault(int(document[row]) if per_document else int(row), []).append(row)
    scores = sorted((similar[:, rows].max(1).mean() for rows in groups.values()), reverse=True)
    assert [hit.similarity for hit in hits] == pytest.approx([s for s in scores[:5] if s > 0])
    for hit in hits:
        assert usual[hit.row]
        assert document[hit.row] == hit.document
        rows = groups[hit.document if per_document else hit.row]
        assert similar[:, rows].max(1).mean() == pytest.approx(hit.similarity)
        assert similar[hit.query, hit.row] == pytest.approx(similar[:, rows].max())
        asked = rare[hit.query % len(bits)]
        assert sorted(hit.shared) == np.flatnonzero(asked & rare[hit.row]).tolist()
        rate = rates(codes).rate[hit.shared]
        assert (np.diff(rate) >= 0).all()


@pytest.mark.slow
@given(corpora(), st.integers(0, 2**32 - 1))
@property_test
def test_matching_counts_and_finds_the_rows(tmp_path_factory, corpus, seed) -> None:
    bits, document, usual, shards = corpus
    codes = write(tmp_path_factory.mktemp("codes"), bits, document, usual, shards)
    _, rare = reference(bits, usual, bits[:1])
    random = np.random.default_rng(seed)
    chosen = random.permutation(bits.shape[1])[:3].tolist()
    on, off = chosen[:1], chosen[1:]
    right = usual & (rare[:, on] == 1).all(1) & (rare[:, off] == 0).all(1)
    found = matching(codes, on, off, limit=3)
    assert (found.found, found.of) == (right.sum(), usual.sum())
    documents = np.unique(document[right])
    assert found.documents == len(documents)
    assert len(found.rows) == min(3, len(documents))
    assert all(right[row] for row in found.rows)
    assert len({int(document[row]) for row in found.rows}) == len(found.rows)
    assert matching(codes, on, off, limit=3) == found


@pytest.mark.slow
@given(corpora(), st.integers(1, 4), st.booleans())
@property_test
def test_rows_that_are_passed_over_are_no_hits(
    tmp_path_factory, corpus, limit, per_document
) -> None:
    """In small blocks most rows are not compared to the end; what is found is the same."""
    bits, document, usual, shards = corpus
    codes = write(tmp_path_factory.mktemp("codes"), bits, document, usual, shards)
    query = PackedBits.pack(torch.from_numpy(bits[:1]))
    settings = {"per_document": per_document}
    every = nearest(codes, query, 1000, **settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(searching, "BLOCK", 7)
        few = nearest(codes, query, limit, **settings)
    assert [hit.similarity for hit in few] == [hit.similarity for hit in every[:limit]]


def test_blocks_make_no_difference(tmp_path, monkeypatch) -> None:
    random = np.random.default_rng(0)
    bits = (random.random((500, 70)) < 0.1).astype(np.uint8)
    document = np.arange(500) // 7
    codes = write(tmp_path / "codes", bits, document, np.ones(500, bool), 2)
    query = PackedBits.pack(torch.from_numpy(bits[100:103]))
    whole = nearest(codes, query), matching(codes, [3], [4])
    monkeypatch.setattr(searching, "BLOCK", 32)
    assert (nearest(codes, query), matching(codes, [3], [4])) == whole


def test_a_row_is_as_near_to_itself_as_can_be(tmp_path) -> None:
    random = np.random.default_rng(1)
    bits = (random.random((300, 200)) < random.random(200) * 0.3).astype(np.uint8)
    codes = write(tmp_path / "codes", bits, np.arange(300), np.ones(300, bool))
    for row in (0, 17, 299):
        hit = nearest(codes, rows_of(codes, [row]), 1)[0]
        assert (hit.row, hit.similarity) == (row, 1.0)
        assert all(h.row != row for h in nearest(codes, rows_of(codes, [row]), without=row))


def test_rare_bits_count_more_than_frequent_ones(tmp_path) -> None:
    """A row that shares a rare bit is nearer than one that shares a frequent one, and than one that
    shares none but lacks as much, which Hamming distance would take."""
    bits = np.zeros((64, 3), np.uint8)
    bits[:30, 0] = 1  # frequent
    bits[[40, 41], 1] = 1  # rare
    bits[40, 0] = bits[41, 2] = 1
    codes = write(tmp_path / "codes", bits, np.arange(64), np.ones(64, bool))
    hits = nearest(codes, PackedBits.pack(torch.tensor([[1, 1, 0]])), 3)
    assert [hit.row for hit in hits][:2] == [40, 41]
    assert hits[0].shared == [1, 0]
    w0, w1, w2 = -np.log2(np.array([31, 2, 1]) / 64)
    assert hits[1].similarity == pytest.approx(w1 / (w0 + w1 + w2))


def test_codes_of_one_row_and_queries_without_bits(tmp_path) -> None:
    bits = np.array([[1, 0, 1]], np.uint8)
    codes = write(tmp_path / "codes", bits, np.zeros(1, int), np.ones(1, bool))
    # what is on in every row has off as its rare state
    assert nearest(codes, rows_of(codes, [0])) == []
    assert matching(codes, [0]).found == 0
    assert matching(codes, off=[0, 1]).rows == [0]
    (hit,) = write_and_search(tmp_path / "two", np.array([[1, 0, 1], [0, 0, 0]], np.uint8))
    assert (hit.row, hit.similarity, hit.shared) == (0, 1.0, [0, 2])


def write_and_search(folder: Path, bits: np.ndarray) -> list[searching.Hit]:
    codes = write(folder, bits, np.arange(len(bits)), np.ones(len(bits), bool))
    return nearest(codes, rows_of(codes, [0]))


def test_the_kernel_on_no_bits() -> None:
    none = np.zeros((2, 1), np.uint64)
    for queries in (none[:1], none):
        found = search_cpu.best_jaccard(none, none[0], queries, np.ones(5), np.arange(3))
        assert found.tolist() == [[0.0, 0.0]] * len(queries)


@given(corpora(), st.integers(1, 20))
@property_test
def test_many_queries_give_each_the_very_numbers_that_it_has_alone(corpus, n) -> None:
    bits, document, usual, _ = corpus
    words = PackedBits.pack(torch.from_numpy(bits)).numpy()
    queries, weights = words[np.arange(n) % len(words)], np.linspace(0.1, 7, bits.shape[1])
    flips = words[-1]
    starts = np.flatnonzero(np.diff(document, prepend=-1, append=-1))
    together = search_cpu.best_jaccard(words, flips, queries, weights, starts, usual)
    rows = np.arange(len(words) + 1)
    each = search_cpu.best_jaccard(words, flips, queries, weights, rows)
    for query, best, similar in zip(queries, together, each, strict=True):
        alone = search_cpu.best_jaccard(words, flips, query[None], weights, starts, usual)
        assert alone[0].tolist() == best.tolist()
        best_of_rows = np.maximum.reduceat(np.where(usual, similar, -1), starts[:-1])
        assert best_of_rows.tolist() == best.tolist()
        least = float(np.median(best))
        passed = search_cpu.best_jaccard(words, flips, query[None], weights, starts, usual, least)
        assert np.where(best >= least, passed[0], best).tolist() == best.tolist()


def test_rows_of_takes_any_order_across_shards(tmp_path) -> None:
    bits = np.random.default_rng(2).integers(0, 2, (40, 10)).astype(np.uint8)
    codes = write(tmp_path / "codes", bits, np.arange(40), np.ones(40, bool), 3)
    rows = [39, 0, 20, 20, 5]
    assert rows_of(codes, rows).unpack().numpy().tolist() == bits[rows].tolist()
    assert "bits" not in codes._joined  # the shards were not joined for it


def test_bad_searches_are_refused(tmp_path) -> None:
    bits = np.eye(4, dtype=np.uint8)
    codes = write(tmp_path / "codes", bits, np.arange(4), np.ones(4, bool))
    with pytest.raises(BitlensError, match="autoencoder that made"):
        nearest(codes, PackedBits.pack(torch.ones(1, 5)))
    with pytest.raises(BitlensError, match="`limit` at least 1"):
        nearest(codes, codes.bits[:1], 0)
    with pytest.raises(BitlensError, match="no latent 4"):
        matching(codes, [4])
    with pytest.raises(BitlensError, match="on and off in one row"):
        matching(codes, [1], [1])
    with pytest.raises(BitlensError, match="at least one latent"):
        matching(codes)
    for row in (-1, 4):
        with pytest.raises(BitlensError, match=f"no row {row}; .* rows 0 to 3"):
            rows_of(codes, [0, row])
    nothing = write(tmp_path / "none", bits, np.arange(4), np.zeros(4, bool))
    with pytest.raises(BitlensError, match="no row of usual norm"):
        nearest(nothing, codes.bits[:1])


# --- words ----------------------------------------------------------------------------------------


def preference(text: str, share: float) -> Preference:
    return Preference(0, text, 1, share, 2.0)


def test_latents_are_found_by_words_of_explanation_and_tokens() -> None:
    tokens = {
        0: [preference(" King", 0.6), preference("king", 0.2)],
        1: [preference(" Kingdom", 0.9)],
        2: [preference(" queen", 1.0)],
    }
    said = {2: "kings, queens and other rulers", 3: "The king’s “men”"}
    found = find_latents("KING", said, tokens)
    assert [(f.latent, f.score) for f in found] == [
        (0, pytest.approx(0.8)),
        (2, 0.5),
        (3, 0.5),
        (1, pytest.approx(0.45)),
    ]
    assert [f.latent for f in find_latents("men", said, tokens)] == [3]
    assert [f.latent for f in find_latents("king queen", said, tokens)] == [2]
    assert find_latents("queens", said, tokens, 1)[0].score == 1.0
    assert not find_latents("of", said, tokens)
    with pytest.raises(BitlensError, match="at least one word"):
        find_latents(" ", said)


# --- texts and the command ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundled() -> LanguageModel:
    return LanguageModel.load("bundled", ["layers.2"])


def test_a_mark_names_the_token_it_ends_in(bundled) -> None:
    tokenizer = bundled.tokenizer
    plain, place = row_of_mark(tokenizer, "The old «king» went home.")
    assert plain == "The old king went home."
    ids = tokenizer(plain, add_special_tokens=False)["input_ids"]
    before = tokenizer.decode(ids[: place + 1])
    assert before.rstrip().endswith("king")
    assert row_of_mark(tokenizer, plain)[1] == len(ids) - 1
    assert row_of_mark(tokenizer, "<|bos|>" + plain)[1] == len(ids) - 1
    plain, place = row_of_mark(tokenizer, "«👩‍👧» naïve")
    ids = tokenizer(plain, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids[: place + 1]) == "👩‍👧"
    for wrong in ("«<|eos|>»", "An end, «<|eos|>»"):
        with pytest.raises(BitlensError, match=r"makes no token of '<\|eos\|>'"):
            row_of_mark(tokenizer, wrong)
    odd = ("an «open one", "a closed» one", "an empty «» one", "»a«", "«a» or «b»", "««a»»")
    for wrong in odd:
        with pytest.raises(BitlensError, match="Mark one token"):
            row_of_mark(tokenizer, wrong)


def test_texts_are_encoded_alike_alone_and_together(codes_folder, bundled) -> None:
    autoencoder = Autoencoder.from_pretrained(codes_folder.parent / "run")
    texts = ["The old king went home.", "", "She said nothing at all, and then she went away."]
    together = encode_texts(bundled, autoencoder, texts)
    assert together.document.unique().tolist() == [0, 2]
    for number in (0, 2):
        alone = encode_texts(bundled, autoencoder, [texts[number]])
        rows = together.document == number
        assert torch.equal(together.token[rows], alone.token)
        assert torch.equal(together.bits[rows].words, alone.bits.words)
    state = bundled.hidden_states(bundled.tokenizer(texts[0], return_tensors="pt")["input_ids"])
    own = autoencoder.encode_bits(state["layers.2"][0].float()).words
    keep = ~torch.isin(
        bundled.tokenizer(texts[0], return_tensors="pt")["input_ids"][0],
        torch.tensor(bundled.tokenizer.all_special_ids),
    )
    assert torch.equal(own[keep], together.bits[together.document == 0].words)
    with pytest.raises(BitlensError, match="no text to read"):
        encode_texts(bundled, autoencoder, [" "])


def run(codes: Path, *arguments: object) -> dict:
    out = codes.parent / "found.json"
    main(["search", str(codes), *map(str, arguments), "--json", str(out)])
    return json.loads(out.read_text())


@pytest.mark.slow
def test_the_command_finds_a_text_in_its_own_corpus(codes_folder, capsys) -> None:
    codes = Codes(codes_folder)
    tokenizer = LanguageModel.load("bundled", ["layers.2"]).tokenizer
    rows = (codes.document == 3).nonzero()[:12, 0]
    text = tokenizer.decode(codes.token[rows].tolist())
    found = run(codes_folder, "--text", text, "--run", codes_folder.parent / "run")
    assert found["hits"][0]["similarity"] > 0.3
    assert "«" in found["hits"][0]["context"]
    whole = run(codes_folder, "--text", text, "--run", codes_folder.parent / "run", "--whole")
    assert whole["hits"][0]["document"] == 3
    assert "shared latents" in capsys.readouterr().out


@pytest.mark.parametrize("end", ["", " «late»"])
def test_a_token_that_is_not_read_is_not_searched_for(codes_folder, end, capsys) -> None:
    arguments = ["--text", "word " * 300 + end, "--run", str(codes_folder.parent / "run")]
    with pytest.raises(SystemExit):
        main(["search", str(codes_folder), *arguments])
    assert "is beyond the " in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_the_command_finds_rows_latents_and_words(codes_folder, capsys) -> None:
    codes = Codes(codes_folder)
    row = int(codes.usual.nonzero()[50, 0])
    hits = run(codes_folder, "--row", row, "--limit", 3)["hits"]
    assert len(hits) == 3
    assert int(codes.document[row]) not in {hit["document"] for hit in hits}
    latent = hits[0]["shared"][0]
    found = run(codes_folder, "--on", latent)
    expected = int((codes.bits.column(latent).bool() & codes.usual).sum())
    assert found["found"] in (expected, int(codes.usual.sum()) - expected)
    explained = codes_folder.parent / "said"
    explained.mkdir(exist_ok=True)
    record = {"latent": latent, "explanation": "words about frobnication"}
    (explained / "scores.jsonl").write_text(json.dumps(record) + "\n")
    named = run(codes_folder, "--words", "frobnication", "--explanations", explained)
    assert [one["latent"] for one in named["latents"]] == [latent]
    assert run(codes_folder, "--words", "the")["latents"]
    assert "latents with 'the'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "Name one thing to search for"),
        (["--text", "a", "--row", "1"], "not --text and --row at once"),
        (["--text", "a"], "name it with --run"),
        (["--row", "99999999"], "There is no row 99999999"),
        (["--on", "3", "--run", "x"], "--run is for --text"),
        (["--row", "3", "--explanations", "x"], "searched by --words"),
        (["--words", "a", "--explanations", "/nowhere"], "/nowhere is missing"),
        (["--words", "qqqzzz"], "No latent has 'qqqzzz'"),
        (["--on", "3", "--off", "3"], "cannot be on and off"),
        (["--row", "3", "--limit", "0"], "--limit must be at least 1"),
    ],
)
def test_bad_commands_get_one_sentence(codes_folder, arguments, sentence, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["search", str(codes_folder), *arguments])
    assert stopped.value.code == 2
    assert sentence in capsys.readouterr().err.splitlines()[-1]


def test_surprisal_has_no_infinity(tmp_path) -> None:
    codes = write(tmp_path / "c", np.zeros((4, 3), np.uint8), np.arange(4), np.ones(4, bool))
    assert rates(codes).surprisal.tolist() == [math.log2(8)] * 3
