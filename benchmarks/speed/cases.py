"""What is timed: each case runs bitlens and what it is compared with in turn, in one process, on
the same numbers.

Every case is a generator of `Figure`s, so that they can be shown as they come.
"""

import contextlib
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.speed import find, naive, rivals
from benchmarks.speed.harvest import RealModel, harvest_overhead
from benchmarks.speed.machine import Peaks
from benchmarks.speed.timing import Timing, interleaved
from bitlens.autoencoders import BinaryAutoencoder, TopKAutoencoder
from bitlens.autoencoders.learner import make_learner
from bitlens.bits.descent import descend, gram
from bitlens.bits.packed import PackedBits
from bitlens.bits.statistics import co_occurrence, covariance, nearest
from bitlens.errors import BitlensError
from bitlens.training.config import TrainConfig

BATCH = 512
OURS = "bitlens"


@dataclass(frozen=True)
class Figure:
    """One line of the benchmark.

    times: this thing's seconds over those of the case's first line, bitlens's own.
    """

    case: str
    size: str
    name: str
    seconds: float
    times: float
    floor: float | None = None
    """seconds that the machine's measured peaks allow at best"""
    peak_bytes: int | None = None
    detail: str = ""


@dataclass(frozen=True)
class Scope:
    """How large and how long: widths `(d_in, n_latents)`, and a divisor of the rows of the cases
    that go by rows."""

    sizes: tuple[tuple[int, int], ...]
    rows: int = 1_000_000
    budget: float = 20.0
    """seconds that the repetitions of one comparison may take"""
    real: RealModel | None = None
    """what `harvest` runs; None: the bundled model and a random one"""


def _figures(
    case: str,
    size: str,
    timings: dict[str, Timing],
    floors: dict[str, float],
    details: dict[str, str] | None = None,
) -> Iterator[Figure]:
    own = next(iter(timings.values())).seconds
    for name, timing in timings.items():
        yield Figure(
            case,
            size,
            name,
            timing.seconds,
            timing.seconds / own,
            floors.get(name),
            timing.peak_bytes,
            (details or {}).get(name, ""),
        )


def _hidden_states(rows: int, d_in: int, seed: int = 0) -> Tensor:
    """Standardised rows with a falling spectrum, as hidden states have -> float32 `[rows, d_in]`"""
    generator = torch.Generator().manual_seed(seed)
    spectrum = torch.arange(1, d_in + 1).float().rsqrt()
    x = torch.randn(rows, d_in, generator=generator) * spectrum
    mix = torch.linalg.qr(torch.randn(d_in, d_in, generator=generator)).Q
    x = x @ mix
    return (x - x.mean(0)) / x.std()


