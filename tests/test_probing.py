"""Sparse probing, on features whose probes are known."""

import pytest
import torch

from bitlens.bits import Codes, PackedBits
from bitlens.errors import BitlensError
from bitlens.labels.probe import _fit, _losses, hidden_rows, probe_rows, roc_auc, sparse_probing
from bitlens.labels.sources import Labels

N = 3000
DOCUMENT = torch.arange(N) // 30
TEST = DOCUMENT % 2 == 0


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def labelled(is_class: torch.Tensor) -> Labels:
    return Labels("two", ["rest", "class"], is_class.long())


def test_auc_counts_pairs():
    scores, truth = (draw(200) * 8).round(), draw(200, seed=1) < 0.3  # with many ties
    above, below = scores[truth][:, None], scores[~truth]
    pairs = ((above > below).double() + (above == below).double() / 2).mean()
    assert roc_auc(scores, truth) == pytest.approx(float(pairs), abs=1e-12)


def test_the_latents_that_are_the_class_are_chosen():
    one, other = draw(N) < 0.2, draw(N, seed=1) < 0.2
    bits = torch.cat([draw(N, 30, seed=2) < 0.3, one[:, None], other[:, None]], 1)
    scores = {
        s.features: s
        for s in sparse_probing(PackedBits.pack(bits), labelled(one | other), DOCUMENT, TEST)
    }
    assert list(scores) == ["k = 1", "k = 2", "k = 5", "k = 20", "all latents"]
    held = (one | other)[TEST]
    best = max(roc_auc(x[TEST].double(), held) for x in (one, other))
    assert scores["k = 1"].auc <= best + 1e-9
    assert scores["k = 1"].auc == pytest.approx(best, abs=0.05)
    assert scores["k = 1"].accuracy == pytest.approx(scores["k = 1"].auc, abs=1e-6), (
        "one bit has one threshold"
    )
    assert scores["k = 2"].auc == scores["k = 2"].accuracy == 1
    assert scores["all latents"].k == 32
    assert [name for name, _ in scores["k = 1"].class_auc] == ["rest", "class"]


def test_choice_and_fit_see_no_held_out_rows():
    truth = draw(N) < 0.3
    noisy = truth ^ (draw(N, seed=1) < 0.2)
    leak = torch.where(
        TEST, truth, draw(N, seed=2) < 0.3
    )  # is the class, but only where it is measured
    bits = torch.stack([leak, noisy], 1)
    first = sparse_probing(bits.float(), labelled(truth), DOCUMENT, TEST, ks=(1,))[0]
    assert first.auc == pytest.approx(roc_auc(noisy[TEST].double(), truth[TEST]))


def test_bits_and_floats_of_the_same_values_are_probed_alike():
    bits = draw(N, 12) < 0.3
    truth = bits[:, 3] ^ (draw(N, seed=1) < 0.1)
    packed = sparse_probing(PackedBits.pack(bits), labelled(truth), DOCUMENT, TEST)
    assert packed == sparse_probing(bits.float(), labelled(truth), DOCUMENT, TEST)


def test_magnitudes_and_dense_features_are_used():
    size = torch.randn(N, generator=torch.Generator().manual_seed(0))
    truth = size > 0.8
    noise = torch.randn(N, 5, generator=torch.Generator().manual_seed(1))
    shared = {"labels": labelled(truth), "documents": DOCUMENT, "test": TEST}
    scores = sparse_probing(
        torch.cat([noise, size.relu()[:, None]], 1), **shared, ks=(1,), dense=noise
    )
    assert scores[0].auc == pytest.approx(1, abs=0.01)
    assert scores[-1].features == "dense"
    assert scores[-1].auc == pytest.approx(0.5, abs=0.07)


def test_chance_is_a_half_however_rare_the_class():
    truth = draw(N) < 0.05
    for score in sparse_probing(draw(N, 8, seed=1), labelled(truth), DOCUMENT, TEST, ks=(1, 5)):
        assert score.auc == pytest.approx(0.5, abs=0.09)
        assert score.accuracy == pytest.approx(0.5, abs=0.09)


