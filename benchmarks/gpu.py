"""`python -m benchmarks.gpu --json OUT`: the GPU's kernels checked, then timed beside alternatives.

Times are medians of alternating repetitions; each also as a share of what the measured peaks allow.
Parts are independent: one that fails says so, and the next begins.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitlens.bits import cuda, descent, descent_cuda
from bitlens.bits.descent import Descent, descend, gram
from bitlens.bits.packed import PackedBits

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
STEPS = [(576, 2304, 4096), (2048, 16384, 4096)]
SIZES = [(256, 1024), (576, 2304), (2048, 16384), (4096, 32768)]
result: dict[str, Any] = {"figures": []}
peak: dict[str, float] = {}
PARTS: dict[str, Callable[[], None]] = {}


def part(function: Callable[[], None]) -> Callable[[], None]:
    PARTS[function.__name__] = function
    return function


def wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def once(call: Callable[[], object]) -> float:
    wait()
    start = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - start


def compare(
    case: str, calls: dict[str, Callable[[], object]], floor: float = 0.0, budget: float = 1.5
) -> None:
    """Time the calls in turn; the first is what the others are compared with."""
    times: dict[str, list[float]] = {}
    firsts: dict[str, float] = {}
    for name, call in list(calls.items()):
        try:
            firsts[name] = once(call)
            times[name] = [once(call)]
        except Exception as error:
            print(
                f"{case} | {name} | FAILED {type(error).__name__}: {str(error)[:300]}", flush=True
            )
    began = time.perf_counter()
    for _ in range(9):
        for name in times:
            times[name].append(once(calls[name]))
        if time.perf_counter() - began > budget:
            break
    base = None
    for name, each in times.items():
        seconds = statistics.median(each)
        base = base or seconds
        share = f" {100 * floor / seconds:5.1f} % of peak" if floor else ""
        line = f"{case} | {name} | {1e3 * seconds:9.3f} ms | ratio {seconds / base:6.3f}{share}"
        print(f"{line} | first {firsts[name]:.2f} s, least {1e3 * min(each):.3f}", flush=True)
        figure = {"case": case, "name": name, "seconds": seconds, "least": min(each)}
        result["figures"].append({**figure, "floor": floor or None, "times": seconds / base})


@part
def peaks() -> None:
    n = 8192 if DEVICE == "cuda" else 256
    a = torch.randn(n, n, device=DEVICE)
    b, c = a.bfloat16(), (a > 0).to(torch.int8)
    int_mm = torch._int_mm  # pyright: ignore[reportPrivateImportUsage]
    calls = {"fp32": lambda: a @ a, "bf16": lambda: b @ b.T, "int8": lambda: int_mm(c, c.T)}
    for name, call in calls.items():
        call()
        peak[name] = 2 * n**3 / min(once(call) for _ in range(8))
    big = torch.empty((1 << 28) if DEVICE == "cuda" else 1 << 20, device=DEVICE)
    peak["bytes"] = 2 * big.nbytes / min(once(lambda: big.copy_(big * 1)) for _ in range(1))
    out = torch.empty_like(big)
    peak["bytes"] = 2 * big.nbytes / min(once(lambda: out.copy_(big)) for _ in range(8))
    result["peaks"] = dict(peak)
    print({name: f"{value:.3g}" for name, value in peak.items()}, flush=True)


def problem(n: int, d: int, m: int, on: int = 20) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows of about `on` latents and noise -> x, W, b, price"""
    g = torch.Generator(DEVICE).manual_seed(n + d + m)
    W = torch.randn(m, d, generator=g, device=DEVICE)
    h = (torch.rand(n, m, generator=g, device=DEVICE) < on / m).float()
    x = h @ W + torch.randn(n, d, generator=g, device=DEVICE) * on**0.5 / 2
    return x, W, torch.zeros(d, device=DEVICE), torch.full((m,), 0.3 * d, device=DEVICE)


