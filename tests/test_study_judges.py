"""The study `judges`: what is planted is true, judges are measured by it, poor ones left out."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from bitlens.bits import Codes, PackedBits
from bitlens.errors import BitlensError
from bitlens.options import BUNDLED
from bitlens.studies.cells import Study
from bitlens.studies.judges import study as judges
from bitlens.studies.judges.config import JudgesConfig, Who
from bitlens.studies.judges.judging import rates
from bitlens.studies.judges.meanings import MEANINGS, Meaning
from bitlens.studies.judges.planting import plant
from bitlens.studies.judges.report import named
from bitlens.studies.judges.sentences import Sentence, in_context, plain_sentences, tagged_sentences

WINDOW = 4


@pytest.fixture(scope="module")
def sentences():
    return plain_sentences(BUNDLED)


def marked(text):
    return text.partition("«")[2].partition("»")[0]


def test_words_read_as_they_are_printed():
    words = ("He", "said", ",", '"', "It", "is", "(", "almost", ")", "John's", '"', ".")
    assert in_context(words, 5, 20) == 'He said, "It «is» (almost) John\'s".'
    assert in_context(words, 5, 1) == "It «is» ("
    assert in_context(("A", "cat"), 0, 1) == "«A» cat"
    assert in_context(("«", "Oui", "»"), 1, 1) == "‹ «Oui» ›"


def test_tagged_sentences_are_read(tmp_path):
    file = tmp_path / "tagged.jsonl"
    tags = ["at", "jj", "nn-tl", "``", "vbd", "."]
    lines = [
        {"tokens": ["The", "big", "cat", "``", "sat", "."], "tags": tags},
        {"tokens": ["Short", "."], "tags": ["jj", "."]},
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    expected = Sentence(
        ("The", "big", "cat", '"', "sat", "."), ("at", "jj", "nn", "``", "vbd", ".")
    )
    assert tagged_sentences(file) == [expected]
    file.write_text('{"tokens": ["a", "b"], "tags": ["at"]}\n')
    with pytest.raises(BitlensError, match="as many 'tags'"):
        tagged_sentences(file)


@pytest.mark.parametrize(
    ("phrase", "words", "at", "holds"),
    [
        ('the word "she"', "Then She went", 1, True),
        ('the word "she"', "Then he went", 1, False),
        ('a word that ends with "ing"', "a singing bird", 1, True),
        ("a number written in digits", "in 1,960 cases", 1, True),
        ("a number written in digits", "in two cases", 1, False),
        ("a colour", "the red house", 1, True),
        ("the first word of a sentence", "Then she went", 0, True),
        ("the last word before a comma", "well , then", 0, True),
        ("the last word before a comma", "well , then", 1, False),
        ('a word right after "the"', "the red house", 1, True),
        ("the last word of a sentence", "she went .", 1, True),
        ("the last word of a sentence", "she went .", 0, False),
        ('a word followed by "of"', "part of it", 0, True),
    ],
)
def test_meanings_hold_where_they_should(phrase, words, at, holds):
    (meaning,) = (meaning for meaning in MEANINGS if meaning.phrase == phrase)
    assert meaning.holds(Sentence(tuple(words.split())), at) is holds


def test_parts_of_speech_are_those_of_the_tags():
    sentence = Sentence(("the", "cats", "sat"), ("at", "nns", "vbd"))
    found = {m.phrase: [m.holds(sentence, i) for i in range(3)] for m in MEANINGS if m.tagged}
    assert found["a plural noun"] == [False, True, False]
    assert found["a verb in the past tense"] == [False, False, True]


@pytest.mark.slow
def test_what_is_planted_is_true_balanced_and_never_shown_twice(sentences):
    (meaning,) = (m for m in MEANINGS if m.phrase == 'the word "she"')
    planted = plant(meaning, sentences, examples=8, judged=20, window=WINDOW, seed=0)
    assert {marked(text).lower() for text in (*planted.examples, *planted.positives)} == {"she"}
    off = [*planted.counterexamples, *planted.random, *planted.hard]
    assert "she" not in {marked(text).lower() for text in off}
    assert len(planted.positives) == len(planted.random) + len(planted.hard) == 20
    assert all("she" in text.lower() for text in planted.hard)
    again = plant(meaning, sentences, examples=8, judged=20, window=WINDOW, seed=0)
    assert again == planted
    other = plant(meaning, sentences, examples=8, judged=20, window=WINDOW, seed=1)
    assert other.positives != planted.positives


@pytest.mark.parametrize(("on", "off"), [(70, 60), (150, 10)])
def test_there_are_as_many_negatives_as_positives_where_some_are_few(sentences, on, off):
    (meaning,) = (m for m in MEANINGS if m.phrase == 'the word "she"')
    few = [s for s in sentences if meaning.holds(Sentence(s.words[:1]), 0)][:on]
    few += [s for s in sentences if "she" not in map(str.lower, s.words)][:off]
    planted = plant(meaning, few, examples=5, judged=40, window=WINDOW, seed=0)
    assert 5 <= len(planted.positives) < 40
    assert len(planted.positives) == len(planted.random) + len(planted.hard)


def test_text_without_a_meaning_is_refused(sentences):
    never = Meaning("word", "never", lambda sentence, index: False)
    with pytest.raises(BitlensError, match="too few words for 'never'"):
        plant(never, sentences, examples=5, judged=20, window=WINDOW, seed=0)


def test_rates_are_those_of_all_questions():
    names = ("positive", "random", "hard")
    one = {f"{n}_right": r for n, r in zip(names, (3, 2, 1), strict=True)}
    one |= {f"{n}_asked": a for n, a in zip(names, (4, 2, 2), strict=True)}
    found = rates([one, one])
    assert found["accuracy"] == pytest.approx(12 / 16)
    assert found["accuracy_positive"] == pytest.approx(6 / 8)
    assert found["accuracy_negative"] == pytest.approx(6 / 8)
    assert found["accuracy_hard"] == pytest.approx(2 / 4)
    assert found["accuracy_low"] < found["accuracy"] < found["accuracy_high"]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"judges": ("oracle",)}, "There is no judge 'oracle'"),
        ({"judges": ("words",)}, "needs a model"),
        ({"judges": ()}, "at least one judge"),
        ({"codes": ("nowhere",)}, "NAME=FOLDER"),
        ({"codes": ("one=/tmp", "one=/")}, "have one name"),
        ({"judged": 5}, "`judged` must be at least 20"),
    ],
)
def test_nonsense_is_refused(settings, sentence):
    with pytest.raises(BitlensError, match=sentence):
        JudgesConfig(**settings).refuse_nonsense()


def test_judges_have_names():
    assert Who.named("labels=spelling") == ("labels", "spelling")
    assert str(Who.named("words=/models/small")) == "words, small"


def test_models_of_one_name_are_told_apart_by_their_folders():
    judges = ("words=/a/small", "words=/b/small", "words=/a/large", "labels")
    rows = [{"part": "planted", "judge": judge} for judge in judges]
    called = [row["who"] for row in named([*rows, {"part": "dictionary"}])]
    assert called == ["words, /a/small", "words, /b/small", "words, large", "labels", None]


@pytest.fixture(scope="module")
def codes(tmp_path_factory, bundled_tokens):
    """Latents that are on at some tokens of the bundled text, and one that is on at random."""
    token, document, planted = bundled_tokens
    random = torch.rand(len(token), 1, generator=torch.Generator().manual_seed(0)) < 0.1
    columns = {
        "token": token.int(),
        "document": document,
        "position": torch.zeros(len(token)).int(),
    }
    folder = tmp_path_factory.mktemp("judges") / "codes"
    bits = PackedBits.pack(torch.cat([planted, random], 1))
    return Codes.write(
        folder, [(bits, columns)], bits.n_latents, {"model": BUNDLED, "revision": None}
    )


@pytest.fixture(scope="module")
def bundled_tokens():
    from transformers import AutoTokenizer

    from bitlens.hidden import Corpus
    from bitlens.hidden.named import bundled_folder

    tokenizer = AutoTokenizer.from_pretrained(bundled_folder())
    texts = [text for _, text in list(Corpus((BUNDLED,)).documents())[:200]]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"][:60] for text in texts]
    token = torch.tensor([i for document in ids for i in document])
    document = torch.tensor([number for number, tokens in enumerate(ids) for _ in tokens])
    common = token.bincount().argsort(descending=True)[5:9]
    return token, document, token[:, None] == common


@pytest.mark.slow
def test_good_judges_count_latents_and_poor_ones_are_left_out(codes, tmp_path):
    config = JudgesConfig(
        judges=("labels", f"words={BUNDLED}"),
        judged=20,
        examples=5,
        window=2,  # the bundled model reads 256 tokens at once
        codes=(f"planted={codes.path}",),
        sample=10,
        shuffles=1,
        batch=64,
        device="cpu",
    )
    config = dataclasses.replace(config, text=BUNDLED)
    rows = judges.run(config, Study(tmp_path / "study"))
    assert not [row for row in rows if "error" in row]
    by_labels = [row for row in rows if row["part"] == "planted" and row["judge"] == "labels"]
    assert {row["accuracy"] for row in by_labels} == {1.0}
    (counted,) = (row for row in rows if row["part"] == "latents")
    assert counted["judge"] == "labels"
    assert counted["interpretable"] == 4
    assert counted["interpretable_share"] == pytest.approx(4 / 5)
    report = (tmp_path / "study" / "judges.md").read_text()
    assert "Left out" in report
    assert "| labels (1.000) | planted | 5 |" in report
    assert (tmp_path / "study" / "interpretable.png").exists()
    cells = sorted((tmp_path / "study" / "cells").iterdir())
    kept = [cell.stat().st_mtime_ns for cell in cells]
    again = judges.run(config, Study(tmp_path / "study", resume=True))
    assert again == rows
    assert [cell.stat().st_mtime_ns for cell in cells] == kept, "nothing is measured twice"
