"""Two dictionaries compared: counts against brute force, and relations that were planted."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitlens.autoencoders import Autoencoder, BinaryAutoencoder, TopKAutoencoder
from bitlens.bits.entropies import conditional_entropy_from_counts
from bitlens.bits.packed import PackedBits
from bitlens.errors import BitlensError
from bitlens.hidden import ActivationStore, Corpus, LanguageModel
from bitlens.hidden.harvest import harvest
from bitlens.hidden.text import ContextReader
from bitlens.matching import Pairs, explain, explain_dense, likeness, match, stability, summary
from bitlens.seeding import generator

ROWS = 4000


def planted(*rates: float, name: str = "planted", rows: int = ROWS) -> Tensor:
    """Independent bits of these rates, bool `[rows, len(rates)]`"""
    return torch.rand(rows, len(rates), generator=generator(name)) < torch.tensor(rates)


def pack(*columns: Tensor) -> PackedBits:
    return PackedBits.pack(torch.stack(columns, 1))


def entropy(*columns: np.ndarray) -> float:
    """Joint entropy of binary columns in bits, by enumerating the rows."""
    counts = np.array(list(_tally(columns).values())) / len(columns[0])
    return float(-(counts * np.log2(counts)).sum())


def _tally(columns: tuple[np.ndarray, ...]) -> dict[tuple[int, ...], int]:
    seen: dict[tuple[int, ...], int] = {}
    for row in zip(*(c.tolist() for c in columns), strict=True):
        seen[row] = seen.get(row, 0) + 1
    return seen


# --- measures of pairs ----------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 150),
    n=st.integers(1, 6),
    m=st.integers(1, 6),
    rate=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_measures_are_those_of_naive_loops(rows, n, m, rate, seed):
    bits = torch.rand(rows, n + m, generator=generator(seed)) < rate
    a, b = bits[:, :n].numpy(), bits[:, n:].numpy()
    pairs = Pairs.of(PackedBits.pack(bits[:, :n]), PackedBits.pack(bits[:, n:]))
    jaccard, containment = pairs.jaccard(), pairs.containment()
    agreement, implication = pairs.agreement(), pairs.implication()
    for i in range(n):
        for j in range(m):
            x, y = a[:, i], b[:, j]
            both, either, p, q = int((x & y).sum()), int((x | y).sum()), x.mean(), y.mean()
            assert pairs.both[i, j] == both
            assert jaccard[i, j] == (both / either if either else 0)
            assert containment[i, j] == (both / x.sum() if x.any() else 0)
            chance = p * q / (p + q - p * q) if either else 0
            if chance < 1:
                assert agreement[i, j] == pytest.approx(
                    (float(jaccard[i, j]) - chance) / (1 - chance), abs=1e-12
                )
            if q < 1:
                assert implication[i, j] == pytest.approx(
                    (float(containment[i, j]) - q) / (1 - q), abs=1e-12
                )


@settings(deadline=None, max_examples=20)
@given(rows=st.integers(1, 150), rate=st.floats(0, 1), seed=st.integers(0, 99))
def test_the_other_way_round_the_same_pairs_are_seen(rows, rate, seed):
    bits = torch.rand(rows, 9, generator=generator(seed)) < rate
    pairs = Pairs.of(PackedBits.pack(bits[:, :5]), PackedBits.pack(bits[:, 5:]))
    turned = Pairs.of(PackedBits.pack(bits[:, 5:]), PackedBits.pack(bits[:, :5]))
    for measure in (Pairs.jaccard, Pairs.agreement, Pairs.surprise):
        torch.testing.assert_close(measure(pairs), measure(turned).T, rtol=0, atol=1e-12)
    assert torch.equal(pairs.T.implication(), turned.implication())
    assert torch.isfinite(pairs.surprise()).all()


@settings(deadline=None, max_examples=60)
@given(rows=st.integers(2, 60), data=st.data())
def test_an_overlap_is_no_likelier_by_chance_than_its_surprise_says(rows, data):
    """Against the exact tail of the hypergeometric distribution."""
    on, other = data.draw(st.integers(1, rows)), data.draw(st.integers(1, rows))
    both = data.draw(st.integers(max(0, on + other - rows), min(on, other)))
    ways = range(both, min(on, other) + 1)
    tail = sum(math.comb(other, k) * math.comb(rows - other, on - k) for k in ways) / math.comb(
        rows, on
    )
    pairs = Pairs(rows, torch.tensor([on]), torch.tensor([other]), torch.tensor([[both]]))
    assert tail <= 2 ** -float(pairs.surprise()) * (1 + 1e-9)


def test_blocks_make_no_difference(monkeypatch):
    a = planted(*[0.1] * 70)
    b = a[:, torch.randperm(70, generator=generator("order"))] ^ planted(*[0.02] * 70, name="noise")
    whole = match(PackedBits.pack(a), PackedBits.pack(b))
    monkeypatch.setattr("bitlens.matching.pairs.BLOCK", 13)
    blocks = match(PackedBits.pack(a), PackedBits.pack(b))
    assert whole.category == blocks.category
    assert torch.equal(whole.jaccard, blocks.jaccard)
    assert torch.equal(whole.partner, blocks.partner)
    assert whole.parts == blocks.parts


# --- what becomes of a latent ---------------------------------------------------------------------


def test_a_noisy_permutation_is_found_again():
    a = planted(*torch.linspace(0.01, 0.4, 70).tolist())
    order = torch.randperm(70, generator=generator("order"))
    b = a[:, order] ^ planted(*[0.001] * 70, name="noise")
    matching = match(PackedBits.pack(a), PackedBits.pack(b))
    assert matching.category == ["same"] * 70
    assert torch.equal(order[matching.best], torch.arange(70))
    assert torch.equal(matching.partner, matching.best)
    back = match(PackedBits.pack(b), PackedBits.pack(a))
    assert torch.equal(back.partner[matching.partner], torch.arange(70))
    torch.testing.assert_close(back.partner_jaccard[matching.partner], matching.partner_jaccard)


def test_every_relation_gets_its_name():
    whole, left, other, dense = planted(0.1, 0.5, 0.05, 0.95).T
    parts = whole & left, whole & ~left
    never, always = torch.zeros(ROWS, dtype=torch.bool), torch.ones(ROWS, dtype=torch.bool)
    a = pack(whole, parts[0], other, never, always)
    b = pack(dense, whole | planted(0.001).T[0], *parts, never, always)
    down, up = match(a, b), match(b, a)
    assert down.category == ["same", "same", "absent", "dead", "stuck"]
    assert down.best.tolist() == [1, 2, -1, -1, -1]
    assert up.category == ["absent", "same", "same", "contained", "dead", "stuck"]
    assert up.container[3] == 0
    split = match(a, pack(*parts, dense))
    assert split.category[0] in ("same", "contains")
    assert split.parts[0] == [0, 1]
    assert split.covered[0] == 1


def test_a_feature_split_in_four_contains_its_parts():
    feature = planted(0.2).T[0]
    part = torch.randint(0, 4, (ROWS,), generator=generator("part"))
    quarters = [feature & (part == k) for k in range(4)]
    down, up = match(pack(feature), pack(*quarters)), match(pack(*quarters), pack(feature))
    assert down.category == ["contains"]
    assert down.parts == [[0, 1, 2, 3]]
    assert down.covered[0] == 1
    assert up.category == ["contained"] * 4
    assert up.container.tolist() == [0] * 4
    assert torch.equal(up.implication, torch.ones(4))
    assert summary(down)["split"] == 1
    three = match(pack(feature), pack(*quarters[:3]))
    assert summary(three)["split"] == 0
    assert three.covered[0] == pytest.approx(float((feature & (part < 3)).sum() / feature.sum()))


def test_a_dense_latent_contains_nothing_by_being_dense():
    """Independent of all others, it is on in 95 % of their rows; the dense twins overlap with a
    Jaccard above .9."""
    others, dense, twin = planted(*[0.02] * 30), *planted(0.95, 0.95, name="dense").T
    a, b = PackedBits.pack(torch.cat([others, dense[:, None]], 1)), pack(twin)
    pairs = Pairs.of(a, b)
    assert (pairs.containment() > 0.8).all()
    assert pairs.jaccard()[-1] > 0.9
    matching = match(a, b)
    assert matching.category == ["absent"] * 31
    assert match(b, a).category == ["absent"]
    assert match(b, a).parts == [[]]


def test_a_rule_of_implication_holds_for_dense_latents_too():
    """95 % on, and on in every row of a: that is more than 95 %, and no chance."""
    a = planted(0.1).T[0]
    dense = a | (planted(0.95, name="dense").T[0])
    assert match(pack(a), pack(dense)).category == ["contained"]


def test_few_rows_prove_nothing():
    """One latent is on in two rows, and so is, by chance, a common one."""
    rare, common = torch.zeros(ROWS, dtype=torch.bool), planted(0.3).T[0]
    rare[common.nonzero()[:2, 0]] = True
    assert Pairs.of(pack(rare), pack(common)).implication()[0, 0] == 1
    assert match(pack(rare), pack(common)).category == ["absent"]


@pytest.mark.parametrize("seed", range(5))
def test_independent_codes_have_nothing_in_common(seed):
    rates = [0.001, 0.01, 0.1, 0.5, 0.9, 0.99] * 20
    a, b = planted(*rates, name=f"a{seed}"), planted(*rates, name=f"b{seed}")
    assert set(match(PackedBits.pack(a), PackedBits.pack(b)).category) <= {
        "absent",
        "dead",
        "stuck",
    }


def test_one_to_one_gives_up_a_best_pair_for_a_better_whole():
    """Three latents of A, three of B; the assignment is compared with all six."""
    x, y, z, half = planted(0.2, 0.2, 0.2, 0.5).T
    a, b = pack(x | y, x, z), pack(x | (y & half), y, z)
    agreement = Pairs.of(a, b).agreement().clamp_min(0)
    matching = match(a, b, alpha=1)
    orders = torch.tensor([[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]])
    sums = torch.stack([agreement[torch.arange(3), order].sum() for order in orders])
    assert float(matching.partner_jaccard.sum()) == pytest.approx(float(sums.max()), abs=1e-6)
    assert matching.best.tolist() == [0, 0, 2]
    assert matching.partner.tolist() == [1, 0, 2]


# --- decoders -------------------------------------------------------------------------------------


def test_a_dead_latent_is_found_by_its_direction():
    a, b = planted(0.1, 0.1, 0.1), planted(0.1, 0.1, 0.1, name="other")
    a[:, 1:] = False
    b[:, 2] = False
    ours = torch.tensor([[1.0, 0, 0, 0], [0, 3.0, 0, 0], [0, 0, 2.0, 0]])
    theirs = torch.tensor([[0, 4.0, 3.0, 0], [0, 0, 0, 1.0], [0, 0, 1.0, 0]])
    matching = match(PackedBits.pack(a), PackedBits.pack(b), (ours, theirs))
    assert matching.category[1:] == ["dead", "dead"]
    assert matching.nearest_cosine[1:].tolist() == pytest.approx([0.8, 0.6]), (
        "latent 2 of B has the direction of 2, but is dead itself"
    )
    assert summary(matching)["revived"] == 1


def test_summary_counts_what_is_there():
    feature, other = planted(0.2, 0.1).T
    half = planted(0.5, name="half").T[0]
    a = pack(feature, other, torch.zeros(ROWS, dtype=torch.bool))
    numbers = summary(match(a, pack(feature & half, feature & ~half)))
    assert numbers["live"] == 2
    assert numbers["dead"] == 1
    assert numbers["absent"] == 1
    assert numbers["same"] + numbers["contains"] == 1
    assert numbers["mcs"] is None
    assert summary(match(a, a))["one_to_one"] == 1
    assert summary(match(a, a))["jaccard_q50"] == 1
    empty = summary(match(pack(torch.zeros(50)), a[:50]))
    assert empty["one_to_one"] is None
    assert json.dumps(empty, allow_nan=False)


def test_stability_of_seeds_that_share_half():
    """Of four latents two are the same in every seed; one more has the same rows, but another
    direction."""
    common = planted(0.1, 0.2, 0.3)
    codes, decoders = [], []
    for seed in range(3):
        own = planted(0.1, name=f"own {seed}")
        order = torch.randperm(4, generator=generator("order", seed))
        directions = torch.eye(12)[[0, 1, 2 + seed, 6 + seed]]
        codes.append(PackedBits.pack(torch.cat([common, own], 1)[:, order]))
        decoders.append(directions[order] * (seed + 1))
    plain, aligned = stability(codes), stability(codes, decoders)
    assert plain.shared == pytest.approx(0.75)
    assert plain.jaccard == pytest.approx(0.75, abs=0.02)
    assert math.isnan(plain.mcs)
    assert aligned.shared == pytest.approx(0.5)
    assert aligned.mcs == pytest.approx(0.5)
    assert aligned.cosine == pytest.approx(2 / 3, abs=0.01)
    one = likeness([match(codes[0], codes[1], (decoders[0], decoders[1]))])
    assert one.shared == pytest.approx(0.5)


# --- dense latents --------------------------------------------------------------------------------


def test_a_union_is_explained_by_its_members_together():
    x, y, z, noise = planted(0.2, 0.15, 0.1, 0.3).T
    union = x | y | z
    explained = explain(pack(noise, union), 1, pack(z, noise, y, x))
    assert explained.by == [3, 2, 0], "most of it first"
    assert explained.shares == sorted(explained.shares)
    assert explained.shares[-1] == pytest.approx(1, abs=1e-3)
    assert explained.entropy == pytest.approx(entropy(union.numpy()), abs=1e-3)
    u, v, w = union.numpy(), x.numpy(), y.numpy()
    own = entropy(u)
    assert explained.shares[0] == pytest.approx((own + entropy(v) - entropy(u, v)) / own, abs=1e-3)
    assert explained.shares[1] == pytest.approx(
        (own + entropy(v, w) - entropy(u, v, w)) / own, abs=1e-3
    )


@pytest.mark.parametrize("seed", range(10))
def test_independent_latents_explain_nothing(seed):
    a, b = planted(0.3, name=f"a {seed}"), planted(*[0.2] * 200, name=f"b {seed}")
    assert explain(PackedBits.pack(a), 0, PackedBits.pack(b)).by == []


@pytest.mark.slow
def test_the_correction_makes_up_for_what_counting_misses():
    """H(a | b) of independent latents is H(a); as counted in 40 rows it is lower by about 1 / (40
    ln 2) bits."""

    estimates, plain = [], []
    for seed in range(2000):
        a, b = planted(0.4, 0.5, name=f"correction {seed}", rows=40).long().T
        counts = torch.bincount(2 * b + a, minlength=4).view(2, 2, 1)
        estimates.append(float(conditional_entropy_from_counts(counts, (0, 1), 1)))
        plain.append(entropy(a.numpy(), b.numpy()) - entropy(b.numpy()))
    truth = -(0.4 * math.log2(0.4) + 0.6 * math.log2(0.6))
    assert np.mean(plain) == pytest.approx(truth - 1 / (40 * math.log(2)), abs=0.006)
    assert np.mean(estimates) == pytest.approx(truth, abs=0.006)


def test_only_dense_latents_are_asked_about():
    a = torch.cat(
        [planted(0.02, 0.3, 0.95, 0.8), torch.ones(len(planted(0.5)), 1, dtype=torch.bool)], 1
    )
    explained = explain_dense(PackedBits.pack(a), PackedBits.pack(~a))
    assert [e.latent for e in explained] == [1, 2, 3], "what is always on has nothing to explain"
    assert [e.by for e in explained] == [[1], [2], [3]], "a latent says as much as its negation"
    assert all(e.shares[0] == pytest.approx(1, abs=1e-3) for e in explained)


# --- bad input, and the command -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "clue"),
    [
        (lambda a, b: match(a, b[:10]), "same hidden states"),
        (lambda a, b: match(a[:0], b[:0]), "no rows"),
        (lambda a, b: match(a, b, same=0), "same must be"),
        (lambda a, b: match(a, b, (torch.ones(3, 4), torch.ones(2, 4))), "decoder of 2 latents"),
        (lambda a, b: match(a, b, (torch.ones(2, 4), torch.ones(2, 5))), "width 4 and 5"),
        (lambda a, b: stability([a]), "at least two"),
        (lambda a, b: stability([a, b], [torch.ones(2, 4)]), "2 codes and 1 decoders"),
    ],
)
def test_bad_input_gets_one_sentence(call, clue):
    a = PackedBits.pack(planted(0.3, 0.1))
    with pytest.raises(BitlensError, match=clue):
        call(a, a)


def runs(store: ActivationStore, folder) -> None:
    """A BAE, its latents in another order, and a TopK autoencoder, untrained, on the store's hidden
    states."""
    bae = BinaryAutoencoder(store.d_in, 24)
    bae.initialise(generator("bae"))
    other = BinaryAutoencoder(store.d_in, 24)
    order = torch.randperm(24, generator=generator("order"))
    with torch.no_grad():
        bae.b_enc.sub_(1)
        other.W_enc.copy_(bae.W_enc[:, order])
        other.b_enc.copy_(bae.b_enc[order])
        other.W_dec.copy_(bae.W_dec[order])
    for name, model in (
        ("bae", bae),
        ("other", other),
        ("topk", TopKAutoencoder(store.d_in, 16, k=4)),
    ):
        model.mean.copy_(store.mean)
        model.scale.fill_(store.scale)
        model.metadata = {"training": {"test_fraction": 0.5}}
        model.save(folder / name)


@pytest.fixture
def half(tiny_llama, text_folder, tmp_path) -> ActivationStore:
    """The rows of `tiny_store`, half of the documents held out."""
    model = LanguageModel.load(str(tiny_llama), ["layers.1"], device="cpu")
    reader = ContextReader(Corpus((str(text_folder),)), model.tokenizer, 32, test_fraction=0.5)
    return harvest(model, reader, tmp_path / "half")[0]


@pytest.mark.slow
def test_the_command_compares_two_runs(half, tmp_path, capsys):
    from bitlens.cli.match import match as command

    runs(half, tmp_path)
    numbers = command(tmp_path / "bae", tmp_path / "other", half.path, device="cpu")
    shown = capsys.readouterr().out
    assert numbers["rows"] == sum(
        len(r.hidden) for r in ActivationStore(half.path, 0.5).read("test")
    )
    assert numbers["a_in_b"]["same"] == numbers["a_in_b"]["live"] == numbers["b_in_a"]["same"] > 10
    assert numbers["a_in_b"]["one_to_one"] == numbers["stability"]["shared"] == 1
    assert numbers["stability"]["mcs"] == pytest.approx(1)
    assert all(e["shares"][-1] == pytest.approx(1, abs=0.05) for e in numbers["dense_a"])
    for text in ("Every latent of one in the other", "one_to_one", "Some latents of B"):
        assert text in shown

    numbers = command(tmp_path / "bae", tmp_path / "topk", half.path, rows=100, device="cpu")
    bits = Autoencoder.from_pretrained(tmp_path / "topk").encode_bits(
        next(ActivationStore(half.path, 0.5).read("test")).hidden[:100]
    )
    assert numbers["rows"] == 100
    assert numbers["b_in_a"]["dead"] == int((bits.column_counts() == 0).sum())


def test_the_command_refuses_hidden_states_of_another_width_and_no_rows(tiny_store, tmp_path):
    from bitlens.cli.match import match as command

    BinaryAutoencoder(tiny_store.d_in, 8).save(tmp_path / "a")
    BinaryAutoencoder(7, 8).save(tmp_path / "b")
    with pytest.raises(BitlensError, match="takes 7"):
        command(tmp_path / "a", tmp_path / "b", tiny_store.path, device="cpu")
    with pytest.raises(BitlensError, match="--rows"):
        command(tmp_path / "a", tmp_path / "a", tiny_store.path, rows=-5, device="cpu")
