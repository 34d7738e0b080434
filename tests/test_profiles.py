"""Profiles of latents: against naive loops, and on latents whose habits were planted."""

import json
import math
from types import SimpleNamespace
from typing import Any, get_args, get_type_hints

import pytest
import torch

from bitlens.bits import Codes, PackedBits
from bitlens.cli.features import features
from bitlens.errors import BitlensError
from bitlens.features.on_rows import explainers_part
from bitlens.features.profiles import Order, Profile, arranged, profiles, write_profiles
from bitlens.features.token_scores import token_scores
from bitlens.seeding import generator

ROWS = 6000
letters = SimpleNamespace(decode=lambda ids: "".join(chr(97 + i) for i in ids))


def make(
    folder,
    bits: torch.Tensor,
    token: torch.Tensor,
    document: torch.Tensor,
    about: dict | None = None,
) -> Codes:
    position = torch.arange(len(bits)) - torch.searchsorted(document, document)
    columns = {"token": token.int(), "document": document, "position": position.int()}
    return Codes.write(
        folder / "codes", [(PackedBits.pack(bits), columns)], bits.shape[1], about or {}
    )


@pytest.fixture(scope="module")
def bits() -> torch.Tensor:
    """0: letter c, mostly; 1: the row before an a; 2: independent, .1; 3: off in 5 % of rows; 4:
    whole documents; 5: the
    first row of a document; 6: never; 7: as 2, with 1 % turned over."""
    g = generator("profiles")
    token, document = columns()
    chance = torch.rand(ROWS, 8, generator=g)
    following = torch.cat([token[1:], token[:1]])
    start = torch.cat([torch.tensor([True]), document[1:] != document[:-1]])
    on = torch.stack(
        [
            (token == 2) & (chance[:, 0] < 0.8),
            (following == 0) & ~start.roll(-1),
            chance[:, 2] < 0.1,
            chance[:, 3] > 0.05,
            torch.isin(document, torch.arange(0, 200, 10)),
            start,
            torch.zeros(ROWS).bool(),
            chance[:, 2] < 0.1,
        ],
        1,
    )
    on[:, 7] ^= chance[:, 7] < 0.01
    return on


def columns() -> tuple[torch.Tensor, torch.Tensor]:
    g = generator("columns")
    document = torch.repeat_interleave(
        torch.arange(300), torch.randint(5, 60, (300,), generator=g)
    )[:ROWS]
    return torch.randint(0, 6, (ROWS,), generator=g), document


@pytest.fixture(scope="module")
def corpus(bits, tmp_path_factory) -> Codes:
    return make(tmp_path_factory.mktemp("codes"), bits, *columns())


@pytest.fixture(scope="module")
def found(corpus) -> list[Profile]:
    return profiles(corpus, tokenizer=letters)


def test_rates_and_surprisals_are_of_the_rare_state(bits, found):
    rates = bits.double().mean(0)
    assert [p.flipped for p in found] == [False, False, False, True, False, False, False, False]
    for profile in found:
        p = min(float(rates[profile.latent]), 1 - float(rates[profile.latent]))
        assert profile.rate == pytest.approx(p)
        assert profile.burstiness == pytest.approx(math.log2(1 - p)), "log2 |1 - mean|"
        if p:
            assert profile.surprisal == pytest.approx(-math.log2(p))
            assert profile.bits == pytest.approx(-p * math.log2(p) - (1 - p) * math.log2(1 - p))


@pytest.mark.slow
def test_clustering_is_that_of_naive_loops(bits, found):
    _, document = columns()
    for latent in (0, 2, 3, 4, 5):
        on = (bits[:, latent] ^ (latent == 3)).tolist()
        rate, after, chances = sum(on) / ROWS, 0, 0
        for i in range(ROWS):
            for j in range(i + 1, min(i + 17, ROWS)):
                if on[i] and document[i] == document[j]:
                    chances, after = chances + 1, after + on[j]
        assert found[latent].again == pytest.approx(after / chances / rate)
        terms = []
        for name in document.unique():
            mine = torch.tensor(on)[document == name]
            terms.append(
                (int(mine.sum()) - len(mine) * rate) ** 2 / (len(mine) * rate * (1 - rate))
            )
        assert found[latent].dispersion == pytest.approx(sum(terms) / (len(terms) - 1))


def test_clustering_tells_bursts_from_independent_rows(found):
    assert found[2].again == pytest.approx(1, abs=0.1)
    assert found[2].dispersion == pytest.approx(1, abs=0.3)
    assert found[4].again > 5, "on in whole documents"
    assert found[4].dispersion > 10
    assert found[5].again == 0, "on once in a document"
    assert math.isnan(found[6].again)


def test_the_tokens_are_those_that_tell_most_about_the_latent(bits, found):
    token, _ = columns()
    (first,) = found[0].tokens
    on = bits[:, 0]
    assert (first.token, first.text, first.share) == (2, "c", 1.0)
    assert first.count == int(on.sum())
    assert first.lift == pytest.approx(float(on[token == 2].double().mean() / on.double().mean()))
    for profile in found:
        worth = [t.count * math.log2(t.lift) for t in profile.tokens]
        assert worth == sorted(worth, reverse=True)


