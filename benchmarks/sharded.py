"""`python -m benchmarks.sharded`: what it takes to search the bits of a batch where the latents are
spread over processes, beside one process and beside processes that share out the rows.

Every way searches the same rows and then exchanges what a training step needs: the sum of what the
latents explain, or the gradients of decoder and encoder. Bytes are those that a process receives,
as a ring does it: of a gather what the others hold, of a sum twice that. Rows are made of latents
that are on as in a trained dictionary, few of them often.

  rows             each process has all latents and some of the rows
  latents, N       each has some latents; N flips of a row are told in a round
  columns of G     each has some latents, and W W^T for these, and is told indices alone
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor, distributed

from bitlens import processes
from bitlens.autoencoders.descent import FLIPS, GRAM_UP_TO
from bitlens.bits import descent_sharded
from bitlens.bits.descent import GRAM_BYTES, TOLERANCE, descend, gram
from bitlens.bits.packed import PackedBits


@dataclass(frozen=True)
class Arguments:
    """See `main`."""

    widths: tuple[int, ...]
    d: int
    rows: int
    on: float
    repeats: int
    device: str


Problem = tuple[Tensor, Tensor, Tensor, Tensor]
traffic = {"collectives": 0, "bytes": 0.0}


def count_traffic() -> None:
    """From here on, collectives are counted, and what they bring to this process."""
    n = processes.world_size()

    def counted(called: Callable[..., Any], received: Callable[..., float]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            traffic["collectives"] += 1
            traffic["bytes"] += received(*args)
            return called(*args)

        return call

    gather, add = distributed.all_gather, distributed.all_reduce
    distributed.all_gather = counted(gather, lambda _, own: (n - 1) * own.nbytes)
    distributed.all_reduce = counted(add, lambda own, *_: 2 * (n - 1) / n * own.nbytes)


def problem(m: int, d: int, n: int, on: float, device: str) -> Problem:
    """Rows of `on` latents each, whose rates fall as 1 / rank, and noise -> x, W, b, price"""
    g = torch.Generator().manual_seed(0)
    W = torch.randn(m, d, generator=g) * (0.5 + torch.rand(m, 1, generator=g))
    rates = 1 / torch.arange(5, m + 5)
    rates = (rates * on / rates.sum()).clamp_max(0.3)[torch.randperm(m, generator=g)]
    x = torch.zeros(n, d)
    for first in range(0, n, 64):  # a block of rows at a time: m may be large
        bits = torch.rand(min(64, n - first), m, generator=g) < rates
        x[first : first + 64] = bits.float() @ W
    x += 0.4 * x.std() * torch.randn(n, d, generator=g)
    price = 0.1 * x.square().sum(1).mean() / on * torch.ones(m)
    return tuple(t.to(device) for t in (x, W, torch.zeros(d), price))  # pyright: ignore[reportReturnType]


def by_rows(x: Tensor, W: Tensor, b: Tensor, price: Tensor) -> Tensor:
    """-> bits of this process's rows"""
    G = gram(W) if len(W) <= GRAM_UP_TO * len(x) else None
    own = x[processes.part(len(x))]
    bits = descend(own, W, b, price, G=G, flips=FLIPS, exchanges=False)
    if processes.world_size() > 1:
        processes.add(torch.zeros_like(W), torch.zeros_like(W))
    return bits.unpack()


def by_latents(together: int) -> Callable[..., Tensor]:
    """-> bits of this process's latents"""

    def search(x: Tensor, W: Tensor, b: Tensor, price: Tensor) -> Tensor:
        bits = descent_sharded.descend(x, W, b, price, flips=FLIPS, together=together)
        descent_sharded.explained(bits, W)
        return bits.unpack()

    return search


