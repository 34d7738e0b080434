"""Contexts are cut so that only real text makes rows, and none holds training and held-out text."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import bitlens.hidden.text as text_module
from bitlens.errors import BitlensError
from bitlens.hidden import Corpus
from bitlens.hidden.source import held_out
from bitlens.hidden.text import ContextReader, Contexts


def write_jsonl(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


# --- contexts -------------------------------------------------------------------------------------


@pytest.fixture
def reader_of(tmp_path, make_tokenizer):
    """`reader_of(texts, length, packed=..., bos=..., around=...)`: contexts of these documents."""

    def make(texts, length, around="nothing", **settings):
        write_jsonl(tmp_path / "texts.jsonl", texts)
        return ContextReader(
            Corpus((str(tmp_path / "texts.jsonl"),)), make_tokenizer(around), length, **settings
        )

    return make


def kept_tokens(reader, batch=3):
    """The (document, token) pairs that make rows, in order."""
    found = []
    for contexts in reader.batches(batch):
        found += zip(
            contexts.document[contexts.keep].tolist(),
            contexts.tokens[contexts.keep].tolist(),
            strict=True,
        )
    return found


def plain_tokens(reader, texts):
    ids = [reader.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    return [(document, token) for document, tokens in enumerate(ids) for token in tokens]


PROSE = [
    "The old sailor watched the river.",
    "A lamp.",
    "Snow fell on the quiet garden before the storm.",
    "Yes",
] * 3


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
    found = [(len(tokens), is_test(documents[-1])) for tokens, documents in reader.contexts()]
    for (n, kind), following in itertools.pairwise([*found, (0, None)]):
        assert n <= length
        assert (
            n == length or kind != following[1]
        )  # full, but where the other kind of document follows


def is_test(document, fraction=0.1):
    return bool(held_out(np.array([document]), fraction)[0])


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("length", [8, 64])
def test_no_context_holds_training_and_held_out_documents(reader_of, fraction, length):
    texts = [f"{i} {PROSE[i % 3]}" for i in range(80)]
    reader = reader_of(texts, length, test_fraction=fraction)
    kinds = [
        {is_test(document, fraction) for document in set(documents)}
        for _, documents in reader.contexts()
    ]
    assert all(len(kind) == 1 for kind in kinds)
    assert {True} in kinds or not fraction
    assert kept_tokens(reader) == plain_tokens(reader, texts)
    assert reader.test_fraction == fraction


def test_a_share_of_documents_that_cannot_be_held_out(reader_of):
    for fraction in (-0.1, 1.0, float("nan")):
        with pytest.raises(BitlensError, match="`test_fraction` must be in"):
            reader_of(PROSE, 8, test_fraction=fraction)


@pytest.mark.parametrize("packed", [True, False])
def test_a_long_document_is_tokenized_in_parts(reader_of, monkeypatch, packed):
    texts = [" ".join(PROSE), "A lamp.", "Snow\nfell. " * 40]
    whole = reader_of(texts, 16, packed=packed)
    expected = list(whole.contexts())
    monkeypatch.setattr(text_module, "STRETCH", 60)
    sizes = []
    reader = reader_of(texts, 16, packed=packed)
    reader.tokenizer = lambda batch, **settings: (
        sizes.extend(map(len, batch)) or whole.tokenizer(batch, **settings)
    )
    assert (
        list(reader.contexts()) == expected
    )  # the tokenizer makes tokens of words: cut between, they are the same
    assert max(sizes) <= 60
    assert sum(sizes) == (sum(map(len, texts)) if packed else sizes[0] + len(texts[1]) + sizes[2])


@pytest.mark.parametrize("upper", [True, False])
@pytest.mark.parametrize("unknown", ["<unk>", None])
def test_what_a_tokenizer_puts_around_a_text_is_found_without_small_letters(
    tmp_path, upper, unknown
):
    """As of proteins: a vocabulary of capitals or digits; without <unk> other letters vanish."""
    letters = [
        *("ACDEFGHIK" if upper else "56789"),
        "<cls>",
        "<eos>",
        *([unknown] if unknown else []),
    ]
    vocabulary = {letter: i for i, letter in enumerate(letters)}
    own = Tokenizer(models.BPE(vocabulary, [], unk_token=unknown))
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [(name, vocabulary[name]) for name in ("<cls>", "<eos>")]
    own.post_processor = processors.TemplateProcessing(
        single="<cls> $A <eos>", special_tokens=special
    )
    names = {"cls_token": "<cls>", "eos_token": "<eos>"} | (
        {"unk_token": unknown} if unknown else {}
    )
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=own, **names)
    text = "ACDA" if upper else "5676"
    write_jsonl(tmp_path / "a.jsonl", [text])
    reader = ContextReader(Corpus((str(tmp_path / "a.jsonl"),)), tokenizer, 16, packed=False)
    assert (reader.before, reader.after) == ([vocabulary["<cls>"]], [vocabulary["<eos>"]])
    ((tokens, _),) = reader.contexts()
    assert tokens == [vocabulary[name] for name in ("<cls>", *text, "<eos>")]


def test_padding_is_a_token_that_every_model_of_the_vocabulary_knows(tmp_path, make_tokenizer):
    """A padding token that was added to the tokenizer may lie beyond the model's embedding."""
    write_jsonl(tmp_path / "a.jsonl", ["The river and the lamp.", "A"])
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<added>"})
    assert tokenizer.pad_token_id >= tokenizer.vocab_size
    (contexts,) = ContextReader(
        Corpus((str(tmp_path / "a.jsonl"),)), tokenizer, 16, packed=False
    ).batches(2)
    assert not contexts.mask.all()
    assert int(contexts.tokens.max()) < tokenizer.vocab_size


