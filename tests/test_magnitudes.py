"""The price of a sparse autoencoder's magnitudes against cases solved by hand."""

import math

import pytest
import torch

from bitlens.autoencoders import TopKAutoencoder, Transcoder
from bitlens.errors import BitlensError
from bitlens.information.magnitudes import context_bits, quantise_magnitudes
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


def symbols(n: int, seed: int, linked: bool) -> torch.Tensor:
    """Two latents that are on in half of the rows, together, with magnitudes from 1 to 8; linked:
    the same ones."""
    random = generator(seed)
    on = torch.rand(n, generator=random) < 0.5
    values = torch.randint(1, 9, (n, 2), generator=random)
    values[:, 1] = values[:, 0] if linked else values[:, 1]
    return (values * on[:, None]).to(torch.int16)


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
    assert math.isfinite(context_bits(fit.int(), 1_000_000 * rows.int()))
