"""Explanations by examples, and the judge that reads them in an encoder, against brute force."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitlens.comsem.embedding_judge import EmbeddingSettings
from bitlens.comsem.examples import ExampleExplainer, Examples
from bitlens.comsem.judges import Question
from bitlens.comsem.nearness import EmbeddingJudge, Nearness, load_encoder, unmarked
from bitlens.errors import BitlensError
from bitlens.hidden import LanguageModel

LIKE = ("the «old» sailor", "a «quiet» river near", "one «golden» lamp")
UNLIKE = ("the old «sailor» watched", "«a» quiet river", "one golden «lamp», found")
ASKED = ("the «clever» doctor", "the clever «doctor»", "«in» the morning")
LINE = st.text(st.characters(exclude_characters="\n\r"), max_size=20)


@pytest.fixture(scope="module")
def encoder(make_model):
    return load_encoder(str(make_model("bert")), "cpu")


@pytest.mark.slow
@given(st.lists(LINE, min_size=1, max_size=4), st.lists(LINE, min_size=1, max_size=4))
def test_examples_are_read_back_from_their_explanation(like, unlike):
    examples = Examples(tuple(like), tuple(unlike))
    assert Examples.of(examples.explanation) == examples


def test_a_phrase_is_no_list_of_examples():
    assert Examples.of("+ a plus sign") is None
    assert Examples.of("a phrase\nand a second line") is None


def test_every_latent_is_explained_by_its_own_examples():
    first, second = ExampleExplainer().explain([LIKE, ASKED], [UNLIKE, LIKE])
    assert Examples.of(first) == Examples(LIKE, UNLIKE)
    assert Examples.of(second) == Examples(ASKED, LIKE)


def test_marks_are_taken_off():
    for text in (*LIKE, *UNLIKE):
        plain, first, last = unmarked(text)
        assert plain[:first] + f"«{plain[first:last]}»" + plain[last:] == text


def unit(x):
    return x / x.norm()


def by_hand(model, text):
    """Mean over the pieces of the marked token, of every layer, each of length 1, side by side."""
    plain, first, last = unmarked(text)
    encoded = model.tokenizer(plain, return_offsets_mapping=True)
    own = [
        i
        for i, (begin, end) in enumerate(encoded["offset_mapping"])
        if begin < end and begin < last and end > first
    ]
    states = model.hidden_states(torch.tensor([encoded["input_ids"]]))
    return unit(torch.cat([unit(state[0, own].mean(0)) for state in states.values()]))


def test_an_embedding_is_that_of_each_text_alone(encoder):
    texts = [*LIKE, *UNLIKE, *ASKED]
    found = EmbeddingJudge(encoder).embed(texts)
    expected = torch.stack([by_hand(encoder, text) for text in texts])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_texts_are_read_in_one_order_and_kept_no_longer_than_asked_about(encoder, monkeypatch):
    judge, seen = EmbeddingJudge(encoder, batch=2), []
    embed = judge.embed
    monkeypatch.setattr(judge, "embed", lambda texts: seen.extend(texts) or embed(texts))
    texts = [f"the «{letter}» of all" for letter in "zyxwvutsrqponm"]
    explanation = Examples(LIKE, UNLIKE).explanation
    judge.answer([Question(explanation, text) for text in texts])
    assert [text for text in seen if text in texts] == texts
    judge.answer([Question(explanation, texts[0])])
    assert set(judge._known) == {*LIKE, *UNLIKE, texts[0]}
    assert len(seen) == len(set(seen))


def test_a_text_that_is_too_long_is_refused_not_cut_before_its_mark(encoder):
    with pytest.raises(BitlensError, match=r"reads at most 128 tokens at once.*lower `window`"):
        EmbeddingJudge(encoder).embed(["one " * 200 + "«old»"])


def cosine(a, b):
    return math.fsum(a * b for a, b in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


def centroid(rows):
    return [sum(column) for column in zip(*rows, strict=True)]


def test_verdicts_are_cosines_above_a_threshold_of_the_examples_alone(encoder):
    like, unlike, asked = (
        [by_hand(encoder, text).double().tolist() for text in texts]
        for texts in (LIKE, UNLIKE, ASKED)
    )
    scored = [
        cosine(x, centroid(like[:i] + like[i + 1 :])) - cosine(x, centroid(unlike))
        for i, x in enumerate(like)
    ]
    against = [
        cosine(x, centroid(like)) - cosine(x, centroid(unlike[:i] + unlike[i + 1 :]))
        for i, x in enumerate(unlike)
    ]
    threshold = (sum(scored) / len(scored) + sum(against) / len(against)) / 2
    expected = [cosine(x, centroid(like)) - cosine(x, centroid(unlike)) - threshold for x in asked]
    explanation = Examples(LIKE, UNLIKE).explanation
    verdicts = EmbeddingJudge(encoder, batch=2).answer([Question(explanation, t) for t in ASKED])
    assert [v.confidence for v in verdicts] == pytest.approx(expected, abs=1e-5)
    assert [v.yes for v in verdicts] == [score > 0 for score in expected]


def test_two_clouds_are_told_apart():
    draw = torch.Generator().manual_seed(0)
    clouds = torch.nn.functional.normalize(torch.randn(60, 8, generator=draw), dim=1)
    clouds[:30, 0] += 2
    clouds[30:, 0] -= 2
    clouds = torch.nn.functional.normalize(clouds, dim=1)
    scores = Nearness.of(clouds[:10], clouds[30:40]).scores(clouds)
    assert (scores[10:30] > 0).all()
    assert (scores[40:] < 0).all()


def test_a_causal_model_embeds_too(make_model):
    judge = EmbeddingJudge(load_encoder(str(make_model("llama")), "cpu"))
    verdicts = judge.answer([Question(Examples(LIKE, UNLIKE).explanation, ASKED[0])])
    assert verdicts[0].yes is not None


def test_words_are_refused(encoder):
    with pytest.raises(BitlensError, match="reads no words"):
        EmbeddingJudge(encoder).answer([Question("an adjective", ASKED[0])])


def test_an_encoder_has_to_be_named():
    with pytest.raises(BitlensError, match="needs an encoder"):
        EmbeddingSettings().check()


def test_a_tokenizer_without_offsets_is_refused(encoder, monkeypatch):
    monkeypatch.setattr(type(encoder.tokenizer), "is_fast", False)
    assert isinstance(encoder, LanguageModel)
    with pytest.raises(BitlensError, match="does not say where tokens begin"):
        EmbeddingJudge(encoder)
