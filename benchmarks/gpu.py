"""`python -m benchmarks.gpu --json OUT`: a GPU's kernels checked, then timed beside plain torch.

Figures are medians of repetitions in turn, each also as a share of what the measured peaks allow.
Parts are independent: of one that fails the error is shown, and the next begins.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bitlens.autoencoders.learner import build, make_learner
from bitlens.autoencoders.objective import dense_covariance_penalty
from bitlens.bits import cuda, descent_cuda
from bitlens.bits.descent import descend, gram
from bitlens.bits.packed import PackedBits
from bitlens.files import write_json
from bitlens.training.config import TrainConfig

SIZES = ("256x1024", "576x2304", "2048x16384", "4096x32768")
ON = 30  # latents that made a row
KINDS: dict[str, dict[str, Any]] = {
    "topk": {"architecture": "topk"},
    "bae": {"architecture": "bae"},
    "bae, step": {"architecture": "bae", "preset": "step"},
}


class Bench:
    """What is measured so far."""

    def __init__(self, device: str, sizes: list[tuple[int, ...]], rows: list[int]) -> None:
        self.device, self.sizes, self.rows = device, sizes, rows
        self.peak: dict[str, float] = {}
        self.checks: list[dict[str, Any]] = []
        self.figures: list[dict[str, Any]] = []

    def seconds(self, call: Callable[[], object]) -> float:
        """Of one call, to its end on the device."""
        self.wait()
        start = time.perf_counter()
        call()
        self.wait()
        return time.perf_counter() - start

    def wait(self) -> None:
        """For all that the device was told to do."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def compare(
        self, case: str, calls: Mapping[str, Callable[[], object]], floor: float = 0
    ) -> None:
        """Time calls in turn; times are those of the first. floor: seconds that peaks allow."""
        times = {name: [self.seconds(call) for _ in range(2)][1:] for name, call in calls.items()}
        for _ in range(6):
            for name, call in calls.items():
                times[name].append(self.seconds(call))
        base = statistics.median(next(iter(times.values())))
        for name, each in times.items():
            seconds = statistics.median(each)
            of_peak = floor / seconds if floor else None
            figure = {"case": case, "name": name, "seconds": seconds, "times": seconds / base}
            self.figures.append({**figure, "of_peak": of_peak})
            share = f", {of_peak:.0%} of peak" if of_peak else ""
            print(f"{case}: {name} {1e3 * seconds:.3f} ms, {seconds / base:.2f}{share}", flush=True)

    def check(self, what: str, right: bool) -> None:
        """Say and keep whether something is right."""
        self.checks.append({"what": what, "right": bool(right)})
        print(f"{what}: {'right' if right else 'WRONG'}", flush=True)


class Problem(NamedTuple):
    """Rows that some latents and noise made, and what they are searched with."""

    x: Tensor
    W: Tensor
    b: Tensor
    price: Tensor

    @classmethod
    def of(cls, n: int, d: int, m: int, device: str) -> Problem:
        """The same one for the same sizes."""
        seed = torch.Generator(device).manual_seed(n + d + m)
        W = torch.randn(m, d, generator=seed, device=device)
        h = (torch.rand(n, m, generator=seed, device=device) < min(ON / m, 0.2)).float()
        x = h @ W + torch.randn(n, d, generator=seed, device=device)
        return cls(x, W, torch.zeros_like(W[0]), torch.full_like(W[:, 0], 0.3 * d))

    def best_gain(self, bits: PackedBits) -> float:
        """What the best single flip of any row still gains, as a share of the row's length."""
        x, W, b, price = (t.double() for t in self)
        sign = 1 - 2 * bits.unpack(torch.float64)
        gain = 2 * sign * ((x - bits.unpack(torch.float64) @ W - b) @ W.T)
        gain = gain - W.square().sum(1) - sign * price
        return float((gain.max(1).values / x.square().sum(1)).max())


