"""Planted bits against brute force, and the study that recovers them."""

import json
import math
from dataclasses import replace
from itertools import product
from pathlib import Path

import pyarrow.parquet
import pytest
import torch

from bitlens.bits.entropies import binary_entropy
from bitlens.cli import main
from bitlens.errors import BitlensError
from bitlens.seeding import generator
from bitlens.studies.cells import Study
from bitlens.studies.synthetic.config import FAMILIES, SyntheticConfig
from bitlens.studies.synthetic.sources import PlantedBits, hidden_states, shannon_bits
from bitlens.studies.synthetic.study import measure_cell, run, summary

RANK = 8
TINY = SyntheticConfig(
    families=("independent", "nested", "noise"),
    variants=("measure", "paper"),
    ranks=(4, 16),
    rates=(0.2,),
    other_rates=(0.2,),
    noises=(0.1,),
    seeds=(0,),
    d_in=16,
    n_latents=32,
    rows=1024,
    measured_rows=2048,
    steps=60,
)


def chances(source: PlantedBits) -> tuple[torch.Tensor, torch.Tensor]:
    """Every state of the bits, and its chance."""
    states = torch.tensor(list(product((0, 1), repeat=len(source.parents))))
    chance = torch.ones(len(states), dtype=torch.float64)
    for j, parent in enumerate(source.parents.tolist()):
        on = (
            source.given[j][states[:, parent]]
            if parent >= 0
            else source.given[j, 0].expand(len(states))
        )
        chance *= torch.where(states[:, j] == 1, on, 1 - on)
    return states, chance


@pytest.mark.parametrize("family", FAMILIES)
def test_planted_entropy_and_rates_are_those_of_all_states(family: str) -> None:
    source = PlantedBits.of(family, RANK, 0.1, 3)
    states, chance = chances(source)
    assert float(chance.sum()) == pytest.approx(1)
    assert source.entropy() == pytest.approx(
        -float(torch.special.xlogy(chance, chance).sum()) / math.log(2)
    )
    assert torch.allclose(source.rates(), (chance[:, None] * states).sum(0))
    if family != "nested":
        assert torch.allclose(source.rates(), torch.full((RANK,), 0.1, dtype=torch.float64))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_drawn_is_the_source(family: str) -> None:
    source = PlantedBits.of(family, RANK, 0.1, 3)
    bits = source.sample(100_000, generator(0))
    assert torch.allclose(bits.double().mean(0), source.rates(), atol=0.006)
    assert source.empirical_entropy(bits) == pytest.approx(source.entropy(), rel=0.01)
    states, counts = bits.unique(dim=0, return_counts=True)
    by_state = dict(
        zip(map(tuple, states.int().tolist()), (counts / 100_000).tolist(), strict=True)
    )
    for state, chance in zip(*(x.tolist() for x in chances(source)), strict=True):
        assert by_state.get(tuple(state), 0.0) == pytest.approx(chance, abs=0.008)


def test_nested_bits_have_five_equally_likely_levels() -> None:
    assert PlantedBits.of("nested", 12, 0.5, 0).entropy() == pytest.approx(3 * math.log2(5))


def test_marginals_overstate_every_dependent_family_by_a_tenth() -> None:
    for family in ("pairs", "chain", "tree", "nested"):
        source = PlantedBits.of(family, 32, 0.5, 0)
        assert float(binary_entropy(source.rates()).sum()) > 1.1 * source.entropy()


def test_noise_has_its_share_of_the_variance() -> None:
    bits = PlantedBits.of("noise", RANK, 0.3, 0).sample(50_000, generator(0))
    directions = torch.linalg.qr(torch.randn(32, 32, generator=generator(1)))[0][:RANK]
    clean = hidden_states(bits, directions, "independent", 0.0, generator(2))
    noisy = hidden_states(bits, directions, "noise", 0.25, generator(2))
    assert float((noisy - clean).var(0).sum() / noisy.var(0).sum()) == pytest.approx(
        0.25, abs=0.005
    )
    assert torch.allclose(clean @ directions.T, bits.float(), atol=1e-5)


