"""Which rows are drawn for explainer and judge: against brute force, and the chances counted by
hand."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bitlens.bits import Codes, PackedBits
from bitlens.comsem.sampling import Plan, trials
from bitlens.errors import BitlensError
from bitlens.features import on_rows as drawing
from bitlens.features.examples import contexts
from bitlens.features.on_rows import canonical, explainers_part, on_rows
from bitlens.seeding import generator, mixed

ROWS, LATENTS = 3000, 70
letters = SimpleNamespace(decode=lambda ids: "".join("\n" if i == 9 else chr(97 + i) for i in ids))


@pytest.fixture(scope="module")
def drawn() -> tuple[PackedBits, torch.Tensor, torch.Tensor]:
    """Bits with rates from 0 to .4, documents of 1 to 40 rows, a subset of the rows."""
    g = generator("sampling")
    bits = torch.rand(ROWS, LATENTS, generator=g) < torch.linspace(0, 0.4, LATENTS)
    document = torch.repeat_interleave(
        torch.arange(200), torch.randint(1, 40, (200,), generator=g)
    )[:ROWS]
    return PackedBits.pack(bits), document, torch.rand(ROWS, generator=g) < 0.7


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Codes:
    """400 documents of 25 letters; the first latent is two letters in part, others are random, the
    last is never on."""
    g = generator("corpus")
    token = torch.randint(0, 20, (10_000,), generator=g)
    bits = torch.rand(10_000, LATENTS, generator=g) < 0.1
    bits[:, 0] = torch.isin(token, torch.tensor([3, 8])) & (torch.rand(10_000, generator=g) < 0.6)
    bits[:, -1] = False
    columns = {
        "token": token.int(),
        "document": torch.arange(10_000) // 25,
        "position": torch.arange(10_000).int() % 25,
    }
    return Codes.write(
        tmp_path_factory.mktemp("codes"), [(PackedBits.pack(bits), columns)], LATENTS, {}
    )


# --- on-rows ---


def test_the_rows_are_those_of_the_smallest_keys_one_of_each_document(drawn):
    bits, document, chosen = drawn
    found = on_rows(bits, document, 6, chosen, seed=3)
    start = torch.randint(2**62, (1,), generator=generator(3, "reservoir")).numpy()
    salts = mixed(mixed(np.arange(LATENTS, dtype=np.uint64)) ^ start.astype(np.uint64))
    for latent in range(LATENTS):
        rows = ((bits.unpack()[:, latent] > 0) & chosen).nonzero()[:, 0]
        order = rows[
            torch.from_numpy(mixed(rows.numpy().astype("uint64") + salts[latent]).argsort())
        ]
        firsts = list({int(document[r]): int(r) for r in reversed(order.tolist())}.items())[::-1]
        expected = sorted((order.tolist().index(row), row) for _, row in firsts)
        expected = [row for _, row in expected][:6]
        assert found[latent].tolist() == expected + [-1] * (6 - len(expected))


def test_neither_the_choice_of_latents_nor_how_many_rows_are_sorted_changes_a_sample(
    drawn, monkeypatch
):
    bits, document, chosen = drawn
    whole = on_rows(bits, document, 6, chosen)
    some = [69, 3, 64, 3]
    assert torch.equal(on_rows(bits, document, 6, chosen, latents=some), whole[some])
    monkeypatch.setattr(drawing, "CANDIDATES", 1)
    assert torch.equal(on_rows(bits, document, 6, chosen), whole)
    assert not torch.equal(on_rows(bits, document, 6, chosen, seed=1), whole)


@pytest.mark.slow
def test_one_row_is_uniform_over_the_on_rows():
    """Latents that are on in the same 12 rows are independent draws; documents have 1, 2, 3 and 6
    of them."""
    n = 60_000
    on = torch.arange(20) % 5 < 3
    bits = PackedBits.pack(on[:, None].expand(20, n))
    document = torch.repeat_interleave(torch.arange(4), torch.tensor([2, 3, 5, 10]))
    counts = on_rows(bits, document, 1)[:, 0].bincount(minlength=20).double()
    assert counts[~on].sum() == 0
    chi_square = float(((counts[on] - n / 12) ** 2 / (n / 12)).sum())
    assert chi_square < 31.3, "the 99.9 % quantile at 11 degrees of freedom"


@pytest.mark.slow
def test_several_rows_are_drawn_one_by_one_each_from_a_new_document():
    """Documents with 1, 1 and 2 on-rows, two drawn: the third is left out if the others are, 2 *
    1/4 * 1/3 of the time."""
    n = 60_000
    found = on_rows(PackedBits.pack(torch.ones(4, n)), torch.tensor([0, 1, 2, 2]), 2)
    assert float((found < 2).all(1).double().mean()) == pytest.approx(1 / 6, abs=0.006)
    both = (found >= 2).sum(1)
    assert both.max() == 1
    assert float((found == 3).any(1).double().mean()) == pytest.approx(5 / 12, abs=0.008)
    assert float(found[:, 0].double().mean()) == pytest.approx(1.5, abs=0.02)


def test_a_sample_of_none_is_refused(drawn):
    with pytest.raises(BitlensError, match="at least one row"):
        on_rows(*drawn[:2], 0)


def test_the_rare_state_is_on(drawn):
    bits = drawn[0]
    assert canonical(bits) is bits, "no copy where nothing is flipped"
    dense = PackedBits.pack(torch.cat([bits.unpack(), 1 - bits.unpack()[:, 1:]], 1))
    rare = canonical(dense).unpack()
    assert torch.equal(rare, torch.cat([bits.unpack(), bits.unpack()[:, 1:]], 1))


# --- trials ---


def test_documents_are_split_by_a_hash_of_their_own(corpus):
    part = explainers_part(corpus.document)
    by_document = part.view(400, 25)
    assert (by_document == by_document[:, :1]).all()
    assert 0.4 < float(part.double().mean()) < 0.6
    assert torch.equal(explainers_part(corpus.document[:2500]), part[:2500]), (
        "a longer corpus keeps the split"
    )


@pytest.mark.slow
def test_a_trial_keeps_explainer_and_judge_apart_and_negatives_are_off(corpus):
    explainers = explainers_part(corpus.document)
    on, tokens = corpus.bits.unpack() > 0, corpus.token.tolist()
    for trial in trials(corpus.bits, corpus, range(LATENTS - 1), Plan()):
        kinds = [trial.examples, trial.positives, trial.random, trial.same_token, trial.neighbours]
        assert [len(kind) for kind in kinds] == [10, 20, 20, 5, 5]
        judged = [row for row, _ in trial.judged]
        assert len(set(trial.examples + judged)) == 60
        assert [kind for _, kind in trial.judged[19:41:7]] == [
            "positive",
            "random",
            "random",
            "hard",
        ]
        for kind in kinds:
            assert len(corpus.document[kind].unique()) == len(kind), "one of each document"
        assert explainers[trial.examples].all()
        assert not explainers[judged].any()
        assert on[trial.examples + trial.positives, trial.latent].all()
        assert not on[trial.random + trial.hard, trial.latent].any()
        assert {tokens[r] for r in trial.same_token} <= {tokens[r] for r in trial.positives}


def test_neighbours_are_the_nearest_rows_with_the_latent_off(corpus):
    judged = ~explainers_part(corpus.document)
    bits = corpus.bits.unpack()
    (trial,) = trials(corpus.bits, corpus, [0], Plan(same_token=0, neighbours=3))
    off = (judged & (bits[:, 0] == 0)).nonzero()[:, 0]
    for positive, neighbour in zip(trial.positives[:3], trial.neighbours, strict=True):
        distance = (bits[off] - bits[positive]).abs().sum(1)
        assert (bits[neighbour] - bits[positive]).abs().sum() == distance.min()


def test_a_latent_that_is_never_on_has_no_rows_to_show(corpus):
    (trial,) = trials(corpus.bits, corpus, [LATENTS - 1], Plan())
    assert trial.examples == trial.positives == trial.hard == []
    assert len(trial.random) == 20


def test_wrong_latents_and_a_single_document_are_refused(corpus, tmp_path):
    with pytest.raises(BitlensError, match="no latent 70; these codes have latents 0 to 69"):
        trials(corpus.bits, corpus, [70], Plan())
    columns = {
        "token": torch.zeros(5).int(),
        "document": torch.zeros(5).long(),
        "position": torch.arange(5).int(),
    }
    one = Codes.write(tmp_path / "one", [(PackedBits.pack(torch.ones(5, 2)), columns)], 2, {})
    with pytest.raises(BitlensError, match="documents of their own"):
        trials(one.bits, one, [0], Plan())


def test_contexts_mark_the_token_and_show_line_ends(corpus):
    text = letters.decode(corpus.token[:25].tolist()).replace("\n", "⏎")
    found = contexts(corpus, [0, 12, 24], letters, window=3)
    assert found == {
        0: f"«{text[0]}»{text[1:4]}",
        12: f"{text[9:12]}«{text[12]}»{text[13:16]}",
        24: f"{text[21:24]}«{text[24]}»",
    }


def test_quotation_marks_of_the_text_mark_no_token(corpus):
    french = SimpleNamespace(decode=lambda ids: "".join("«»"[i % 2] for i in ids))
    (text,) = contexts(corpus, [12], french, window=3).values()
    assert (text.count("«"), text[3], text[5], text.count("»")) == (1, "«", "»", 1)
    assert set(text) <= set("«»‹›")


def test_a_space_before_the_token_stays_outside(corpus):
    spaced = SimpleNamespace(decode=lambda ids: "".join(f" {i}" for i in ids))
    a, b = corpus.token[:2].tolist()
    assert contexts(corpus, [0], spaced, window=1)[0] == f" «{a}» {b}"
