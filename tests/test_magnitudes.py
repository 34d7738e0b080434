"""The price of a sparse autoencoder's magnitudes against cases solved by hand."""

import copy
import math

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from scipy.special import expit

from bitlens.autoencoders import SkipTranscoder, TopKAutoencoder, Transcoder
from bitlens.errors import BitlensError
from bitlens.information.magnitudes import (
    BLOCK,
    FEATURES,
    FEWEST,
    HALVINGS,
    RIDGE,
    UNEXPECTED,
    Quantiser,
    context_bits,
    quantise_magnitudes,
)
from bitlens.information.moments import fvu
from bitlens.seeding import generator


def one_at_a_time(d: int) -> TopKAutoencoder:
    """Reconstructs rows in which one component alone is not zero."""
    model = TopKAutoencoder(d, d, k=1)
    with torch.no_grad():
        model.W_enc.copy_(torch.eye(d))
        model.W_dec.copy_(torch.eye(d))
        model.b_enc.zero_()
        model.b_dec.zero_()
    return model.eval().requires_grad_(False)


def rows_of(values: torch.Tensor, d: int) -> torch.Tensor:
    rows = torch.zeros(len(values), d)
    rows[torch.arange(len(values)), torch.arange(len(values)) % d] = values
    return rows


def test_four_equally_frequent_magnitudes_cost_two_bits() -> None:
    values = torch.randint(1, 5, (40_000,), generator=generator(0)).float()
    result = quantise_magnitudes(one_at_a_time(5), rows_of(values, 5))
    assert result.bits == pytest.approx(2.0, abs=0.002)
    assert result.fvu < 1e-9


@pytest.mark.parametrize("rise", [0.005, 0.1])
def test_uniform_magnitudes_cost_the_logarithm_of_the_steps_they_span(rise: float) -> None:
    """With noise that the code leaves out, an error of step^2 / 12 a row may be added up to the
    allowed share."""
    random = generator(1)
    values = 1 + 7 * torch.rand(30_000, generator=random)
    rows = rows_of(values, 3)
    rows = torch.where(rows == 0, 0.2 * torch.randn(rows.shape, generator=random), rows)
    model = one_at_a_time(3)
    error = float((rows - model(rows)).square().sum()) / len(rows)
    result = quantise_magnitudes(model, rows, rise)
    step = math.sqrt(12 * rise * error)
    assert result.step == pytest.approx(step, rel=0.05)
    assert result.bits == pytest.approx(math.log2(7 / result.step), abs=0.05)
    variance = float((rows - rows.mean(0)).square().sum()) / len(rows)
    assert result.fvu <= (1 + rise) * error / variance * (1 + 1e-6)


def test_a_code_that_is_never_on_has_no_magnitudes() -> None:
    model = one_at_a_time(4)
    with pytest.raises(BitlensError, match="No latent is on"):
        quantise_magnitudes(model, -torch.ones(10, 4))


@pytest.mark.parametrize("longest", [1e2, 1e4, 1e5])
def test_a_few_long_magnitudes_do_not_make_the_others_coarse(longest: float) -> None:
    """Whatever their lengths: the step is as coarse as the rise permits, and no coarser."""
    random = generator(1)
    values = 1 + 7 * torch.rand(3000, generator=random)
    values[::1000] = longest
    rows = rows_of(values, 3)
    rows = torch.where(rows == 0, 0.01 * torch.randn(rows.shape, generator=random), rows)
    model = one_at_a_time(3)
    before = fvu(rows, model(rows))
    result = quantise_magnitudes(model, rows)
    assert result.fvu <= 1.005 * max(before, 1e-11) * (1 + 1e-9)
    assert math.isfinite(result.bits)
    assert math.isfinite(quantise_magnitudes(model, rows[:300], fit=rows[300:900]).bits)


def test_an_exact_code_of_any_floats_has_a_price() -> None:
    rows = rows_of(1 + torch.rand(3000, generator=generator(1)), 3)
    assert torch.equal(one_at_a_time(3)(rows), rows)
    result = quantise_magnitudes(one_at_a_time(3), rows)
    assert result.fvu <= 1.005e-11
    assert 5 < result.bits < 24