def energy(x: Tensor, W: Tensor, b: Tensor, price: Tensor, bits: PackedBits) -> Tensor:
    h = bits.unpack(torch.float64)
    return (x.double() - h @ W.double() - b.double()).square().sum(1) + h @ price.double()


@part
def right() -> None:
    """Every kernel against the CPU, odd shapes; every single flip of a descent against float64."""
    for m, d, n in [(1, 4, 3), (65, 16, 40), (200, 16, 33), (1000, 64, 100), (5000, 64, 50)]:
        for exchanges, kept, started in itertools.product((False, True), repeat=3):
            given = problem(n, d, m, min(20, m / 5))
            host = [t.cpu() for t in given]
            start = PackedBits.pack(torch.rand(n, m) < 5 / m) if started else None
            there = None if start is None else PackedBits(start.words.to(DEVICE), m)
            options: dict[str, Any] = {"exchanges": exchanges}
            G = gram(host[1]) if kept else None
            here = descend(*host, G=G, start=start, **options)
            G = None if G is None else G.to(DEVICE)
            found = descend(*given, G=G, start=there, **options)
            mine = PackedBits(found.words.cpu(), m)
            x, W, b, price = (t.double() for t in host)
            h = mine.unpack(torch.float64)
            gain = 2 * (x - h @ W - b) @ W.T * (1 - 2 * h) - W.square().sum(1) - (1 - 2 * h) * price
            worst = float((gain.max(1).values / x.square().sum(1)).max())
            same = float((mine.words == here.words).all(1).float().mean())
            more = float((energy(*host, mine) / energy(*host, here)).mean()) - 1
            verdict = "ok" if worst < 1e-5 and abs(more) < 1e-2 else "WRONG"
            print(
                f"descent {m}x{d}x{n} exchanges={exchanges} G={kept} start={started}: {verdict}"
                f" same {same:.3f} energy {more:+.1e} best flip left {worst:+.1e}",
                flush=True,
            )
    for n, m in [(2, 1), (40, 65), (333, 200), (1000, 1500)]:
        bits = PackedBits.pack(torch.rand(n, m) < 0.2)
        there = PackedBits(bits.words.to(DEVICE), m)
        h = bits.unpack(torch.float64)
        counts = h.T @ h
        v = n * counts - h.sum(0)[:, None] * h.sum(0)
        v.fill_diagonal_(0)
        gradient = (h - h.mean(0)) @ v.sign() * 2 / (n - 1)
        apart = torch.cdist(h, h, p=1)
        for name, (count, cov, distance) in FORMS.items():
            if name == "compiled" and m < 1000:
                continue
            try:
                total, slope = cov(there)
                fine = torch.equal(count(there).cpu().double(), counts)
                fine &= abs(float(total) - float(v.abs().sum()) / (n * (n - 1))) < 1e-9 * m * m
                error = float((slope.cpu().double() - gradient).abs().max())
                fine &= error <= 1e-6 * max(1e-9, float(gradient.abs().max()))
                fine &= torch.equal(distance(there, there).cpu().double(), apart.round())
                print(f"counts {n}x{m} {name}: {'ok' if fine else 'WRONG'} {error:.1e}", flush=True)
            except Exception as error:
                print(f"counts {n}x{m} {name}: FAILED {str(error)[:200]}", flush=True)


# --- alternatives that are tried -----------------------------------------------------------------


def padded(x: Tensor) -> Tensor:
    rows, columns = -x.shape[0] % 32, -x.shape[1] % 32
    return torch.nn.functional.pad(x, (0, columns, 0, rows)) if rows or columns else x


def both_by_rows(a: Tensor, b: Tensor) -> Tensor:
    """int8 `[m, k]`, `[n, k]` -> int32 a b^T `[m, n]`: what tensor cores want."""
    whole = torch._int_mm(padded(a), padded(b).T)  # pyright: ignore[reportPrivateImportUsage]
    return whole[: len(a), : len(b)]


