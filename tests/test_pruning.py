"""Pruning against a one-at-a-time float64 reference, and regrowing against its promises."""

import math

import numpy as np
import pytest
import torch

from bitlens.autoencoders.objective import Price
from bitlens.autoencoders.pruning import (
    OFF,
    Parameters,
    code_rows,
    latent_sums,
    propose,
    prune,
    regrow,
)
from bitlens.seeding import generator

ENTROPY, ONBIT = Price("entropy", 0.02), Price("onbit", 0.02)


def problem(
    n: int = 600,
    d: int = 8,
    planted: int = 6,
    n_latents: int = 20,
    noise: float = 0.3,
    seed: int = 0,
):
    """Rows of planted bits plus noise, and an encoder of noisy directions, some of them useful."""
    g = torch.Generator().manual_seed(seed)
    directions = torch.randn(planted, d, generator=g)
    bits = (torch.rand(n, planted, generator=g) < 0.3).float()
    rows = bits @ directions + noise * torch.randn(n, d, generator=g)
    rows = (rows - rows.mean(0)) / rows.std()
    W_enc, b_enc = torch.randn(d, n_latents, generator=g), -torch.rand(n_latents, generator=g)
    W_dec, b_dec = torch.randn(n_latents, d, generator=g), torch.zeros(d)
    return rows, Parameters(W_enc, b_enc, W_dec, b_dec)


def codes_of(rows: torch.Tensor, P: Parameters) -> np.ndarray:
    return (rows @ P.W_enc + P.b_enc > 0).double().numpy()


