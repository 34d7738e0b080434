"""One `fvu`, streamed in float64, and the covariance that the Gaussian bound has."""

import math
import re
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
