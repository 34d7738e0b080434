"""What cells share: the limit of fvu, a code of all cells that is fitted to each, and gaps."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bitlens.autoencoders.binary import BinaryAutoencoder
from bitlens.bits.packed import PackedBits
from bitlens.errors import BitlensError
from bitlens.hidden import TensorSource
from bitlens.information.autoregression import Autoregression
from bitlens.studies.cells import Study
from bitlens.studies.figures import Panel, draw_panels
from bitlens.studies.measuring import measure_rows, why_left_out
from bitlens.studies.shared import load_shared, train_shared
from bitlens.training import TrainConfig

N, D = 600, 6


def planted(rates: list[float], n: int = N, seed: int = 0) -> Tensor:
    """Bits `[n, 6]`: three of these rates, and three that copy them but for a tenth of the rows."""
    random = torch.Generator().manual_seed(seed)
    first = torch.rand(n, 3, generator=random) < torch.tensor(rates)
    return torch.cat([first, first ^ (torch.rand(n, 3, generator=random) < 0.1)], 1)


def reading_bits(error: float = 0.0) -> BinaryAutoencoder:
    """Finds planted bits in rows that are these bits; its rows come back too large by `error`."""
    autoencoder = BinaryAutoencoder(D, D)
    with torch.no_grad():
        autoencoder.W_enc.copy_(torch.eye(D))
        autoencoder.b_enc.fill_(-0.5)
        autoencoder.W_dec.copy_((1 + error) * torch.eye(D))
        autoencoder.b_dec.zero_()
    return autoencoder


def entropy_of(rates: list[float]) -> float:
    """Of planted bits, exact."""
    chances = [*rates, 0.1, 0.1, 0.1]
    return -sum(p * math.log2(p) + (1 - p) * math.log2(1 - p) for p in chances)


@pytest.mark.slow
def test_a_common_code_fitted_to_a_cell_costs_the_cells_entropy() -> None:
    of_cells = [[0.5, 0.1, 0.2], [0.05, 0.6, 0.2]]
    pool = torch.cat([planted(rates, 4000, seed) for seed, rates in enumerate(of_cells)])
    common = Autoregression.fit(PackedBits.pack(pool))
    for seed, rates in enumerate(of_cells):
        few, held_out = (PackedBits.pack(planted(rates, n, 5 + seed)) for n in (200, 4000))
        own = common.refitted(few)
        cost, of_pool = (float(m.code_lengths(held_out).mean()) for m in (own, common))
        assert cost == pytest.approx(entropy_of(rates), abs=0.15)
        assert cost < of_pool - 0.1
        # at the optimum as many rows are expected to be on as are, but for the half that is added
        costs = own.code_lengths(few).sum()
        for latent in range(D):
            for step in (-0.3, 0.3):
                other = common.refitted(few)
                other.biases[latent] += step
                penalty = torch.nn.functional.softplus(
                    torch.stack([m.biases[latent] for m in (other, own)])
                )
                added = penalty - torch.stack([other.biases[latent], own.biases[latent]]) / 2
                worse = float(added[0] - added[1]) / math.log(2)
                assert float(other.code_lengths(few).sum() - costs) + worse > 0


@pytest.mark.slow
def test_a_latent_that_is_never_on_in_a_cell_has_a_finite_cost() -> None:
    common = Autoregression.fit(PackedBits.pack(planted([0.5, 0.1, 0.2], 2000)))
    never = PackedBits.pack(planted([0.5, 0.1, 0.2], 300) & (torch.arange(D) != 1))
    own = common.refitted(never)
    assert torch.isfinite(own.biases).all()
    assert math.isfinite(float(own.code_lengths(PackedBits.pack(torch.ones(1, D))).sum()))


@pytest.mark.slow
@pytest.mark.parametrize("error", [0.1, 2.0])
def test_above_an_fvu_of_a_half_there_is_no_entropy_but_a_reason(error: float) -> None:
    rows, test = planted([0.5, 0.1, 0.2]).float(), torch.arange(N) % 4 == 0
    numbers, bits = measure_rows(reading_bits(error), rows, test)
    assert torch.equal(bits.unpack(), rows)
    left_out = numbers["fvu"] > 0.5
    assert left_out == (error > 1)
    names = [name for name in numbers if name.startswith(("bits_", "code_"))]
    for name in set(names) - {"bits_gaussian"}:
        assert (numbers[name] is None) == left_out
    if left_out:
        assert numbers["left_out"].startswith(f"fvu {numbers['fvu']:.2g} on held-out rows is above")
    else:
        assert numbers["left_out"] is None


def test_rows_without_variance_have_no_entropy_either() -> None:
    assert why_left_out(0.5) is None
    assert why_left_out(math.nan) == "fvu nan on held-out rows is above 0.5"
    few, test = torch.ones(20, D), torch.arange(20) % 5 == 0  # too few for a Gaussian bound
    with pytest.raises(BitlensError, match="held-out rows are all equal"):
        measure_rows(reading_bits(), few, test)


@pytest.mark.slow
def test_an_autoencoder_and_its_code_are_trained_once_and_loaded_as_they_were(tmp_path) -> None:
    rows = planted([0.5, 0.1, 0.2], 1000).float() + 0.01 * torch.randn(1000, D)
    training = TrainConfig(preset="measure", n_latents=16, steps=80, device="cpu")
    documents = torch.arange(1000) // 4
    train_shared(TensorSource(rows), training, tmp_path, rows, documents)
    kept = {path: path.read_bytes() for path in tmp_path.iterdir()}
    autoencoder, code = load_shared(tmp_path, "cpu")
    bits = autoencoder.encode_bits(rows)
    expected = Autoregression.fit(bits, documents, training.seed)
    assert torch.equal(code.code_lengths(bits), expected.code_lengths(bits))
    train_shared(TensorSource(rows), training, tmp_path, rows, documents)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == kept
    test = torch.arange(1000) % 5 == 0
    numbers, _ = measure_rows(autoencoder, rows, test, common=code)
    costs = code.refitted(bits[~test]).code_lengths(bits[test])
    assert numbers["bits_joint"] == pytest.approx(float(costs.mean()))


def test_a_study_warns_of_rows_without_entropies(tmp_path) -> None:
    said: list[str] = []
    study = Study(tmp_path, say=said.append)
    rows = [{"fvu": 0.2, "left_out": None}, {"fvu": 3.0, "left_out": why_left_out(3.0)}]
    study.finish(rows, lambda rows, out: None)
    assert len(said) == 1
    assert said[0].startswith("1 of 2 rows are without entropies")
    assert "3 of the variance" in said[0]


@pytest.mark.slow
def test_a_line_has_a_gap_where_a_number_is_missing(tmp_path) -> None:
    def points(y: list[float | None]) -> int:
        rows = [{"x": x, "y": value, "name": "a"} for x, value in enumerate(y)]
        draw_panels(tmp_path / "gap", [[Panel(rows, "x", "y", "name")]])
        drawn = (tmp_path / "gap.svg").read_text()
        line = drawn.partition('id="line2d_')[2]
        paths = [part for part in drawn.split('d="') if "stroke: #2a6fbb; stroke-width" in part]
        assert line
        return sum(part.partition('"')[0].count("M ") for part in paths)

    assert points([1.0, 2.0, 3.0, 4.0, 5.0]) + 1 == points([1.0, 2.0, None, 4.0, 5.0])
