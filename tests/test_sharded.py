"""Latents spread over processes give the bits, the training and the files of one process."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bitlens import processes, shards
from bitlens.autoencoders import sharded
from bitlens.bits import descent_sharded
from bitlens.bits.descent import descend, gram
from bitlens.bits.packed import PackedBits
from bitlens.errors import BitlensError
from bitlens.files import read_tensors, write_tensors
from bitlens.hidden import TensorSource
from bitlens.training import TrainConfig, train
from bitlens.training.checkpoint import STATE
from command import together
from test_descent import after_flips, energy, problem, slack
from test_resume import PowerCut, cut_at, logged_steps, rows

pytestmark = pytest.mark.slow

STEPS = 24
SHAPES = [(130, 16, 40), (7, 4, 9), (65, 1, 8)]  # latents, width, rows


def exact(m: int, d: int, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor, PackedBits]:
    """A problem whose gains float32 knows exactly, in whatever order they are summed, and bits to
    begin with -> x, W, b, price, start"""
    x, W, b = ((value * 8).round() / 8 for value in problem(m, d, n, seed=m)[:3])
    g = torch.Generator().manual_seed(1)
    price = torch.randperm(2048, generator=g)[:m] / 1024  # no two latents gain the same
    return x, W, b, price, PackedBits.pack(torch.rand(n, m, generator=g) < 0.2)


def own_bits(shape: tuple[int, int, int], begun: bool, **settings) -> Tensor:
    """In each of many processes: all bits that are found, `[n, m]`"""
    x, W, b, price, start = exact(*shape)
    own = processes.part(len(W))
    begin = PackedBits.pack(start.unpack()[:, own]) if begun else None
    bits = descent_sharded.descend(x, W[own], b, price[own], start=begin, **settings)
    return processes.gather(bits.unpack().T.contiguous(), len(W)).T.contiguous()


def config(**changes) -> TrainConfig:
    base = {
        "n_latents": 43,
        "steps": STEPS,
        "batch_size": 63,
        "log_every": 1,
        "regrow_at": (0.1, 0.3),
    }
    return TrainConfig(**{**base, "checkpoint_every": 4, "device": "cpu", **changes})


def found(folder: Path) -> None:
    """In each of many processes: bits in `folder/bits`, a run in `folder/run`."""
    with processes.together():
        descent_sharded.BLOCK_BYTES, shards.BLOCK_BYTES = 4 * 16 * 65, 1000  # several blocks
        bits = {}
        for place, shape in enumerate(SHAPES):
            for begun in (False, True):
                for most in (1, 16):
                    key = f"{place}-{begun}-{most}"
                    bits[key] = own_bits(shape, begun, together=most)
        bits["budget"] = own_bits(SHAPES[0], True, flips=3, together=16)
        if processes.is_first():
            write_tensors(folder / "bits", bits)
    until(folder / "run", None)


def until(out: Path, step: int | None) -> None:
    """In each of many processes: train until an error stops them, or to the end."""
    sharded.TOGETHER, shards.BLOCK_BYTES = 1, 1000
    report = cut_at(step) if step else lambda record: None
    train(TensorSource(rows()), config(), out, resume=True, report=report, shard_latents=True)


def many(n: int, folder: Path) -> Path:
    commands = together(n, partial(found, folder), folder)
    assert [command.wait() for command in commands] == [0] * n, [c.output for c in commands]
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Path:
    return many(2, tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def four(tmp_path_factory) -> Path:
    return many(4, tmp_path_factory.mktemp("four"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """A run of one process whose latents are not spread."""
    out = tmp_path_factory.mktemp("alone") / "run"
    train(TensorSource(rows()), config(), out)
    return out


NUMBERS = ["pair", "four"]


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_bits_are_those_of_one_process(request, number, shape, begun):
    x, W, b, price, start = exact(*shape)
    expected = descend(
        x, W, b, price, G=gram(W), start=start if begun else None, exchanges=False
    ).unpack()
    bits = read_tensors(request.getfixturevalue(number) / "bits")
    assert torch.equal(bits[f"{SHAPES.index(shape)}-{begun}-1"], expected)
    # with several flips a round: those that one process finds in this way, at an end, too
    several = bits[f"{SHAPES.index(shape)}-{begun}-16"]
    assert torch.equal(several, own_bits(shape, begun, together=16))
    one, _ = after_flips(x, W, b, price, PackedBits.pack(several))
    assert (one >= energy(x, W, b, price, several)[:, None] - slack(x)).all()


@pytest.mark.parametrize("number", NUMBERS)
def test_there_are_at_most_so_many_flips(request, number):
    x, W, b, price, start = exact(*SHAPES[0])
    bits = read_tensors(request.getfixturevalue(number) / "bits")["budget"]
    assert (bits != start.unpack()).sum(1).max() == 3
    assert (energy(x, W, b, price, bits) <= energy(x, W, b, price, start)).all()


def test_several_flips_a_round_keep_the_energy():
    x, W, b, price = problem(400, 64, 300, seed=5)
    one, several = (
        descent_sharded.descend(x, W, b, price, together=most).unpack() for most in (1, 16)
    )
    base = energy(x, W, b, price, torch.zeros_like(one)).mean()
    change = energy(x, W, b, price, several).mean() - energy(x, W, b, price, one).mean()
    assert abs(change) < 0.01 * base


def test_rows_that_are_not_finite_are_refused():
    x, W, b, price = problem(7, 4, 9, seed=0)
    x[3, 2] = torch.nan
    with pytest.raises(BitlensError, match="have no code"):
        descent_sharded.descend(x, W, b, price)


def curve(run: Path) -> Tensor:
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [[v for k, v in record.items() if k != "rows_per_second"] for record in log]
    return torch.tensor(kept, dtype=torch.float64)


@pytest.mark.parametrize("number", NUMBERS)
def test_they_train_as_one_process_does_and_leave_an_ordinary_run(request, alone, number):
    run = request.getfixturevalue(number) / "run"
    torch.testing.assert_close(curve(run), curve(alone), rtol=2e-5, atol=1e-6)
    assert {file.name for file in run.iterdir()} == {file.name for file in alone.iterdir()}
    here, there = (json.loads((folder / "cfg.json").read_text()) for folder in (run, alone))
    assert here == there
    weights, expected = (read_tensors(f / "sae_weights.safetensors") for f in (run, alone))
    assert weights.keys() == expected.keys()
    for name, value in weights.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-4, msg=name)


def test_any_number_of_processes_goes_on_with_latents_spread_or_not(alone, tmp_path, monkeypatch):
    monkeypatch.setattr(sharded, "TOGETHER", 1)
    out = tmp_path / "run"
    for n, step in ((2, 6), (3, 13)):
        commands = together(n, partial(until, out, step), tmp_path)
        assert 1 in [command.wait() for command in commands]
        assert (out / STATE).exists(), commands[0].output
    for spread, step in ((True, 18), (False, 22)):
        source, report = TensorSource(rows()), cut_at(step)
        with pytest.raises(PowerCut):
            train(source, config(), out, resume=True, report=report, shard_latents=spread)
    train(TensorSource(rows()), config(), out, resume=True)
    assert logged_steps(out) == list(range(1, STEPS + 1))
    torch.testing.assert_close(curve(out), curve(alone), rtol=2e-5, atol=1e-6)


def test_a_state_that_one_process_writes_is_read_by_itself_bit_for_bit(tmp_path):
    """Also where it is written and read block by block."""
    g = torch.Generator().manual_seed(0)
    tensors = {
        "model.W_enc": torch.randn(5, 7, generator=g),
        "model.W_dec": torch.randn(7, 5, generator=g),
        "adam.W_dec.step": torch.tensor(3.0),
        "model.mean": torch.randn(5, generator=g),
    }
    shards.write(tmp_path / "ours", tensors, sharded.PARTS, "about")
    write_tensors(tmp_path / "theirs", tensors)
    for name, read in (("ours", shards.read), ("theirs", shards.read)):
        here = read(tmp_path / name, sharded.PARTS)
        assert here.keys() == tensors.keys()
        assert all(torch.equal(here[key], tensors[key]) for key in tensors)
    assert read_tensors(tmp_path / "ours").keys() == tensors.keys()


@pytest.mark.parametrize(
    ("changes", "out", "sentence"),
    [
        ({"architecture": "topk", "k": 4}, "run", "`shard_latents` is for a bae whose coding"),
        ({"preset": "step"}, "run", "`shard_latents` is for a bae whose coding is descent"),
        ({}, None, "`shard_latents` writes what it trains: name a folder as `out`"),
    ],
)
def test_what_cannot_be_spread_is_refused(tmp_path, changes, out, sentence):
    folder = None if out is None else tmp_path / out
    with pytest.raises(BitlensError, match=sentence):
        train(TensorSource(rows()), config(**changes), folder, shard_latents=True)
