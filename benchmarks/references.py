"""The sparse baselines beside the trainers of SAELens and dictionary_learning: held-out fvu at
equal l0.

Every library trains on the same standardised rows in the same order, with the same width, batch and
number of steps. bitlens takes its default learning rate; a reference takes the best of `--lrs`, or
of that, its own default and 1e-3. A reference is led to an l0 of about `--k` by its own knob; then
bitlens is trained to have the l0 that the reference turned out to have on the held-out rows, and
where it ends more than 2 % off, trained again, and its fvu read off the line through both in log l0
and log fvu (marked ~). Below some 500 steps bitlens's sparsity weight has no time to lead it to an
l0.

OMP_NUM_THREADS=1 python benchmarks/references.py [--steps 3000] [--architectures topk] [--libraries
sae-lens]
"""

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from itertools import islice, product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import bitlens as bl
from benchmarks.speed.rivals import TRAINERS, Run, Trainer, versions
from bitlens.autoencoders.registry import SPARSE
from bitlens.hidden import Corpus
from bitlens.hidden.harvest import harvest
from bitlens.hidden.text import ContextReader
from bitlens.information.moments import Variance, squared_error
from bitlens.options import BUNDLED

ARCHITECTURES = ["relu", "gated", "topk", "batch_topk", "jumprelu"]
AIMS_AT_L0 = (
    "dictionary-learning",
    "jumprelu",
)  # is told an l0; the others of WEIGHTS a weight of the sparsity term

WEIGHTS = {
    "relu": 1.7,
    "gated": 2.0,
    "jumprelu": 2.5,
}  # of the sparsity term, where the search for an l0 begins
STEEPNESS = 0.6  # about how the weight that gives an l0 falls with it: as its power


@dataclass(frozen=True)
class Point:
    """One autoencoder, on held-out rows. sparsity: what its trainer was told."""

    l0: float
    fvu: float
    seconds: float
    lr: float
    sparsity: float


class Contest:
    """One store, one length of run, and the autoencoders that are trained on it."""

    def __init__(
        self, store: bl.ActivationStore, steps: int, batch_size: int, n_latents: int, seed: int
    ) -> None:
        self.store, self.steps, self.batch_size, self.n_latents, self.seed = (
            store,
            steps,
            batch_size,
            n_latents,
            seed,
        )
        self.test = self.standardise(torch.cat([rows.hidden for rows in store.read("test")]))
        self.own = cache(self._own)

    def standardise(self, rows: Tensor) -> Tensor:
        return (rows.float() - self.store.mean) / self.store.scale

    @torch.no_grad()
    def measure(
        self, encode: Callable[[Tensor], Tensor], decode: Callable[[Tensor], Tensor]
    ) -> tuple[float, float]:
        """(l0, fvu about the mean) on the held-out rows, sums in float64"""
        on, error, variance = 0.0, 0.0, Variance()
        for x in self.test.split(4096):
            codes = encode(x)
            on += float((codes != 0).sum())
            error += squared_error(x, decode(codes))
            variance.add(x)
        return on / len(self.test), variance.fvu(error)

    def _own(self, architecture: Any, k: int) -> Point:
        begun = time.perf_counter()
        config = bl.TrainConfig(
            architecture,
            n_latents=self.n_latents,
            steps=self.steps,
            batch_size=self.batch_size,
            k=k,
            seed=self.seed,
        )
        model = bl.train(self.store, config)
        seconds = time.perf_counter() - begun
        numbers = self.measure(lambda x: model.code(model.pre_activations(x)), model.reconstruct)
        return Point(*numbers, seconds, SPARSE["lr"], k)

    def own_at(self, architecture: str, l0: float) -> list[Point]:
        """bitlens's own with this l0; two of neighbouring k where the first is more than 2 %
        off."""
        points = [self.own(architecture, round(l0))]
        off = l0 / points[0].l0
        if abs(math.log(off)) > 0.02:
            more = round(points[0].sparsity * (off - 1)) or (1 if off > 1 else -1)
            points.append(self.own(architecture, max(1, round(l0) + more)))
        return points

    def _trainer(
        self, library: str, architecture: str, sparsity: float, lr: float | None
    ) -> Trainer:
        torch.manual_seed(self.seed)
        shape = (self.store.d_in, self.n_latents, self.steps, self.batch_size)
        return TRAINERS[library](Run(architecture, *shape, sparsity, lr))

    def default_lr(self, library: str, architecture: str) -> float:
        return self._trainer(library, architecture, 1, None).lr

    def reference(self, library: str, architecture: str, sparsity: float, lr: float) -> Point:
        trainer = self._trainer(library, architecture, sparsity, lr)
        begun = time.perf_counter()
        for rows, _ in islice(self.store.batches(self.batch_size, self.seed), self.steps):
            trainer.step(self.standardise(rows))
        seconds = time.perf_counter() - begun
        result = trainer.finish()
        return Point(*self.measure(result.encode, result.decode), seconds, lr, sparsity)

    def reference_at(
        self, library: str, architecture: str, lr: float, l0: float, tries: int
    ) -> list[Point]:
        """References of one learning rate, up to the first whose l0 is within 5 % of this one."""
        weighted = architecture in WEIGHTS and (library, architecture) != AIMS_AT_L0
        sparsity, points = WEIGHTS[architecture] if weighted else l0, []
        for _ in range(tries):
            points.append(self.reference(library, architecture, sparsity, lr))
            print(f"  {architecture}, {library}: {points[-1]}", file=sys.stderr, flush=True)
            off = max(points[-1].l0, 0.01 * l0) / l0
            if abs(math.log(off)) < 0.05:
                break
            sparsity *= off**STEEPNESS if weighted else 1 / off
        return points