def peaks(bench: Bench) -> None:
    """Operations and bytes a second, the best of eight."""
    n, elements = (8192, 1 << 28) if bench.device == "cuda" else (256, 1 << 20)
    a = torch.randn(n, n, device=bench.device)
    half, ones = a.bfloat16(), (a > 0).to(torch.int8)
    big = torch.empty(elements, device=bench.device)
    other = torch.empty_like(big)
    each: dict[str, tuple[float, Callable[[], object]]] = {
        "fp32": (2 * n**3, lambda: a @ a),
        "bf16": (2 * n**3, lambda: half @ half),
        "int8": (2 * n**3, lambda: cuda.product(ones, ones)),
        "bytes": (2 * big.nbytes, lambda: other.copy_(big)),
    }
    for name, (amount, call) in each.items():
        call()
        bench.peak[name] = amount / min(bench.seconds(call) for _ in range(8))
        print(f"{name}: {bench.peak[name]:.3g} a second", flush=True)


def right(bench: Bench) -> None:
    """Odd sizes against the CPU's kernels and float64."""
    shapes = (1, 4, 3), (65, 16, 40), (200, 16, 33), (1000, 64, 100), (5000, 64, 50)
    for (m, d, n), exchanges, kept in itertools.product(shapes, (False, True), (False, True)):
        here = Problem.of(n, d, m, "cpu")
        there = Problem(*(t.to(bench.device) for t in here))
        expected = descend(*here, G=gram(here.W) if kept else None, exchanges=exchanges)
        found = descend(*there, G=gram(there.W) if kept else None, exchanges=exchanges)
        same = float((expected.words == found.words.cpu()).all(1).float().mean())
        fine = there.best_gain(found) < 1e-5 and same > 0.9  # rounding decides ties
        bench.check(f"descent {d}x{m}, exchanges {exchanges}, G {kept}: {same:.0%} same", fine)
    for n, m in (2, 1), (40, 65), (333, 200), (1000, 1500):
        h = (torch.rand(n, m) < 0.2).double().to(bench.device)
        bits, leaf = PackedBits.pack(h), h.clone().requires_grad_()
        bench.check(f"pack {n}x{m}", torch.equal(bits.unpack(torch.float64), h))
        bench.check(
            f"co-occurrence {n}x{m}", torch.equal(cuda.co_occurrence(bits).double(), h.T @ h)
        )
        apart = torch.cdist(h, h, p=1)
        bench.check(f"Hamming {n}x{m}", torch.equal(cuda.hamming(bits, bits).double(), apart))
        penalty, gradient = cuda.covariance(bits)
        expected = dense_covariance_penalty(leaf)
        fine = torch.allclose(penalty, expected.detach(), rtol=1e-9)
        (slope,) = torch.autograd.grad(expected, leaf)
        fine &= torch.allclose(gradient.double(), slope, rtol=1e-5, atol=1e-6)
        bench.check(f"covariance {n}x{m}", fine)


def descents(bench: Bench) -> None:
    """Beside a row of torch's kernels a flip. The floor: the product that gives the gains, and a
    row of G for each bit that is on, twice where exchanges are looked for."""
    for (d, m), n in itertools.product(bench.sizes, bench.rows):
        given = Problem.of(n, d, m, bench.device)
        G = gram(given.W)
        for exchanges in (False, True):
            options: Any = {"G": G, "exchanges": exchanges}
            flips = float(descend(*given, **options).unpack().sum()) / n
            rows = (1 + exchanges) * flips + 1  # of G, and the gains themselves
            floor = 2 * n * d * m / bench.peak["fp32"] + 4 * n * m * rows / bench.peak["bytes"]
            calls: dict[str, Callable[[], object]] = {
                "bitlens": lambda given=given, options=options: descend(*given, **options)
            }
            if m < 10_000:
                calls["flip by flip"] = lambda given=given, options=options: flip_by_flip(
                    given, **options
                )
            what = ", exchanges" if exchanges else ""
            bench.compare(f"descent {d}x{m}, {n} rows, {flips:.0f} on{what}", calls, floor)
        del G


def flip_by_flip(given: Problem, G: Tensor | None, exchanges: bool) -> None:
    """What is done where there is no triton."""
    kernel = descent_cuda.triton_kernel
    descent_cuda.triton_kernel = lambda device: None  # type: ignore[assignment]
    try:
        descend(*given, G=G, exchanges=exchanges)
    finally:
        descent_cuda.triton_kernel = kernel


