"""Bits: entropy of codes, and the Gaussian bound against cases solved by hand."""

import math
from itertools import pairwise

import pytest
import torch

from bitlens.errors import BitlensError
from bitlens.information.rate_distortion import gaussian_bits


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
    """Variances 9 and 1, 10 in all. Up to fvu .2 both errors are the level, 5 fvu; above it the
    second component is given up with its error of 1, and the level is 10 fvu - 1."""
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