def test_a_step_is_a_length_in_the_units_of_what_is_reconstructed() -> None:
    """The same transcoder for targets of a thousand times the size."""
    steps = []
    for size in (1.0, 1000.0):
        model = Transcoder(3, 3, k=1, d_out=3)
        with torch.no_grad():
            model.W_enc.copy_(torch.eye(3))
            model.W_dec.copy_(torch.eye(3))
            model.scale_out.fill_(size)
        x = rows_of(1 + torch.rand(900, generator=generator(1)), 3)
        target = size * (x + 0.1 * torch.randn(x.shape, generator=generator(2)))
        steps.append(quantise_magnitudes(model.eval(), torch.cat([x, target], 1)).step)
    assert steps[1] == pytest.approx(1000 * steps[0], rel=1e-3)


@torch.no_grad()
def test_rises_share_one_quantiser_and_agree_with_whole_reconstructions_in_float64() -> None:
    """Of a skip transcoder, whose output has another scale than its input, with more rows than a
    block and none on in some."""
    random = generator(3)
    model = SkipTranscoder(6, 20, k=4, d_out=5).eval()
    for tensor in model.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape, generator=random))
    model.scale.fill_(2)
    model.scale_out.fill_(3)
    model.b_enc.fill_(-1)
    rows = 2 * torch.randn(BLOCK + 300, 11, generator=random)
    rows[::9, :6] = model.mean
    codes = model.encode(rows[:, :6]).double()
    assert not codes[::9].any()
    exact = copy.deepcopy(model).double()
    skip = (rows[:, :6].double() - exact.mean) / exact.scale @ exact.W_skip
    target, lengths = rows[:, 6:].double(), exact.W_dec.norm(dim=1) * exact.scale_out

    def error(codes: torch.Tensor) -> float:
        x_hat = (codes @ exact.W_dec + exact.b_dec + skip) * exact.scale_out + exact.mean_out
        return float((target - x_hat).square().sum())

    def quantised(step: float) -> torch.Tensor:
        steps = (codes * lengths / step).round()
        return torch.where(steps == 0, codes.sign(), steps) * step / lengths

    variance = float((target - target.mean(0)).square().sum())
    quantiser = Quantiser(model, rows)
    for rise in (0.1, 0.005, 0.3):
        found = quantiser.magnitudes(rise)
        assert found == quantise_magnitudes(model, rows, rise)
        assert found.fvu == pytest.approx(error(quantised(found.step)) / variance, rel=1e-6)
        coarser = found.step * 2 ** ((HALVINGS + 1) / 2**HALVINGS)  # which was tried, too
        allowed = (1 + rise) * error(codes)
        assert error(quantised(found.step)) <= allowed * (1 + 1e-6)
        assert error(quantised(coarser)) >= allowed * (1 - 1e-6)


def symbols(n: int, seed: int, linked: bool) -> csr_array:
    """Two latents that are on in half of the rows, together, with magnitudes from 1 to 8; linked:
    the same ones."""
    random = generator(seed)
    on = torch.rand(n, generator=random) < 0.5
    values = torch.randint(1, 9, (n, 2), generator=random)
    values[:, 1] = values[:, 0] if linked else values[:, 1]
    return csr_array((values * on[:, None]).numpy())


@pytest.mark.parametrize(("linked", "expected"), [(False, 3.0), (True, 1.5)])
def test_magnitudes_in_context_cost_what_the_context_does_not_tell(
    linked: bool, expected: float
) -> None:
    """Half of the rows have two magnitudes of three bits; of linked ones the first tells the
    second."""
    found = context_bits(symbols(4000, 1, linked), symbols(4000, 2, linked))
    assert expected - 0.06 <= found <= expected + 0.12


def test_magnitudes_that_were_never_seen_can_be_coded() -> None:
    fit, rows = symbols(100, 1, False), symbols(100, 2, False) * 3
    assert math.isfinite(context_bits(fit, rows))
    assert context_bits(fit, rows) > context_bits(fit, symbols(100, 2, False))
    assert math.isfinite(context_bits(fit[:0], rows))
    assert math.isfinite(context_bits(fit, 1_000_000 * rows))


