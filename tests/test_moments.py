"""One `fvu`, streamed in float64, the covariance, and the Gaussian bound."""

import math
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

import bitlens
from bitlens.errors import BitlensError
from bitlens.information.moments import Covariance, Variance, fvu
from bitlens.information.rate_distortion import gaussian_bits, gaussian_bound
from bitlens.seeding import generator


def rows_of(n: int, d: int, seed: int = 0) -> torch.Tensor:
    """Far from zero, so that float32 sums of squares would lose the variance"""
    return 1000 + torch.randn(n, d, generator=generator(seed)) * torch.linspace(0.5, 2, d)


@pytest.mark.parametrize("block", [1, 7, 300])
def test_fvu_in_blocks_is_that_of_numpy(block: int) -> None:
    x, noise = rows_of(300, 5), 0.3 * torch.randn(300, 5, generator=generator(1))
    variance, error = Variance(), 0.0
    for rows, wrong in zip(x.split(block), noise.split(block), strict=True):
        variance.add(rows)
        error += float((rows.double() - (rows + wrong).double()).square().sum())
    expected = ((x.double() - (x + noise).double()) ** 2).numpy().sum() / (
        x.double().numpy().var(0).sum() * len(x)
    )
    assert variance.rows == 300
    assert variance.fvu(error) == pytest.approx(expected, rel=1e-9)
    assert fvu(x, x + noise) == pytest.approx(expected, rel=1e-9)
    assert fvu(x, x.double().mean(0).expand_as(x)) == pytest.approx(1, rel=1e-9)


def test_rows_without_variance_have_no_fvu() -> None:
    assert math.isnan(fvu(torch.ones(5, 3), torch.zeros(5, 3)))
    assert math.isnan(Variance().fvu(1.0))
    with pytest.raises(BitlensError, match="all equal"):
        gaussian_bound(Covariance.of([torch.ones(50, 3)]), math.nan)


@pytest.mark.parametrize("block", [1, 64, 500])
def test_covariance_in_blocks_is_that_of_numpy(block: int) -> None:
    x = rows_of(500, 4)
    matrix, rows = Covariance.of([torch.empty(0, 4), *x.split(block)])
    assert rows == 500
    np.testing.assert_allclose(matrix.numpy(), np.cov(x.double().numpy().T, bias=True), rtol=1e-9)


def test_a_covariance_of_few_rows_gives_no_bound() -> None:
    x = torch.randn(40, 10, generator=generator(0))
    assert gaussian_bound(Covariance.of([x[:39]]), 0.1) is None
    assert gaussian_bound(Covariance.of([x]), 0.1) == gaussian_bits(
        torch.cov(x.double().T, correction=0), 0.1
    )


def test_the_fraction_of_variance_unexplained_is_computed_in_one_place() -> None:
    """Whatever else divides a squared error by a variance is a second definition, sooner or later
    another one."""
    roots = [Path(bitlens.__file__).parent, Path(__file__).parents[1] / "benchmarks"]
    files = [path for root in roots for path in root.rglob("*.py") if path.name != "moments.py"]
    assert len(files) > 50
    own = re.compile(r"\bfvus? = .*(/|square\(\)|\bvar\()")
    assert not [
        f"{path.name}: {line}"
        for path in files
        for line in path.read_text().splitlines()
        if own.search(line)
    ]
    deviations = re.compile(r"- (\w+)\.mean\(0\)\)?\.square\(\)\.sum\(\)")
    allowed = {"rate_distortion.py"}  # components of other rows' axes: a transform code's own
    assert {path.name for path in files if deviations.search(path.read_text())} <= allowed


# --- the Gaussian bound against cases solved by hand ----------------------------------------------


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
    with pytest.raises(BitlensError, match="the rows are all equal"):
        gaussian_bits(covariance, 0.5)
