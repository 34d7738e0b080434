"""What a GPU does, as far as it can be seen without one: nothing waits for it between two records
of a training, and its kernels end where the CPU's do. The rest needs a GPU, or triton."""

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from benchmarks.gpu import main
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bitlens.autoencoders.learner import build, make_learner
from bitlens.autoencoders.sparse import rise
from bitlens.bits import descent, descent_cuda
from bitlens.bits.descent import Descent, descend, gram, search
from bitlens.bits.packed import PackedBits, _packed
from bitlens.training.config import TrainConfig
from test_descent import problem

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="needs triton, which can interpret its code"
)
WAITING = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select", "unique")
ARCHITECTURES = [
    {"architecture": "bae"},
    {"architecture": "bae", "preset": "step"},
    {"architecture": "bae", "preset": "measure"},
    {"architecture": "topk"},
    {"architecture": "batch_topk"},
    {"architecture": "relu"},
    {"architecture": "gated"},
    {"architecture": "jumprelu"},
]


class Waits(TorchDispatchMode):
    """Counts the operations at which a program waits for a GPU: a number is asked for, a shape
    depends on values, or a tensor is copied to the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        from_device = any(isinstance(a, Tensor) and a.device.type != "cpu" for a in args)
        masked = name == "index" and any(t is not None and t.dtype == torch.bool for t in args[1])
        if name in WAITING or masked or (from_device and str(kwargs.get("device")) == "cpu"):
            self.counts[name] += 1
        return func(*args, **kwargs)


def test_the_counter_sees_what_waits() -> None:
    x = torch.arange(3.0)
    with Waits() as waits:
        assert float(x.sum()) == 3
        assert bool((x > 1).any())
        assert len(x.nonzero()) == 2
        assert len(x[x > 1]) == 1
        with contextlib.suppress(NotImplementedError):
            torch.empty(2, device="meta").cpu()
    assert waits.counts == {"_local_scalar_dense": 2, "nonzero": 1, "index": 1, "_to_copy": 1}


@pytest.fixture
def on_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors without values take the paths of a GPU; a kernel is launched, and nothing else."""
    kernel = SimpleNamespace(descend=lambda a, G, words, most, *rest: torch.zeros_like(most))
    monkeypatch.setattr(descent_cuda, "triton_kernel", lambda device: kernel)
    monkeypatch.setattr(torch, "autocast", lambda *a, **k: contextlib.nullcontext())


def learner_on(device: str, config: dict[str, Any], step: int) -> Any:
    settings = TrainConfig(n_latents=64, batch_size=32, steps=100, **config).resolved(16, "cpu")
    model = build(settings, 16, 16).to(device)
    learner = make_learner(model, settings, lambda n, seed: torch.randn(n, 16, device=device))
    learner.step = step
    return learner


@pytest.mark.usefixtures("on_meta")
@pytest.mark.parametrize("config", ARCHITECTURES, ids=lambda c: "-".join(c.values()))
def test_a_training_step_waits_for_nothing(config: dict[str, Any]) -> None:
    learner = learner_on("meta", config, step=71)
    if hasattr(learner, "may_be_dead"):
        learner.may_be_dead = 5  # as the look of an earlier step left it
    x = torch.randn(32, 16, device="meta")
    with Waits() as waits:
        losses, rates = learner.backward(x)
        learner.after_step(71, None)
    assert not waits.counts
    assert losses.total.device.type == rates.device.type == "meta"


@pytest.mark.parametrize("dead", [0, 5, 40])
def test_latents_that_only_may_be_dead_change_nothing(dead: int) -> None:
    """TopK's auxiliary loss with an upper bound in place of the number of dead latents."""
    gradients = []
    for bound in (dead, 64):
        learner = learner_on("cpu", {"architecture": "topk", "k": 4}, step=1)
        learner.model.initialise(torch.Generator().manual_seed(0))
        learner.state["silent"] = torch.zeros(64)
        learner.state["silent"][:dead] = 1000
        learner.model.b_enc.data[:dead] = -100
        learner._most_dead = lambda silent, bound=bound: bound
        x = torch.randn(32, 16, generator=torch.Generator().manual_seed(1))
        losses, _ = learner.backward(x)
        gradients.append([losses.total.detach()] + [p.grad for p in learner.model.parameters()])
        assert (losses.auxiliary > 0) == (dead > 0)
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("l0", [0.0, 3.0, 4.0, 7.0, 64.0])
def test_the_sparsity_controller_is_the_same_on_a_device(l0: float) -> None:
    learner = learner_on("cpu", {"architecture": "relu", "k": 4}, step=50)
    before = float(learner.state["log_sparsity"])
    learner._control(torch.tensor(l0))
    moved = float(learner.state["log_sparsity"]) - before
    assert moved == pytest.approx(float(rise(torch.tensor(l0), 4)), abs=1e-12)
    assert (moved > 0) == (l0 > 4)