def apart(point: Point, l0: float) -> float:
    """Distance of the point's l0 from this one, in logarithms"""
    return abs(math.log(max(point.l0, 1e-9) / l0))


def fvu_at(points: list[Point], l0: float) -> float:
    """fvu at this l0, on the straight line in log l0 and log fvu through the two points nearest to
    it"""
    a, *others = sorted(points, key=lambda p: apart(p, l0))
    if not others or apart(others[0], a.l0) < 0.01:
        return a.fvu
    slope = math.log(others[0].fvu / a.fvu) / math.log(others[0].l0 / a.l0)
    return a.fvu * (l0 / a.l0) ** slope


def compare(
    contest: Contest, library: str, architecture: str, lrs: list[float] | None, k: int, tries: int
) -> dict[str, Any]:
    """The best of a library's learning rates at l0 k, and bitlens at the l0 that it has."""
    rates = set(lrs or (SPARSE["lr"], contest.default_lr(library, architecture), 1e-3))
    found = [contest.reference_at(library, architecture, lr, k, tries) for lr in sorted(rates)]
    ends = [min(points, key=lambda p: apart(p, k)) for points in found]
    ranked = zip(
        ends, found, strict=True
    )  # a line to far from its points says nothing: those that came near go first
    best = min(ranked, key=lambda pair: (max(apart(pair[0], k), 0.25), fvu_at(pair[1], k)))[0]
    own = contest.own_at(architecture, best.l0)
    nearest, fvu = min(own, key=lambda p: apart(p, best.l0)), fvu_at(own, best.l0)
    as_good = (
        "l0 missed" if apart(nearest, best.l0) > 0.1 else "yes" if fvu <= 1.02 * best.fvu else "no"
    )
    return {
        "architecture": architecture,
        "library": f"{library} {versions()[library]}",
        "lr": best.lr,
        "l0": best.l0,
        "own_l0": nearest.l0,
        "interpolated": len(own) > 1,
        "own_fvu": fvu,
        "fvu": best.fvu,
        "ratio": fvu / best.fvu,
        "as_good": as_good,
        "own_s": own[0].seconds,
        "s": best.seconds,
        "own_runs": [asdict(p) for p in own],
        "runs": [asdict(p) for points in found for p in points],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--n-latents", type=int, default=1024)
    parser.add_argument("--k", type=int, default=32, help="the l0 that is aimed at")
    parser.add_argument(
        "--lrs", type=float, nargs="+", help="learning rates of which a reference takes the best"
    )
    parser.add_argument(
        "--tries",
        type=int,
        default=3,
        help="most trainings of a reference to come within 5 %% of the l0",
    )
    parser.add_argument("--architectures", nargs="+", choices=ARCHITECTURES, default=ARCHITECTURES)
    parser.add_argument("--libraries", nargs="+", choices=list(TRAINERS), default=list(TRAINERS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--store", type=Path, help="by default layers.2 of the bundled model is harvested"
    )
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    lines = []
    with tempfile.TemporaryDirectory() as scratch:
        store = bl.ActivationStore(args.store) if args.store else harvested(Path(scratch) / "store")
        contest = Contest(store, args.steps, args.batch_size, args.n_latents, args.seed)
        print(
            "| architecture | reference | its lr | l0 | l0 ours | fvu ours | fvu reference | "
            "ratio | as good | s ours | s reference |"
        )
        print("| --- | --- |" + " ---: |" * 9)
        for architecture, library in product(args.architectures, args.libraries):
            n = compare(contest, library, architecture, args.lrs, args.k, args.tries)
            lines.append(n)
            print(
                f"| {architecture} | {n['library']} | {n['lr']:.2g} | {n['l0']:.1f} | "
                f"{n['own_l0']:.1f}{'~' * n['interpolated']} | {n['own_fvu']:.4f} | "
                f"{n['fvu']:.4f} | {n['ratio']:.3f} | {n['as_good']} | {n['own_s']:.0f} | "
                f"{n['s']:.0f} |",
                flush=True,
            )
            if args.json:
                args.json.write_text(json.dumps(lines, indent=1))


def harvested(folder: Path) -> bl.ActivationStore:
    model = bl.LanguageModel.load("bundled", hooks=["layers.2"])
    reader = ContextReader(Corpus((BUNDLED,)), model.tokenizer, 256, packed=False)
    (store,) = harvest(model, reader, folder, store_dtype=torch.float16)
    return store


if __name__ == "__main__":
    main()