def by_columns_of_gram(x: Tensor, W: Tensor, b: Tensor, price: Tensor) -> Tensor:
    """One flip of every row in a round: its latent's index is told, its row of W W^T is here."""
    every = processes.gather(W, processes.world_size() * len(W))
    G, square = every @ W.T, W.square().sum(1)
    a = torch.addmm(-square - price, x - b, W.T, alpha=2)
    on = torch.zeros(a.shape, dtype=torch.bool, device=a.device)
    tolerance, place = TOLERANCE * (x - b).square().sum(1), torch.arange(len(x), device=a.device)
    while len(place):
        top = torch.where(on[place], -a[place] - 2 * square, a[place]).max(1)
        sign = torch.where(on[place, top.indices], -1.0, 1.0)
        told = processes.of_each(torch.stack([top.values, top.indices.float(), sign]))
        best, holder = told[:, 0].max(0)
        live = best > tolerance[place]
        index, sign = told.gather(0, holder.expand(1, 3, -1))[0, 1:, live]
        place, holder = place[live], holder[live]
        a[place] -= 2 * sign[:, None] * G[holder * len(W) + index.long()]
        mine = holder == processes.rank()
        on[place[mine], index[mine].long()] ^= True
    descent_sharded.explained(PackedBits.pack(on), W)
    return on.float()


WAYS = {
    "rows": by_rows,
    "latents, 1": by_latents(1),
    "latents, 4": by_latents(4),
    "latents, 16": by_latents(16),
    "columns of G": by_columns_of_gram,
}


def measure(args: Arguments) -> None:
    """In each process: a line of JSON for each width and way."""
    processes.start()
    count_traffic()
    device, n = args.device, processes.world_size()
    for m in args.widths:
        x, W, b, price = problem(m, args.d, args.rows, args.on, device)
        own = processes.part(m)
        for name, search in WAYS.items():
            spread = name != "rows"
            mine = (W[own].clone(), b, price[own]) if spread else (W, b, price)
            if name == "columns of G" and 4 * m**2 > n * GRAM_BYTES:
                continue
            seconds, bits = [], torch.empty(0)
            for _ in range(args.repeats + 1):
                processes.wait_for_all()
                traffic.update(collectives=0, bytes=0.0)
                begun = time.perf_counter()
                bits = search(x, *mine)
                if device != "cpu":
                    torch.cuda.synchronize()
                seconds.append(time.perf_counter() - begun)
            took = torch.tensor(min(seconds[1:]))
            said = dict(traffic)
            processes.largest(took)
            # of each process some rows, or some latents
            parts = [bits.to(device) @ mine[0], (bits * mine[2]).sum(1)]
            if spread:
                processes.add(*parts)
            left = x[processes.part(len(x))] if not spread else x
            energy = ((left - b - parts[0]).double().square().sum(1) + parts[1].double()).sum()
            flips = bits.sum()
            if not spread:
                processes.add(energy)
            processes.add(flips)
            line = {"processes": n, "m": m, "way": name, "seconds": float(took)}
            line |= {"collectives": said["collectives"], "bytes": said["bytes"] / len(x)}
            line |= {"energy": float(energy), "on": float(flips) / len(x)}
            if processes.is_first():
                print("=" + json.dumps(line), flush=True)


def main(
    widths: tuple[int, ...] = (2048, 16384),
    d: int = 256,
    rows: int = 512,
    on: float = 20.0,
    several: Annotated[tuple[int, ...], tyro.conf.arg(name="processes")] = (1, 2, 4),
    repeats: int = 2,
    device: str = "cpu",
) -> None:
    """Time, collectives and bytes of each way, for each number of processes."""
    args = Arguments(widths, d, rows, on, repeats, device)
    if "RANK" in os.environ:
        measure(args)
        return
    print("| latents | processes | way | bits on | s | collectives | received a row | energy |")
    print("| ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: |")
    lines = []
    for n in several:
        launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(n)]
        done = subprocess.run(
            [*launch, "-m", "benchmarks.sharded", *sys.argv[1:]], stdout=subprocess.PIPE, check=True
        )
        lines += [json.loads(line[1:]) for line in done.stdout.splitlines() if line[:1] == b"="]
    for line in sorted(lines, key=lambda line: (line["m"], line["processes"])):
        first = next(one for one in lines if one["m"] == line["m"])
        print(
            f"| {line['m']:,} | {line['processes']} | {line['way']} | {line['on']:.1f} "
            f"| {line['seconds']:.3f} | {line['collectives']:,} | {line['bytes'] / 1000:,.1f} kB "
            f"| {line['energy'] / first['energy'] - 1:+.1e} |"
        )


if __name__ == "__main__":
    tyro.cli(main)