def least_squares(H: np.ndarray, X: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """-> (decoder, bias, mse)"""
    design = np.c_[H, np.ones(len(H))]
    solution = np.linalg.lstsq(design, X, rcond=None)[0]
    return solution[:-1], solution[-1], float(np.mean((X - design @ solution) ** 2))


def objective(H: np.ndarray, X: np.ndarray, price: Price, lam: float, chance: float) -> float:
    cost = float(price(torch.from_numpy(H.mean(0))).sum())
    return least_squares(H, X)[2] + lam * cost / X.shape[1] + chance * H.shape[1]


def reference_survivors(
    H: np.ndarray, X: np.ndarray, price: Price, lam: float
) -> tuple[list[int], float]:
    """Drop the one latent whose removal gains most, fit anew, repeat -> (survivors, chance term)"""
    n, d = X.shape
    live = [j for j in range(H.shape[1]) if 0 < H[:, j].mean() < 1]
    chance = 2 * least_squares(H[:, live], X)[2] / n
    cost = lam * price(torch.from_numpy(H.mean(0))).numpy() / d
    while live:
        mse = least_squares(H[:, live], X)[2]
        rises = [least_squares(H[:, [k for k in live if k != j]], X)[2] - mse for j in live]
        gains = [cost[j] + chance - rise for j, rise in zip(live, rises, strict=True)]
        best = int(np.argmax(gains))
        if gains[best] <= 0:
            break
        live.pop(best)
    return live, chance


@pytest.mark.parametrize("price", [ENTROPY, ONBIT], ids=lambda p: p.kind)
@pytest.mark.parametrize("lam", [0.02, 0.1, 0.3])
@pytest.mark.parametrize("seed", [0, 1])
def test_survivors_are_those_of_one_at_a_time(price, lam, seed):
    rows, P = problem(seed=seed)
    H, X = codes_of(rows, P), rows.double().numpy()
    survivors = prune(rows, P, price, lam)[1].tolist()
    expected, chance = reference_survivors(H, X, price, lam)
    assert 0 < len(expected) < H.shape[1]
    if survivors != expected:
        found, best = (
            objective(H[:, chosen], X, price, lam, chance) for chosen in (survivors, expected)
        )
        assert found <= 1.01 * best


def test_the_decoder_is_the_least_squares_fit():
    rows, P = problem()
    pruned, survivors = prune(rows, P, ENTROPY, 0.05)
    H, X = codes_of(rows, P), rows.double().numpy()
    decoder, bias, mse = least_squares(H[:, survivors], X)
    assert np.allclose(pruned.W_dec[survivors], decoder, atol=2e-3)  # up to the ridge
    assert np.allclose(pruned.b_dec, bias, atol=2e-3)
    error = rows - torch.from_numpy(codes_of(rows, pruned)).float() @ pruned.W_dec - pruned.b_dec
    assert float(error.square().mean()) == pytest.approx(mse, rel=1e-5)


def test_what_is_switched_off_is_off_and_the_rest_keeps_its_encoder():
    rows, P = problem()
    before = [tensor.clone() for tensor in P]
    pruned, survivors = prune(rows, P, ENTROPY, 0.1)
    off = sorted(set(range(20)) - set(survivors.tolist()))
    assert off
    assert not code_rows(rows, pruned).column_counts()[off].any()
    assert (pruned.b_enc[off] == OFF).all()
    assert not pruned.W_enc[:, off].any()
    assert not pruned.W_dec[off].any()
    assert torch.equal(pruned.W_enc[:, survivors], P.W_enc[:, survivors])
    assert all(torch.equal(old, now) for old, now in zip(before, P, strict=True)), (
        "its arguments were changed"
    )


def test_duplicates_of_a_fair_bit_are_removed():
    """A fair bit seen by five copies and two negated ones is a stationary point; one stays."""
    g = torch.Generator().manual_seed(0)
    bits = (torch.rand(2000, 3, generator=g) < 0.5).float() * 2 - 1
    rows = bits @ torch.linalg.qr(torch.randn(8, 8, generator=g))[0][:3]
    rows = rows / rows.std()
    directions = torch.linalg.lstsq(rows, bits).solution
    W_enc = torch.cat(
        [directions, directions[:, :1].expand(-1, 4), -directions[:, :1].expand(-1, 2)], 1
    )
    P = Parameters(W_enc, torch.zeros(9), torch.zeros(9, 8), torch.zeros(8))
    pruned, survivors = prune(rows, P, ENTROPY, 0.1)
    copies = {0, 3, 4, 5, 6, 7, 8}
    assert len(copies & set(survivors.tolist())) == 1
    assert {1, 2} <= set(survivors.tolist())
    error = rows - code_rows(rows, pruned).unpack() @ pruned.W_dec - pruned.b_dec
    assert error.square().mean() < 1e-6


def test_without_a_price_only_what_fits_no_better_than_chance_goes():
    rows, P = problem()
    W_enc, b_enc = torch.cat([P.W_enc, P.W_enc[:, :3]], 1), torch.cat([P.b_enc, P.b_enc[:3]])
    copies = Parameters(W_enc, b_enc, torch.zeros(23, 8), P.b_dec)
    distinct = prune(rows, P, ENTROPY, 0.0)[1].tolist()
    survivors = prune(rows, copies, ENTROPY, 0.0)[1].tolist()
    assert len(distinct) > 15
    assert sorted(j if j < 20 else j - 20 for j in survivors) == distinct


@pytest.mark.parametrize("lam", [1e3, 0.1])
def test_pruning_everything_leaves_the_mean(lam):
    rows, P = problem()
    if lam < 1:
        P = P._replace(b_enc=torch.full_like(P.b_enc, OFF))
    pruned, survivors = prune(rows, P, ENTROPY, lam)
    assert len(survivors) == 0
    assert torch.allclose(pruned.b_dec, rows.mean(0), atol=1e-6)
    assert not pruned.W_dec.any()


def test_latent_sums_are_a_matrix_product():
    rows, P = problem(n=5000)
    bits = code_rows(rows, P)
    assert np.allclose(
        latent_sums(bits, rows), codes_of(rows, P).T @ rows.double().numpy(), rtol=1e-4, atol=1e-3
    )


@pytest.mark.slow
def test_pruning_many_latents_at_once_stays_exact():
    """Blocks of removals and shrinking matrices, at a size where both are used: still a
    least-squares fit in which no latent is worth dropping."""
    rows, P = problem(n=12000, d=48, planted=200, n_latents=2500, noise=0.5)
    lam = 0.1
    pruned, survivors = prune(rows, P, ENTROPY, lam)
    assert 20 < len(survivors) < 1250
    H = torch.from_numpy(codes_of(rows, P))[:, survivors]
    X = rows.double()
    centred = H - H.mean(0)
    G = centred.T @ centred / len(X)
    G.diagonal().mul_(1 + 1e-5)
    inverse = torch.linalg.inv(G)
    W = inverse @ (centred.T @ (X - X.mean(0)) / len(X))
    assert torch.allclose(pruned.W_dec[survivors].double(), W, atol=1e-4)
    rise = W.square().sum(1) / inverse.diagonal() / 48
    assert (rise >= lam * ENTROPY(H.mean(0)) / 48).all()


# --- regrowing ------------------------------------------------------------------------------------


def half_dead() -> tuple[torch.Tensor, Parameters]:
    """A fitted encoder with half of its latents switched off, and much left to explain."""
    rows, P = problem(n=3000)
    b_enc = P.b_enc.clone()
    b_enc[10:] = OFF
    return rows, prune(rows, P._replace(b_enc=b_enc), ENTROPY, 0.01)[0]


@pytest.mark.slow
def test_regrowing_restarts_dead_latents_at_a_useful_rate():
    rows, P = half_dead()
    dead = (code_rows(rows, P).column_counts() == 0).nonzero()[:, 0]
    grown, restarted = regrow(rows, P, ENTROPY, 0.01, generator(0))
    assert restarted.tolist() == dead.tolist()
    assert len(restarted) >= 10
    residual = rows - code_rows(rows, P).unpack() @ P.W_dec - P.b_dec
    for j in restarted[:3].tolist():
        z, V = rows @ grown.W_enc[:, j], grown.W_enc[:, j].double()

        def gain(on: torch.Tensor) -> float:
            q = on.double().mean()
            c = ((on.double() - q)[:, None] * residual.double()).mean(0) @ V  # noqa: B023
            explained = c**2 / (q * (1 - q)) / V.square().sum() / 8  # noqa: B023
            return float(explained - 0.01 * ENTROPY(q) / 8)

        best = max(gain(z > edge) for edge in z.sort().values[4:-4])
        assert gain(z + grown.b_enc[j] > 0) >= best - 1e-6
    others = [j for j in range(20) if j not in restarted.tolist()]
    assert torch.equal(grown.W_enc[:, others], P.W_enc[:, others])
    assert torch.equal(grown.W_dec[others], P.W_dec[others])
    refitted = prune(rows, grown, ENTROPY, 0.0)[0]
    error = [
        float((rows - code_rows(rows, Q).unpack() @ Q.W_dec - Q.b_dec).square().mean())
        for Q in (P, refitted)
    ]
    assert error[1] < 0.9 * error[0]


def rare_bits(n: int = 4000) -> tuple[torch.Tensor, Parameters, torch.Tensor]:
    """Rows of four rare bits; latents of the first two stand for `a or b` and `b`."""
    g = torch.Generator().manual_seed(0)
    bits = (torch.rand(n, 4, generator=g) < 0.02).float()
    W_enc, b_enc = torch.zeros(4, 24), torch.full((24,), OFF)
    W_enc[:, 0], W_enc[:, 1] = (
        torch.tensor([1.0, 1.0, 0.0, 0.0]),
        torch.tensor([0.0, 1.0, 0.0, 0.0]),
    )
    W_enc[2, 2], W_enc[3, 3] = 1, 1
    b_enc[:4] = -0.5
    return (
        bits,
        prune(bits, Parameters(W_enc, b_enc, torch.zeros(24, 4), torch.zeros(4)), ENTROPY, 1e-3)[0],
        bits,
    )


def test_candidates_change_no_reconstruction():
    rows, P, _ = rare_bits()
    offered, candidates = propose(rows, P, ENTROPY, 1e-3, generator(0))
    assert len(candidates) == 20
    assert not offered.W_dec[candidates].any()
    decode = lambda Q: code_rows(rows, Q).unpack() @ Q.W_dec + Q.b_dec  # noqa: E731
    assert torch.allclose(decode(P), decode(offered), atol=1e-6)
    assert (code_rows(rows, offered).column_counts()[candidates] > 0).all()


def test_candidates_free_a_code_whose_latents_stand_for_several_bits():
    rows, P, bits = rare_bits()

    def price(Q: Parameters) -> float:
        return float(ENTROPY(code_rows(rows, Q).column_counts() / len(rows)).sum())

    truth = float(ENTROPY(bits.double().mean(0)).sum())
    assert price(P) > 1.1 * truth
    chosen = prune(rows, propose(rows, P, ENTROPY, 1e-3, generator(0))[0], ENTROPY, 1e-3)[0]
    assert price(chosen) == pytest.approx(truth, rel=1e-6)


def test_regrowing_is_seeded():
    rows, P = half_dead()
    once, again, other = (regrow(rows, P, ONBIT, 0.1, generator(seed))[0] for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    assert not torch.equal(once.W_enc, other.W_enc)


def test_a_latent_that_is_always_on_keeps_its_constant_when_restarted():
    rows, P = half_dead()
    b_enc, W_dec, b_dec = P.b_enc.clone(), P.W_dec.clone(), P.b_dec.clone()
    W_dec[19] = 0.5
    grown, restarted = regrow(
        rows,
        P._replace(
            W_dec=W_dec, b_dec=b_dec - 0.5, b_enc=b_enc.index_fill(0, torch.tensor([19]), -OFF)
        ),
        ENTROPY,
        0.01,
        generator(0),
    )
    assert 19 in restarted.tolist()
    assert torch.allclose(grown.b_dec, b_dec, atol=1e-6)


def test_nothing_is_regrown_once_all_is_explained():
    g = torch.Generator().manual_seed(0)
    bits = (torch.rand(1000, 3, generator=g) < 0.5).float()
    rows = (bits * 2 - 1) @ torch.linalg.qr(torch.randn(8, 8, generator=g))[0][:3]
    W_enc = torch.zeros(8, 5)
    W_enc[:, :3] = torch.linalg.lstsq(rows, bits * 2 - 1).solution
    b_enc = torch.tensor([0.0, 0.0, 0.0, OFF, OFF])
    P = prune(rows, Parameters(W_enc, b_enc, torch.zeros(5, 8), torch.zeros(8)), ENTROPY, 0.0)[0]
    grown, restarted = regrow(rows, P, ENTROPY, 0.1, generator(0))
    assert len(restarted) == 0
    assert all(torch.equal(a, b) for a, b in zip(grown, P, strict=True))
    assert math.isclose(float(P.b_enc[4]), OFF)
