"""Bits: entropy of codes, and the Gaussian bound against cases solved by hand."""

import math
from itertools import pairwise

import pytest
import torch

from bitlens.errors import BitlensError
from bitlens.information.rate_distortion import gaussian_bits, pca_bits


@pytest.mark.parametrize("d", [1, 4, 50])
@pytest.mark.parametrize("fvu", [0.9, 0.25, 0.01])
def test_a_white_spectrum_costs_the_same_in_every_direction(d, fvu):
    assert gaussian_bits(3.7 * torch.eye(d), fvu) == pytest.approx(
        d / 2 * math.log2(1 / fvu), rel=1e-9
    )


@pytest.mark.parametrize(
    ("fvu", "level"),
    [(0.1, 0.5), (0.2, 1.0), (0.5, 4.0), (0.9, 8.0)],
    ids=["both above water", "at the edge", "one under water", "nearly everything under water"],
)
def test_two_variances_solved_by_hand(fvu, level):
    """Variances 9 and 1, 10 in all. Up to fvu .2 both errors are the level, 5 fvu; above it the second component is
    given up with its error of 1, and the level is 10 fvu - 1."""
    expected = sum(0.5 * math.log2(v / level) for v in (9, 1) if v > level)
    assert gaussian_bits(torch.diag(torch.tensor([9.0, 1.0])), fvu) == pytest.approx(
        expected, abs=1e-9
    )


def test_rotation_and_scale_do_not_matter():
    variances = torch.tensor([5.0, 2.0, 1.0, 0.1], dtype=torch.float64)
    rotation = torch.linalg.qr(
        torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    )[0]
    plain = gaussian_bits(torch.diag(variances), 0.1)
    assert gaussian_bits(
        1e-3 * rotation @ torch.diag(variances) @ rotation.T, 0.1
    ) == pytest.approx(plain, rel=1e-9)


def test_directions_without_variance_cost_nothing():
    variances = torch.tensor([2.0, 2.0, 0.0, 0.0])
    assert gaussian_bits(torch.diag(variances), 0.25) == pytest.approx(2.0)


def test_more_error_needs_fewer_bits():
    covariance = torch.diag(torch.logspace(1, -3, 30))
    bits = [gaussian_bits(covariance, fvu / 50) for fvu in range(1, 51)]
    assert all(less < more for more, less in pairwise(bits))
    assert bits[-1] == 0.0


def test_the_ends():
    covariance = torch.eye(3)
    assert gaussian_bits(covariance, 1.0) == gaussian_bits(covariance, 1.7) == 0.0
    assert gaussian_bits(covariance, 0.0) == math.inf


@pytest.mark.parametrize(
    "covariance", [torch.zeros(3, 3), torch.full((2, 2), float("nan"))], ids=["zero", "nan"]
)
def test_no_variance_is_refused(covariance):
    with pytest.raises(BitlensError, match="needs data with variance"):
        gaussian_bits(covariance, 0.5)


@pytest.mark.parametrize("fvu", [0.001, 0.01])
def test_pca_with_a_fine_quantiser_stays_a_quarter_of_a_bit_above_the_bound(fvu):
    """Gish and Pierce 1968: log2(2 pi e / 12) / 2 bits a component, for a Gaussian at high rates."""
    random = torch.Generator().manual_seed(0)
    rows = torch.randn(40_000, 6, generator=random) * torch.tensor([2.0, 1.5, 1.2, 1.0, 0.9, 0.8])
    rows = rows @ torch.linalg.qr(torch.randn(6, 6, generator=random))[0]
    bound = gaussian_bits(torch.cov(rows.double().T), fvu)
    assert pca_bits(rows[:20_000], rows[20_000:], fvu) - bound == pytest.approx(6 * 0.2546, abs=0.1)


def test_pca_spends_nothing_on_what_the_quantiser_swallows():
    random = torch.Generator().manual_seed(0)
    rows = torch.randn(5000, 3, generator=random) * torch.tensor([10.0, 0.1, 0.1])
    one = pca_bits(rows, rows[:, :1] * torch.tensor([1.0, 0, 0]), 0.05)
    assert pca_bits(rows, rows, 0.05) == pytest.approx(one, abs=0.05)


@pytest.mark.parametrize(
    ("rows", "fvu"),
    [(torch.ones(10, 3), 0.1), (torch.randn(10, 3), 0.0), (torch.randn(10, 3), 1.0)],
)
def test_pca_refuses_what_has_no_answer(rows, fvu):
    with pytest.raises(BitlensError):
        pca_bits(rows, rows, fvu)