def steps(bench: Bench) -> None:
    """Training steps, and whether anything in one waits for the device. The floor: six products of
    bf16, two forward and four backward."""
    for (d, m), n in itertools.product(bench.sizes, bench.rows):
        calls = {name: training_step(bench, d, m, n, kind) for name, kind in KINDS.items()}
        for name, call in calls.items():
            call()
            if bench.device == "cuda":
                torch.cuda.set_sync_debug_mode("error")
                try:
                    call()
                except RuntimeError as error:
                    bench.check(f"step {name} {d}x{m} waits for nothing ({error})", False)
                else:
                    bench.check(f"step {name} {d}x{m} waits for nothing", True)
                finally:
                    torch.cuda.set_sync_debug_mode("default")
        floor = 6 * 2 * n * d * m / bench.peak["bf16"]
        bench.compare(f"training step {d}x{m}, {n} rows", calls, floor)


def training_step(
    bench: Bench, d: int, m: int, n: int, kind: dict[str, Any]
) -> Callable[[], object]:
    """A step of this architecture, on the same rows again and again."""
    settings = TrainConfig(n_latents=m, batch_size=n, steps=1000, **kind).resolved(d, bench.device)
    model = build(settings, d, d)
    model.initialise(torch.Generator().manual_seed(0))
    model = model.to(bench.device)
    x = Problem.of(n, d, m, bench.device).x
    x = x / x.std()
    learner = make_learner(model, settings, lambda n, seed: x[torch.randint(len(x), (n,))])
    learner.start()
    adam = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
    learner.step = 601  # the encoder learns, and no other step's duties are due

    def step() -> None:
        learner.backward(x)
        adam.step()

    return step


def counting(bench: Bench) -> None:
    """Counts and distances beside float products; the floor is that of int8, or of the bytes."""
    for (_, m), n in itertools.product(bench.sizes, bench.rows):
        h = (torch.rand(n, m, device=bench.device) < 0.02).bfloat16()
        bits, leaf = PackedBits.pack(h), h.float().requires_grad_()
        calls: dict[str, Callable[[], object]] = {"bitlens": lambda b=bits: cuda.covariance(b)}
        if m < 10_000:
            calls["torch.cov and autograd"] = lambda x=leaf: (
                torch.cov(x.T).abs().sum() - torch.var(x, 0).sum()
            ).backward()
        bench.compare(f"covariance {n}x{m}", calls, 4 * n * m * m / bench.peak["int8"])
        calls = {"bitlens": lambda b=bits: cuda.co_occurrence(b), "bf16": lambda h=h: h.T @ h}
        bench.compare(f"co-occurrence {n}x{m}", calls, 2 * n * m * m / bench.peak["int8"])
        few = bits[:64]
        calls = {"bitlens": lambda b=bits, q=few: cuda.hamming(q, b)}
        calls["float"] = lambda h=h: torch.cdist(h[:64].float(), h.float(), p=1)
        least = (bits.words.nbytes + 4 * len(few) * n) / bench.peak["bytes"]
        bench.compare(f"Hamming 64x{n}, {m} bits", calls, least)
        z = torch.randn(n, m, device=bench.device)
        pack = {"bitlens": lambda z=z: PackedBits.step(z)}
        bench.compare(f"pack {n}x{m}", pack, z.nbytes / bench.peak["bytes"])


PARTS = {f.__name__: f for f in (peaks, right, descents, steps, counting)}


def main(arguments: list[str] | None = None) -> None:
    """Exit status 1 where a part failed or a result is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="width x latents")
    parser.add_argument("--rows", nargs="+", type=int, default=[512, 4096])
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    args = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes = [tuple(map(int, size.split("x"))) for size in args.sizes]
    bench, failed = Bench(device, sizes, args.rows), []
    for name in dict.fromkeys(["peaks", *args.parts]):
        try:
            PARTS[name](bench)
        except Exception:
            traceback.print_exc()
            failed.append(name)
        if device == "cuda":
            torch.cuda.empty_cache()
    if args.json:
        machine = torch.cuda.get_device_name() if device == "cuda" else "CPU"
        about = {"machine": machine, "torch": torch.__version__, "failed": failed}
        kept = {"peaks_per_second": bench.peak, "checks": bench.checks, "figures": bench.figures}
        write_json(args.json, {**about, **kept})
    if failed or not all(check["right"] for check in bench.checks):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
