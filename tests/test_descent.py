"""Codes found by descent: the kernels against brute force, and both devices against each other."""

import itertools

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitlens.bits import descent, descent_cuda
from bitlens.bits.descent import Descent, descend, gram, search
from bitlens.bits.packed import PackedBits
from bitlens.errors import BitlensError

property_test = settings(max_examples=30, deadline=None)


def problem(
    m: int, d: int, n: int, seed: int, overlap: float = 0.3
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows that a random dictionary explains in part; its latents overlap -> x, W, b, price"""
    g = torch.Generator().manual_seed(seed)
    W = torch.randn(m, d, generator=g) + overlap * torch.randn(1, d, generator=g)
    b = torch.randn(d, generator=g)
    on = (torch.rand(n, m, generator=g) < 0.2).float()
    x = on @ W + b + 0.5 * torch.randn(n, d, generator=g)
    return x, W, b, torch.rand(m, generator=g) * 2


def energy(x: Tensor, W: Tensor, b: Tensor, price: Tensor, bits: PackedBits | Tensor) -> Tensor:
    """`|x - h W - b|^2 + price . h` of each row, float64"""
    h = (bits.unpack() if isinstance(bits, PackedBits) else bits).double()
    return (x.double() - h @ W.double() - b.double()).square().sum(1) + h @ price.double()


def after_flips(
    x: Tensor, W: Tensor, b: Tensor, price: Tensor, bits: PackedBits
) -> tuple[Tensor, Tensor]:
    """Energies with one bit flipped `[n, m]` and with two `[n, m, m]`, float64"""
    h, W = bits.unpack().double(), W.double()
    sign = 1 - 2 * h
    change = -2 * sign * ((x.double() - h @ W - b.double()) @ W.T) + W.square().sum(1)
    one = energy(x, W, b, price, bits)[:, None] + change + sign * price.double()
    both = 2 * sign[:, :, None] * sign[:, None] * (W @ W.T)
    two = one[:, :, None] + one[:, None] + both - energy(x, W, b, price, bits)[:, None, None]
    return one, two


def slack(x: Tensor) -> float:
    return 3 * descent.TOLERANCE * float(x.square().sum(1).mean()) + 1e-3


problems = st.tuples(
    st.sampled_from((1, 3, 20, 64, 65, 130, 200)),
    st.sampled_from((1, 4, 16)),
    st.sampled_from((1, 7, 40)),
    st.integers(0, 999),
)


@property_test
@given(problems, st.booleans(), st.sampled_from(("zero", "random")), st.booleans())
def test_the_end_is_a_local_optimum_and_below_the_start(shape, exchanges, begin, kept):
    x, W, b, price = problem(*shape)
    start = None
    if begin == "random":
        start = PackedBits.pack(
            torch.rand(len(x), len(W), generator=torch.Generator().manual_seed(1)) < 0.3
        )
    bits = descend(x, W, b, price, G=gram(W) if kept else None, start=start, exchanges=exchanges)
    reached = energy(x, W, b, price, bits)
    before = energy(x, W, b, price, torch.zeros(len(x), len(W)) if start is None else start)
    assert (reached <= before + slack(x)).all()
    one, two = after_flips(x, W, b, price, bits)
    assert (one >= reached[:, None] - slack(x)).all()
    if exchanges:
        h = bits.unpack()
        apart = h[:, :, None] != h[:, None]
        assert (two >= reached[:, None, None] - slack(x))[apart].all()


def test_energies_after_flips_are_those_of_flipped_bits():
    """The shortcut of these tests itself."""
    x, W, b, price = problem(5, 4, 7, seed=1)
    bits = PackedBits.pack(torch.rand(7, 5, generator=torch.Generator().manual_seed(2)) < 0.5)
    one, two = after_flips(x, W, b, price, bits)
    for i, j in itertools.permutations(range(5), 2):
        h = bits.unpack()
        h[:, i] = 1 - h[:, i]
        assert torch.allclose(one[:, i], energy(x, W, b, price, h))
        h[:, j] = 1 - h[:, j]
        assert torch.allclose(two[:, i, j], energy(x, W, b, price, h))


@property_test
@given(problems, st.integers(0, 6))
def test_every_flip_lowers_the_energy(shape, budget):
    x, W, b, price = problem(*shape)
    start = PackedBits.pack(
        torch.rand(len(x), len(W), generator=torch.Generator().manual_seed(2)) < 0.2
    )
    former = energy(x, W, b, price, start)
    for flips in range(budget + 1):
        bits = descend(x, W, b, price, G=gram(W), start=start, flips=flips, exchanges=False)
        changed = (bits.unpack() != start.unpack()).sum(1)
        assert (changed <= flips).all()
        now = energy(x, W, b, price, bits)
        assert (now <= former + slack(x)).all()
        former = now


@pytest.mark.parametrize("m", [1, 2, 5, 12])
def test_against_all_codes(m):
    """Close to the best of all 2^m codes; where latents are orthogonal, at the best."""
    x, W, b, price = problem(m, 16, 60, seed=m)
    every = torch.tensor(list(itertools.product((0.0, 1.0), repeat=m)))
    for rows in (W, 2 * torch.linalg.qr(W.T)[0].T):
        best = (
            torch.stack([energy(x, rows, b, price, h.expand(len(x), m)) for h in every])
            .min(0)
            .values
        )
        reached = energy(x, rows, b, price, descend(x, rows, b, price))
        assert (reached >= best - slack(x)).all()
        assert float((reached - best).mean()) <= 0.02 * float(best.mean())
    assert torch.allclose(reached, best, atol=slack(x))


@pytest.mark.slow
@property_test
@given(problems, st.booleans(), st.booleans())
@example((200, 16, 7, 2), False, False)
def test_both_devices_agree(shape, exchanges, kept):
    x, W, b, price = problem(*shape)
    G, m = gram(W), len(W)
    here = descend(x, W, b, price, G=G, exchanges=exchanges)
    tolerance = descent.TOLERANCE * (x - b).square().sum(1)
    what = Descent(W, b, price, G if kept else None, 4 * m, exchanges)
    there = search(what, x, None, tolerance, descent_cuda)
    reached, same = energy(x, W, b, price, there), (here.words == there.words).all(1)
    if kept or m <= descent.CANDIDATES:
        assert torch.allclose(energy(x, W, b, price, here)[~same], reached[~same], rtol=1e-3)
        assert same.float().mean() > 0.9
    else:  # another local optimum, where a candidate was flipped before a better latent
        one, _ = after_flips(x, W, b, price, there)
        assert (one >= reached[:, None] - slack(x)).all()


def test_few_candidates_end_where_all_do(monkeypatch):
    """Rows are looked at in full until nothing gains, however few candidates are searched at a
    time."""
    x, W, b, price = problem(200, 32, 50, seed=3)
    monkeypatch.setattr(descent, "CANDIDATES", 5)
    bits = descend(x, W, b, price, G=None, exchanges=False)
    reached = energy(x, W, b, price, bits)
    one, _ = after_flips(x, W, b, price, bits)
    assert (one >= reached[:, None] - slack(x)).all()
    whole = energy(x, W, b, price, descend(x, W, b, price, G=gram(W), exchanges=False))
    assert float(reached.mean()) < 1.1 * float(whole.mean())


def test_blocks_of_rows_make_no_difference(monkeypatch):
    x, W, b, price = problem(70, 16, 100, seed=4)
    whole = descend(x, W, b, price, G=gram(W))
    monkeypatch.setattr(descent, "BLOCK_BYTES", 4 * 70 * 16)
    assert torch.equal(descend(x, W, b, price, G=gram(W)).words, whole.words)


def test_no_rows():
    x, W, b, price = problem(70, 16, 3, seed=5)
    assert len(descend(x[:0], W, b, price)) == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_rows_that_are_not_finite_are_refused(bad):
    x, W, b, price = problem(8, 4, 3, seed=6)
    x[1, 2] = bad
    with pytest.raises(BitlensError, match="NaN or infinite"):
        descend(x, W, b, price)


def test_planted_bits_are_found():
    """With the true dictionary, nearly orthogonal, and a small price, the planted bits come
    back."""
    g = torch.Generator().manual_seed(0)
    W = torch.randn(100, 512, generator=g)
    h = (torch.rand(200, 100, generator=g) < 0.1).float()
    bits = descend(h @ W, W, torch.zeros(512), torch.full((100,), 1.0), G=gram(W))
    assert torch.equal(bits.unpack(), h)
