"""What latents fire on, on codes made by hand."""

from itertools import chain, combinations
from types import SimpleNamespace

import pytest
import torch

from bitlens.bits import Codes, PackedBits
from bitlens.errors import BitlensError
from bitlens.features.examples import random_examples
from bitlens.features.token_scores import rows_on, token_scores


def make(
    folder, bits: torch.Tensor, token: torch.Tensor, document: torch.Tensor | None = None
) -> Codes:
    document = torch.arange(len(bits)) // 10 if document is None else document
    columns = {
        "token": token.int(),
        "document": document.long(),
        "position": torch.zeros(len(bits)).int(),
    }
    return Codes.write(folder / "codes", [(PackedBits.pack(bits), columns)], bits.shape[1], {})


@pytest.fixture
def corpus() -> tuple[torch.Tensor, torch.Tensor]:
    """2,000 rows of 6 token ids, every fifth row held out."""
    token = torch.randint(0, 6, (2000,), generator=torch.Generator().manual_seed(0)) * 3
    return token, torch.arange(2000) % 5 == 0


def f1(on: torch.Tensor, guess: torch.Tensor) -> float:
    return float(2 * (on & guess).sum() / (on.sum() + guess.sum()))


def test_a_latent_that_is_a_set_of_tokens_is_found(corpus):
    token, test = corpus
    bits = torch.stack([token == 6, (token == 3) | (token == 15), token >= 0], 1)
    scores = token_scores(PackedBits.pack(bits), token, test)
    assert [(s.latent, sorted(s.tokens), s.f1) for s in scores] == [
        (0, [6], 1.0),
        (1, [3, 15], 1.0),
        (2, [0, 3, 6, 9, 12, 15], 1.0),
    ]
    assert scores[0].rate == pytest.approx(float((token == 6).float().mean()))


def test_tokens_come_in_order_of_how_often_they_are_on(corpus):
    token, test = corpus
    keep = torch.rand(2000, generator=torch.Generator().manual_seed(1)) < 0.6
    bits = ((token == 9) | ((token == 0) & keep))[:, None]
    (score,) = token_scores(PackedBits.pack(bits), token, test)
    assert score.tokens == [9, 0]


def test_the_set_is_the_best_on_training_rows_and_scored_on_held_out_ones(corpus):
    """Against all subsets of the tokens, for latents that depend on the token only in part."""
    token, test = corpus
    g = torch.Generator().manual_seed(2)
    chance = torch.rand(6, 8, generator=g)[token // 3]
    bits = torch.rand(2000, 8, generator=g) < chance**3
    scores = token_scores(PackedBits.pack(bits), token, test)
    assert len(scores) == 8
    subsets = list(chain.from_iterable(combinations(range(0, 18, 3), size) for size in range(1, 7)))
    for score in scores:
        on = bits[:, score.latent]
        best = max(f1(on[~test], torch.isin(token, torch.tensor(s))[~test]) for s in subsets)
        chosen = torch.isin(token, torch.tensor(score.tokens))
        assert f1(on[~test], chosen[~test]) == pytest.approx(best)
        assert score.f1 == pytest.approx(f1(on[test], chosen[test]))
        assert score.rate == pytest.approx(float(on.float().mean()))


def test_latents_that_are_rarely_on_are_left_out(tmp_path, corpus):
    token, test = corpus
    bits = torch.zeros(2000, 3, dtype=torch.bool)
    bits[test.nonzero()[:20, 0], :2] = True
    bits[(~test).nonzero()[:20, 0], 0] = (
        True  # latent 0: 20 and 20 rows; 1: none to learn from; 2: never on
    )
    codes = make(tmp_path, bits, token)
    assert [score.latent for score in token_scores(codes.bits, codes.token, test)] == [0]
    assert token_scores(codes.bits, codes.token, test, min_on=21) == []


def test_codes_without_tokens_are_refused(tmp_path):
    codes = make(tmp_path, torch.ones(50, 2), torch.full((50,), -1))
    with pytest.raises(BitlensError, match="have no tokens"):
        token_scores(codes.bits, codes.token, torch.arange(50) < 10)


# --- examples -------------------------------------------------------------------------------------

letters = SimpleNamespace(decode=lambda ids: "".join(chr(97 + i) for i in ids))


@pytest.fixture
def text(tmp_path) -> Codes:
    """Documents of 10 letters each, "abcdefghij"; latent 65 is on at the first, fifth and last
    letter of each."""
    place = torch.arange(60) % 10
    bits = torch.zeros(60, 70)
    bits[:, 65] = torch.isin(place, torch.tensor([0, 4, 9])).float()
    bits[:, 3] = 1
    return make(tmp_path, bits, place)


def test_an_example_is_the_token_amid_its_own_document(text):
    found = random_examples(text, 65, letters, n=100, window=3)
    expected = {0: ("", "a", "bcd"), 4: ("bcd", "e", "fgh"), 9: ("ghi", "j", "")}
    assert len(found) == 6, "one from each document"
    assert len({example.row // 10 for example in found}) == 6
    for example in found:
        assert example[1:] == expected[example.row % 10]


def test_a_window_wider_than_the_document_stops_at_its_ends(text):
    for example in random_examples(text, 65, letters, n=3, window=50):
        assert example.before + example.token + example.after == "abcdefghij"


def test_examples_are_drawn_by_seed(text):
    rows = [
        [e.row for e in random_examples(text, 65, letters, n=4, seed=seed)] for seed in (0, 0, 1)
    ]
    assert rows[0] == rows[1] != rows[2]
    assert len(rows[0]) == 4


def test_a_latent_that_is_never_on_has_no_examples(text):
    assert random_examples(text, 7, letters) == []


@pytest.mark.parametrize("n_latents", [1, 64, 130])
def test_rows_on_are_those_of_unpacked_bits(n_latents):
    on = torch.rand(1000, n_latents, generator=torch.Generator().manual_seed(0)) < 0.1
    on[:, 0] = n_latents == 64  # always, or never
    found = list(rows_on(PackedBits.pack(on)))
    assert [rows.tolist() for rows in found] == [column.nonzero()[:, 0].tolist() for column in on.T]