def test_next_tokens_are_of_the_same_document(bits, found):
    token, document = columns()
    (following,) = found[1].next_tokens
    assert (following.text, following.share) == ("a", 1.0)
    inside = (document[1:] == document[:-1]).nonzero()[:, 0]
    on = bits[inside, 1].double()
    assert following.lift == pytest.approx(float(on[token[inside + 1] == 0].mean() / on.mean()))


def test_positions_are_rates_over_the_rate(bits, corpus, found):
    assert list(found[5].positions) == ["0", "1", "2", "3", "4-7", "8-15", "16-31", "32-63"]
    assert found[5].positions["0"] == pytest.approx(1 / found[5].rate)
    assert sum(found[5].positions.values()) == found[5].positions["0"]
    inside = (corpus.position >= 8) & (corpus.position < 16)
    rate = float(bits[inside, 2].double().mean() / bits[:, 2].double().mean())
    assert found[2].positions["8-15"] == pytest.approx(rate)


def test_neighbours_in_the_tree_and_by_decoder(corpus, found):
    assert found[2].tree == [7] or found[7].tree == [2]
    g = generator("decoder")
    W_dec = torch.randn(8, 5, generator=g)
    W_dec[3] = -2 * W_dec[0]  # flipped, so it writes the same
    by_decoder = profiles(corpus, W_dec=W_dec, top=3)
    assert (by_decoder[0].similar[0].latent, by_decoder[3].similar[0].latent) == (3, 0)
    sign = torch.tensor([1, 1, 1, -1, 1, 1, 1, 1.0])[:, None]
    cosine = torch.nn.functional.cosine_similarity(
        (W_dec * sign)[:, None], (W_dec * sign)[None], dim=2
    )
    for profile in by_decoder:
        others = cosine[profile.latent].clone()
        others[profile.latent] = -2
        assert [near.latent for near in profile.similar] == others.topk(3).indices.tolist()
        assert [near.value for near in profile.similar] == pytest.approx(
            others.topk(3).values.tolist(), abs=1e-6
        )
        assert profile.tokens == []


def test_promoted_tokens_are_those_whose_logits_a_decoder_row_raises(corpus):
    """Above the mean over all tokens, and turned where the latent is."""
    g = generator("promoted")
    W_dec, head = torch.randn(8, 5, generator=g), torch.randn(5, 20, generator=g) + 1
    found = profiles(
        corpus, tokenizer=letters, W_dec=W_dec, effect=lambda directions: directions @ head, top=4
    )
    for profile in found:
        raised = W_dec[profile.latent] * (-1 if profile.flipped else 1) @ head
        best = (raised - raised.mean()).topk(4)
        assert [p.token for p in profile.promotes] == best.indices.tolist()
        assert [p.logit for p in profile.promotes] == pytest.approx(best.values.tolist(), abs=1e-5)
        assert profile.promotes[0].text == chr(97 + profile.promotes[0].token)


def test_examples_mark_a_token_with_the_latent_on(found):
    assert len(found[0].examples) == 5
    assert all("«c»" in example for example in found[0].examples)
    assert found[6].examples == []