@pytest.mark.slow
@pytest.mark.parametrize("exchanges", [False, True])
@pytest.mark.parametrize("started", [False, True])
def test_the_few_candidates_of_a_row_are_those_of_the_cpu(
    exchanges: bool, started: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a G, bit for bit."""
    monkeypatch.setattr(descent, "CANDIDATES", 20)
    monkeypatch.setattr(descent_cuda, "GATHERED_BYTES", 4 * 40 * 16 * 7)  # rows in several blocks
    x, W, b, price = problem(300, 16, 60, seed=3)
    seed = torch.Generator().manual_seed(1)
    start = PackedBits.pack(torch.rand(60, 300, generator=seed) < 0.05) if started else None
    here = descend(x, W, b, price, start=start, exchanges=exchanges)
    tolerance = descent.TOLERANCE * (x - b).square().sum(1)
    what = Descent(W, b, price, None, 1200, exchanges)
    there = search(what, x, start, tolerance, descent_cuda)
    assert torch.equal(here.words, there.words)
    whole = descend(x, W, b, price, G=gram(W), start=start, exchanges=exchanges)
    assert not torch.equal(here.words, whole.words)  # candidates do make a difference here


@pytest.mark.parametrize(("rows", "words"), [(0, 1), (1, 1), (7, 3)])
def test_packing_on_a_device_is_that_of_the_cpu(rows: int, words: int) -> None:
    on = torch.rand(64 * words, rows, generator=torch.Generator().manual_seed(0)).T < 0.5
    assert torch.equal(_packed(on), PackedBits.pack(on).words)


@pytest.mark.slow
def test_the_benchmark_measures_every_part(tmp_path: Path) -> None:
    parts = ["descents", "steps", "counting"]
    path = tmp_path / "gpu.json"
    main(["--sizes", "8x64", "--rows", "20", "--parts", *parts, "--json", str(path)])
    result = json.loads(path.read_text())
    assert not result["failed"]
    cases = {figure["case"].split(" ")[0] for figure in result["figures"]}
    assert cases == {"descent", "training", "covariance", "co-occurrence", "Hamming", "pack"}
    assert all(figure["seconds"] > 0 and figure["of_peak"] > 0 for figure in result["figures"])
    assert set(result["peaks_per_second"]) == {"fp32", "bf16", "int8", "bytes"}


INTERPRETED = """
import torch
from test_descent import problem
from bitlens.bits import descent, descent_triton
from bitlens.bits.descent import Descent, descend, gram
from bitlens.bits.packed import PackedBits

for m, d, n in ((1, 4, 2), (65, 16, 3)):
    for exchanges in (False, True):
        for share in (0.0, 0.3):
            x, W, b, price = problem(m, d, n, seed=1)
            start = torch.rand(n, m, generator=torch.Generator().manual_seed(1)) < share
            start, G = PackedBits.pack(start), gram(W)
            here = descend(x, W, b, price, G=G, start=start, exchanges=exchanges)
            tolerance = descent.TOLERANCE * (x - b).square().sum(1)
            most = torch.full((n,), 4 * m, dtype=torch.int32)
            for each in (G, G.repeat(n, 1, 1)):
                a, words = Descent(W, b, price, G, 0, True).gains(x, start), start.words.clone()
                made = descent_triton.descend(a, each, words, most, exchanges, tolerance)
                assert torch.equal(words, here.words), (m, exchanges, share)
                assert m == 1 or made.any()
"""


@pytest.mark.slow
@needs_triton
def test_the_triton_kernel_ends_where_the_cpu_does() -> None:
    """In a process of its own: triton is told before it is imported that it interprets."""
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", INTERPRETED], env=environment, check=True, timeout=300)


@needs_gpu
@pytest.mark.parametrize("m", [1, 65, 1000, 5000])
@pytest.mark.parametrize("exchanges", [False, True])
def test_a_gpu_ends_where_the_cpu_does(m: int, exchanges: bool) -> None:
    given = problem(m, 64, 100, seed=m)
    there = [t.cuda() for t in given]
    for kept in (False, True):
        here = descend(*given, G=gram(given[1]) if kept else None, exchanges=exchanges)
        G = gram(there[1]) if kept else None
        found = descend(*there, G=G, exchanges=exchanges).words.cpu()
        assert (found == here.words).all(1).float().mean() > 0.95  # the rest are ties


@needs_gpu
@pytest.mark.parametrize("config", ARCHITECTURES, ids=lambda c: "-".join(c.values()))
def test_cuda_itself_sees_no_waiting(config: dict[str, Any]) -> None:
    learner = learner_on("cuda", config, step=0)
    adam = torch.optim.Adam(learner.model.parameters(), fused=True)
    learner.start()
    x = torch.randn(32, 16, device="cuda")

    def step(number: int) -> None:
        learner.step = number
        learner.backward(x)
        adam.step()
        learner.after_step(number, adam)

    step(60)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(61)
    finally:
        torch.cuda.set_sync_debug_mode("default")
