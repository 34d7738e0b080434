"""The Chow-Liu tree of a code: which single other latent tells most about each (Chow & Liu 1968).

Among all distributions in which every latent depends on one other, the maximum spanning tree over
the pairwise mutual informations is the likeliest. Its entropy is an upper bound on the joint
entropy, never above the sum of the marginals.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numba
import numpy as np
import torch
from torch import Tensor

from bitlens.bits.entropies import information_from_counts
from bitlens.bits.kernel import kernel
from bitlens.bits.packed import PackedBits, block_rows
from bitlens.bits.shards import AnyBits
from bitlens.bits.words import torch_threads
from bitlens.information.intervals import degrees_of_freedom, normal_deviate

# pyright: reportCallIssue=false, reportArgumentType=false

MAX_BLOCKS = 500  # that intervals rest on; more documents are joined


@dataclass(frozen=True)
class Tree:
    """parents `[n_latents]`: of each latent, -1 for a root. order: parents before children."""

    parents: Tensor
    order: Tensor


@kernel
def _k_log_k(k):
    return k * np.log2(k) if k > 0 else 0.0


@kernel(parallel=True)
def _offer(new, pairs, own, rows, best, parents, in_tree):
    """Offer latent `new` as a parent to every latent outside the tree: some gain by the change."""
    ons = pairs[new, new]
    for j in numba.prange(len(best)):
        if not in_tree[j]:
            both, other = pairs[new, j], pairs[j, j]
            joint = (
                _k_log_k(both)
                + _k_log_k(ons - both)
                + _k_log_k(other - both)
                + _k_log_k(rows - ons - other + both)
            )
            gain = joint - own[new] - own[j] + _k_log_k(rows)  # mutual information times rows
            if gain > best[j]:
                best[j], parents[j] = gain, new


@kernel
def _spanning_tree(pairs, rows, cost):
    n = len(pairs)
    own = np.empty(n)
    for j in range(n):
        own[j] = _k_log_k(pairs[j, j]) + _k_log_k(rows - pairs[j, j])
    best, parents = np.full(n, -np.inf), np.full(n, -1)
    in_tree, order = np.zeros(n, np.bool_), np.empty(n, np.int64)
    new = 0
    for step in range(n):
        in_tree[new], order[step] = True, new
        if best[new] <= cost:
            parents[new] = -1
        _offer(new, pairs, own, rows, best, parents, in_tree)
        top = -np.inf
        for j in range(n):
            if not in_tree[j] and (best[j] > top or top == -np.inf):
                top, new = best[j], j
    return parents, order


def chow_liu(co_occurrence: Tensor, rows: int) -> Tree:
    """The maximum spanning forest by Prim's algorithm; no matrix of mutual informations is made.

    An edge must save more bits than it costs to name, log2 of the latents for the parent and half a
    log2 of the rows for the parameter (Rissanen 1978), or the latent stays a root.

    co_occurrence: `H^T H`, int64 `[n_latents, n_latents]`, of so many rows.
    """
    cost = _edge_cost(rows, len(co_occurrence))
    with torch_threads():
        parents, order = _spanning_tree(co_occurrence.numpy(), rows, cost)
    return Tree(torch.from_numpy(parents), torch.from_numpy(order))


def _edge_cost(rows: int, latents: int) -> float:
    """Bits that an edge costs: a parent and a parameter"""
    return 0.5 * math.log2(max(rows, 1)) + math.log2(latents)


@dataclass(frozen=True)
class Blocks:
    """Blocks of consecutive rows: `bounds [blocks + 1]`."""

    bounds: np.ndarray

    @classmethod
    def of(cls, rows: int, documents: Tensor | None, most: int = MAX_BLOCKS) -> Blocks:
        """Whole documents, some joined where they are too many; without documents, runs of rows."""
        starts = np.arange(rows)
        if documents is not None:
            ids = documents.numpy()
            starts = np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]]))
        chosen = np.linspace(0, len(starts), min(len(starts), most) + 1).astype(np.int64)[:-1]
        return cls(np.append(starts[chosen], rows))

    @classmethod
    def whole(cls, rows: int) -> Blocks:
        """One block of all rows."""
        return cls(np.array([0, rows]))

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def last_fifth(self) -> Tensor:
        """Which rows are in the last fifth of the blocks, to be predicted from the others: bool."""
        return torch.arange(int(self.bounds[-1])) >= int(self.bounds[max(1, len(self) * 4 // 5)])

    @property
    def rows(self) -> Tensor:
        """Rows of each block, int64 `[blocks]`"""
        return torch.from_numpy(np.diff(self.bounds))


@dataclass(frozen=True)
class TreeCounts:
    """Rows of each block, `rows [blocks]`, and what is on in them, `[blocks, n_latents]`.

    ons: rows in which a latent is on. both: those in which its parent is on, too.
    """

    rows: Tensor
    ons: Tensor
    both: Tensor

    @classmethod
    def of(cls, bits: AnyBits, blocks: Blocks, tree: Tree) -> TreeCounts:
        """Count the rows of these blocks."""
        parents = tree.parents.clamp_min(0)
        ons = torch.zeros(len(blocks), bits.n_latents, dtype=torch.int64)
        both = torch.zeros_like(ons)
        step = block_rows(bits.n_latents)
        for i, (first, last) in enumerate(pairwise(blocks.bounds.tolist())):
            for start in range(first, last, step):
                columns = bits[start : min(start + step, last)].transpose()
                ons[i] += columns.row_counts()
                common = columns.words & columns.words[parents]
                both[i] += PackedBits(common, columns.n_latents).row_counts()
        return cls(blocks.rows, ons, both)

    def tables(self, tree: Tree) -> Tensor:
        """Rows in which latent (-2) and parent (-1) are off and on, `[..., n_latents, 2, 2]`"""
        theirs = self.ons[..., tree.parents.clamp_min(0)]
        neither = self.rows[..., None] - self.ons - theirs + self.both
        off = torch.stack([neither, theirs - self.both], -1)
        return torch.stack([off, torch.stack([self.ons - self.both, self.both], -1)], -2)

    def weighted(self, weights: Tensor) -> TreeCounts:
        """Sums over blocks with weights, float64 `[n, blocks]` -> counts of n samples"""
        return TreeCounts(*(weights @ count.double() for count in (self.rows, self.ons, self.both)))


def supported(tree: Tree, counts: TreeCounts) -> Tree:
    """The tree without the edges that pay only where rows of a document count as independent.

    counts: of every document. The bits that an edge saves are divided by the design effect of its
    covariance (Rao & Scott 1984) and read as a normal deviate z of Student's t: z^2 / (2 ln 2). The
    parents of the others stay, though a second best may have been better.
    """
    freedom = degrees_of_freedom(counts.rows)
    if freedom < 1:
        return Tree(torch.full_like(tree.parents, -1), tree.order)
    ons, both = counts.ons.sum(0), counts.both.sum(0)
    n, theirs = int(counts.rows.sum()), ons[tree.parents.clamp_min(0)]
    saved = n * information_from_counts(both, ons, theirs, n) / _design_effect(tree, counts)
    z = normal_deviate((saved.clamp_min(0) * 2 * math.log(2)).sqrt(), freedom)
    pays = z.square() / (2 * math.log(2)) > _edge_cost(n, len(tree.parents))
    return Tree(torch.where(pays, tree.parents, -1), tree.order)


def _design_effect(tree: Tree, counts: TreeCounts) -> Tensor:
    """The variance of a latent's covariance with its parent between documents over that of
    independent rows of the same joint distribution, `[n_latents]`, at least 1."""
    rows, ons, both = (x.double() for x in (counts.rows[:, None], counts.ons, counts.both))
    documents, n, theirs = len(rows), rows.sum(), ons[:, tree.parents.clamp_min(0)]
    p, q = ons.sum(0) / n, theirs.sum(0) / n

    def between(each: Tensor) -> Tensor:
        """Variance of a sum over documents, whose parts are `each [documents, n_latents]`"""
        return documents / (documents - 1) * (each - each.sum(0) / n * rows).square().sum(0)

    each = both - p * theirs - q * ons + p * q * rows  # these sum to the covariance, rows times
    a, b, c = both.sum(0), ons.sum(0), theirs.sum(0)
    squares = a * ((1 - p) * (1 - q)).square() + (b - a) * ((1 - p) * q).square()
    squares = squares + (c - a) * (p * (1 - q)).square() + (n - b - c + a) * (p * q).square()
    within = squares - each.sum(0).square() / n
    effect = torch.where(within > 1e-9 * squares, between(each) / within.clamp_min(1e-300), 1.0)
    # Two that are always alike, or never meet, need not show it: then by how alike each is within
    # documents.
    alike = float(rows.square().sum() / n) - 1
    own, parents = (
        (between(x) / (n * r * (1 - r)).clamp_min(1e-300) - 1).clamp_min(0)
        for x, r in ((ons, p), (theirs, q))
    )
    return effect.maximum(1 + own * parents.clamp_max(alike) / max(alike, 1.0))