def by_bf16(a: Tensor, b: Tensor) -> Tensor:
    return torch.mm(a.bfloat16(), b.bfloat16().T, out_dtype=torch.float32).int()


def co_occurrence_with(product: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    def count(bits: PackedBits) -> Tensor:
        m = bits.n_latents
        counts = torch.zeros(m, m, dtype=torch.int64, device=DEVICE)
        for start in range(0, len(bits), cuda.ROWS):
            columns = bits[start : start + cuda.ROWS].unpack(torch.int8).T.contiguous()
            for first in range(0, m, 4096):
                counts[first : first + 4096] += product(columns[first : first + 4096], columns)
        return counts

    return count


def signs(N: Tensor, counts: Tensor, mine: Tensor, n: int, first: int) -> tuple[Tensor, Tensor]:
    """Signs of `n N - c c^T`, int8, 0 on the diagonal, and the sum of absolute values."""
    v = n * N.long() - mine[:, None] * counts
    v = torch.where(
        mine.new_tensor(first) + torch.arange(len(N), device=N.device)[:, None]
        == torch.arange(N.shape[1], device=N.device),
        0,
        v,
    )
    return v.sign().to(torch.int8), v.abs().sum()


def plain_signs(N: Tensor, counts: Tensor, mine: Tensor, n: int, first: int):
    small = n < 46341  # then n N and c c^T fit 32 bits
    kind = torch.int32 if small else torch.int64
    v = torch.addr(N.to(kind), mine.to(kind), counts.to(kind), beta=n, alpha=-1)
    v.diagonal(first).zero_()
    return v.sign().to(torch.int8), v.abs().sum(dtype=torch.int64)


@torch.compile(dynamic=True)
def fused_signs(N: Tensor, counts: Tensor, mine: Tensor, n: int, first: int):
    v = n * N.long() - mine[:, None] * counts
    at = first + torch.arange(N.shape[0], device=N.device)[:, None]
    v = torch.where(at == torch.arange(N.shape[1], device=N.device), 0, v)
    return v.sign().to(torch.int8), v.abs().sum()


def covariance_with(signs: Callable[..., Any], product: Callable[..., Tensor], tile: int):
    def covariance(bits: PackedBits) -> tuple[Tensor, Tensor]:
        h, n = bits.unpack(torch.int8), len(bits)
        columns = h.T.contiguous()
        counts = h.sum(0, dtype=torch.int64)
        total = torch.zeros((), dtype=torch.float64, device=h.device)
        gradient = torch.empty(h.shape, device=h.device)
        for first in range(0, bits.n_latents, tile):
            some = slice(first, first + tile)
            sign, size = signs(product(columns[some], columns), counts, counts[some], n, first)
            total += size
            products = product(h, sign).float()
            mean = products.sum(0, dtype=torch.float64) / n
            gradient[:, some] = (products - mean.float()) * (2 / (n - 1))
        return total / (n * (n - 1)), gradient

    return covariance


def hamming_by_rows(queries: PackedBits, codes: PackedBits) -> Tensor:
    q, c = queries.unpack(torch.int8), codes.unpack(torch.int8)
    ons = q.sum(1, dtype=torch.int32)[:, None] + c.sum(1, dtype=torch.int32)
    return ons - 2 * both_by_rows(q, c)


@torch.compile(dynamic=True)
def _popcounts(q: Tensor, c: Tensor) -> Tensor:
    v = q[:, None] ^ c
    v = v - ((v >> 1) & 0x55555555)
    v = (v & 0x33333333) + ((v >> 2) & 0x33333333)
    v = (v + (v >> 4)) & 0x0F0F0F0F
    return (((v * 0x01010101) >> 24) & 0x3F).sum(2, dtype=torch.int32)


def hamming_by_popcount(queries: PackedBits, codes: PackedBits) -> Tensor:
    return _popcounts(queries.words.view(torch.int32), codes.words.view(torch.int32))


def pack_by_octets(bits: Tensor) -> PackedBits:
    on = (bits != 0).reshape(-1, bits.shape[-1])
    wide = torch.nn.functional.pad(on, (0, -on.shape[1] % 64)).view(torch.uint8)
    place = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=on.device)
    octets = (wide.view(len(on), -1, 8) * place).sum(2, dtype=torch.uint8)
    return PackedBits(octets.view(torch.int64), on.shape[1])