def predicted_bits(fit: np.ndarray, rows: np.ndarray, j: int) -> float:
    """Bits of latent j's symbols under a ridge regression, from dense matrices."""

    def context(symbols: np.ndarray) -> np.ndarray:
        return np.concatenate([symbols != 0, symbols[:, :j]], 1).astype(np.float64)

    X, y, n = context(fit), fit[:, j].astype(np.float64), len(fit)
    middle, spread = X.mean(0), X.std(0, ddof=1)
    strength = np.abs((X - middle).T @ (y - y.mean())) / (spread * math.sqrt(n) + 1e-9)
    strength = strength.astype(np.float32)
    best = sorted(range(X.shape[1]), key=lambda f: (strength[f], f), reverse=True)
    best = best[: min(FEATURES, n // 4 + 1)]
    A, ridge = (X - middle)[:, best], np.sqrt(RIDGE * spread[best] ** 2 + 1e-6)
    wanted = np.concatenate([y - y.mean(), np.zeros(len(best))])
    weights = np.linalg.lstsq(np.concatenate([A, np.diag(ridge)]), wanted)[0]
    error = y - y.mean() - A @ weights
    variance = (error**2).sum() / max(1, n - len(best) / 2)
    scale = max(math.sqrt(3 * variance) / math.pi, 0.05)
    bits = 0.0
    for row, symbol in zip(context(rows)[:, best] - middle[best], rows[:, j], strict=True):
        p = {
            at: np.diff(expit((at + np.array([-0.5, 0.5]) - y.mean() - row @ weights) / scale))[0]
            for at in (0, symbol)
        }
        logistic = (1 - UNEXPECTED) * p[symbol] / max(1 - p[0], 1e-3)
        bits -= math.log2(logistic + UNEXPECTED * 0.5 ** min(abs(int(symbol)), 64) / 2)
    return bits


def frequency_bits(fit: np.ndarray, rows: np.ndarray, reach: int) -> float:
    """Bits of symbols under those of `fit`, beside two more of a geometric distribution."""
    bits = 0.0
    for symbol in rows:
        geometric = 0.5 ** min(abs(int(symbol)), 64) / (2.5 - 2 * 0.5**reach)
        bits -= math.log2(((fit == symbol).sum() + 2 * geometric) / (len(fit) + 2))
    return bits


@pytest.mark.parametrize("reach", [3, 5000])
def test_a_sparse_context_is_the_dense_one_in_float64(reach: int) -> None:
    """Latents that are always on, never, mostly, and in too few rows; magnitudes of both signs,
    which depend on each other; one that is constant; and many features that are equally strong."""
    draw = np.random.default_rng(0)
    rates = np.array([1.0, 0.0, 0.7, 0.2, 0.02, 0.3, 0.3, 0.5, *[0.05] * 30])
    on = draw.random((500, len(rates))) < rates
    signs = draw.choice([-1, 1, 1], on.shape)
    matrix = on * draw.integers(1, reach + 1, on.shape) * signs
    matrix[:, 0] = 2
    matrix[:, 3] += on[:, 3] * matrix[:, 2]
    matrix[:, 6] = on[:, 6] * (1 + 2 * on[:, 7])
    fit, rows = matrix[:350], matrix[350:]
    highest, expected, predicted = int(np.abs(matrix).max()) + 1, 0.0, 0
    for j in range(len(rates)):
        known, coded = fit[fit[:, j] != 0], rows[rows[:, j] != 0]
        bits = frequency_bits(known[:, j], coded[:, j], highest)
        first, second = known[: len(known) // 2], known[len(known) // 2 :]
        if len(known) >= FEWEST and len(coded):
            by_half = frequency_bits(first[:, j], second[:, j], highest)
            if predicted_bits(first, second, j) < by_half:
                bits, predicted = predicted_bits(known, coded, j), predicted + 1
        expected += bits / len(rows)
    assert 3 <= predicted < len(rates)
    assert context_bits(csr_array(fit), csr_array(rows)) == pytest.approx(expected, rel=1e-9)