def test_rows_without_a_label_do_not_count():
    truth, unlabelled = draw(N) < 0.3, draw(N, seed=1) < 0.4
    bits = torch.stack([truth ^ (draw(N, seed=2) < 0.2), draw(N, seed=3) < 0.5], 1)
    broken = torch.where(unlabelled[:, None], draw(N, 2, seed=4) < 0.9, bits)
    ids = torch.where(unlabelled, -1, truth.long())
    whole = [
        sparse_probing(b.float(), Labels("two", ["a", "b"], ids), DOCUMENT, TEST)
        for b in (bits, broken)
    ]
    assert whole[0] == whole[1]


@pytest.mark.parametrize("own", [False, True], ids=["shared features", "features of each class"])
def test_the_fit_is_the_minimum(own):
    """The gradient of loss and penalty vanishes in float64, for classes of unlike sizes and
    penalties."""
    truth = torch.stack([draw(500) < 0.5, draw(500, seed=1) < 0.1])
    x = torch.randn(*([2] if own else []), 500, 6, generator=torch.Generator().manual_seed(2))
    penalties = torch.tensor([0.1, 0.01])
    weights = _fit(x, truth, penalties, None).double().requires_grad_()
    loss = _losses(x.double(), truth, weights) + penalties.double() / 2 * weights[
        :, :-1
    ].square().sum(1)
    (gradient,) = torch.autograd.grad(loss.sum(), weights)
    assert float(gradient.abs().max()) < 2e-4


def test_the_loss_weighs_class_and_rest_the_same():
    truth, z = (
        torch.tensor([[True, False, False, False]]),
        torch.tensor([[1.0], [2.0], [0.0], [-1.0]]),
    )
    weights = torch.tensor([[1.0, 0.5]])
    cost = torch.nn.functional.softplus(torch.tensor([-1.5, 2.5, 0.5, -0.5]))
    assert float(_losses(z, truth, weights)) == pytest.approx(
        float(cost[0] / 2 + cost[1:].mean() / 2)
    )


def test_classes_with_too_few_rows_are_left_out_or_refused():
    ids = torch.zeros(N, dtype=torch.long)
    ids[:400], ids[400:430] = 1, 2
    three = Labels("three", ["a", "b", "c"], ids)
    (first, *_) = sparse_probing(draw(N, 3), three, DOCUMENT, TEST)
    assert [name for name, _ in first.class_auc] == ["a", "b"]
    with pytest.raises(BitlensError, match="No class of 'three'"):
        sparse_probing(draw(N, 3), three, DOCUMENT, TEST, min_rows=2000)
    with pytest.raises(BitlensError, match="each needs one"):
        sparse_probing(draw(9, 3), three, DOCUMENT, TEST)


def test_the_sample_is_of_labelled_rows_and_by_seed():
    labels = Labels("x", ["a"], torch.where(torch.arange(N) % 3 == 0, 0, -1))
    rows = probe_rows(labels, TEST, 100)
    assert len(rows) == 200
    assert int(TEST[rows].sum()) == 100
    assert bool((labels.ids[rows] == 0).all())
    assert bool((rows[1:] > rows[:-1]).all())
    assert torch.equal(rows, probe_rows(labels, TEST, 100))
    assert not torch.equal(rows, probe_rows(labels, TEST, 100, seed=1))


def test_hidden_rows_are_those_of_the_codes(tmp_path, tiny_store):
    parts = list(tiny_store.read("all"))
    columns = {
        name: torch.cat([p.columns[name] for p in parts])
        for name in ("token", "document", "position")
    }
    bits = PackedBits.pack(torch.ones(len(tiny_store), 2))
    codes = Codes.write(tmp_path / "codes", [(bits, columns)], 2, {})
    rows = torch.tensor([0, 5, len(codes) - 1])
    assert torch.equal(
        hidden_rows(tiny_store, codes, rows), torch.cat([p.hidden for p in parts])[rows].float()
    )
    other = Codes.write(
        tmp_path / "other", [(bits, {**columns, "token": columns["token"] + 1})], 2, {}
    )
    with pytest.raises(BitlensError, match="other tokens"):
        hidden_rows(tiny_store, other, rows)
    short = Codes.write(
        tmp_path / "short", [(bits[:5], {k: v[:5] for k, v in columns.items()})], 2, {}
    )
    with pytest.raises(BitlensError, match="rows and the codes 5"):
        hidden_rows(tiny_store, short, rows[:1])