@torch.compile(dynamic=True)
def _packed(z: Tensor) -> Tensor:
    shifts = torch.arange(32, device=z.device, dtype=torch.int32)
    return ((z > 0).view(z.shape[0], -1, 32).int() << shifts).sum(2, dtype=torch.int32)


def pack_compiled(z: Tensor) -> PackedBits:
    return PackedBits(_packed(z).view(torch.int64), z.shape[1])


FORMS: dict[str, Any] = {
    "present": (cuda.co_occurrence, cuda.covariance, cuda.hamming),
    "by rows": (
        co_occurrence_with(both_by_rows),
        covariance_with(plain_signs, both_by_rows, 4096),
        hamming_by_rows,
    ),
    "compiled": (
        co_occurrence_with(both_by_rows),
        covariance_with(fused_signs, both_by_rows, 4096),
        hamming_by_popcount,
    ),
    "bf16": (
        co_occurrence_with(by_bf16), covariance_with(plain_signs, by_bf16, 4096), hamming_by_rows
    ),
}  # fmt: skip


# --- what is timed -------------------------------------------------------------------------------


def searched(held: int, chunk: int, per_thread: int, G: Tensor, given: Any, exchanges: bool):
    from bitlens.bits import descent_triton as kernel

    x, W, b, price = given
    tolerance = descent.TOLERANCE * (x - b).square().sum(1)
    most = torch.full((len(x),), 4 * len(W), dtype=torch.int32, device=DEVICE)
    a = Descent(W, b, price, G, 0, exchanges).gains(x, None)
    words = torch.zeros(len(x), (len(W) + 63) // 64, dtype=torch.int64, device=DEVICE)

    def run() -> Tensor:
        kernel.HELD, kernel.CHUNK, kernel.PER_THREAD = held, chunk, per_thread
        return kernel.descend(a.clone(), G, words.zero_(), most, exchanges, tolerance)

    return run, words


def descent_of(d: int, m: int, n: int, exchanges: bool, slow: bool) -> None:
    given = problem(n, d, m)
    x, W, b, price = given
    G = W @ W.T
    run, _ = (
        searched(16384, 4096, 16, G, given, exchanges)
        if m <= 16384
        else searched(0, 4096, 16, G, given, exchanges)
    )
    flips = float(run().float().mean())
    calls: dict[str, Any] = {}
    if m <= 16384:
        for per in (16,) if m < 2000 else (16, 32) if exchanges else (8, 16, 32):
            calls[f"held, {per} a thread"] = searched(16384, 0, per, G, given, exchanges)[0]
    for chunk, per in ((1024, 8), (4096, 16)):
        if m > 2000 and (m >= 16384 or chunk == 1024):
            name = f"streamed {chunk}, {per} a thread"
            calls[name] = searched(0, chunk, per, G, given, exchanges)[0]
    first = (16384, 0, 16) if m <= 16384 else (0, 4096, 16)
    if m > 2000 and not exchanges:
        calls["bf16 G"] = searched(*first, G.bfloat16(), given, exchanges)[0]
    if slow:
        tolerance = descent.TOLERANCE * (x - b).square().sum(1)
        a = Descent(W, b, price, G, 0, exchanges).gains(x, None)

        def plain() -> None:
            on = torch.zeros(n, m, dtype=torch.bool, device=DEVICE)
            left = torch.full((n,), 4 * m, dtype=torch.int32, device=DEVICE)
            rows = descent_cuda.Rows(a.clone(), on, G, tolerance, left)
            rows.flip_while_it_gains()
            while exchanges and rows.exchange():
                rows.flip_while_it_gains()

        calls["torch, a flip of all rows at a time"] = plain
    read = 4 * n * m * (flips + 2)
    print(f"descent {d}x{m}, {n} rows: {flips:.1f} flips a row", flush=True)
    name = f"descent {d}x{m}, {n} rows{', exchanges' if exchanges else ''}"
    compare(name, calls, read / peak.get("bytes", 3e12), 0.7)
    if not exchanges and n == 4096:
        kept = {"gains": lambda: Descent(W, b, price, G, 0, False).gains(x, None)}
        kept |= {"gram": lambda: W @ W.T, "whole, G kept": lambda: descend(*given, G=G)}
        kept["whole, no exchanges, no look"] = lambda: descend(
            *given, G=G, exchanges=False, finite=True
        )
        if m <= 16384:
            kept["whole, no G"] = lambda: descend(*given, exchanges=False)
        compare(f"around descent {d}x{m}, {n} rows", kept, 0, 0.7)


@part
def descents() -> None:
    for d, m in SIZES[:3]:
        descent_of(d, m, 4096, False, slow=m < 4000)
    descent_of(576, 2304, 4096, True, slow=True)
    descent_of(2048, 16384, 4096, True, slow=False)
    descent_of(576, 2304, 512, False, slow=True)
    descent_of(*SIZES[3], 4096, False, slow=False)


@part
def steps() -> None:
    """Training steps: seconds, and that nothing waits for the device in between."""
    from bitlens.autoencoders.learner import build, make_learner
    from bitlens.training.config import TrainConfig

    for d, m, batch in STEPS:
        x = torch.randn(batch, d, device=DEVICE)
        calls, samples = {}, {}
        for name, kind in {
            "topk": {"architecture": "topk"}, "bae": {"architecture": "bae"},
            "bae step": {"architecture": "bae", "preset": "step"},
            "relu": {"architecture": "relu"}, "batch_topk": {"architecture": "batch_topk"},
        }.items():  # fmt: skip
            try:
                config = TrainConfig(n_latents=m, batch_size=batch, steps=1000, **kind)
                settings = config.resolved(d, DEVICE)
                model = build(settings, d, d)
                model.initialise(torch.Generator().manual_seed(0))
                model = model.to(DEVICE)
                learner = make_learner(
                    model,
                    settings,
                    lambda n, g, d=d: samples.setdefault((n, d), torch.randn(n, d, device=DEVICE)),
                )
                learner.start()
                adam = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)

                def step(learner=learner, adam=adam, at=itertools.count(1)) -> None:
                    learner.step = next(at) % 900
                    learner.backward(x)
                    adam.step()
                    learner.after_step(1, adam)

                step()
                calls[name] = step
                torch.cuda.set_sync_debug_mode("error")
                try:
                    step()
                    print(f"step {name} {d}x{m}: nothing waits", flush=True)
                except RuntimeError:
                    where = [
                        f"{f.filename.split('/')[-1]}:{f.lineno}"
                        for f in traceback.extract_tb(__import__("sys").exc_info()[2])
                    ][-3:]
                    print(f"step {name} {d}x{m}: WAITS at {where}", flush=True)
                finally:
                    torch.cuda.set_sync_debug_mode("default")
            except Exception as error:
                print(f"step {name} {d}x{m}: FAILED {error!r}"[:400], flush=True)
                traceback.print_exc()
        floor = 6 * 2 * batch * d * m / peak.get("bf16", 6e14)
        compare(f"training step {d}x{m}, batch {batch}", calls, floor, 2.0)


