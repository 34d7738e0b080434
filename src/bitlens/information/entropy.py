"""How many bits of information a code carries, in bits a row: estimates, bounds and intervals.

`marginal` and `tree` are plug-in estimates with the correction of Miller (1955) and Madow: upper
bounds on the joint entropy of the rows' distribution, up to what the correction misses. The code
lengths are bounds without that reservation: what unseen documents cost to write down.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from bitlens import terminal
from bitlens.bits.entropies import conditional_entropy_from_counts, entropy_from_counts
from bitlens.bits.packed import PackedBits
from bitlens.bits.shards import AnyBits
from bitlens.bits.statistics import co_occurrence
from bitlens.bits.words import words_for
from bitlens.errors import BitlensError
from bitlens.information.autoregression import Autoregression
from bitlens.information.intervals import Estimate, jackknife
from bitlens.information.plan import entropy_plan
from bitlens.information.tree import Blocks, Tree, TreeCounts, chow_liu, supported
from bitlens.memory import require
from bitlens.results import Number, brief
from bitlens.seeding import mixed


@dataclass(frozen=True)
class Entropy:
    """The entropy of a code. All in bits a row, with intervals over documents."""

    __repr__ = brief

    rows: int
    blocks: int
    """independent blocks of rows, whole documents; code lengths rest on the held-out ones"""
    n_latents: int
    bits_lower: Annotated[float, Number("at least this, whatever the distribution (95 % sure)")]
    """at 95 % confidence; never above log2(rows)"""
    bits_marginal: Annotated[Estimate, Number("sum of the latents' own entropies")]
    """corrected for the numbers of rows and of documents"""
    bits_tree: Annotated[Estimate, Number("every latent given one other (Chow-Liu)")]
    """corrected likewise: never more than the marginal sum"""
    code_marginal: Annotated[
        Estimate, Number("code length of unseen documents, latents on their own")
    ]
    code_tree: Annotated[Estimate, Number("the same, every latent given one other")]
    bits_joint: Annotated[
        Estimate,
        Number("the same, every latent given all before it: an upper bound on the joint entropy"),
    ]


@terminal.shown("bits_tree")
def plug_in_bits(bits: AnyBits, documents: Tensor | None = None) -> tuple[float, float]:
    """Corrected entropy of the latents on their own, and (never more) under the Chow-Liu tree, in
    bits a row. documents: of every row `[rows]`; without them rows count as independent."""
    tree = chow_liu(co_occurrence(bits), len(bits))
    if documents is not None:
        tree = supported(tree, TreeCounts.of(bits, Blocks.of(len(bits), documents), tree))
    counts = TreeCounts.of(bits, Blocks.whole(len(bits)), tree)
    marginal, under_tree = _marginal_and_tree(counts, tree)
    return float(marginal), float(under_tree)


@terminal.shown("entropy")
def entropy(
    bits: AnyBits,
    documents: Tensor | None = None,
    test: Tensor | None = None,
    *,
    seed: int = 0,
    model: Autoregression | None = None,
    progress: bool = True,
) -> Entropy:
    """Estimate and bound the entropy of a code.

    documents: the document of every row `[rows]`, consecutive rows of one document together;
    without them rows count as independent. test: bool `[rows]`, the rows whose code length is
    measured while the others fit it; by default the last fifth of the blocks. model: of these
    latents, not fitted on rows in `test`, for bits_joint; by default one is fitted on the others.
    progress: show it on standard error.
    """
    bits, documents, test = _checked(bits, documents, test)
    held = 8 * words_for(bits.n_latents) if isinstance(bits, PackedBits) else 0
    blocks = Blocks.of(len(bits), documents)
    plan = entropy_plan(len(bits), bits.n_latents, len(blocks), held=held)
    require(lambda: plan, "measure fewer rows, or an autoencoder of fewer latents")
    if test is None:
        test = blocks.last_fifth()
    if not test.any() or test.all():
        what = "A code length is fitted on some documents and measured on others"
        raise BitlensError(f"{what}, and here all rows are on one side; encode more documents.")
    terminal.stage("pairs")
    pairs = co_occurrence(bits.where(~test))
    fit_tree = chow_liu(pairs, int((~test).sum()))
    co_occurrence(bits.where(test), counts=pairs)
    tree = chow_liu(pairs, len(bits))
    del pairs  # large
    terminal.stage("tree")
    marginal, under_tree = _plug_in(bits, blocks, tree, unbiased=documents is not None)
    terminal.stage("autoregression")
    code_marginal, code_tree, joint = _held_out(bits, documents, test, fit_tree, seed, model)
    return Entropy(
        rows=len(bits),
        blocks=len(blocks),
        n_latents=bits.n_latents,
        bits_lower=lower_bits(bits, documents),
        bits_marginal=marginal,
        bits_tree=under_tree,
        code_marginal=code_marginal,
        code_tree=code_tree,
        bits_joint=joint,
    )


def _checked(
    bits: AnyBits, documents: Tensor | None, test: Tensor | None
) -> tuple[AnyBits, Tensor | None, Tensor | None]:
    """The same on the CPU, if shapes and types fit."""
    if len(bits) < 2:
        raise BitlensError(f"An entropy needs at least two rows, not {len(bits)}.")
    for name, column in (("documents", documents), ("test", test)):
        if column is not None and column.shape != (len(bits),):
            shape = list(column.shape)
            raise BitlensError(f"There are {len(bits)} rows of bits, but {name} has shape {shape}.")
    if test is not None and test.dtype != torch.bool:
        raise BitlensError(f"test must be a bool for every row, not {test.dtype}.")
    documents, test = (None if column is None else column.cpu() for column in (documents, test))
    if isinstance(bits, PackedBits):
        bits = PackedBits(bits.words.cpu(), bits.n_latents)
    return bits, documents, test


def _marginal_and_tree(counts: TreeCounts, tree: Tree) -> tuple[Tensor, Tensor]:
    """Corrected entropies of the rows of each block or sample, `[...]` each."""
    ons = counts.ons
    own = entropy_from_counts(torch.stack([ons, counts.rows[..., None] - ons], -1))
    given = conditional_entropy_from_counts(counts.tables(tree), (-2, -1), -2)
    given = torch.where(tree.parents >= 0, torch.minimum(given, own), own)
    return own.sum(-1), given.sum(-1)


def _plug_in(bits: AnyBits, blocks: Blocks, tree: Tree, unbiased: bool) -> list[Estimate]:
    """-> marginal and tree entropy of all rows. unbiased: less the bias of few documents, which the
    correction for independent rows leaves."""
    counts = TreeCounts.of(bits, blocks, tree)
    tree = supported(tree, counts)

    def entropies(weights: Tensor) -> Tensor:
        return torch.stack(_marginal_and_tree(counts.weighted(weights), tree), -1)

    marginal, under_tree = jackknife(entropies, blocks.rows, unbiased=unbiased)
    return [marginal, min(under_tree, marginal, key=lambda estimate: estimate.value)]


def _held_out(
    bits: AnyBits,
    documents: Tensor | None,
    test: Tensor,
    tree: Tree,
    seed: int,
    model: Autoregression | None,
) -> list[Estimate]:
    """Code lengths of the rows in `test`, by the others: latents alone, tree, autoregression."""
    fit, held = bits.where(~test), bits.where(test)
    of_fit, of_held = (None if documents is None else documents[rows] for rows in (~test, test))
    blocks = Blocks.of(len(held), of_held)
    counts = TreeCounts.of(fit, Blocks.whole(len(fit)), tree)
    simple = _code_lengths(counts, TreeCounts.of(held, blocks, tree), tree)
    model = model or Autoregression.fit(fit, of_fit, seed, tree=tree)
    lengths = model.code_lengths(held)
    sums = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    of_blocks = sums[torch.from_numpy(blocks.bounds)].diff()
    per_block, rows = torch.cat([simple, of_blocks[None]]).double(), blocks.rows.double()
    return jackknife(lambda weights: weights @ per_block.T / (weights @ rows)[:, None], rows)


def _code_lengths(fit: TreeCounts, held: TreeCounts, tree: Tree) -> Tensor:
    """Bits that each held-out block costs, latents alone and given their parents: `[2, blocks]`.

    Probabilities are those of Krichevsky and Trofimov (1981): half a count is added to each state.
    """
    n, ons = fit.rows[0].double(), fit.ons[0].double()
    own = torch.log2(torch.stack([n - ons, ons], -1) + 0.5) - torch.log2(n + 1)
    offs = held.rows[:, None] - held.ons
    marginal = -(held.ons.double() @ own[:, 1] + offs.double() @ own[:, 0])
    pair = fit.tables(tree)[0]
    parent = pair.sum(-2)
    given = torch.log2(pair + 0.5) - torch.log2(parent.double() + 1)[:, None]
    root = tree.parents < 0
    given[root] = own[root][:, :, None]
    return torch.stack([marginal, -(held.tables(tree) * given).sum((1, 2, 3))])


def lower_bits(bits: AnyBits, documents: Tensor | None = None, confidence: float = 0.95) -> float:
    """Bits a row that the distribution of these rows carries at least, with this confidence.

    The entropy of the rows as counted is in expectation never above the true one (it is concave in
    the distribution), and replacing a document of m among n rows moves it by at most
    `m (log2 n + log2 e) / n`, so by McDiarmid's inequality it is seldom far above its expectation.
    It can never exceed log2 n; no bound without assumptions can by much (McAllester & Stratos
    2020), so with many bits the truth lies far above. documents: as for `entropy`.
    """
    n = len(bits)
    if n == 0:
        raise BitlensError("There are no rows, so there is no entropy.")
    hashes = np.concatenate([_hashes(block) for block in bits.blocks()])
    hashes.sort()
    counts = torch.from_numpy(hashes.view(np.int64)).unique_consecutive(return_counts=True)[1]
    counts = counts.double()
    entropy = math.log2(n) - float((counts * counts.log2()).sum()) / n
    sizes = torch.ones(n) if documents is None else documents.unique(return_counts=True)[1]
    change = (math.log2(n) + math.log2(math.e)) * float((sizes.double() / n).square().sum().sqrt())
    return max(0.0, entropy - change * math.sqrt(-math.log(1 - confidence) / 2))


def _hashes(bits: PackedBits) -> np.ndarray:
    """Of each row; two rows that share one by accident only lower the entropy. uint64 `[rows]`"""
    hashes = np.zeros(len(bits), np.uint64)
    for column in bits.numpy().T:
        hashes = mixed(hashes ^ column)
    return hashes