def test_profiles_are_written_as_json_lines_and_parquet(found, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    for suffix in ("jsonl", "parquet"):
        write_profiles(tmp_path / f"profiles.{suffix}", found)
    lines = [json.loads(line) for line in (tmp_path / "profiles.jsonl").read_text().splitlines()]
    assert lines == parquet.read_table(tmp_path / "profiles.parquet").to_pylist()
    assert lines[0]["tokens"][0]["text"] == "c"
    assert lines[6]["surprisal"] is None
    with pytest.raises(BitlensError, match=r"not 'profiles.csv'"):
        write_profiles(tmp_path / "profiles.csv", found)


def test_what_does_not_fit_is_refused(corpus, bits, tmp_path):
    with pytest.raises(
        BitlensError, match=r"W_dec of shape \[7, 5\] does not fit codes of 8 latents"
    ):
        profiles(corpus, W_dec=torch.ones(7, 5))
    nameless = make(tmp_path, bits, torch.full((ROWS,), -1), columns()[1])
    with pytest.raises(BitlensError, match="no tokens"):
        profiles(nameless, tokenizer=letters)
    assert profiles(nameless)[2].again == pytest.approx(1, abs=0.1)


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def codes(tiny_llama, tokenizer, tmp_path) -> Codes:
    """Two latents on text that looks like rich's markup: one for what stands after "[", one for the
    rest."""
    ids = torch.tensor(tokenizer("[bold]quiet[/bold] [red]song[/red] " * 40)["input_ids"])
    bracket = torch.isin(ids, torch.tensor(tokenizer("[ [/ ][ [")["input_ids"]).unique())
    about = {"model": str(tiny_llama), "hook": {"module": "layers.1"}}
    return make(
        tmp_path, torch.stack([bracket, ~bracket], 1), ids, torch.arange(len(ids)) // 20, about
    )


def test_the_command_shows_a_table_and_writes_all_profiles(codes, tmp_path, capsys):
    shown = features(codes.path, top=1, out=tmp_path / "all.jsonl")
    assert "on %" in capsys.readouterr().out
    assert len((tmp_path / "all.jsonl").read_text().splitlines()) == 2
    assert len(shown["profiles"]) == 1


def test_the_command_shows_pages_with_text_as_it_is(codes, tmp_path, capsys):
    from bitlens.autoencoders import BinaryAutoencoder

    BinaryAutoencoder(32, 2).save(tmp_path / "run")
    features(codes.path, run=tmp_path / "run", promotes=True, latents=(1,), examples=3)
    shown = capsys.readouterr().out
    assert "Latent 1" in shown
    assert "promotes" in shown
    assert "[/bold" in shown.replace("«", "").replace("»", "").replace("\n", ""), (
        "markup in the text is text"
    )


def test_the_command_names_what_is_wrong(codes, tmp_path):
    from bitlens.autoencoders import BinaryAutoencoder

    BinaryAutoencoder(32, 3).save(tmp_path / "run")
    wrongs: list[tuple[dict[str, Any], str]] = [
        ({"latents": (2,)}, "no latent 2"),
        ({"promotes": True}, "needs the decoder"),
        ({"run": tmp_path / "run"}, "has 3 latents, but the codes"),
        ({"out": tmp_path / "profiles.csv"}, "jsonl or .parquet"),
        ({"examples": 0}, "at least 1"),
    ]
    for wrong, sentence in wrongs:
        with pytest.raises(BitlensError, match=sentence):
            features(codes.path, **wrong)


# --- in what order --------------------------------------------------------------------------------


def test_token_f1_is_that_of_tokens_chosen_in_the_explainers_half(bits, corpus, found):
    flipped = torch.tensor([profile.flipped for profile in found])
    held_out = ~explainers_part(corpus.document)
    scores = token_scores(PackedBits.pack(bits ^ flipped), corpus.token, held_out)
    assert [score.latent for score in scores] == [0, 1, 2, 3, 4, 5, 7]
    for score in scores:
        profile = found[score.latent]
        assert (profile.token_f1, profile.token_set) == (score.f1, len(score.tokens))
    assert math.isnan(found[6].token_f1), "never on"


def of(
    latent: int, rate: float = 0.01, f1: float = math.nan, tokens: int = 1, again: float = 1.0
) -> Profile:
    numbers = {"dispersion": -again, "again": again, "token_f1": f1, "token_set": tokens}
    return Profile(latent, False, rate, 0.1, 1.0, 0.0, **numbers)


def test_rows_of_outlying_norm_are_no_part_of_a_profile(bits, tmp_path):
    """Profiles of rows with others of outlying norm among them, in which every latent is on, are
    those without these."""
    token, document = columns()
    usual = torch.rand(ROWS, generator=generator("outliers")) < 0.7
    position = torch.arange(ROWS) - torch.searchsorted(document, document)
    of_row = {"token": token.int(), "document": document, "position": position.int()}

    def written(name: str, bits: torch.Tensor, of_row: dict[str, torch.Tensor]) -> list[Profile]:
        codes = Codes.write(tmp_path / name, [(PackedBits.pack(bits), of_row)], bits.shape[1], {})
        return profiles(codes, tokenizer=letters, window=0)

    among = written("among", bits | ~usual[:, None], {**of_row, "usual": usual})
    alone = written("alone", bits[usual], {name: column[usual] for name, column in of_row.items()})
    for one, other in zip(among, alone, strict=True):
        for name in (
            "flipped",
            "rate",
            "tokens",
            "token_f1",
            "positions",
            "dispersion",
            "again",
            "tree",
            "examples",
        ):
            assert str(getattr(one, name)) == str(getattr(other, name)), name
    assert [(t.text, t.share) for t in among[1].next_tokens] == [("a", 1.0)], (
        "of the text, outlying or not"
    )


def test_the_order_begins_with_the_clearest_that_are_rare():
    """A single token at most every other one; dense and unknown latents last."""
    found = [
        of(0, 0.3, 0.99),
        of(1),
        of(2, f1=0.9),
        of(3, f1=0.95),
        of(4, f1=0.8, tokens=3),
        of(5, f1=0.5, tokens=2),
        of(6, f1=0.97),
        of(7, f1=0.85),
        of(8, 0.05),
    ]
    assert [p.latent for p in arranged(found, "clear")] == [6, 4, 3, 5, 2, 7, 8, 1, 0]


def test_other_orders_put_what_is_unknown_last():
    found = [
        of(0, 0.2, again=1),
        of(1, 0.0, again=math.nan),
        of(2, 0.4, again=3),
        of(3, 0.1, again=2),
    ]
    orders = {
        "index": [0, 1, 2, 3],
        "rate": [2, 0, 3, 1],
        "rare": [3, 0, 2, 1],
        "again": [2, 3, 0, 1],
        "dispersion": [0, 3, 2, 1],
    }
    for order in get_args(Order):
        if order in orders:
            assert [p.latent for p in arranged(found, order)] == orders[order]
    assert (
        {*orders, "clear"}
        == set(get_args(Order))
        == set(get_args(get_type_hints(features)["sort"]))
    )