@part
def counting() -> None:
    for n, m in [(4096, 2304), (4096, 16384)]:
        bits = PackedBits.pack(torch.rand(n, m, device=DEVICE) < 0.02)
        floor = 4 * n * m * m / peak.get("int8", 1e15)
        calls = {name: lambda f=f: f[1](bits) for name, f in FORMS.items()}
        compare(f"covariance {n}x{m}", calls, floor, 1.0)
    n, m = 1 << 18, 4096
    bits = PackedBits.pack(torch.rand(n, m, device=DEVICE) < 0.02)
    calls = {name: lambda f=f: f[0](bits) for name, f in FORMS.items() if name != "compiled"}
    compare(f"co-occurrence {n}x{m}", calls, 2 * n * m * m / peak.get("int8", 1e15), 1.5)
    codes = PackedBits(torch.randint(-(1 << 62), 1 << 62, (1 << 18, 16), device=DEVICE), 1024)
    for queries in (1, 64, 1024):
        calls = {
            name: lambda f=f, q=queries: f[2](codes[:q], codes)
            for name, f in FORMS.items()
            if name != "bf16"
        }
        compare(
            f"Hamming {queries} x {len(codes):,} codes of 1,024 bits",
            calls,
            max(codes.words.nbytes + 4 * queries * len(codes), 1) / peak.get("bytes", 3e12),
            1.0,
        )
    z = torch.randn(4096, 16384, device=DEVICE)
    packs = {"present": PackedBits.pack, "octets": pack_by_octets, "compiled": pack_compiled}
    for name, pack in packs.items():
        same = torch.equal(pack(z.relu()).words.cpu(), PackedBits.pack(z.relu().cpu()).words)
        print(f"pack {name}: {'ok' if same else 'WRONG'}", flush=True)
    compare(
        "pack 4096x16384",
        {name: lambda p=p: p(z) for name, p in packs.items()},
        z.nbytes / peak.get("bytes", 3e12),
        0.7,
    )
    bits = PackedBits.pack(z.relu())
    compare(
        "unpack 4096x16384",
        {"float": bits.unpack, "int8": lambda: bits.unpack(torch.int8)},
        z.nbytes / peak.get("bytes", 3e12),
        0.5,
    )