@pytest.mark.parametrize("share", [0.05, 0.4])
def test_shannons_bound_is_what_noise_leaves_of_the_bits(share: float) -> None:
    """At an error as large as the noise it is `sum I(bit; bit + noise)`, here by a sample."""
    p, d, rank = 0.2, 24, 6
    sigma = math.sqrt(rank * p * (1 - p) * share / (1 - share) / d)
    random = generator(0)
    bit = (torch.rand(400_000, generator=random) < p).double()
    y = bit + sigma * torch.randn(400_000, generator=random, dtype=torch.float64)
    log = lambda c: -((y - c) ** 2) / (2 * sigma**2)  # noqa: E731
    mixed = torch.logaddexp(math.log(1 - p) + log(0), math.log(p) + log(1))
    information = float((torch.where(bit == 1, log(1), log(0)) - mixed).mean()) / math.log(2)
    bound = shannon_bits(torch.full((rank,), p), d, share, share)
    assert bound == pytest.approx(rank * information, rel=0.02)
    assert shannon_bits(torch.full((rank,), p), d, share, share / 4) == pytest.approx(bound + d)


def test_what_cannot_be_planted_is_refused() -> None:
    with pytest.raises(BitlensError, match="There is no family 'rings'; choose from: independent"):
        PlantedBits.of("rings", 4, 0.1, 0)
    with pytest.raises(BitlensError, match="not 4, 1"):
        PlantedBits.of("pairs", 4, 1.0, 0)
    with pytest.raises(BitlensError, match="do not fit hidden states of width 16"):
        replace(TINY, ranks=(17,)).cells()
    with pytest.raises(BitlensError, match="There is no variant 'best'"):
        replace(TINY, variants=("best",)).cells()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "rank", "p"),
    [("independent", 8, 0.02), ("independent", 32, 0.5), ("chain", 16, 0.5), ("tree", 16, 0.1)],
)
def test_planted_entropy_is_recovered(family: str, rank: int, p: float) -> None:
    cell = {
        "family": family,
        "variant": "measure",
        "rank": rank,
        "p": p,
        "strength": 0.0,
        "seed": 0,
    }
    row = measure_cell(cell, SyntheticConfig())
    assert row["fvu"] <= 0.01
    assert abs(row["bits_tree_error"]) <= 0.02
    assert abs(row["bits_joint_error"]) <= 0.03
    assert row["bits_lower"] <= row["truth"]
    if family in ("chain", "tree"):
        assert row["bits_marginal_error"] > 0.1


@pytest.mark.slow
def test_a_study_resumes_and_ends_in_a_table_and_figures(tmp_path: Path) -> None:
    rows = run(TINY, Study(tmp_path / "study"))
    assert len(rows) == len(TINY.cells()) == 6
    for name in ("calibration", "variants", "noise"):
        assert (tmp_path / "study" / f"{name}.png").stat().st_size > 5000
        assert "<svg" in (tmp_path / "study" / f"{name}.svg").read_text(encoding="utf-8")
    table = pyarrow.parquet.read_table(tmp_path / "study" / "table.parquet").to_pylist()
    assert [row["bits_joint"] for row in table] == [row["bits_joint"] for row in rows]
    kept = sorted((tmp_path / "study" / "cells").iterdir())
    kept[0].unlink()
    stamps = [path.stat().st_mtime_ns for path in kept[1:]]
    done = []
    resumed = Study(tmp_path / "study", resume=True, report=lambda d, n, row: done.append(row))
    again = run(TINY, resumed)
    assert len(done) == 1
    assert [path.stat().st_mtime_ns for path in kept[1:]] == stamps
    assert again == rows


@pytest.mark.slow
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = f"study synthetic --out {tmp_path / 's'} --json {tmp_path / 's.json'}"
    arguments += " --families nested --variants measure --ranks 16 --seeds 0 --d-in 16"
    arguments += " --n-latents 32 --rows 512 --measured-rows 1024 --steps 40"
    main(arguments.split())
    shown = capsys.readouterr().out
    assert "nested" in shown
    assert "calibration.png" in shown
    (line,) = json.loads((tmp_path / "s.json").read_text())["summary"]
    assert line["cells"] == 1


def test_the_summary_counts_what_failed() -> None:
    kind = {"family": "pairs", "variant": "measure"}
    errors = {"bits_tree_error": 0.01, "bits_joint_error": 0.04, "bits_marginal_error": 0.13}
    covers = {"bits_tree_covers": True, "bits_joint_covers": False}
    good = {**kind, **errors, **covers, "fvu": 0.001}
    (line,) = summary([good, {**kind, "error": "It diverged."}])
    assert line["cells"] == 2
    assert line["within 2 %, fvu <= .01"] == "1 of 1"
    assert line["bits_joint within 3 %"] == "0 of 1"