def _codes(rows: int, n_latents: int, rate: float = 0.06, seed: int = 0) -> PackedBits:
    """Random bits, of which about one in sixteen is on: four random words and-ed."""
    words = np.random.default_rng(seed).integers(
        0, 1 << 63, (4, rows, n_latents // 64), dtype=np.int64
    )
    return PackedBits(torch.from_numpy(np.bitwise_and.reduce(words)), n_latents // 64 * 64)


def covariance_penalty(scope: Scope, peaks: Peaks) -> Iterator[Figure]:
    """The covariance penalty of a minibatch and its gradient, against torch.cov and autograd."""
    for n_latents in dict.fromkeys(n for _, n in scope.sizes):
        h = _codes(BATCH, n_latents).unpack()

        def own(h: Tensor = h) -> None:
            covariance(PackedBits.step(h))

        timings = interleaved(
            {OURS: own, "torch.cov + autograd": naive.covariance_step(h)}, scope.budget
        )
        words = n_latents**2 / 2 * BATCH / 64 + 2 * BATCH * n_latents * n_latents / 64
        floors = {
            OURS: words / peaks["words counted"],
            "torch.cov + autograd": 6 * BATCH * n_latents**2 / peaks["float32 operations"],
        }
        yield from _figures(
            "covariance penalty, forward and backward", f"{BATCH} x {n_latents}", timings, floors
        )


def _bae_step(
    x: Tensor, n_latents: int, **settings: float | bool | str
) -> tuple[Callable[[], None], float]:
    """A training step of the preset `step` with the weights it starts from -> (step, share of bits
    on; about as many in the window)"""
    chosen: dict[str, Any] = {"preset": "step", "prune_at": (), "regrow_at": (), **settings}
    config = TrainConfig(n_latents=n_latents, **chosen).resolved(x.shape[1], "cpu")
    model = BinaryAutoencoder(x.shape[1], n_latents, config.coding or "step")
    learner = make_learner(model, config, lambda n, generator: x)
    learner.start()
    learner.step = (
        config.steps - 1
    )  # with descent: the encoder learns, too, and the price is the final one
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
    rates = learner.backward(x)[1]

    def step() -> None:
        learner.backward(x)
        optimizer.step()

    return step, float(rates.mean())


def _topk_step(x: Tensor, n_latents: int, k: int = 32) -> Callable[[], None]:
    config = TrainConfig(architecture="topk", n_latents=n_latents, k=k).resolved(x.shape[1], "cpu")
    model = TopKAutoencoder(x.shape[1], n_latents, k)
    learner = make_learner(model, config, lambda n, generator: x)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        learner.backward(x)
        optimizer.step()
        learner.after_step(0, optimizer)

    return step


def training_step(scope: Scope, peaks: Peaks) -> Iterator[Figure]:
    """A whole training step: gradients and Adam."""
    for d_in, n_latents in scope.sizes:
        x = _hidden_states(BATCH, d_in)
        own, share = _bae_step(x, n_latents)
        steps = {
            OURS: own,
            "bitlens by descent": _bae_step(x, n_latents, preset="features")[0],
            "TopK of bitlens": _topk_step(x, n_latents),
            "bitlens with covariance penalty": _bae_step(x, n_latents, gamma=10.0)[0],
            "bitlens --precision bf16": _bae_step(x, n_latents, precision="bf16")[0],  # pyright: ignore[reportArgumentType]
            "bitlens --reference (autograd)": _bae_step(x, n_latents, reference=True)[0],
            "the paper's objective in plain torch": naive.paper_step(x, n_latents),
            "plain ReLU autoencoder": naive.relu_step(x, n_latents),
        }
        rival_steps = {
            "TopK of SAELens": rivals.sae_lens_topk_step,
            "TopK of dictionary_learning": rivals.dictionary_learning_topk_step,
        }
        for name, build in rival_steps.items():
            with contextlib.suppress(BitlensError):  # not installed; the command says so
                steps[name] = build(d_in, n_latents, 32, x)
        timings = interleaved(steps, scope.budget)
        product = 2 * BATCH * d_in * n_latents
        adam = (
            7 * 4 * 2 * d_in * n_latents / peaks["bytes from memory"]
        )  # of parameter, gradient and two moments
        floors = {
            OURS: (1 + 4 * share) * product / peaks["float32 operations"] + adam,
            "plain ReLU autoencoder": 5 * product / peaks["float32 operations"] + adam,
        }
        details = {
            OURS: f"{BATCH / timings[OURS].seconds:,.0f} rows/s; {100 * share:.1f} % of the bits on"
        }
        yield from _figures(
            "training step",
            f"d_in {d_in}, {n_latents} latents, batch {BATCH}",
            timings,
            floors,
            details,
        )


def harvest(scope: Scope, peaks: Peaks) -> Iterator[Figure]:
    """Harvesting hidden states, against the bare forward pass of the same tokens."""
    with tempfile.TemporaryDirectory() as folder:
        wanted, repeats = max(1000, scope.rows // 25), 3 if scope.budget else 1
        for o in harvest_overhead(Path(folder), wanted, repeats, scope.real):
            cpu = o.harvest_cpu / o.forward_cpu
            detail = f"{o.rows:,} rows, {o.rows / o.harvest:,.0f} a second; CPU time x {cpu:.3f}"
            yield Figure("harvest", o.name, OURS, o.harvest, 1.0, o.forward, None, detail)
            bare = "bare forward pass"
            yield Figure("harvest", o.name, bare, o.forward, o.forward / o.harvest)


def encode(scope: Scope, peaks: Peaks) -> Iterator[Figure]:
    """Hidden states to packed bits, against float codes and against what memory and disk
    deliver."""
    for d_in, n_latents in scope.sizes:
        rows = max(BATCH, scope.rows // 16 * 256 // d_in // 4)
        x = _hidden_states(rows, d_in)
        model = BinaryAutoencoder(d_in, n_latents).requires_grad_(False)

        def own(model: BinaryAutoencoder = model, x: Tensor = x) -> None:
            for block in x.split(4096):
                model.encode_bits(block)

        def floats(model: BinaryAutoencoder = model, x: Tensor = x) -> list[Tensor]:
            return [((block @ model.W_enc + model.b_enc) > 0).float() for block in x.split(4096)]

        timings = interleaved({OURS: own, "float codes, kept": floats}, scope.budget)
        floor = 2 * rows * d_in * n_latents / peaks["float32 operations"]
        taken = timings[OURS].seconds
        rate = rows * d_in * 2 / taken
        disk, memory = peaks["bytes from disk"] / 1e9, peaks["bytes from memory"] / 1e9
        details = {
            OURS: f"{rows / taken:,.0f} rows/s, {rate / 1e9:.2f} GB/s of 16-bit states "
            f"(disk {disk:.2f}, memory {memory:.0f})"
        }
        names = dict.fromkeys(timings, floor)
        size = f"{rows:,} rows, d_in {d_in}, {n_latents} latents"
        yield from _figures("encode and pack", size, timings, names, details)


def codes_by_descent(scope: Scope, peaks: Peaks) -> Iterator[Figure]:
    """Bits found by descent from zero, about 17 on in a row, against all gains computed anew at
    each flip, in torch."""
    for d_in, n_latents in scope.sizes:
        n, g = 4 * BATCH, torch.Generator().manual_seed(0)
        W = torch.randn(n_latents, d_in, generator=g) * 0.3
        h = (torch.rand(n, n_latents, generator=g) < 17 / n_latents).float()
        x, b = h @ W + 0.1 * torch.randn(n, d_in, generator=g), torch.zeros(d_in)
        price = torch.full((n_latents,), 0.03 * d_in * 0.3**2)
        G = gram(W)
        functions: dict[str, Callable[[], object]] = {
            OURS: partial(descend, x, W, b, price, G=G),
            "without exchanges": partial(descend, x, W, b, price, G=G, exchanges=False),
            "all gains anew at each flip, in torch": partial(naive.descend, x, W, b, price),
        }
        on = float(descend(x, W, b, price, G=G).row_counts().float().mean())
        timings = interleaved(functions, scope.budget)
        floor = (
            2 * n * d_in * n_latents / peaks["float32 operations"]
            + on * n * n_latents * 8 / peaks["bytes from memory"]
        )
        details = {
            name: f"{n / timing.seconds:,.0f} rows/s, {on:.1f} bits on"
            for name, timing in timings.items()
        }
        size = f"{n:,} rows, d_in {d_in}, {n_latents} latents"
        yield from _figures(
            "codes by descent",
            size,
            timings,
            dict.fromkeys([OURS, "without exchanges"], floor),
            details,
        )


def pairs(scope: Scope, peaks: Peaks) -> Iterator[Figure]:
    """Co-occurrence of all pairs of latents."""
    widths = [n for _, n in scope.sizes]
    n_latents = max((n for n in widths if n <= 2048), default=min(widths))
    few, many = max(BATCH, scope.rows // 16), scope.rows
    for rows in (few, many):
        codes = _codes(rows, n_latents)
        functions: dict[str, Callable[[], object]] = {
            OURS: lambda codes=codes: co_occurrence(codes)
        }
        if rows == few:  # in floats, a million rows would take a minute and eight gigabytes
            h = codes.unpack()
            functions["float product"] = lambda h=h: naive.co_occurrence(h)
        timings = interleaved(functions, scope.budget)
        floors = {
            OURS: n_latents**2 / 2 * math.ceil(rows / 64) / peaks["words counted"],
            "float product": 2 * rows * n_latents**2 / peaks["float32 operations"],
        }
        yield from _figures(
            "co-occurrence of all pairs", f"{rows:,} rows x {n_latents} latents", timings, floors
        )


def search(scope: Scope, peaks: Peaks) -> Iterator[Figure]:
    """The ten nearest codes to each of many queries, by Hamming distance."""
    n_latents = min(n for _, n in scope.sizes)
    codes = _codes(scope.rows, n_latents)
    for n in (1, 64):
        queries = codes[torch.arange(n) * (len(codes) // n)]
        functions: dict[str, Callable[[], object]] = {OURS: lambda q=queries: nearest(q, codes, 10)}
        with contextlib.suppress(BitlensError):  # not installed; the command says so
            functions["faiss IndexBinaryFlat"] = rivals.faiss_search(
                codes.numpy(), queries.numpy(), 10
            )
        timings = interleaved(functions, scope.budget)
        words = n * scope.rows * n_latents / 64
        floor = max(words / peaks["words counted"], codes.words.nbytes / peaks["bytes from memory"])
        size = f"{n} quer{'y' if n == 1 else 'ies'}, {scope.rows:,} codes of {n_latents} bits"
        yield from _figures("Hamming top-10", size, timings, dict.fromkeys(timings, floor))


def contexts(scope: Scope, peaks: Peaks) -> Iterator[Figure]:
    """The ten contexts nearest to a row by the surprisal of shared bits, from codes on disk."""
    with tempfile.TemporaryDirectory() as folder:
        codes = find.write(Path(folder) / "codes", scope.rows)
        timings = interleaved(find.searches(codes), scope.budget)
        floor = codes.rows * find.LATENTS / 8 / peaks["bytes from memory"]
        size = f"1 query, {scope.rows:,} codes of {find.LATENTS} bits"
        yield from _figures("nearest contexts", size, timings, {OURS: floor})


def growth(scope: Scope, peaks: Peaks) -> Iterator[Figure]:
    """How bitlens's own time and memory grow with width and with rows, three points each."""
    d_in, n_latents = sorted(scope.sizes)[len(scope.sizes) // 2]
    n_latents = n_latents // 64 * 64

    def points(
        what: str, sizes: list[str], functions: Sequence[Callable[[], object]]
    ) -> Iterator[Figure]:
        timings = interleaved(dict(zip(sizes, functions, strict=True)), scope.budget)
        for size, timing in timings.items():
            first = timings[sizes[0]].seconds
            yield Figure(
                f"growth: {what}",
                size,
                OURS,
                timing.seconds,
                timing.seconds / first,
                None,
                timing.peak_bytes,
            )

    for what, codes in (
        ("covariance penalty by width", [_codes(BATCH, n_latents * f) for f in (1, 2, 4)]),
        ("covariance penalty by rows", [_codes(BATCH * f, n_latents) for f in (1, 2, 4)]),
    ):
        sizes = [f"{len(c)} x {c.n_latents}" for c in codes]
        yield from points(what, sizes, [lambda c=c: covariance(c) for c in codes])
    steps = [_bae_step(_hidden_states(BATCH, d_in), n_latents * f)[0] for f in (1, 2, 4)]
    yield from points(
        "training step by width",
        [f"d_in {d_in}, {n_latents * f} latents" for f in (1, 2, 4)],
        steps,
    )
    steps = [_bae_step(_hidden_states(BATCH * f, d_in), n_latents)[0] for f in (1, 2, 4)]
    yield from points("training step by rows", [f"batch {BATCH * f}" for f in (1, 2, 4)], steps)
    several = [_codes(scope.rows // f, n_latents) for f in (16, 8, 4)]
    pair_counts = [lambda c=c: co_occurrence(c) for c in several]
    yield from points(
        "co-occurrence by rows", [f"{len(c):,} rows x {n_latents}" for c in several], pair_counts
    )
    wide = [_codes(scope.rows // 16, n_latents // f) for f in (4, 2, 1) if n_latents // f >= 64]
    pair_counts = [lambda c=c: co_occurrence(c) for c in wide]
    yield from points(
        "co-occurrence by width", [f"{len(c):,} rows x {c.n_latents}" for c in wide], pair_counts
    )


CASES: dict[str, Callable[[Scope, Peaks], Iterator[Figure]]] = {
    "covariance": covariance_penalty,
    "step": training_step,
    "harvest": harvest,
    "encode": encode,
    "descent": codes_by_descent,
    "pairs": pairs,
    "search": search,
    "contexts": contexts,
    "growth": growth,
}