def test_documents_of_a_packed_context_are_separated_by_the_end_token(reader_of):
    reader = reader_of(["The river.", "A lamp."], 64, test_fraction=0.0)
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
            "nothing": ([], []),
            "bos": ([reader.tokenizer.bos_token_id], []),
            "bert": ([reader.tokenizer.cls_token_id], [reader.tokenizer.sep_token_id]),
        }[around]
        own = own[: 8 - len(before) - len(after)]
        seen = [*before, *own, *after]
        assert batch.tokens[row, : len(seen)].tolist() == seen
        assert batch.mask[row].tolist() == [True] * len(seen) + [False] * (
            batch.mask.shape[1] - len(seen)
        )
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
        assert torch.equal(
            contexts.keep, contexts.mask & ~torch.isin(contexts.tokens, torch.tensor([*special]))
        )


def test_a_first_token_that_is_not_special_makes_a_row(reader_of):
    assert all(
        contexts.keep[:, 0].all()
        for contexts in reader_of(["The river"] * 5, 8, packed=False).batches(2)
    )


def test_padding_is_told_from_an_equal_token_in_the_text(reader_of):
    reader = reader_of(["a b c d e f", "a"], 32, packed=False)
    reader.pad = reader.tokenizer("a")["input_ids"][
        0
    ]  # as with tokenizers that have no padding token
    (contexts,) = reader.batches(2)
    assert contexts.mask.sum(1).tolist() == [len(reader.tokenizer("a b c d e f")["input_ids"]), 1]
    assert contexts.keep[1].tolist() == [True] + [False] * (contexts.keep.shape[1] - 1)


@pytest.mark.parametrize("packed", [True, False])
def test_skipping_contexts_gives_the_rest(reader_of, packed):
    reader = reader_of(PROSE, 8, packed=packed)
    whole = [c.tokens[c.mask].tolist() for c in reader.batches(1)]
    for skip in (0, 1, 5, len(whole), len(whole) + 3):
        assert [c.tokens[c.mask].tolist() for c in reader.batches(1, skip=skip)] == whole[skip:]


@pytest.mark.parametrize("packed", [True, False])
def test_runs_are_the_contexts_in_their_order(reader_of, packed):
    reader = reader_of(PROSE, 8, packed=packed)
    whole = [c.tokens[c.mask].tolist() for c in reader.batches(1)]
    kept = [int(c.keep.sum()) for c in reader.batches(1)]
    for skip, tokens in ((0, 1), (1, 9), (2, 20), (0, 10**6), (len(whole), 9)):
        runs = list(reader.runs(tokens, skip))
        found = [
            row[real].tolist() for c in runs for row, real in zip(c.tokens, c.mask, strict=True)
        ]
        assert found == whole[skip:]
        assert all(int(c.mask.sum()) >= tokens for c in runs[:-1])
    for rows in range(sum(kept) + 3):
        taken = sum(len(c.tokens) for c in reader.runs(9, rows=rows))
        assert sum(kept[:taken]) >= min(rows, sum(kept))
        assert not taken or sum(kept[: taken - 1]) < rows


def test_contexts_of_like_length_are_read_together():
    lengths = torch.tensor([8, 3, 8, 1, 8, 2, 8, 3, 7, 8])
    mask = torch.arange(8) < lengths[:, None]
    contexts = Contexts(torch.arange(80).view(10, 8), mask, mask, mask.long())
    batches = contexts.by_length(32)
    assert sorted(torch.cat(batches).tolist()) == list(range(10))
    assert batches[0].tolist() == [0, 2, 4, 6]
    assert contexts.of(batches[0]).mask.all()
    for chosen in batches:
        batch = contexts.of(chosen)
        assert batch.mask.numel() <= 32
        assert int((~batch.mask).sum()) <= 2
        assert torch.equal(batch.tokens[batch.mask], contexts.tokens[chosen][mask[chosen]])
    assert [len(c) for c in contexts.by_length(1)] == [1] * 10


def test_the_size_is_known_beforehand(reader_of):
    reader = reader_of(PROSE, 8)
    assert reader.estimate_rows() == len(plain_tokens(reader, PROSE))


@pytest.mark.slow
@pytest.mark.parametrize("packed", [True, False])
def test_the_size_of_a_large_text_is_estimated_from_its_beginning(reader_of, monkeypatch, packed):
    monkeypatch.setattr(text_module, "SAMPLE", 100_000)
    texts = [f"{i} {PROSE[i % 4]} {PROSE[(i // 4) % 3]}" for i in range(8000)]
    reader = reader_of(texts, 8, packed=packed)
    seen, tokenizer = [], reader.tokenizer
    reader.tokenizer = lambda batch, **settings: seen.extend(batch) or tokenizer(batch, **settings)
    estimate = reader.estimate_rows()
    assert len(seen) < 4000
    assert estimate == pytest.approx(
        sum(min(len(ids), reader.room if not packed else 99) for ids in reader._ids(texts)), rel=0.1
    )


@pytest.mark.parametrize(("around", "length"), [("nothing", 0), ("bos", 1), ("bert", 2)])
def test_a_context_without_room_for_text(reader_of, around, length):
    with pytest.raises(BitlensError, match=f"context of {length} tokens has no room"):
        reader_of(PROSE, length, around, packed=False)


@pytest.mark.parametrize("texts", [[], ["", "  \n"]])
def test_empty_text_has_no_documents(reader_of, texts):
    reader = reader_of(texts, 8)
    assert list(reader.batches(2)) == []
    assert reader.estimate_rows() == 0