@part
def grams() -> None:
    for d, m in SIZES[1:3]:
        W = torch.randn(m, d, device=DEVICE)
        exact = (W[:512].double() @ W.double().T).float()

        def split(W=W) -> Tensor:
            """Three products of TF32, whose errors cancel."""
            high = (W.view(torch.int32) & -8192).view(torch.float32)
            torch.backends.cuda.matmul.allow_tf32 = True
            try:
                cross = high @ (W - high).T
                return (high @ high.T).add_(cross).add_(cross.T)
            finally:
                torch.backends.cuda.matmul.allow_tf32 = False

        def tf32(W=W) -> Tensor:
            torch.backends.cuda.matmul.allow_tf32 = True
            try:
                return W @ W.T
            finally:
                torch.backends.cuda.matmul.allow_tf32 = False

        calls = {"fp32": lambda W=W: W @ W.T, "3 x tf32": split, "tf32": tf32}
        for name, call in calls.items():
            error = float((call()[:512] - exact).abs().max() / d)
            print(f"gram {d}x{m} {name}: largest error / |w|^2 {error:.1e}", flush=True)
        compare(f"gram {d}x{m}", calls, 2 * d * m * m / peak.get("fp32", 5e13), 0.7)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--parts", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--seconds", type=float, default=180, help="no part begins after that")
    args = parser.parse_args()
    name = torch.cuda.get_device_name() if DEVICE == "cuda" else "CPU"
    result["machine"] = {"device": name, "torch": torch.__version__}
    began = time.perf_counter()
    for name in dict.fromkeys(["peaks", *args.parts]):
        if time.perf_counter() - began > args.seconds:
            print(f"-- {name}: no time left", flush=True)
            continue
        try:
            PARTS[name]()
        except Exception:
            traceback.print_exc()
        if DEVICE == "cuda":
            torch.cuda.empty_cache()
        print(f"-- {name}: after {time.perf_counter() - began:.0f} s", flush=True)
        if args.json:
            args.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
